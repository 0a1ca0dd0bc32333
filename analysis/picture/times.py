"""Stalls over time: how long anybody was stalled in each of some equal spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from faultreplay.analysis.compare.case import REFERENCES
from faultreplay.analysis.compare.metrics import Ints, stops_ns
from faultreplay.analysis.picture.spread import quantiles
from faultreplay.faulttrace.plain_text import plain

if TYPE_CHECKING:
    from faultreplay.analysis.compare.blackout import Blackout
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.replay.engine.engine import Result

BINS: Final = 120
MEASURED: Final = "measured"
MOST_CAUSES: Final = 6
_FINE_BITS: Final = 13
_FINE: Final = 1 << _FINE_BITS
LEAST_SHARE: Final = 0.005
"""Causes with less of the stall are one, `other`."""


@dataclass(frozen=True)
class Stalls:
    """When accessors stood still, and how long each time; times in ns from the beginning."""

    start_ns: Ints
    stall_ns: Ints
    stop_start_ns: Ints
    """stops by a window, which are no fault's"""
    stop_ns: Ints
    run_time_ns: int

    @property
    def all_ns(self) -> Ints:
        """Every stall, in no order."""
        return np.concatenate((self.stall_ns, self.stop_ns)) if len(self.stop_ns) else self.stall_ns


@dataclass(frozen=True)
class Seen:
    """What pictures show of some stalls, in a few thousand numbers: the stalls themselves need not be kept."""

    quantiles: pl.DataFrame
    """as of `spread.quantiles`"""
    step_ns: int
    """a power of two"""
    spent_ns: Ints
    """stall of all accessors in each span of `step_ns` from 0, exactly; up to `_FINE` of them"""
    run_time_ns: int


def seen(stalls: Stalls) -> Seen:
    """The sums that `distributions` and `stalled_over_time` draw."""
    step = 1 << max((max(stalls.run_time_ns, 1) - 1).bit_length() - _FINE_BITS, 0)
    edges = np.arange(-(-max(stalls.run_time_ns, 1) // step) + 1, dtype=np.int64) * step
    start, length = stalls.start_ns, stalls.all_ns
    if len(stalls.stop_start_ns):
        start = np.concatenate((start, stalls.stop_start_ns))
    return Seen(quantiles(np.sort(length)), step, stall_in(start, start + length, edges), stalls.run_time_ns)


def look(result: Result) -> Seen:
    """`seen` of a replay: for `compare`, which drops what the replay has of each fault then."""
    return seen(replayed_stalls(result))


def recorded_stalls(case: Case) -> Stalls:
    """Those of the recording; faults whose end was not seen are left out."""
    workload, stops = case.workload, case.stops
    known = (workload.recorded_stall_ns >= 0) & (workload.recorded_start_ns >= 0)
    none = np.zeros(0, np.int64)
    begin, length = none, none
    if stops is not None:
        begin, length = stops.start_ns, stops_ns((stops.accessor, stops.start_ns, stops.end_ns), stops.stall_ns)
    start, stall = workload.recorded_start_ns[known], workload.recorded_stall_ns[known]
    return Stalls(start, stall, begin, length, int((start + stall).max(initial=0)))


def replayed_stalls(result: Result) -> Stalls:
    """Those of a replay's faults and of its windows; refaults that are only assumed have no time of their own."""
    ran = result.start_ns >= 0
    stopped = np.flatnonzero(result.window_stall_ns > 0)
    spans = np.array(result.windows, np.int64).reshape(-1, 2)
    begin, end = np.tile(spans[:, 0], len(stopped)), np.tile(spans[:, 1], len(stopped))
    length = stops_ns((np.repeat(stopped, len(spans)), begin, end), result.window_stall_ns)
    start, stall = (result.start_ns, result.stall_ns) if ran.all() else (result.start_ns[ran], result.stall_ns[ran])
    return Stalls(start, stall, begin, length, result.run_time_ns)


def series_of(comparison: Comparison, case: Case) -> dict[str, Seen]:
    """`measured`, then each mechanism and each blackout by its name as `plain` text; references are left out.

    Of several seeds it is the first.
    """
    found = {MEASURED: seen(recorded_stalls(case))} if case.workload.measured else {}
    choices = [row for row in comparison.rows if row.mechanism not in REFERENCES]
    every: list[Row | Blackout] = [*choices, *comparison.blackouts]
    return found | {plain(one.mechanism): _seen_of(one) for one in every}


def _seen_of(one: Row | Blackout) -> Seen:
    return one.seen if isinstance(one.seen, Seen) else look(one.result)


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


def stalled_over_time(series: Mapping[str, Seen], bins: int = BINS) -> pl.DataFrame:
    """How many accessors stand still on average, over time: measured, and under each mechanism.

    Columns: `series` (a key of `series`), `from_ns`, `until_ns`, `stall_ns` (of all accessors, in that span; stops by
    windows too), `stalled` (`stall_ns` by the length of the span). A series ends with its run; at most `bins` spans.
    """
    schema = {"series": pl.String, "from_ns": pl.Int64, "until_ns": pl.Int64, "stall_ns": pl.Int64}
    if not series:
        return pl.DataFrame(schema=schema | {"stalled": pl.Float64})
    finest = max(one.step_ns for one in series.values())
    span_ns = max(one.run_time_ns for one in series.values())
    step = -(-max(span_ns, 1) // (bins * finest)) * finest  # of whole spans of each series: its sums add up
    frames = []
    for name, one in series.items():
        firsts = np.arange(0, len(one.spent_ns), step // one.step_ns)
        edges = np.arange(len(firsts) + 1, dtype=np.int64) * step
        frames.append(_spans(name, edges, np.add.reduceat(one.spent_ns, firsts)))
    return pl.concat(frames)


def _spans(series: str, edges: Ints, stall_ns: Ints) -> pl.DataFrame:
    length = edges[1:] - edges[:-1]
    columns = {"from_ns": edges[:-1], "until_ns": edges[1:], "stall_ns": stall_ns, "stalled": stall_ns / length}
    return pl.DataFrame(columns).select(pl.lit(series).alias("series"), pl.all())


def by_cause(faults: pl.DataFrame, begin_ns: int, bins: int = BINS) -> pl.DataFrame:
    """The recorded stall over time by what caused it: the phases of a recording.

    Columns: `cause` (the rare ones together as `other`), `from_ns`, `until_ns` (from `begin_ns`, CLOCK_MONOTONIC),
    `stall_ns` (of the faults whose end was seen), `stalled`.
    """
    seen = faults.filter(pl.col("stall_ns").is_not_null()).select("cause", "start_ns", "stall_ns")
    by = seen.group_by("cause").agg(pl.col("stall_ns").sum()).sort(["stall_ns", "cause"], descending=[True, False])
    whole = int(by["stall_ns"].sum())
    common = [c for c, ns in by.iter_rows() if ns >= LEAST_SHARE * whole][:MOST_CAUSES]
    start = np.maximum(seen["start_ns"].to_numpy() - begin_ns, 0)
    end = start + seen["stall_ns"].to_numpy()
    edges = edges_of(int(end.max(initial=0)), bins)
    frames = []
    for cause in (*common, "other"):
        mine = (seen["cause"] == cause if cause in common else ~seen["cause"].is_in(common)).to_numpy()
        if mine.any():
            frames.append(_spans(cause, edges, stall_in(start[mine], end[mine], edges)).rename({"series": "cause"}))
    none = _spans("", edges, np.zeros(len(edges) - 1, np.int64)).rename({"series": "cause"})
    return pl.concat(frames) if frames else none.clear()
