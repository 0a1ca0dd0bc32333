"""An axis of a sweep as stretches: where one mechanism is best, by how much, and where it does not matter which.

At a point the choice *matters* where the worst mechanism exceeds the best by more than the tolerance (`crossover`). A
stretch is a run of points with the same best mechanism, or of points at which the choice does not matter. It turns into
the next one where the two best change places, or where the excess passes the tolerance, on a straight line over log x
between the two points. References (`ideal`, `as-recorded`) are no choice and are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from faultreplay.analysis.explore.axes import Axis, Point
from faultreplay.analysis.explore.crossover import (
    DEFAULT_TOLERANCE,
    REFERENCES,
    Line,
    Values,
    excess,
    lines_of,
    swaps_of,
    zero_between,
)


@dataclass(frozen=True)
class Stretch:
    """Points of an axis with one answer.

    Attributes:
        best: the best mechanism; empty: it does not matter which.
        low: its first point.
        high: its last point.
        begins: where it turned from the one before; None: it has none.
        ends: where it turns into the next one; None: it is the last.
        least_lead: by which share of the next mechanism's number the best one's is less, at the point where this is
            least, 0 to 1.
        most_lead: the same, where it is most.
        most_over_worst: by which share of the worst mechanism's number the best one's is less, at most.
    """

    best: str
    low: float
    high: float
    begins: float | None
    ends: float | None
    least_lead: float
    most_lead: float
    most_over_worst: float


@dataclass(frozen=True)
class Passing:
    """Two mechanisms that change places behind the best one: `ahead` is the better one above `at`."""

    at: float
    ahead: str
    behind: str


@dataclass(frozen=True)
class Course:
    """One axis of one trace, the other axes held."""

    trace: str
    axis: str
    others: Point
    mechanisms: tuple[str, ...]
    """that have numbers at all points"""
    stretches: tuple[Stretch, ...]
    passings: tuple[Passing, ...]


def courses(
    trace: str, axes: Sequence[Axis], values: Values, *, tolerance: float = DEFAULT_TOLERANCE
) -> Iterator[Course]:
    """Every line of the grid along every axis; those on which fewer than two mechanisms have numbers are left out.

    A sweep without axes has one course of one stretch, of axis "".
    """
    if not axes:
        (at,) = list(values.values()) or [{}]
        yield from _course(trace, "", (), [(0.0, at)], tolerance)
    for axis in axes:
        for others, line in lines_of(axis, values):
            yield from _course(trace, axis.key, others, line, tolerance)


def _course(trace: str, axis: str, others: Point, line: Line, tolerance: float) -> Iterator[Course]:
    names = sorted(set.intersection(*(set(at) for _, at in line)) - set(REFERENCES))
    if len(names) < 2:
        return
    chosen = [(x, {name: at[name] for name in names}) for x, at in line]
    found: list[Stretch] = []
    for (x, at), before in zip(chosen, [None, *chosen], strict=False):
        best = _answer(at, tolerance)
        if found and found[-1].best == best:
            found[-1] = _joined(found[-1], _at(x, at, best))
            continue
        begins = None
        if found and before is not None:
            begins = _turn(before, (x, at), (found[-1].best, best), tolerance)
            found[-1] = replace(found[-1], ends=begins)
        found.append(replace(_at(x, at, best), begins=begins))
    yield Course(trace, axis, others, tuple(names), tuple(found), tuple(_passings(chosen, names)))


def _answer(at: Mapping[str, float], tolerance: float) -> str:
    over = excess(at)
    return _ranked(at)[0] if over is not None and over > tolerance else ""


def _ranked(at: Mapping[str, float]) -> list[str]:
    return sorted(at, key=lambda name: (at[name], name))


def _at(x: float, at: Mapping[str, float], best: str) -> Stretch:
    first, second, *_ = _ranked(at)
    lead = 1 - at[first] / at[second] if at[second] > 0 else 0.0
    most = max(at.values())
    return Stretch(best, x, x, None, None, lead, lead, 1 - at[first] / most if most > 0 else 0.0)


def _joined(one: Stretch, more: Stretch) -> Stretch:
    return replace(
        one,
        high=more.high,
        least_lead=min(one.least_lead, more.least_lead),
        most_lead=max(one.most_lead, more.most_lead),
        most_over_worst=max(one.most_over_worst, more.most_over_worst),
    )


def _turn(
    before: tuple[float, Mapping[str, float]],
    after: tuple[float, Mapping[str, float]],
    best: tuple[str, str],
    tolerance: float,
) -> float:
    """Where between two points one answer turns into the other."""
    if all(best):
        steps = [at[best[0]] - at[best[1]] for _, at in (before, after)]
    else:
        steps = [min(excess(at) or 0.0, 1e9) - tolerance for _, at in (before, after)]
    return zero_between(before[0], steps[0], after[0], steps[1])


def _passings(line: Line, names: Sequence[str]) -> Iterator[Passing]:
    """Changes of order in which neither is the best one on either side."""
    best = {x: _ranked(at)[0] for x, at in line}
    for a, b in itertools.combinations(names, 2):
        for (low, before), (high, after) in swaps_of(line, a, b):
            if not {a, b} & {best[low], best[high]}:
                ahead, behind = (b, a) if before < 0 else (a, b)
                yield Passing(zero_between(low, before, high, after), ahead, behind)
