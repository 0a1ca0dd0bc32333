"""Pictures of a sweep: curves with what changes along them, and a map of who is best on a grid of two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.explore.crossover import DEFAULT_TOLERANCE
from faultreplay.analysis.explore.stretches import courses
from faultreplay.cli.report.charts import (
    COLOURS,
    INK,
    WIDTH,
    Picture,
    altair,
    data,
    finished,
    labelled,
    log_axis,
    ns_axis,
    series_colours,
    tip,
)
from faultreplay.cli.sweep_words import point_words, sentences
from faultreplay.faulttrace.plain_text import plain, plain_frame
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.analysis.explore.axes import Axis
    from faultreplay.analysis.explore.crossover import Crossing, Values

MOST_CURVES: Final = 6
"""So many values of the other axes get curves of their own."""
_LOG_FROM: Final = 8.0  # ratio of an axis's ends


@dataclass(frozen=True)
class Swept:
    """One trace's part of a sweep.

    `values` and `crossings` as of `analysis.explore.crossover`; `ranked` says what the numbers are, as "total stall".
    """

    axes: Sequence[Axis]
    values: Values
    crossings: Sequence[Crossing]
    ranked: str = "total stall"
    trace: str = ""
    tolerance: float = DEFAULT_TOLERANCE
    labels: Mapping[str, str] = field(default_factory=dict)
    """mechanism -> how its row is called, with its marks"""


def sweep_pictures(swept: Swept) -> list[Picture]:
    """Curves along each axis, and for two axes the map of who is best; none of a sweep without axes."""
    from faultreplay.analysis.picture.curves import best_on_grid, curves

    found: list[Picture] = []
    if len(swept.axes) == 2:
        found.append(best_map(best_on_grid(swept.axes[0], swept.axes[1], swept.values), swept))
    for axis in swept.axes:
        whole = curves(axis, swept.axes, swept.values)
        if len(axis.values) < 2:
            continue
        every = list(dict.fromkeys(whole["others"]))
        for others in every[:: max(1, -(-len(every) // MOST_CURVES))]:
            by_key = _by_key(swept.axes)
            mine = [c for c in swept.crossings if c.axis == axis.key and point_words(c.others, by_key) == others]
            found.append(_curves(whole.filter(whole["others"] == others), axis, others, mine, swept))
    return found


def _by_key(axes: Sequence[Axis]) -> dict[str, Axis]:
    return {axis.key: axis for axis in axes}


def _curves(frame: pl.DataFrame, axis: Axis, others: str, crossings: Sequence[Crossing], swept: Swept) -> Picture:
    alt = altair()
    frame = plain_frame(labelled(frame, "mechanism", swept.labels)).rename({"mechanism": "series"})
    low, high = float(frame["number"].min()), float(frame["number"].max())  # type: ignore[arg-type]
    log_y = low > 0 and high / low >= _LOG_FROM
    y_scale = alt.Scale(type="log", domain=[low / 1.1, high * 1.1], nice=False) if log_y else alt.Scale(zero=True)
    rows = [{**row, "shown": format_ns(row["number"])} for row in frame.to_dicts()]
    names = list(dict.fromkeys(frame["series"]))
    lines = (
        alt.Chart(data(rows))
        .mark_line(strokeWidth=1.8, point={"size": 22})
        .encode(
            x=_x(axis, "at", axis.key),
            y=alt.Y(
                "number:Q",
                title=swept.ranked,
                scale=y_scale,
                axis=log_axis(low / 1.1, high * 1.1) if log_y else ns_axis(),
            ),
            tooltip=[tip("series:N"), tip("value:N", axis.key), tip("shown:N", swept.ranked)],
            **series_colours(names),
        )
    )
    layers = [lines]
    if crossings:
        at = [{"at": c.at, "value": axis.show(c.at), "what": _change(c)} for c in crossings]
        base = alt.Chart(data(at)).encode(x=alt.X("at:Q"), tooltip=[tip("value:N", axis.key), tip("what:N")])
        layers.append(base.mark_rule(color=INK, strokeDash=[4, 3]))
        layers.append(
            base.mark_text(color=INK, align="left", dx=4, dy=6, baseline="top").encode(y=alt.value(0), text="value:N")
        )
    chart = alt.layer(*layers).properties(width=WIDTH, height=260)
    with_ = f" with {others}" if others else ""
    said = [c for c in courses(swept.trace, swept.axes, swept.values, tolerance=swept.tolerance) if c.axis == axis.key]
    words = " ".join(sentences([c for c in said if point_words(c.others, _by_key(swept.axes)) == others], swept.axes))
    if crossings:
        words += " Dashed: where mechanisms change places, or where the choice begins or stops to matter."
    name = f"sweep-{axis.key}" + (f"-{others}" if others else "")
    title = plain(f"{_title(swept.ranked)} along {axis.key}{with_}")
    return finished(_file_name(name, swept), title, plain(words), chart, names)


def best_map(frame: pl.DataFrame, swept: Swept) -> Picture:
    """Who is best at each point of two axes, the stronger the more it matters."""
    alt = altair()
    across, up = swept.axes
    frame = plain_frame(labelled(frame, "best", swept.labels))
    order = list(dict.fromkeys(frame.sort("best")["best"]))
    rows = [
        {
            **row,
            "shown": format_ns(row["number"]),
            "over": "-" if row["excess_percent"] is None else f"{row['excess_percent']:.0f} %",
            "weight": 0.25 + 0.75 * min((row["excess_percent"] or 0) / 50, 1),
        }
        for row in frame.to_dicts()
    ]
    named = [list(dict.fromkeys(axis.show(value) for value in axis.values)) for axis in (across, up)]
    chart = (
        alt.Chart(data(rows))
        .mark_rect()
        .encode(
            x=alt.X("x_value:O", sort=named[0], title=across.key, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("y_value:O", sort=named[1][::-1], title=up.key),
            color=alt.Color(
                "best:N",
                title=None,
                scale=alt.Scale(domain=order, range=[COLOURS[n % len(COLOURS)] for n in range(len(order))]),
            ),
            opacity=alt.Opacity("weight:Q", scale=None, legend=None),
            tooltip=[
                tip("x_value:N", across.key),
                tip("y_value:N", up.key),
                tip("best:N"),
                tip("shown:N", swept.ranked),
                tip("over:N", "worst over best"),
            ],
        )
        .properties(width=WIDTH, height=max(28 * len(named[1]), 120))
    )
    words = f"The mechanism with the least {swept.ranked}; pale where the choice hardly matters."
    title = f"Who is best by {swept.ranked}: {across.key} by {up.key}"
    return finished(_file_name("sweep-best", swept), plain(title), words, chart, order)


def _x(axis: Axis, field: str, title: str) -> Any:
    alt = altair()
    low, high = min(axis.values), max(axis.values)
    if low > 0 and high / low >= _LOG_FROM:
        scale, unit = alt.Scale(type="log", domain=[low, high], nice=False), axis.unit
        return alt.X(f"{field}:Q", title=title, scale=scale, axis=log_axis(low, high, unit=unit))
    return alt.X(f"{field}:Q", title=title, axis=ns_axis() if axis.unit == "ns" else alt.Axis(tickCount=7))


def _change(crossing: Crossing) -> str:
    match crossing.what:
        case "order":
            return plain(f"{crossing.first} leads below, {crossing.second} above")
        case "alike":
            return "it stops to matter which is used"
    return "it begins to matter which is used"


def _title(words: str) -> str:
    return words[:1].upper() + words[1:]


def _file_name(name: str, swept: Swept) -> str:
    whole = f"{swept.trace}-{name}" if swept.trace else name
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in plain(whole)).strip("-.")
