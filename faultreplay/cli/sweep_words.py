"""A sweep in sentences: below which value of an axis which mechanism is better, by how much, and where none is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from faultreplay.analysis.explore.axes import Axis, Point, stem_of
from faultreplay.analysis.explore.stretches import Course, Stretch

MOST: Final = 12
"""Sentences of one trace; a grid of many points would have hundreds, which JSON holds."""


def sentences(courses: Sequence[Course], axes: Sequence[Axis]) -> list[str]:
    """One sentence a course, alike ones of several values of the other axes in one."""
    by_key = {axis.key: axis for axis in axes}
    said: dict[str, list[Point]] = {}
    for course in courses:
        said.setdefault(_of_course(course, by_key), []).append(course.others)
    lines = [_with(others, by_key) + words for words, others in said.items()]
    lines = [line[0].upper() + line[1:] if axes else line for line in lines]
    if len(lines) > MOST:
        return [*lines[:MOST], f"{len(lines) - MOST} more such sentences: --format json has them all, as courses"]
    return lines


def point_words(point: Point, axes: Mapping[str, Axis]) -> str:
    """Values of axes as the command line takes them."""
    return ", ".join(f"{key}={axes[key].show(value)}" for key, value in point)


def course_record(course: Course) -> dict[str, object]:
    """For JSON: values in the axis's unit, shares as percent."""
    return {
        "trace": course.trace,
        "axis": course.axis,
        "others": dict(course.others),
        "mechanisms": list(course.mechanisms),
        "stretches": [
            {
                "best": stretch.best or None,
                "first_point": stretch.low,
                "last_point": stretch.high,
                "begins": stretch.begins,
                "ends": stretch.ends,
                "least_lead_percent": 100 * stretch.least_lead,
                "most_lead_percent": 100 * stretch.most_lead,
                "most_over_worst_percent": 100 * stretch.most_over_worst,
            }
            for stretch in course.stretches
        ],
        "passings": [passing.__dict__ for passing in course.passings],
    }


def _of_course(course: Course, axes: Mapping[str, Axis]) -> str:
    two = len(course.mechanisms) == 2
    if not course.axis:
        return f"{_answer(course.stretches[0], two=two, whole=True)}."
    axis = axes[course.axis]
    parts = []
    for number, stretch in enumerate(course.stretches):
        following = course.stretches[number + 1] if number + 1 < len(course.stretches) else None
        before = course.stretches[number - 1] if number else None
        whole = before is None and following is None
        answer = _answer(stretch, two=two, whole=whole, counted=_counts(axis))
        parts.append(f"{_where(axis, stretch, before, following)} {answer}")
    words = "; ".join(parts) + "."
    for passing in course.passings:
        words += f" Behind it {stem_of(passing.ahead)} passes {stem_of(passing.behind)} at {axis.show(passing.at)}."
    return words


def _counts(axis: Axis) -> bool:
    return axis.unit in ("number", "bytes")


def turns_between(course: Course, axes: Sequence[Axis]) -> bool:
    """Whether a sentence names a turning point that is none of the axis's points."""
    axis = next((axis for axis in axes if axis.key == course.axis), None)
    if axis is None or _counts(axis):
        return False
    return bool(course.passings) or any(stretch.begins is not None for stretch in course.stretches)


def _where(axis: Axis, stretch: Stretch, before: Stretch | None, following: Stretch | None) -> str:
    """Which values of the axis: turning points, where there is something between two values, else the values."""
    show = axis.show
    first, last = show(stretch.low), show(stretch.high)
    if before is None and following is None:
        return f"with {axis.key} {first}" if first == last else f"with {axis.key} from {first} to {last}"
    if _counts(axis):
        if before is None:
            return f"with {axis.key} {'' if first == last else 'up to '}{last}"
        to = " on" if following is None else f" to {last}"
        return f"with {first}" if first == last and following else f"from {first}{to}"
    begins, ends = (show(turn or 0) for turn in (stretch.begins, stretch.ends))
    if before is None:
        return f"below {ends} of {axis.key}"
    return f"from {begins} to {ends}" if following else f"above {'that' if before.begins is None else begins}"


def _answer(stretch: Stretch, *, two: bool, whole: bool, counted: bool = False) -> str:
    """Which mechanism is best there, and by how much less of what is ranked.

    `whole`: on the whole axis; `counted`: of an axis that has no values between its points.
    """
    if not stretch.best:
        return "it does not matter which"
    low, high = (f"{100 * share:.0f}" for share in (stretch.least_lead, stretch.most_lead))
    exact = whole or (counted and stretch.low == stretch.high)
    many = f"{low} to {high} %" if exact and low != high else f"{'' if exact else 'up to '}{high} %"
    if two:
        return f"{stem_of(stretch.best)} is better, by {many}"
    worst = f"{100 * stretch.most_over_worst:.0f} %"
    return f"{stem_of(stretch.best)} is best, {many} less than the next, up to {worst} less than the worst"


def _with(others: Sequence[Point], axes: Mapping[str, Axis]) -> str:
    """The values of the other axes at which a sentence holds."""
    points = [point_words(point, axes) for point in others if point]
    return f"at {' or '.join(points)}: " if points else ""
