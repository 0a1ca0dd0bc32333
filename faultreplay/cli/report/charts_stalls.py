"""Pictures of stalls: totals by stage, stand-stills, distributions, over time, and who waited for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.picture.spread import MARKS, nines
from faultreplay.cli.report.charts import (
    BAR,
    COLOURS,
    INK,
    SPAN_WORDS,
    STALL_WORDS,
    WIDTH,
    Picture,
    altair,
    data,
    finished,
    labelled,
    log_axis,
    ns_axis,
    series_colours,
    span,
    tip,
)
from faultreplay.faulttrace.plain_text import plain_frame
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    import polars as pl

STAGE_COLOURS: Final = {
    "entry": "#56b4e9",
    "queue": "#d55e00",
    "fetch": "#0072b2",
    "resolve": "#009e73",
    "contend": "#cc79a7",
    "wake": "#e69f00",
    "window": "#f0e442",
    "other": "#999999",
}
Labels = Mapping[str, str]
"""Mechanism -> how its row is called, with its marks; others are called as they are."""


def total_stall(frame: pl.DataFrame, labels: Labels, words: str = "") -> Picture | None:
    """Bars of total stall by stage, with the interval of the total; None: nobody stalled, whatever was replayed."""
    if not len(frame) or not frame["total_ns"].max():
        return None
    alt = altair()
    frame = plain_frame(labelled(frame, "mechanism", labels))
    order = list(dict.fromkeys(frame["mechanism"]))
    used = [stage for stage in STAGE_COLOURS if stage in set(frame["stage"])]
    rows = [
        {
            **row,
            "stage_at": used.index(row["stage"]),
            "shown": format_ns(row["stall_ns"]),
            "total": format_ns(row["total_ns"]),
        }
        for row in frame.to_dicts()
    ]
    bars = (
        alt.Chart(data(rows))
        .mark_bar(height={"band": 0.62})
        .encode(
            y=_bands("mechanism", order),
            x=alt.X("stall_ns:Q", title="total stall", axis=ns_axis()),
            color=alt.Color(
                "stage:N", title=None, scale=alt.Scale(domain=used, range=[STAGE_COLOURS[s] for s in used])
            ),
            order=alt.Order("stage_at:Q"),
            tooltip=[tip("mechanism:N"), tip("stage:N"), tip("shown:N", "stall"), tip("total:N")],
        )
    )
    whole = frame.unique("mechanism", keep="first", maintain_order=True).to_dicts()
    chart = alt.layer(bars, *_intervals(whole, order)).properties(width=WIDTH, height=BAR * len(order))
    said = (
        "The stages of each mechanism add up to its total. The line on a bar is the 90 % interval of the total. In the "
        "measured bar, queue includes the entry, and fetch is everything the handler did before it placed the page."
    )
    return finished("total-stall", "Total stall, and where it goes", f"{said} {words}".strip(), chart, used)


def standstill(frame: pl.DataFrame, labels: Labels) -> Picture | None:
    """Bars of the longest stand-still at a window, with its interval; None: no blackout was asked for."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(labelled(frame, "mechanism", labels))
    order = list(dict.fromkeys(frame["mechanism"]))
    rows = [
        {**row, "shown": format_ns(row["standstill_ns"]), "most": format_ns(row["most_ns"])} for row in frame.to_dicts()
    ]
    bars = (
        alt.Chart(data(rows))
        .mark_bar(height={"band": 0.62})
        .encode(
            y=_bands("mechanism", order),
            x=alt.X("standstill_ns:Q", title="longest stand-still of a vCPU", axis=ns_axis()),
            color=alt.condition("datum.mechanism === 'measured'", alt.value("#999999"), alt.value(COLOURS[0])),
            tooltip=[tip("mechanism:N"), tip("shown:N", "stand-still"), tip("most:N", "if all is touched again")],
        )
    )
    chart = alt.layer(bars, *_intervals(rows, order)).properties(width=WIDTH, height=BAR * len(order))
    words = "The line on a bar is the 90 % interval; it covers both bounds of what is touched again after a window."
    return finished("standstill", "Longest stand-still at a window", words, chart)


def distribution(frame: pl.DataFrame, labels: Labels, words: str = "") -> Picture | None:
    """Quantiles on an axis that opens the tail; None: no stall."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(labelled(frame, "series", labels))
    names = list(dict.fromkeys(frame["series"]))
    top = float(frame["nines"].max())  # type: ignore[arg-type]
    marks = [(nines(share), name) for share, name in MARKS if nines(share) <= top]
    label = " : ".join(f"abs(datum.value - {at:.4f}) < 0.01 ? '{name}'" for at, name in marks) + " : ''"
    axis = alt.Axis(values=[at for at, _ in marks], labelExpr=label, labelOverlap=True)
    positive = frame.filter(frame["stall_ns"] > 0)["stall_ns"]
    low = max(int(positive.min()), 1) if len(positive) else 1  # type: ignore[arg-type]
    high = max(int(positive.max()), low + 1) if len(positive) else 10  # type: ignore[arg-type]
    chart = (
        alt.Chart(data(frame.with_columns(frame["nines"].round(5)).to_dicts()))
        .transform_calculate(
            drawn=f"max(datum.stall_ns, {low})",
            shown=STALL_WORDS,
            at="format(100 * datum.share, '.6~g') + ' % are not longer'",
        )
        .mark_line(strokeWidth=1.8, interpolate="step-before")
        .encode(
            x=alt.X(
                "nines:Q", title="share of stalls that are not longer", axis=axis, scale=alt.Scale(domain=[0, top])
            ),
            y=alt.Y(
                "drawn:Q",
                title="stall",
                scale=alt.Scale(type="log", domain=[low / 1.1, high * 1.1], nice=False),
                axis=log_axis(low / 1.1, high * 1.1),
            ),
            tooltip=[tip("series:N"), tip("shown:N", "stall"), tip("at:N", "quantile")],
            **series_colours(names),
        )
        .properties(width=WIDTH, height=320)
    )
    said = (
        "Each further nine (90 %, 99 %, 99.9 %) has the same width, so that the tail can be read. A line ends at its "
        "longest stall."
    )
    return finished("distribution", "Distribution of stalls", f"{said} {words}".strip(), chart, names)


def over_time(
    frame: pl.DataFrame, windows: Sequence[tuple[int, int, str]], labels: Labels, words: str = ""
) -> Picture | None:
    """How many accessors stand still, over time; `windows`: (from, until, name), ns. None: no fault."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(labelled(frame, "series", labels))
    rows = frame.with_columns(frame["stalled"].round(4)).to_dicts()
    names = list(dict.fromkeys(frame["series"]))
    # A step goes on to its own end: the last one of a series too.
    last = {row["series"]: row for row in rows}
    rows += [{**row, "from_ns": row["until_ns"]} for row in last.values()]
    lines = (
        alt.Chart(data(rows))
        .transform_calculate(shown=STALL_WORDS, span=SPAN_WORDS)
        .mark_line(strokeWidth=1.5, interpolate="step-after")
        .encode(
            x=alt.X("from_ns:Q", title="since the recording began", axis=ns_axis()),
            y=alt.Y("stalled:Q", title="stalled at once, mean"),
            tooltip=[tip("series:N"), tip("span:N"), tip("stalled:Q", format=".2f"), tip("shown:N", "stall in it")],
            **series_colours(names),
        )
    )
    layers = [*_windows(windows), lines]
    chart = alt.layer(*layers).properties(width=WIDTH, height=240)
    said = (
        "Mean number of accessors stalled at once. A line ends with its run: a run with less stall is over sooner."
        + (" Grey: windows in which memory was held still." if windows else "")
    )
    return finished("over-time", "Stall over time, measured and replayed", f"{said} {words}".strip(), chart, names)


def phases(frame: pl.DataFrame, windows: Sequence[tuple[int, int, str]]) -> Picture | None:
    """What was measured, by cause over time; None where there is one cause."""
    if frame["cause"].n_unique() < 2:
        return None
    alt = altair()
    causes = list(dict.fromkeys(frame["cause"]))
    rows = [
        {**row, "at": causes.index(row["cause"])} for row in frame.with_columns(frame["stalled"].round(4)).to_dicts()
    ]
    areas = (
        alt.Chart(data(rows))
        .transform_calculate(shown=STALL_WORDS, span=SPAN_WORDS)
        .mark_area(interpolate="step-after", line=False)
        .encode(
            x=alt.X("from_ns:Q", title="since the recording began", axis=ns_axis()),
            y=alt.Y("stalled:Q", title="stalled at once, mean", stack="zero"),
            color=alt.Color("cause:N", title=None, scale=alt.Scale(domain=causes, range=_palette(len(causes)))),
            order=alt.Order("at:Q"),
            tooltip=[tip("cause:N"), tip("span:N"), tip("stalled:Q", format=".2f"), tip("shown:N", "stall in it")],
        )
    )
    chart = alt.layer(*_windows(windows), areas).properties(width=WIDTH, height=190)
    words = "Measured stall by the cause of the faults. It shows the phases of the recording."
    return finished("phases", "Measured stall over time, by cause", words, chart, causes)


def waits(frame: pl.DataFrame) -> Picture | None:
    """Each accessor's stall by whom it waited for; None: nothing measured."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(frame)
    order = list(dict.fromkeys(frame["accessor"]))
    totals: dict[str, int] = {}
    for name, ns in frame.select("waited_for", "stall_ns").iter_rows():
        totals[name] = totals.get(name, 0) + ns
    whom = sorted(totals, key=lambda name: (-totals[name], name))
    rows = [
        {**row, "at": whom.index(row["waited_for"]), "shown": format_ns(row["stall_ns"])} for row in frame.to_dicts()
    ]
    chart = (
        alt.Chart(data(rows))
        .mark_bar(height={"band": 0.62})
        .encode(
            y=_bands("accessor", order),
            x=alt.X("stall_ns:Q", title="measured stall", axis=ns_axis()),
            color=alt.Color(
                "waited_for:N",
                title=None,
                scale=alt.Scale(domain=whom, range=_palette(len(whom))),
            ),
            order=alt.Order("at:Q"),
            tooltip=[tip("accessor:N"), tip("waited_for:N"), tip("shown:N", "stall")],
        )
        .properties(width=WIDTH, height=max(BAR * len(order), 60))
    )
    words = (
        "As recorded. While a fault is queued, its handler is busy with the fault of the accessor named, or with none."
    )
    return finished("who-waited", "Each accessor's stall, and who it waited for", words, chart, whom)


def _bands(column: str, order: Sequence[str]) -> Any:
    return altair().Y(f"{column}:N", sort=list(order), title=None)


def _intervals(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[Any]:
    """Layers with a line from `low_ns` to `high_ns` on each bar that has an interval."""
    alt = altair()
    sure = [
        {key: row[key] for key in ("mechanism", "low_ns", "high_ns")}
        | {"interval": span(row["low_ns"], row["high_ns"])}
        for row in rows
        if row["low_ns"] is not None and row["high_ns"] > row["low_ns"]
    ]
    if not sure:
        return []
    base = alt.Chart(data(sure)).encode(
        y=_bands("mechanism", order), x=alt.X("low_ns:Q"), tooltip=[tip("mechanism:N"), tip("interval:N", "90 %")]
    )
    ends = [
        base.mark_tick(color=INK, thickness=1.5, size=11).encode(x=alt.X(f"{end}:Q")) for end in ("low_ns", "high_ns")
    ]
    return [base.mark_rule(strokeWidth=1.5, color=INK).encode(x2="high_ns:Q"), *ends]


def _windows(windows: Sequence[tuple[int, int, str]]) -> list[Any]:
    if not windows:
        return []
    spans = [
        {"from_ns": begin, "until_ns": end, "window": name, "length": format_ns(end - begin)}
        for begin, end, name in windows
    ]
    marks = altair().Chart(data(spans)).mark_rect(opacity=0.18, color=INK, stroke=INK)
    return [marks.encode(x="from_ns:Q", x2="until_ns:Q", tooltip=[tip("window:N"), tip("length:N")])]


def _palette(count: int) -> list[str]:
    """Okabe and Ito's colours, then some of Tol's that differ in lightness."""
    more = ("#f0e442", "#332288", "#117733", "#882255", "#44aa99")
    every = (*COLOURS, *more)
    return [every[n % len(every)] for n in range(count)]
