"""Replayed faults as a frame: one row a fault and mechanism."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.workload.workload import ACCESS_CODES, Workload

_ACCESS = {code: name for name, code in ACCESS_CODES.items()}


def rows_of_all(pairs: Sequence[tuple[Workload, Result]]) -> pl.DataFrame:
    """`fault_rows` of results that are of several workloads, in order."""
    return pl.concat([fault_rows(workload, [result]) for workload, result in pairs])


def fault_rows(workload: Workload, results: Sequence[Result]) -> pl.DataFrame:
    """All faults of all `results`, in the workload's order (accessor, then time).

    Columns: `mechanism`, `accessor`, `seq` (0, 1, 2... per accessor), `page` (number of the native page), `class`,
    `access`, `start_ns` and `end_ns` from the beginning of the recording (null: not reached), `stall_ns`, `latency_ns`
    (null unless the accessor did not wait), `recorded_start_ns`, `recorded_stall_ns` (null: not known).
    """
    count = workload.faults
    owner = workload.accessor_of_row()
    names = np.array(workload.accessor_name, dtype=object)
    base = {
        "accessor": pl.Series(names[owner], dtype=pl.String) if count else pl.Series([], dtype=pl.String),
        "seq": np.arange(count, dtype=np.int64) - workload.accessor_start[owner],
        "page": workload.page.astype(np.int64),
        "class": pl.Series([CAUSES[c] for c in workload.cause], dtype=pl.String),
        "access": pl.Series([_ACCESS[int(a)] for a in workload.access], dtype=pl.String),
    }
    unknown = np.full(count, -1, dtype=np.int64)
    frames = []
    for result in results:
        columns = base | {
            "start_ns": result.start_ns,
            "end_ns": result.end_ns,
            "stall_ns": np.where(result.start_ns >= 0, result.stall_ns, -1),
            "latency_ns": result.latency_ns if len(result.latency_ns) else unknown,
            "recorded_start_ns": workload.recorded_start_ns if len(workload.recorded_start_ns) else unknown,
            "recorded_stall_ns": workload.recorded_stall_ns if len(workload.recorded_stall_ns) else unknown,
        }
        times = [name for name in columns if name.endswith("_ns")]
        frame = pl.DataFrame(columns).with_columns(
            pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name) for name in times
        )
        frames.append(frame.select(pl.lit(result.mechanism).alias("mechanism"), pl.all()))
    return pl.concat(frames)
