"""Row by row the engine with host CPUs equals `cpu_model`, also where events fall on one instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_model import Replay, Steps, Thread
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_mechanisms import HEAD, write_mechanism

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import make_workload

NS = {
    "fault_entry": 1_517, "reader_wakeup": 2_003, "fetch": 130_021, "resolve": 2_203, "wake": 3_011,
    "wake_per_waiter": 61, "handler_loop": 709, "exit_userspace": 1_511, "reenter": 4_703, "apf_inject": 2_503,
    "apf_ready": 2_903, "unprotect_fixed": 6_007, "unprotect_per_page": 211, "host_fault": 3_301, "preempt": 1_709,
}  # fmt: skip
COSTS = load_costs().with_constants(**NS)
ASLEEP_FROM = 5_000


HANDLER = '[resources.handler]\nkind = "servers"\nservers = SERVERS\n'
TASK = '[resources.task]\nkind = "servers"\nservers = SERVERS\nper = "accessor"\n'
SLEEPERS = '[resources.sleepers]\nkind = "waitqueue"\n'
STAGES: dict[str, tuple[str, list[str]]] = {
    "ideal": ("", ['wake = "0ns"\nawake = true']),
    "lazy": ("", ['delay = "host_fault"', 'wake = "0ns"\nawake = true']),
    "exits": ("", ['delay = "exit_userspace"', 'delay = "fetch"\nasleep = true', 'delay = "resolve"',
                   'wake = "reenter"\nawake = true']),
    "handlers": (HANDLER + SLEEPERS, ['delay = "fault_entry"', 'sleep = "sleepers"',
                 'acquire = "handler"\nidle = "reader_wakeup"',
                 'delay = "fetch"\nasleep = true', 'delay = "resolve"',
                 'wake = "wake"\nfrom = "sleepers"\nwalk = "wake_per_waiter"', 'delay = "handler_loop"',
                 'release = "handler"']),
    "woken by itself": (HANDLER, ['delay = "fault_entry"',
                        'acquire = "handler"\nidle = "reader_wakeup"', 'delay = "unprotect_fixed"',
                        'delay = "unprotect_per_page"\nwhen = "write"', 'delay = "handler_loop"\nwhen = "write"',
                        'release = "handler"', 'delay = "wake"', 'wake = "0ns"']),
    "tasks": (TASK, ['delay = "apf_inject"', 'acquire = "task"', 'wake = "0ns"', 'delay = "fetch"\nasleep = true',
              'delay = "resolve"', 'delay = "apf_ready"', 'release = "task"']),
}  # fmt: skip
"""As kvm-exit, uffd-missing, uffd-wp and async-pf are, without what is shared by pages."""


class Paths:
    """The same paths as steps; every access writes."""

    def __init__(self, replay: Replay, handlers: int) -> None:
        self.replay, self.sleepers = replay, 0
        accessors = len(replay.think)
        self.server = replay.thread(accessors)
        self.server.serves = True
        replay.pools = {"handler": handlers, **{("task", a): handlers for a in range(accessors)}}

    def asleep(self, ns: int) -> Steps:
        yield ("sleep" if ns >= ASLEEP_FROM else "run"), ns

    def ideal(self, a: int, own: Thread) -> Steps:
        yield from ()

    def lazy(self, a: int, own: Thread) -> Steps:
        yield "run", NS["host_fault"]

    def exits(self, a: int, own: Thread) -> Steps:
        yield "run", NS["exit_userspace"]
        yield from self.asleep(NS["fetch"])
        yield "run", NS["resolve"]
        yield "run", NS["reenter"]

    def handlers(self, a: int, own: Thread) -> Steps:
        yield "run", NS["fault_entry"]
        self.sleepers += 1
        yield "get", "handler", self.server, NS["reader_wakeup"]
        yield from self.asleep(NS["fetch"])
        yield "run", NS["resolve"]
        self.sleepers -= 1
        yield "run", NS["wake_per_waiter"] * self.sleepers
        yield "wake", NS["wake"], own, self.handler_comes_back()

    def handler_comes_back(self) -> Steps:
        yield "run", NS["handler_loop"]
        yield "give", "handler", True

    def woken_by_itself(self, a: int, own: Thread) -> Steps:
        yield "run", NS["fault_entry"]
        yield "get", "handler", self.server, NS["reader_wakeup"]
        for name in ("unprotect_fixed", "unprotect_per_page", "handler_loop"):
            yield "run", NS[name]
        yield "give", "handler", False
        yield "run", NS["wake"]
        yield "wake", 0, own, None

    def tasks(self, a: int, own: Thread) -> Steps:
        yield "run", NS["apf_inject"]
        yield "get", ("task", a)
        yield "wake", 0, own, self.worker(a)

    def worker(self, a: int) -> Steps:
        yield from self.asleep(NS["fetch"])
        yield "run", NS["resolve"] + NS["apf_ready"]
        yield "give", ("task", a), False


def both(folder: Path, name: str, think: list[list[int]], cpus: int, pinned: bool, servers: int) -> tuple[Any, Any]:  # noqa: PLR0917
    resources, stages = STAGES[name]
    text = HEAD + resources.replace("SERVERS", str(servers)) + "".join(f"[[paths.missing]]\n{s}\n" for s in stages)
    work = make_workload([{"think_ns": np.array(t, np.int64), "access": np.ones(len(t))} for t in think])
    model = Replay(think, cpus, pinned, NS["preempt"])
    model.run(getattr(Paths(model, servers), name.replace(" ", "_")))
    return simulate(work, load_mechanism(write_mechanism(folder, text)), COSTS, cpus=cpus, pinned=pinned), model


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("cpus", [1, 2, 3])
@pytest.mark.parametrize("name", STAGES)
def test_each_path_on_cpus_equals_the_model(name: str, cpus: int, pinned: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(cpus)
    think = [rng.integers(1, 900_000, 150).tolist() for _ in range(4)]
    result, model = both(tmp_path, name, think, cpus, pinned, 2)
    np.testing.assert_array_equal(result.start_ns, model.start)
    np.testing.assert_array_equal(result.stall_ns, model.stall)
    assert result.resources["cpus"].busy_ns == model.host.worked


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(STAGES)),
    accessors=st.integers(1, 6),
    cpus=st.integers(1, 4),
    pinned=st.booleans(),
    servers=st.integers(1, 3),
    scale=st.sampled_from([20, 20_000, 400_000, 9_000_000]),  # 20: many events at one instant
    seed=st.integers(0, 10_000),
)
@example(name="tasks", accessors=2, cpus=1, pinned=False, servers=1, scale=20_000, seed=1)  # two tails at one instant
def test_drawn_workloads_on_cpus_equal_the_model(  # noqa: PLR0917
    name: str, accessors: int, cpus: int, pinned: bool, servers: int, scale: int, seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    think = [rng.integers(1, scale, 30).tolist() for _ in range(accessors)]
    result, model = both(tmp_path, name, think, cpus, pinned, servers)
    np.testing.assert_array_equal(result.start_ns, model.start)
    np.testing.assert_array_equal(result.stall_ns, model.stall)
    assert result.resources["cpus"].busy_ns == model.host.worked
