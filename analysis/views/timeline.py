"""Stall over time: how many faults began in each step, and how long threads stood still in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.views.chosen import Choice, chosen_faults
from faultreplay.faulttrace.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress
    from faultreplay.faulttrace.store import Trace

Ints = npt.NDArray[np.int64]

USUAL_STEPS: Final = 40
MOST_STEPS: Final = 1_000_000


@dataclass(frozen=True)
class Timeline:
    """Steps of equal length, without a gap, from the start of the recording to its end (or the last fault's).

    Attributes:
        steps: one row a step: `from_ns`, `until_ns` (from the start of the recording), `faults` (that began in it),
            `unended` (of these, without an end), `stall_ns` (what all threads together stood still within it),
            `stalled` (how many threads did on average), `longest_ns` (stall of the longest that began in it; null:
            none), `windows` (kinds of the windows that were open in it).
        step_ns: their length; the last may be shorter.
        of: faults of the whole trace.
        unjudged: faults without an end that a choice by length leaves out.
    """

    steps: pl.DataFrame
    step_ns: int
    of: int
    unjudged: int


def timeline_of(
    trace: Trace, choice: Choice | None = None, step_ns: int = 0, progress: Progress | None = None
) -> Timeline:
    """Faults and stall of `trace` over time. Stall is told where it was suffered, not where its fault began.

    Args:
        trace: opened.
        choice: which faults; its time is the time that is shown, stalls that began before it included.
        step_ns: length of a step; 0: a round one that makes at most 40.
        progress: told how much of a stitch is done.

    Raises:
        UsageError: more than a million steps, or a choice that the trace has not.
    """
    import polars as pl

    choice = choice or Choice()
    chosen = chosen_faults(trace, choice, ["stall_ns"], progress, by_start=False)
    start = chosen.frame["start_ns"].to_numpy().astype(np.int64) - chosen.base_ns
    stall = chosen.frame["stall_ns"].fill_null(-1).to_numpy().astype(np.int64)
    ends = start + stall.clip(0)
    last = max(trace.end_ns - chosen.base_ns, int(ends.max(initial=0)), 1)
    first, end = choice.from_ns, min(choice.until_ns or last, last)
    step_ns = step_ns or round_step_ns(end - first)
    count = -(-(end - first) // step_ns)
    if count > MOST_STEPS:
        raise UsageError(f"--step: {count:,} steps: at most {MOST_STEPS:,}")
    edges = np.minimum(first + step_ns * np.arange(count + 1, dtype=np.int64), end)
    where = np.searchsorted(edges, start, "right") - 1
    inside = (start >= first) & (start < end)
    where, began = where[inside], stall[inside]
    longest = np.full(count, -1, np.int64)
    np.maximum.at(longest, where, began)
    spent = np.diff(stood_still_ns(start[stall >= 0], ends[stall >= 0], edges))
    faults = np.bincount(where, minlength=count)
    frame = pl.DataFrame(
        {
            "from_ns": edges[:-1],
            "until_ns": edges[1:],
            "faults": faults.astype(np.int64),
            "unended": np.bincount(where[began < 0], minlength=count).astype(np.int64),
            "stall_ns": spent,
            "stalled": spent / np.maximum(np.diff(edges), 1),
            "longest_ns": pl.Series(longest).replace(-1, None),
            "windows": _windows(trace, edges + chosen.base_ns),
        }
    )
    return Timeline(frame, step_ns, chosen.of, chosen.unjudged)


def round_step_ns(length_ns: int) -> int:
    """1, 2 or 5 times a power of ten ns: the least that goes into `length_ns` at most 40 times."""
    least = max(-(-length_ns // USUAL_STEPS), 1)
    power: int = 10 ** (len(str(least)) - 1)
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least)


def stood_still_ns(start: Ints, end: Ints, edges: Ints) -> Ints:
    """What all of [start, end) together spent before each edge, ns. Only differences of the result mean something.

    Sums over many faults may pass 64 bits; they wrap, and so do not disturb the difference between two edges.
    """
    return _before(np.sort(start), edges) - _before(np.sort(end), edges)


def _before(times: Ints, edges: Ints) -> Ints:
    """Sum over `times` (sorted) that lie before an edge of how long before, for each edge."""
    count = np.searchsorted(times, edges, "right").astype(np.int64)
    sums: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(times)])[count]
    return edges * count - sums


def _windows(trace: Trace, edges: Ints) -> list[str]:
    """Kinds of the windows that were open in each step, those that were told and those that the ioctls show."""
    spans: list[Any] = [*trace.meta.windows, *trace.stitch_facts().windows]
    kinds: list[set[str]] = [set() for _ in edges[1:]]
    for span in spans:
        low = max(int(np.searchsorted(edges, span.start_ns, "right")) - 1, 0)
        high = min(int(np.searchsorted(edges, max(span.end_ns, span.start_ns + 1), "left")), len(kinds))
        for step in range(low, high):
            kinds[step].add(span.kind)
    return ["+".join(sorted(names)) for names in kinds]
