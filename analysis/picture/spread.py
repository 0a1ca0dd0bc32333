"""Distributions of stalls on an axis that opens the tail."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.analysis.picture.times import MEASURED, RAILS

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison

POINTS: Final = 160
MARKS: Final = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"))


def nines(share: float) -> float:
    """Where a quantile stands on the axis: 0, 1, 2, 3 for 0, p90, p99, p99.9."""
    return -math.log10(1 - share)


def distributions(comparison: Comparison) -> pl.DataFrame:
    """Quantiles of the stalls of faults, of the recording and of each mechanism.

    Columns: `series`, `nines` (see `nines`), `share` (of the stalls that are not longer), `stall_ns` (nearest rank: a
    stall that happened). A series ends where one fault is left above; series without a stall are left out.
    """
    recorded = comparison.workload.recorded_stall_ns
    series: dict[str, Ints] = {MEASURED: recorded[recorded >= 0]}
    for row in comparison.rows:
        if row.mechanism not in RAILS:
            series[row.mechanism] = row.result.stall_ns[row.result.start_ns >= 0]
    frames = [_quantiles(name, np.sort(stalls)) for name, stalls in series.items() if stalls.any()]
    schema = {"series": pl.String, "nines": pl.Float64, "share": pl.Float64, "stall_ns": pl.Int64}
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _quantiles(name: str, ranked: Ints) -> pl.DataFrame:
    last = math.log10(max(len(ranked), 2))
    at = np.unique(np.concatenate((np.linspace(0, last, POINTS), [nines(q) for q, _ in MARKS if nines(q) <= last])))
    shares = 1 - 10.0**-at
    stalls = np.array([quantile(ranked, float(q)) for q in shares], dtype=np.int64)
    return pl.DataFrame({"nines": at, "share": shares, "stall_ns": stalls}).select(
        pl.lit(name).alias("series"), pl.all()
    )
