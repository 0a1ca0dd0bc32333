"""How long a vCPU stands still at a window under each rule, with the interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from faultreplay.analysis.picture.times import MEASURED
from faultreplay.faulttrace.plain_text import plain

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison

_SCHEMA: Final = {
    "mechanism": pl.String,
    "standstill_ns": pl.Int64,
    "most_ns": pl.Int64,
    "low_ns": pl.Int64,
    "high_ns": pl.Int64,
}


def standstills(comparison: Comparison) -> pl.DataFrame:
    """A row for each blackout; what was measured first.

    Columns: `mechanism`, `standstill_ns` (the longest stand-still of a vCPU where only what the trace shows is touched
    again), `most_ns` (where all is), `low_ns` and `high_ns` (90 % interval over both; null: not looked at).
    """
    rows: list[tuple[object, ...]] = []
    if comparison.blackout_measured is not None:
        measured = comparison.blackout_measured.standstill_ns
        rows.append((MEASURED, measured, measured, None, None))
    for still in comparison.blackouts:
        sure = still.standstill
        ends = (round(sure.low), round(sure.high)) if sure else (None, None)
        rows.append((plain(still.mechanism), still.low.standstill_ns, still.high.standstill_ns, *ends))
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")
