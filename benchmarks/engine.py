"""Faults per second of the engine, beside simpy and a plain C program of the same path, in one run on one machine.

    python benchmarks/engine.py [--faults 10000000] [--repeat 3]

Every figure is the best of the repeats; the engine's include laying out the workload's pages and making the result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.mechanism import Mechanism, load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

HERE = Path(__file__).parent
CHARGED = (
    "mm_share", "mm_once", "mm_serial", "mm_serial_contended", "lock", "lock_contended", "herd_per_reader", "wake_cold",
)  # fmt: skip
"""Contention, in the order of the C program's arguments."""
DRAWN = (
    "fault_entry",
    "reader_wakeup",
    "fetch",
    "resolve",
    "wake",
    "handler_loop",
)  # in the order the compiled path draws them


APART = 1_000
"""simpy runs on times so many times longer: at the real ones events share instants, and their order is simpy's own."""


def workload(vcpus: int, faults: int, longer: int = 1) -> Workload:
    rng = np.random.default_rng(1)
    low, high = 1_000 * longer, 200_000 * longer
    return make_workload([{"think_ns": rng.integers(low, high, faults // vcpus)} for _ in range(vcpus)])


def best(repeat: int, run: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return min(times), result


def build_c(folder: Path) -> Path:
    program = folder / "engine"
    subprocess.run(["cc", "-O3", "-march=native", "-o", str(program), str(HERE / "engine.c")], check=True)
    return program


def run_c(program: Path, work: Workload, costs: CostTable, mechanism: Mechanism, repeat: int) -> tuple[float, int, int]:
    """Seconds (best), total stall and run time of the C program on the same think times and tables."""
    data = program.with_suffix(".data")
    with data.open("wb") as file:
        for name in DRAWN:
            costs[name].distribution.table_ns().tofile(file)
        work.think_ns.tofile(file)
    walk = round(costs["wake_per_waiter"].distribution.mean)
    per = work.faults // work.accessors
    charged = [str(round(costs[name].distribution.mean)) for name in CHARGED]
    handlers, in_vain = (str(int(mechanism.values[name])) for name in ("handlers", "woken_in_vain"))
    command = [str(program), str(data), str(work.accessors), str(per), handlers, str(walk), "0", in_vain, *charged]
    outs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(repeat)]
    return min(int(out[0]) for out in outs) / 1e9, int(outs[0][1]), int(outs[0][2])


def run_simpy(work: Workload, costs: CostTable, handlers: int) -> int:
    """The path as a simpy user would write it, with the costs of `without_dearer`; the total stall."""
    env = simpy.Environment()
    pool, lock = simpy.Resource(env, handlers), simpy.Resource(env)
    ns = {name: round(costs[name].distribution.mean) for name in (*DRAWN, "wake_per_waiter", "lock")}
    state = {"sleepers": 0, "stall": 0}

    def wake(since: int, event: simpy.Event) -> Any:
        yield env.timeout(ns["wake"])
        state["stall"] += int(env.now) - since
        event.succeed()

    def held(took: int) -> Any:
        with lock.request() as turn:
            yield turn
            yield env.timeout(took)

    def fault(since: int, event: simpy.Event) -> Any:
        yield env.timeout(ns["fault_entry"])
        state["sleepers"] += 1
        yield from held(ns["lock"])
        idle = pool.count < pool.capacity
        turn = pool.request()
        yield turn
        yield env.timeout(ns["reader_wakeup"] * idle)
        yield from held(ns["lock"])
        yield env.timeout(ns["fetch"] + ns["resolve"])
        state["sleepers"] -= 1
        yield from held(ns["lock"] + ns["wake_per_waiter"] * state["sleepers"])
        env.process(wake(since, event))
        yield env.timeout(ns["handler_loop"])
        pool.release(turn)

    def vcpu(a: int) -> Any:
        for row in range(int(work.accessor_start[a]), int(work.accessor_start[a + 1])):
            yield env.timeout(int(work.think_ns[row]))
            event = env.event()
            env.process(fault(int(env.now), event))
            yield event

    for a in range(work.accessors):
        env.process(vcpu(a))
    env.run()
    return int(state["stall"])


def without_dearer(means: CostTable) -> CostTable:
    """No cost of contention but that of a lock, the same alone or contended: holds of 0 ns would end on one instant."""
    lock = means["lock"].distribution.mean
    return means.without_contention().with_constants(lock=lock, lock_contended=lock)


def cases() -> list[tuple[str, Mechanism, tuple[Window, ...]]]:
    uffd = load_mechanism("uffd-missing")
    return [
        ("uffd-missing, 1 handler", uffd, ()),
        ("uffd-missing, 4 handlers", uffd.with_params({"handlers": 4}), ()),
        ("kvm-exit", load_mechanism("kvm-exit"), ()),
        ("freeze, one window", load_mechanism("freeze"), (Window(10**9, 5 * 10**7),)),
        ("kvm-notify-wait", load_mechanism("kvm-notify-wait"), ()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 16, 256])
    options = parser.parse_args()
    costs = load_costs()
    means = costs.with_constants(**{name: APART * round(costs[name].distribution.mean) for name in costs})
    small = workload(4, 4_000)
    begin = time.perf_counter()
    simulate(small, load_mechanism("uffd-missing"), costs)
    print(f"first call, compiled or from the cache: {time.perf_counter() - begin:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        program = build_c(Path(folder))
        for vcpus in options.vcpus:
            work = workload(vcpus, options.faults)
            print(f"\n{vcpus} vCPUs, {work.faults:,} faults" + " " * 19 + "M faults/s")
            for name, mechanism, windows in cases():
                run = partial(simulate, work, mechanism, costs, windows=windows)
                seconds, result = best(options.repeat, run)
                line = f"  {name:<34} {work.faults / seconds / 1e6:8.2f}"
                if name.startswith("uffd-missing"):
                    line += beside(work, costs, means, mechanism, program, seconds, result, options.repeat)
                print(line, flush=True)
    return 0


def beside(  # noqa: PLR0917
    work: Workload,
    costs: CostTable,
    means: CostTable,
    mechanism: Mechanism,
    program: Path,
    seconds: float,
    result: Result,
    repeat: int,
) -> str:
    """C and simpy on the same path; another total or run time from C is an error, not a figure."""
    handlers = int(mechanism.values["handlers"])
    c_seconds, *c_sums = run_c(program, work, costs, mechanism, repeat)
    sums = [result.total_stall_ns, result.run_time_ns]
    if c_sums != sums:
        sys.exit(f"C and the engine disagree: {c_sums} and {sums} ns of stall and of run time")
    part = workload(work.accessors, max(40_000, work.accessors), APART)
    begin = time.perf_counter()
    stall = run_simpy(part, means, handlers)
    simpy_seconds = time.perf_counter() - begin
    engine = simulate(part, mechanism, without_dearer(means))
    if stall != engine.total_stall_ns:
        sys.exit(f"simpy and the engine disagree: {stall} and {engine.total_stall_ns} ns of stall")
    rate, simpy_rate = work.faults / seconds, part.faults / simpy_seconds
    return (
        f"   C {work.faults / c_seconds / 1e6:6.2f} (engine at {c_seconds / seconds:.2f} of it)"
        f"   simpy {simpy_rate / 1e6:6.4f} (engine {rate / simpy_rate:.0f} x)"
    )


if __name__ == "__main__":
    sys.exit(main())
