"""What a user of the library writes; mypy --strict must find nothing, and must know what comes back."""

from pathlib import Path

import polars as pl

import faultreplay


def total_stall_ms(path: Path, mechanism: str, handlers: int) -> float:
    case = faultreplay.open_case(path, faultreplay.Setup(fetch_ns=30_000, seed=1))
    model = faultreplay.mechanism(mechanism, trace=case, handlers=handlers)
    result = faultreplay.simulate(faultreplay.workload(case), model, faultreplay.costs(trace=case))
    return result.total_stall_ns / 1e6


def slowest(path: str) -> pl.DataFrame:
    return faultreplay.faults(faultreplay.open_trace(path)).sort("stall_ns", descending=True).head(10)


def ranking(path: str) -> dict[str, int]:
    done: faultreplay.Comparison = faultreplay.compare(path, ["uffd-missing", "kvm-exit"])
    return {row.mechanism: row.metrics.total_stall_ns for row in done.rows}


def host_costs(paths: list[Path]) -> faultreplay.CostTable:
    return faultreplay.calibrate(paths).costs


def recorded(pid: int) -> int:
    spec = faultreplay.RecordSpec(pids=(pid,), duration_ns=10**9)
    return faultreplay.record(spec, "vm.trace").events
