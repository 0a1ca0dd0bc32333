"""Random runs: any shipped mechanism with any workload, loop, CPUs, pinning, windows and costs, drawn from one seed.

    python tests/random_runs.py FIRST LAST     # one line a seed: a digest of its rows

The engine checks each run itself (`replay.engine.checks`) and refuses one that loses a fault or does not end.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import Mechanism, list_mechanisms, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

NAMES = list_mechanisms()
COSTS = load_costs()
MECHANISMS = {name: load_mechanism(name) for name in NAMES}


@dataclass(frozen=True)
class Case:
    """What one seed stands for."""

    work: Workload
    mechanism: Mechanism
    costs: CostTable
    options: dict[str, Any]

    def run(self) -> Result:
        return simulate(self.work, self.mechanism, self.costs, **self.options)


def case(seed: int) -> Case:
    """The run of `seed`: mechanisms, loops, CPUs and pinning in turn, the rest drawn."""
    mechanism = MECHANISMS[NAMES[seed % len(NAMES)]]
    turn = seed // len(NAMES)
    return drawn_case(seed, mechanism, (None, 1, 2, 3, 5)[turn % 5], ("closed", "open")[turn // 5 % 2], turn // 10 % 2)


def drawn_case(seed: int, mechanism: Mechanism, cpus: int | None, loop: str, pinned: int) -> Case:
    """A run of `mechanism`: workload, windows, costs and the other options by `seed`."""
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {
        "seed": seed,
        "loop": loop,
        "cpus": cpus,
        "pinned": bool(cpus) and bool(pinned),
        "retouch": ("recorded", "working-set")[int(rng.integers(2))],
    }
    work, span = _workload(rng)
    if rng.random() < 0.3:
        begin, length = int(rng.integers(0, span)), int(rng.integers(0, 5_000_000))
        kind = [*WINDOW_KINDS, ""][int(rng.integers(len(WINDOW_KINDS) + 1))]
        after = begin + length + int(rng.integers(0, 3)) * 1_000
        windows = [Window(begin, length, kind), Window(after, int(rng.integers(0, 100_000)), kind)]
        options["windows"] = windows[: int(rng.integers(1, 3))]
    if rng.random() < 0.1:
        options["until_ns"] = int(rng.integers(0, span))
    options["rows"] = bool(rng.random() < 0.9)
    several = {p: int(rng.integers(1, 6)) for p in ("handlers", "tasks", "readers") if p in mechanism.params}
    costs = COSTS.with_constants(preempt=3_000) if rng.random() < 0.5 else COSTS
    if rng.random() < 0.25:
        costs = costs.with_constants(**{name: int(rng.choice([0, 0, 1_000, 5_000])) for name in costs})
    return Case(work, mechanism.with_params(several if rng.random() < 0.7 else {}), costs, options)


def _workload(rng: np.random.Generator) -> tuple[Workload, int]:
    accessors, faults = int(rng.integers(1, 9)), int(rng.integers(1, 120))
    think = int(10 ** rng.uniform(0, 6.5)) + 1
    shared = rng.random() < 0.4
    streams: list[dict[str, Any]] = []
    for _ in range(accessors):
        stream: dict[str, Any] = {
            "think_ns": rng.integers(0, think, faults),
            "access": rng.integers(0, 3, faults),
            "kind": ("vcpu", "vcpu", "vmm", "kernel")[int(rng.integers(4))],
            "recorded_stall_ns": rng.integers(0, 30_000, faults),
        }
        if shared:
            stream["page"] = rng.integers(0, max(accessors * faults // 3, 1), faults)
        if rng.random() < 0.3:
            stream["cause"] = CAUSES[int(rng.integers(len(CAUSES)))]
        streams.append(stream)
    work = make_workload(streams)
    if rng.random() < 0.2:
        work = replace(work, asleep_ns=np.minimum(work.think_ns, rng.integers(0, think, work.faults)))
    return work, think * faults + 1


def check(seed: int) -> str:
    """Run `seed`; what must hold beyond what the engine checks itself; a digest of what came out.

    Raises:
        AssertionError: naming the seed.
    """
    one = case(seed)
    return run_and_check(one, f"seed {seed}: {one.mechanism.name} {one.options}")


def run_and_check(one: Case, name: str) -> str:
    """Run a case; a digest of what came out, or why it was refused.

    Raises:
        AssertionError: naming the case.
    """
    try:
        result = one.run()
    except UsageError as error:
        return f"refused: {error}"
    if "until_ns" not in one.options:
        assert result.accessor_faults.tolist() == np.diff(one.work.accessor_start).tolist(), name
        assert sum(result.stage_ns.values()) == int(result.accessor_stall_ns.sum()), name
        assert min(result.stage_ns.values()) >= 0, name
        assert result.run_time_ns >= int(result.end_ns.max(initial=0)), f"{name}: it ends before its last fault"
    for key, use in result.resources.items():
        assert use.busy_ns >= 0 and use.wait_ns >= 0, f"{name}: {key}"
        assert not use.servers or use.busy_ns <= use.servers * use.instances * result.span_ns, f"{name}: {key}"
    data = hashlib.blake2b(digest_size=8)
    for array in (result.start_ns, result.stall_ns, result.latency_ns, result.histogram, result.accessor_stall_ns):
        data.update(np.ascontiguousarray(array).tobytes())
    data.update(repr((result.run_time_ns, result.stage_ns, result.resources)).encode())
    return data.hexdigest()


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(number, check(number), flush=True)
