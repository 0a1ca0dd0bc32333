"""One prediction against one measurement: the numbers, their errors, the verdict; and sums over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from faultreplay.analysis.compare.sources import CostSource
from faultreplay.analysis.judge.bootstrap import Interval
from faultreplay.analysis.judge.judge import NAMES, Errors, relative_percent
from faultreplay.analysis.judge.side import Side, median_of

_BOUNDED: Final = ("total_ns", "held_ns", "held_accessors", "refaults", "refault_ns")


@dataclass(frozen=True)
class Cell:
    """One prediction against one measurement.

    `floor`: the same measured once more against the measurement (A/A), or what `floor_is` says; None: not measured.
    """

    source: str
    target: str
    mechanism: str
    source_mechanism: str
    predicted: Side
    measured: Side
    errors: Errors
    intervals: dict[str, Interval]
    floor: Errors | None
    floor_is: str
    again: Side | None
    """what the floor was measured with"""
    bounds: tuple[Side, Side] | None
    """predicted if nothing, and if everything, that is there already is touched again"""
    costs: dict[str, CostSource]
    simulated_percent: float
    notes: tuple[str, ...]
    group: str = ""
    runs: int = 1
    """repeats that this cell is the median of"""
    cpus: int | None = None
    """host CPUs that were a resource"""

    @property
    def beyond_percent(self) -> float | None:
        """The error of total stall; where a trace gives bounds, 0 between them and outside that of the nearest one."""
        if not self.bounds or not self.measured.total:
            return self.errors.total
        ends = sorted(side.total for side in self.bounds)
        nearest = min(max(self.measured.total, ends[0]), ends[1])
        return relative_percent(nearest, self.measured.total)

    def within(self, most_percent: float, floor_factor: float | None = None) -> bool:
        """Whether `beyond_percent` is at most `most_percent`, or at most `floor_factor` floors."""
        beyond = self.beyond_percent
        error = abs(beyond) if beyond is not None else float("inf")
        if error <= most_percent:
            return True
        floor = self.floor.total if self.floor else None
        return bool(floor_factor is not None and floor is not None and error <= floor_factor * abs(floor))

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        record: dict[str, Any] = {
            "source": self.source,
            "target": self.target,
            "source_mechanism": self.source_mechanism,
            "mechanism": self.mechanism,
            "group": self.group,
        }
        for side, numbers in (("predicted", self.predicted), ("measured", self.measured)):
            record |= numbers.as_record(f"{side}_")
        for side, numbers in zip(("lower", "upper"), self.bounds or (), strict=False):
            record |= {f"{side}_{name}": value for name, value in numbers.as_record("").items() if name in _BOUNDED}
        record |= self.errors.as_record() | {"beyond_bounds_percent": self.beyond_percent, "runs": self.runs}
        for name, interval in self.intervals.items():
            record |= {f"{name}_error_low_percent": interval.low, f"{name}_error_high_percent": interval.high}
        record |= self.floor.as_record("floor_") if self.floor else {}
        return record | {
            "floor_is": self.floor_is,
            "simulated_percent": self.simulated_percent,
            "costs": {name: str(how) for name, how in self.costs.items()},
        }


def together(cells: Sequence[Cell]) -> Cell:
    """Repeats of one cell as one: every number the median of the repeats', and errors of these.

    A single run may fall into a slow period of its host, and one pair of runs says little about the noise.
    """
    first = cells[0]
    if len(cells) == 1:
        return first
    predicted, measured = (median_of([getattr(c, side) for c in cells]) for side in ("predicted", "measured"))
    repeated = [c.again for c in cells if c.again]
    again = median_of(repeated) if len(repeated) == len(cells) else None
    bounds = [c.bounds for c in cells if c.bounds]
    middle = {name: [c.intervals[name] for c in cells if name in c.intervals] for name in first.intervals}
    return replace(
        first,
        predicted=predicted,
        measured=measured,
        errors=_errors_of(predicted, measured, [c.errors for c in cells]),
        intervals={
            name: Interval(float(np.median([i.low for i in some])), float(np.median([i.high for i in some])))
            for name, some in middle.items()
        },
        floor=_errors_of(again, measured, [c.floor for c in cells if c.floor]) if again else None,
        floor_is=f"{first.floor_is}, medians of {len(cells)} runs each",
        again=again,
        bounds=(median_of([b[0] for b in bounds]), median_of([b[1] for b in bounds])) if bounds else None,
        notes=tuple(dict.fromkeys(note for c in cells for note in c.notes)),
        runs=len(cells),
    )


def _errors_of(predicted: Side, measured: Side, each: Sequence[Errors]) -> Errors:
    distances = [e.wasserstein for e in each if e.wasserstein is not None]
    return Errors(
        **{
            k: relative_percent(getattr(predicted, k), getattr(measured, k)) for k in (*NAMES, "run_time", "last_touch")
        },
        wasserstein=float(np.median(distances)) if distances else None,
    )


@dataclass(frozen=True)
class Summary:
    """Absolute errors of total stall over several cells, percent (`Cell.beyond_percent`)."""

    what: str
    cells: int
    median: float
    worst: float
    worst_cell: str
    floor_median: float | None
    floor_worst: float | None
    p50_median: float | None
    """median |error of p50|"""
    floor_p50_median: float | None
    reached_percent: float
    """cells within `WANTED_PERCENT`, or within `WANTED_FLOORS` times the A/A difference of their own cell"""
    within_worst_percent: float
    """cells within `WANTED_WORST_PERCENT`, or within `WANTED_FLOORS` times that difference"""
    last_median: float | None
    """median |error of the time until the last first touch|"""
    last_worst: float | None
    floor_last_median: float | None


WANTED_PERCENT: Final = 10.0
WANTED_WORST_PERCENT: Final = 25.0
WANTED_FLOORS: Final = 1.5


def summarize(cells: Sequence[Cell], what: str) -> Summary | None:
    """Median and worst |error of total stall|; None of no cells."""
    known = [(abs(e), f"{c.source} -> {c.target}") for c in cells if (e := c.beyond_percent) is not None]
    if not known:
        return None
    floors = [abs(c.floor.total) for c in cells if c.floor and c.floor.total is not None]
    worst, name = max(known)
    p50 = [abs(c.errors.p50) for c in cells if c.errors.p50 is not None]
    floor_p50 = [abs(c.floor.p50) for c in cells if c.floor and c.floor.p50 is not None]
    last = [abs(c.errors.last_touch) for c in cells if c.errors.last_touch is not None]
    floor_last = [abs(c.floor.last_touch) for c in cells if c.floor and c.floor.last_touch is not None]
    return Summary(
        what=what,
        cells=len(known),
        median=float(np.median([e for e, _ in known])),
        worst=worst,
        worst_cell=name,
        floor_median=float(np.median(floors)) if floors else None,
        floor_worst=max(floors, default=None),
        p50_median=float(np.median(p50)) if p50 else None,
        floor_p50_median=float(np.median(floor_p50)) if floor_p50 else None,
        reached_percent=100 * float(np.mean([c.within(WANTED_PERCENT, WANTED_FLOORS) for c in cells])),
        within_worst_percent=100 * float(np.mean([c.within(WANTED_WORST_PERCENT, WANTED_FLOORS) for c in cells])),
        last_median=float(np.median(last)) if last else None,
        last_worst=max(last, default=None),
        floor_last_median=float(np.median(floor_last)) if floor_last else None,
    )
