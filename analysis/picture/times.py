"""Stalls over time: how long anybody was stalled in each of some equal spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from faultreplay.analysis.compare.metrics import Ints

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison

BINS: Final = 120
RAILS: Final = ("as-recorded", "ideal")
MEASURED: Final = "measured"


def edges_of(span_ns: int, bins: int = BINS) -> Ints:
    """int64[n+1]: the ends of at most `bins` equal spans from 0, the last one at or after `span_ns`."""
    step = max(-(-max(span_ns, 1) // bins), 1)
    count = max(-(-max(span_ns, 1) // step), 1)
    return np.arange(count + 1, dtype=np.int64) * step


def stall_in(start_ns: Ints, end_ns: Ints, edges: Ints) -> Ints:
    """int64[n]: time of the intervals that falls into each span of `edges`, exactly; they may overlap."""
    whole = _until(np.sort(start_ns), edges) - _until(np.sort(end_ns), edges)
    spent: Ints = np.diff(whole)
    return spent


def _until(ranked: Ints, at: Ints) -> Ints:
    """Sum of what has passed at each time of `at` since each of `ranked` that lies before it."""
    before = np.searchsorted(ranked, at)
    total = np.concatenate(([0], np.cumsum(ranked)))
    passed: Ints = at * before - total[before]
    return passed


def stalled_over_time(comparison: Comparison, case: Case, bins: int = BINS) -> pl.DataFrame:
    """How many accessors stand still on average, over time: measured, and under each mechanism.

    Columns: `series` (`measured` or a mechanism), `from_ns`, `until_ns`, `stall_ns` (of all accessors, in that span),
    `stalled` (`stall_ns` by the length of the span). Stalls by a window, which are no fault's, are not in it.
    """
    workload = case.workload
    kinds: dict[str, tuple[Ints, Ints]] = {}
    if workload.measured:
        known = (workload.recorded_stall_ns >= 0) & (workload.recorded_start_ns >= 0)
        start = workload.recorded_start_ns[known]
        kinds[MEASURED] = (start, start + workload.recorded_stall_ns[known])
    for row in comparison.rows:
        if row.mechanism not in RAILS:
            ran = row.result.start_ns >= 0
            start = row.result.start_ns[ran]
            kinds[row.mechanism] = (start, start + row.result.stall_ns[ran])
    edges = edges_of(max((int(end.max(initial=0)) for _, end in kinds.values()), default=0), bins)
    frames = [_spans(series, edges, stall_in(start, end, edges)) for series, (start, end) in kinds.items()]
    return pl.concat(frames) if frames else _spans("", edges, np.zeros(len(edges) - 1, np.int64)).clear()


def _spans(series: str, edges: Ints, stall_ns: Ints) -> pl.DataFrame:
    length = edges[1:] - edges[:-1]
    columns = {"from_ns": edges[:-1], "until_ns": edges[1:], "stall_ns": stall_ns, "stalled": stall_ns / length}
    return pl.DataFrame(columns).select(pl.lit(series).alias("series"), pl.all())


def timeline(faults: pl.DataFrame, begin_ns: int, end_ns: int, bins: int) -> pl.DataFrame:
    """Recorded faults over time, in at most `bins` equal spans from `begin_ns` (CLOCK_MONOTONIC).

    Columns: `from_ns`, `until_ns` (from the beginning), `faults` (that began in it; one whose page or end is not known
    too), `stall_ns` (of all accessors, of the faults whose end was seen), `stalled` (how many stood still on average),
    `worst_ns` (the longest stall that began in it).
    """
    edges = edges_of(end_ns - begin_ns, bins)
    step = int(edges[1])
    start = faults["start_ns"].to_numpy() - begin_ns
    place = np.clip(start // step, 0, len(edges) - 2)
    seen = faults["stall_ns"].is_not_null().to_numpy()
    stall = faults["stall_ns"].fill_null(0).to_numpy()
    spent = stall_in(np.clip(start[seen], 0, None), np.clip(start[seen] + stall[seen], 0, None), edges)
    worst = np.zeros(len(edges) - 1, np.int64)
    np.maximum.at(worst, place, stall)
    counted = np.bincount(place, minlength=len(edges) - 1).astype(np.int64)
    frame = _spans("", edges, spent).drop("series")
    return frame.with_columns(pl.Series("faults", counted), pl.Series("worst_ns", worst)).select(
        "from_ns", "until_ns", "faults", "stall_ns", "stalled", "worst_ns"
    )
