"""A matrix's results: one row a run, from the traces on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.files import put_tables
from faultreplay.faulttrace.store import open_trace

if TYPE_CHECKING:
    from faultreplay.lab.matrix_spec import MatrixRun

STALLED_NS: Final = 1_000  # a longer access did not find its page there
_RESULT: Final = pa.schema(
    [
        ("mechanism", pa.string()), ("vcpus", pa.int32()), ("handlers", pa.int32()), ("fetch", pa.string()),
        ("workload", pa.string()), ("side", pa.string()), ("repeat", pa.int32()), ("seed", pa.int64()),
        ("trace", pa.string()), ("pinned", pa.bool_()), ("accesses", pa.int64()), ("run_time_ns", pa.int64()),
        ("access_ns", pa.int64()), ("stalled", pa.int64()), ("stall_ns", pa.int64()), ("stall_p50_ns", pa.float64()),
        ("stall_p90_ns", pa.float64()), ("stall_p99_ns", pa.float64()), ("stall_max_ns", pa.int64()),
        ("resolved", pa.int64()), ("fetch_mean_ns", pa.float64()), ("resolve_mean_ns", pa.float64()),
        ("window_ns", pa.int64()), ("window_accesses", pa.int64()), ("window_waited_ns", pa.int64()),
        ("window_writes", pa.int64()), ("clock_error_ns", pa.float64()), ("events", pa.int64()), ("lost", pa.int64()),
    ]
)  # fmt: skip


def write_results(out: Path, runs: Iterable[MatrixRun]) -> Path:
    """Write `results.parquet` of the runs in `out`; its path."""
    rows = []
    for item in runs:
        trace = out / f"{item.name}.trace"
        if trace.exists():
            try:
                rows.append(_row(item, trace))
            except FaultreplayError:
                continue  # cut off: it will be run again
    path = out / "results.parquet"
    put_tables(path, _RESULT, [pa.Table.from_pylist([row for row in rows if row], _RESULT)])
    return path


def _row(item: MatrixRun, path: Path) -> dict[str, Any] | None:
    trace = open_trace(path)
    truth, lab = trace.truth(), trace.meta.lab
    if truth is None or lab.get("problem", "unfinished"):
        return None
    access_ns = (truth["end_ns"] - truth["start_ns"]).to_numpy()
    stall = access_ns[access_ns >= STALLED_NS]
    p50, p90, p99 = np.quantile(stall, (0.5, 0.9, 0.99)) if len(stall) else (0.0, 0.0, 0.0)
    services, windows, waiters = lab["services"], lab["windows"], lab["waiters"]
    return {
        "mechanism": item.mechanism, "vcpus": item.vcpus, "handlers": item.spec.real_handlers, "fetch": item.fetch,
        "workload": item.workload, "side": item.side, "repeat": item.repeat, "seed": item.seed, "trace": path.name,
        "pinned": lab["pinned"], "accesses": truth.height, "run_time_ns": lab["run_time_ns"],
        "access_ns": int(access_ns.sum()), "stalled": len(stall), "stall_ns": int(stall.sum()),
        "stall_p50_ns": float(p50), "stall_p90_ns": float(p90), "stall_p99_ns": float(p99),
        "stall_max_ns": int(access_ns.max(initial=0)), "resolved": services["resolved"],
        "fetch_mean_ns": services["fetch_ns"].get("mean"), "resolve_mean_ns": services["resolve_ns"].get("mean"),
        "window_ns": sum(w["end_ns"] - w["begin_from_ns"] for w in windows),
        "window_accesses": sum(w["accesses"] for w in waiters),
        "window_waited_ns": sum(w.get("waited_ns", 0) for w in waiters), "window_writes": lab["window_writes"],
        "clock_error_ns": lab["clock_error_ns"], "events": trace.event_rows, "lost": trace.meta.losses.total,
    }  # fmt: skip
