"""Where along one axis of a sweep the mechanisms change places, and where it stops to matter which one is used.

Along one axis, all else held, M(m, x) is the number by which mechanisms are ranked (total stall by default; less is
better).

- Two mechanisms *change places* where M(a, x) - M(b, x) changes its sign.
- The choice *matters* at x when the worst mechanism exceeds the best by more than a tolerance (10 % by default):
  max M / min M - 1 > tolerance. The fetch latency above which the mechanism no longer matters is the x from which on
  this no longer holds at any further point of the sweep.

Between two points of the sweep the difference (or the excess) is taken as a straight line over log x. Nothing is said
beyond the ends of the axis. The references (`ideal`, `as-recorded`) are no choice and are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from faultreplay.analysis.explore.axes import Axis, Point

REFERENCES: Final = ("as-recorded", "ideal")
DEFAULT_TOLERANCE: Final = 0.10

Line = Sequence[tuple[float, Mapping[str, float]]]
Values = Mapping[Point, Mapping[str, float]]
"""Point of the grid -> mechanism -> the number it is ranked by."""


@dataclass(frozen=True)
class Crossing:
    """Something changes along `axis` at `at`, between the sweep's points `low` and `high`."""

    trace: str
    axis: str
    what: Literal["order", "matters", "alike"]
    """``order``: `first` leads below, `second` above; ``alike``: above, the mechanism no longer matters; ``matters``:
    it matters above"""
    at: float
    low: float
    high: float
    first: str
    second: str
    others: Point
    """values of the other axes"""


def crossings(
    trace: str, axes: Sequence[Axis], values: Values, *, tolerance: float = DEFAULT_TOLERANCE
) -> list[Crossing]:
    """All changes on one trace, axis by axis; incomplete points are skipped."""
    found: list[Crossing] = []
    for axis in axes:
        for others, line in lines_of(axis, values):
            names = sorted(set.intersection(*(set(at) for _, at in line)) - set(REFERENCES)) if line else []
            where = _Where(trace, axis, others)
            for a, b in itertools.combinations(names, 2):
                found += _swaps(where, line, a, b)
            found += _mattering(where, line, names, tolerance)
    return found


def excess(at: Mapping[str, float]) -> float | None:
    """How far the worst choice exceeds the best, as a ratio less 1; None of fewer than two."""
    numbers = [value for name, value in at.items() if name not in REFERENCES]
    if len(numbers) < 2:
        return None
    return max(numbers) / min(numbers) - 1 if min(numbers) > 0 else (math.inf if max(numbers) > 0 else 0.0)


def lines_of(axis: Axis, values: Values) -> Iterator[tuple[Point, Line]]:
    """The grid's lines along `axis`: the values of the other axes, and (x, numbers) in order of x."""
    lines: dict[Point, list[tuple[float, Mapping[str, float]]]] = {}
    for point, at in values.items():
        here = dict(point)
        lines.setdefault(tuple(item for item in point if item[0] != axis.key), []).append((here[axis.key], at))
    for others, line in lines.items():
        yield others, sorted(line, key=lambda item: item[0])


@dataclass(frozen=True)
class _Where:
    trace: str
    axis: Axis
    others: Point

    def crossing(
        self,
        what: Literal["order", "matters", "alike"],
        steps: tuple[tuple[float, float], tuple[float, float]],
        *who: str,
    ) -> Crossing:
        (low, before), (high, after) = steps
        at = zero_between(low, before, high, after)
        first, second = who or ("", "")
        return Crossing(self.trace, self.axis.key, what, at, low, high, first, second, self.others)


def swaps_of(line: Line, a: str, b: str) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Neighbouring points between which `a` and `b` change places: (x, M(a, x) - M(b, x)) of both."""
    # Points at which both are equal belong to the change around them; they are none of their own.
    steps = [(x, at[a] - at[b]) for x, at in line if at[a] != at[b]]
    for pair in itertools.pairwise(steps):
        if (pair[0][1] < 0) != (pair[1][1] < 0):
            yield pair


def _swaps(where: _Where, line: Line, a: str, b: str) -> Iterator[Crossing]:
    for pair in swaps_of(line, a, b):
        yield where.crossing("order", pair, *((a, b) if pair[0][1] < 0 else (b, a)))


def _mattering(where: _Where, line: Line, names: Sequence[str], tolerance: float) -> Iterator[Crossing]:
    if len(names) < 2:
        return
    steps = []
    for x, at in line:
        over = excess({name: at[name] for name in names})
        assert over is not None
        steps.append((x, min(over, 1e9) - tolerance))
    for pair in itertools.pairwise(steps):
        if (pair[0][1] > 0) != (pair[1][1] > 0):
            yield where.crossing("matters" if pair[1][1] > 0 else "alike", pair)


def zero_between(low: float, before: float, high: float, after: float) -> float:
    """Where a straight line over log x (over x where `low` is 0) from (low, before) to (high, after) is 0."""
    share = before / (before - after)
    if low > 0:
        return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)
    return low + share * (high - low)
