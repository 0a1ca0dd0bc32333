"""Row by row the engine equals a simpy model of the same stages, wherever no two events fall on one instant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_mechanisms import HEAD, write_mechanism
from replay_model import Model

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

# a thousand times the real ones: at this scale two events on one instant are all but impossible
COSTS = CostTable({}).with_constants(
    fault_entry=1_517_003,
    reader_wakeup=2_003_011,
    fetch=30_011_017,
    resolve=2_203_019,
    resolve_per_page=311_027,
    wake=3_001_031,
    wake_per_waiter=61_043,
    handler_loop=709_057,
    exit_userspace=1_511_063,
    reenter=4_703_071,
    lock=307_079,
    herd_per_reader=503_089,
    stage2_fault=2_700_101,
    mm_share=300_109,
    mm_once=1_200_113,
    lock_contended=811_123,
    wake_cold=95_131,
    mm_serial=103_141,
    mm_serial_contended=1_503_149,
)

RESOURCES = """shards = 3
[resources.pool]
kind = "servers"
servers = {servers}
per = "{per}"
[resources.lock]
kind = "servers"
servers = 1
[resources.queue]
kind = "waitqueue"
per = "{per}"
[resources.spin]
kind = "lock"
[resources.own]
kind = "lock"
per = "{per}"
[resources.mm]
kind = "section"
[resources.wire]
kind = "link"
bandwidth = 999983
"""
STAGES: dict[str, list[str]] = {
    "delay": ['delay = "fault_entry"', 'wake = "wake"'],
    "pool": ['delay = "fault_entry"', 'acquire = "pool"', 'delay = "resolve"', 'release = "pool"', 'wake = "wake"'],
    "idle": ['acquire = "pool"\nidle = "reader_wakeup"', 'delay = "resolve"', 'release = "pool"', 'wake = "wake"'],
    "tail": ['acquire = "pool"', 'delay = "resolve"', 'wake = "wake"', 'delay = "handler_loop"', 'release = "pool"'],
    "walk": [
        'delay = "fault_entry"',
        'sleep = "queue"',
        'acquire = "pool"\nidle = "reader_wakeup"',
        'delay = "resolve"',
        'wake = "wake"\nfrom = "queue"\nwalk = "wake_per_waiter"',
        'delay = "handler_loop"',
        'release = "pool"',
    ],
    "waiters": [
        'delay = "fault_entry"',
        'sleep = "queue"',
        'acquire = "pool"',
        'delay = "lock"\ntimes = "waiters:queue"',
        'delay = "herd_per_reader"\ntimes = "idle:pool"',
        'release = "pool"',
        'wake = "wake"\nfrom = "queue"',
    ],
    "hold": ['delay = "fault_entry"', 'hold = "spin"\ntakes = "lock"\ncontended = "lock_contended"', 'wake = "wake"'],
    "hold for what is counted": [
        'delay = "fault_entry"',
        'sleep = "queue"',
        'hold = "own"\ntakes = "lock"\nalso = "herd_per_reader"\ntimes = "spare:pool"\nmost = 2',
        'acquire = "pool"\nidle = "reader_wakeup"',
        'hold = "own"\ntakes = "lock"\nalso = "handler_loop"\ntimes = "waiters:queue"\nmost = 1',
        "recorded = true",  # a random time: faults in lockstep would make ties
        'delay = "stage2_fault"\ntimes = "idle:pool"\nmost = 1',
        'release = "pool"',
        'wake = "wake"\nfrom = "queue"',
    ],
    "section": [
        'enter = "mm"\neach = "mm_share"\nonce = "mm_once"',
        'delay = "fault_entry"',
        'leave = "mm"',
        'acquire = "pool"',
        'enter = "mm"\neach = "mm_share"',
        'delay = "resolve"',
        'hold = "spin"\ntakes = "lock"',
        'leave = "mm"',
        'release = "pool"',
        'wake = "0ns"',
    ],
    "wake under a lock, warm and cold": [
        'delay = "fault_entry"',
        'sleep = "queue"',
        'hold = "own"\ntakes = "lock"\ncontended = "lock_contended"',
        'acquire = "pool"\nidle = "reader_wakeup"',
        'hold = "own"\ntakes = "lock"\ncontended = "lock_contended"',
        'delay = "resolve"',
        'wake = "wake"\nfrom = "queue"\nwalk = "wake_per_waiter"\ncold = "wake_cold"\nreaders = "pool"\nunder = "own"'
        '\ntakes = "lock"\ncontended = "lock_contended"\nwithin = "mm"\neach = "mm_share"\nonce = "mm_once"',
        'delay = "handler_loop"',
        'release = "pool"',
    ],
    "wake through a section": [
        'enter = "mm"\neach = "mm_share"',
        'delay = "fault_entry"',
        'leave = "mm"',
        'sleep = "queue"',
        'acquire = "pool"',
        'wake = "wake"\nfrom = "queue"\nwalk = "wake_per_waiter"\nwithin = "mm"\nonce = "mm_once"',
        'delay = "handler_loop"',
        'release = "pool"',
    ],
    "transfer": ['delay = "fault_entry"', 'transfer = "wire"\nlatency = "reader_wakeup"', 'wake = "wake"'],
    "transfer in pool": [
        'acquire = "pool"',
        'transfer = "wire"\nbytes = 65537',
        'delay = "resolve"',
        'wake = "wake"',
        'release = "pool"',
    ],
    "nested": [
        'delay = "fault_entry"',
        'acquire = "pool"',
        'delay = "resolve"',
        'acquire = "lock"',
        'delay = "lock"',
        'release = "lock"',
        'wake = "wake"',
        'acquire = "lock"',
        'delay = "lock"',
        'release = "lock"',
        'delay = "handler_loop"',
        'release = "pool"',
    ],
    "retry": [
        'delay = "fault_entry"\nlabel = "again"',
        'acquire = "pool"',
        'delay = "resolve"',
        'release = "pool"',
        'retry = "again"\nchance = 0.4\nmost = 3',
        'wake = "wake"',
    ],
    "when": [
        'delay = "fault_entry"\nwhen = "write"',
        'delay = "reader_wakeup"\nwhen = ["read", "vmm"]',
        'wake = "wake"',
    ],
    "recorded": ["recorded = true", 'wake = "0ns"'],
    "complete": [
        'delay = "fault_entry"',
        'wake = "wake"',
        'acquire = "pool"',
        'delay = "fetch"',
        "complete = true",
        'release = "pool"',
    ],
    "coalesce": [
        'delay = "fault_entry"',
        'sleep = "queue"',
        'coalesce = "join"',
        'acquire = "pool"',
        'delay = "fetch"',
        'wake = "wake"\nfrom = "queue"\nwalk = "wake_per_waiter"',
        'delay = "handler_loop"',
        'release = "pool"',
    ],
}


def mechanism_of(tmp_path: Path, stages: list[str], servers: int = 1, per: str = "vm") -> Mechanism:
    text = (
        HEAD + RESOURCES.format(servers=servers, per=per) + "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)
    )
    return load_mechanism(write_mechanism(tmp_path, text))


def random_workload(seed: int, accessors: int, faults: int, shared: bool) -> Workload:
    rng = np.random.default_rng(seed)
    streams: list[dict[str, Any]] = []
    for _ in range(accessors):
        stream: dict[str, Any] = {
            "think_ns": rng.integers(1, 60_000_000_000, faults) // rng.integers(1, 2_000),
            "access": rng.integers(0, 3, faults),
            "kind": "vmm" if rng.random() < 0.3 else "vcpu",
            "recorded_stall_ns": rng.integers(0, 1_000_000_000, faults),
        }
        if shared:
            stream["page"] = rng.integers(0, accessors * faults // 3 + 1, faults)
            stream["kind"] = "vmm"
        streams.append(stream)
    return make_workload(streams)


def assert_equal(workload: Workload, mechanism: Mechanism, seed: int = 0) -> None:
    result = simulate(workload, mechanism, COSTS, seed=seed)
    model = Model(workload, mechanism, COSTS, seed).run()
    np.testing.assert_array_equal(result.start_ns, model.start)
    np.testing.assert_array_equal(result.stall_ns, model.stall)
    if result.latency_ns.size:
        np.testing.assert_array_equal(result.latency_ns, model.latency)


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_kind_equals_simpy_row_by_row(name: str, servers: int, tmp_path: Path) -> None:
    mechanism = mechanism_of(tmp_path, STAGES[name], servers)
    assert_equal(random_workload(7, 6, 200, shared=name == "coalesce"), mechanism, seed=11)


# No coalescing with a queue for each accessor: joiners would sleep where the owner's wake cannot see them.
@pytest.mark.parametrize(
    ("name", "per"),
    [("idle", "accessor"), ("walk", "accessor"), ("idle", "shard"), ("walk", "shard"), ("coalesce", "shard")],
)
def test_instances_per_accessor_and_per_shard_equal_simpy(name: str, per: str, tmp_path: Path) -> None:
    mechanism = mechanism_of(tmp_path, STAGES[name], 2, per)
    assert_equal(random_workload(3, 5, 150, shared=name == "coalesce"), mechanism)


@pytest.mark.parametrize("handlers", [1, 2, 5])
@pytest.mark.parametrize("name", ["uffd-missing", "kvm-exit"])
def test_shipped_mechanisms_equal_simpy(name: str, handlers: int) -> None:
    mechanism = load_mechanism(name)
    if name == "uffd-missing":
        mechanism = mechanism.with_params({"handlers": handlers})
    rng = np.random.default_rng(handlers)
    streams = [{"think_ns": rng.integers(1_000_000, 300_000_000, 300)} for _ in range(8)]
    assert_equal(make_workload(streams), mechanism)


@pytest.mark.parametrize("servers", [1, 3])
def test_two_levels_and_retries_together_equal_simpy(servers: int, tmp_path: Path) -> None:
    """vCPUs retry over a link; VMM threads fall back to userfaultfd, which has resources of its own."""
    stages = [*STAGES["retry"][:3], 'transfer = "wire"', *STAGES["retry"][3:]]
    levels = 'serves = ["vcpu"]\n' + RESOURCES.format(servers=servers, per="vm") + '[fallback]\nvmm = "uffd-missing"\n'
    text = HEAD + levels + "".join(f"[[paths.missing]]\n{stage}\n" for stage in stages)
    work = random_workload(5, 9, 120, shared=False)
    assert set(work.accessor_kind.tolist()) == {0, 1}
    assert_equal(work, load_mechanism(write_mechanism(tmp_path, text)), seed=23)


@st.composite
def paths(draw: Any) -> list[str]:
    """A valid path: delays, pools, links, walks and tails in any order."""
    delays = st.sampled_from(["fault_entry", "reader_wakeup", "resolve", "fetch", "lock"])
    stages = [f'delay = "{draw(delays)}"']
    sleeps = draw(st.booleans())
    if sleeps:
        stages.append('sleep = "queue"')
    held = []
    for _ in range(draw(st.integers(0, 5))):
        what = draw(st.sampled_from(["delay", "pool", "lock", "wire"]))
        if what == "delay":
            stages.append(f'delay = "{draw(delays)}"')
        elif what == "wire":  # a random time before it: faults in lockstep would make ties
            stages += ["recorded = true", 'transfer = "wire"']
        elif what in held:
            stages.append(f'delay = "{draw(delays)}"')  # a hold of no time would make ties
            held.remove(what)
            stages.append(f'release = "{what}"')
        elif not held:  # never two at once in both orders: no deadlock
            held.append(what)
            stages.append("recorded = true")
            stages.append(f'acquire = "{what}"' + ('\nidle = "reader_wakeup"' if draw(st.booleans()) else ""))
    after = draw(st.booleans())
    if not after:
        stages += [f'delay = "lock"\n[[paths.missing]]\nrelease = "{name}"' for name in held]
    stages.append('wake = "wake"' + ('\nfrom = "queue"\nwalk = "wake_per_waiter"' if sleeps else ""))
    if after:
        stages += ['delay = "handler_loop"'] + [f'release = "{name}"' for name in held]
    return stages


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stages=paths(), servers=st.integers(1, 4), accessors=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_generated_mechanisms_equal_simpy(
    stages: list[str], servers: int, accessors: int, seed: int, tmp_path: Path
) -> None:
    assert_equal(random_workload(seed, accessors, 40, shared=False), mechanism_of(tmp_path, stages, servers))
