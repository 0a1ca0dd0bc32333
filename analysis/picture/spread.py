"""Distributions of stalls on an axis that opens the tail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from faultreplay.analysis.compare.metrics import Ints, quantile

if TYPE_CHECKING:
    from faultreplay.analysis.picture.times import Seen

POINTS: Final = 160
MARKS: Final = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99"), (0.99999, "p99.999"))
_SCHEMA: Final = {"nines": pl.Float64, "share": pl.Float64, "stall_ns": pl.Int64}


def nines(share: float) -> float:
    """Where a quantile stands on the axis: 0, 1, 2, 3 for 0, p90, p99, p99.9."""
    return -math.log10(1 - share)


def distributions(series: Mapping[str, Seen]) -> pl.DataFrame:
    """Quantiles of stalls; windows' stops are stalls too, as in the table.

    Columns: `series`, then those of `quantiles`. Series without a stall are left out.
    """
    frames = [
        one.quantiles.select(pl.lit(name).alias("series"), pl.all())
        for name, one in series.items()
        if one.quantiles["stall_ns"].max()
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema={"series": pl.String, **_SCHEMA})


def quantiles(ranked: Ints) -> pl.DataFrame:
    """Of stalls in order.

    Columns: `nines` (see `nines`), `share` (of the stalls that are not longer), `stall_ns` (nearest rank: a stall that
    happened). The last row is the longest stall, half a stall beyond the others. Of no stall there is no row.
    """
    if not len(ranked):
        return pl.DataFrame(schema=_SCHEMA)
    last = math.log10(max(len(ranked), 2))
    at = np.unique(np.concatenate((np.linspace(0, last, POINTS), [nines(q) for q, _ in MARKS if nines(q) <= last])))
    shares = 1 - 10.0**-at
    stalls = [quantile(ranked, float(q)) for q in shares]
    columns = {"nines": [*at, last + math.log10(2)], "share": [*shares, 1.0], "stall_ns": [*stalls, int(ranked[-1])]}
    return pl.DataFrame(columns, schema=_SCHEMA)
