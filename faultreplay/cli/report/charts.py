"""The pictures of a report as Vega-Lite specifications, from small frames; ink is the page's own (`currentColor`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.picture.spread import MARKS, nines
from faultreplay.analysis.picture.times import MEASURED
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.plain_text import plain_frame
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    import polars as pl

# Okabe and Ito's colours: told apart by colour-blind readers too. Their black is the page's own ink, for what was
# measured. After the last one they begin again, dashed.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
STAGE_COLOURS: Final = {
    "trap": "#56b4e9",
    "queue": "#d55e00",
    "fetch": "#0072b2",
    "resolve": "#009e73",
    "walk": "#cc79a7",
    "wake": "#e69f00",
    "window": "#785ef0",
    "other": "#999999",
}
INK: Final = "currentColor"
WIDTH: Final = 760
_BAR: Final = 26
_DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
# As `units.format_ns`, in Vega's language: a value in ns with its unit.
NS_LABEL: Final = (
    "datum.value === 0 ? '0' : abs(datum.value) < 1e3 ? format(datum.value, '.3~g') + ' ns' : "
    "abs(datum.value) < 1e6 ? format(datum.value / 1e3, '.3~g') + ' us' : "
    "abs(datum.value) < 1e9 ? format(datum.value / 1e6, '.3~g') + ' ms' : format(datum.value / 1e9, '.3~g') + ' s'"
)


@dataclass(frozen=True)
class Picture:
    """One picture: the name of its file, its title and words, and its Vega-Lite specification."""

    name: str
    title: str
    words: str
    spec: Mapping[str, Any]


def altair() -> Any:
    """The library.

    Raises:
        MissingFeature: it is not installed.
    """
    try:
        import altair as alt
    except ImportError:
        raise MissingFeature("a report needs altair and vl-convert: pip install 'faultreplay[report]'") from None
    return alt


def finished(name: str, title: str, words: str, chart: Any) -> Picture:
    """A chart with the report's theme."""
    spec = chart.to_dict(validate=False)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    spec["config"] = {
        "background": None,
        "font": "system-ui, sans-serif",
        "axis": {**text, "gridColor": INK, "gridOpacity": 0.13, "domainColor": INK, "tickColor": INK},
        "axisY": {"labelLimit": 150},
        "legend": {**text, "orient": "bottom", "columns": 4, "labelLimit": 190, "symbolStrokeWidth": 2},
        "view": {"stroke": None},
        "text": {"color": INK},
    }
    return Picture(name, title, words, spec)


def total_stall(frame: pl.DataFrame) -> Picture:
    """Bars of total stall by stage, with the interval of the total."""
    alt = altair()
    frame = plain_frame(frame)
    order = list(dict.fromkeys(frame["mechanism"]))
    used = [stage for stage in STAGE_COLOURS if stage in set(frame["stage"])]
    told = [
        alt.Tooltip("mechanism:N"),
        alt.Tooltip("stage:N"),
        alt.Tooltip("shown:N", title="stall"),
        alt.Tooltip("total:N"),
    ]
    rows = [
        {
            **row,
            "stage_at": used.index(row["stage"]),
            "shown": format_ns(row["stall_ns"]),
            "total": format_ns(row["total_ns"]),
        }
        for row in frame.to_dicts()
    ]
    y = alt.Y("mechanism:N", sort=order, title=None)
    bars = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(height={"band": 0.62})
        .encode(
            y=y,
            x=alt.X("stall_ns:Q", title="total stall", axis=_time_axis()),
            color=alt.Color(
                "stage:N", title=None, scale=alt.Scale(domain=used, range=[STAGE_COLOURS[s] for s in used])
            ),
            order=alt.Order("stage_at:Q"),
            tooltip=told,
        )
    )
    sure = [
        {**row, "interval": f"{format_ns(row['low_ns'])} to {format_ns(row['high_ns'])}"}
        for row in frame.unique("mechanism", keep="first", maintain_order=True).to_dicts()
        if row["low_ns"] is not None and row["high_ns"] > row["low_ns"]
    ]
    layers = [bars]
    if sure:
        base = alt.Chart(alt.Data(values=sure)).encode(
            y=y, x=alt.X("low_ns:Q"), tooltip=[alt.Tooltip("interval:N", title="90 % interval")]
        )
        layers.append(base.mark_rule(strokeWidth=1.5, color=INK).encode(x2="high_ns:Q"))
        for end in ("low_ns", "high_ns"):
            layers.append(base.mark_tick(color=INK, thickness=1.5, size=11).encode(x=f"{end}:Q"))
    chart = alt.layer(*layers).properties(width=WIDTH, height=_BAR * len(order))
    words = (
        "Stages of each mechanism add up to its total; the line on a bar is the 90 % interval of that total. Of the "
        "measured bar queue holds the trap too, and fetch is all that the handler did before it placed the page."
    )
    return finished("total-stall", "Total stall, and where it goes", words, chart)


def distribution(frame: pl.DataFrame) -> Picture | None:
    """Quantiles on an axis that opens the tail; None: no stall."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(frame)
    rows = [
        {**row, "shown": format_ns(row["stall_ns"]), "at": f"{100 * row['share']:.6g} % are not longer"}
        for row in frame.to_dicts()
    ]
    top = float(frame["nines"].max())  # type: ignore[arg-type]
    marks = [(nines(share), name) for share, name in MARKS if nines(share) <= top + 0.5]
    label = " : ".join(f"abs(datum.value - {at:.4f}) < 0.01 ? '{name}'" for at, name in marks) + " : ''"
    axis = alt.Axis(values=[at for at, _ in marks], labelExpr=label, labelOverlap=True)
    positive = frame.filter(frame["stall_ns"] > 0)["stall_ns"]
    low = max(int(positive.min()), 1) if len(positive) else 1  # type: ignore[arg-type]
    chart = (
        alt.Chart(alt.Data(values=[{**row, "drawn": max(row["stall_ns"], low)} for row in rows]))
        .mark_line(strokeWidth=1.8, interpolate="step-before")
        .encode(
            x=alt.X("nines:Q", title="share of stalls that are not longer", axis=axis),
            y=alt.Y("drawn:Q", title="stall", scale=alt.Scale(type="log"), axis=_time_axis(log=True)),
            tooltip=[
                alt.Tooltip("series:N"),
                alt.Tooltip("shown:N", title="stall"),
                alt.Tooltip("at:N", title="quantile"),
            ],
            **_series(list(dict.fromkeys(frame["series"]))),
        )
        .properties(width=WIDTH, height=320)
    )
    words = "Each step to the right leaves a tenth of the stalls above: the tail is as wide as the rest."
    return finished("distribution", "Distribution of stalls", words, chart)


def over_time(frame: pl.DataFrame, windows: Sequence[tuple[int, int, str]]) -> Picture | None:
    """How many accessors stand still, over time; `windows`: (from, until, name), ns. None: no fault."""
    if not len(frame):
        return None
    alt = altair()
    frame = plain_frame(frame)
    rows = [
        {**row, "shown": format_ns(row["stall_ns"]), "span": f"{format_ns(row['from_ns'])} to {format_ns(row['until_ns'])}"}
        for row in frame.to_dicts()
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.5, interpolate="step-after")
        .encode(
            x=alt.X("from_ns:Q", title="since the recording began", axis=_time_axis()),
            y=alt.Y("stalled:Q", title="stalled at once, mean"),
            tooltip=[
                alt.Tooltip("series:N"),
                alt.Tooltip("span:N"),
                alt.Tooltip("stalled:Q", format=".2f"),
                alt.Tooltip("shown:N", title="stall in it"),
            ],
            **_series(list(dict.fromkeys(frame["series"]))),
        )
    )
    layers = [lines]
    if windows:
        spans = [
            {"begin": begin, "end": end, "window": name, "length": format_ns(end - begin)} for begin, end, name in windows
        ]
        marks = alt.Chart(alt.Data(values=spans)).mark_rect(opacity=0.18, color=INK, stroke=INK)
        layers.insert(
            0,
            marks.encode(
                x="begin:Q", x2="end:Q", tooltip=[alt.Tooltip("window:N"), alt.Tooltip("length:N")]
            ),
        )
    chart = alt.layer(*layers).properties(width=WIDTH, height=240)
    words = (
        "How many of the accessors stood still at a time. A mechanism's line ends where its replay does: "
        "a run with less stall is over sooner."
        + (" Grey: windows in which memory was held still." if windows else "")
    )
    return finished("over-time", "Stall over time, measured and replayed", words, chart)


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
    palette = [(*COLOURS, "#785ef0", "#8c6d31", "#332288", "#117733", "#882255")[n % 12] for n in range(len(whom))]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(height={"band": 0.62})
        .encode(
            y=alt.Y("accessor:N", sort=order, title=None),
            x=alt.X("stall_ns:Q", title="measured stall", axis=_time_axis()),
            color=alt.Color(
                "waited_for:N",
                title=None,
                scale=alt.Scale(domain=whom, range=palette),
                legend=alt.Legend(columns=3, labelLimit=230),
            ),
            order=alt.Order("at:Q"),
            tooltip=[
                alt.Tooltip("accessor:N"),
                alt.Tooltip("waited_for:N", title="waited for"),
                alt.Tooltip("shown:N", title="stall"),
            ],
        )
        .properties(width=WIDTH, height=max(_BAR * len(order), 60))
    )
    words = "Of the recording. While a fault was queued, the handler was at the fault of whoever is named, or at none."
    return finished("who-waited", "Each accessor's stall, and who it waited for", words, chart)


def page_heat(frame: pl.DataFrame) -> list[Picture]:
    """A map of pages over time for each cause."""
    alt = altair()
    found = []
    for cause in dict.fromkeys(frame["cause"]):
        part = frame.filter(frame["cause"] == cause)
        rows = [
            {
                **{key: value for key, value in row.items() if key not in ("cause", "address")},
                "address": f"{row['address']:#x}",
                "span": f"{format_ns(row['from_ns'])} to {format_ns(row['until_ns'])}",
                "shown": format_ns(row["stall_ns"] or 0),
            }
            for row in part.to_dicts()
        ]
        chart = (
            alt.Chart(alt.Data(values=rows))
            .mark_rect()
            .encode(
                x=alt.X("from_ns:Q", title="since the recording began", axis=_time_axis()),
                x2="until_ns:Q",
                y=alt.Y("first:Q", title="pages touched, by address, without gaps"),
                y2="beyond:Q",
                color=alt.Color(
                    "faults:Q",
                    scale=alt.Scale(scheme="viridis", type="symlog"),
                    legend=alt.Legend(title="faults", gradientLength=180),
                ),
                tooltip=[
                    alt.Tooltip("span:N"),
                    alt.Tooltip("address:N", title="from page"),
                    alt.Tooltip("faults:Q"),
                    alt.Tooltip("shown:N", title="stall"),
                ],
            )
            .properties(width=WIDTH, height=230)
        )
        total = int(part["faults"].sum())
        words = f"{total:,} faults whose page is known; white: none."
        found.append(finished(f"pages-{cause}", f"Guest pages over time: {cause}", words, chart))
    return found


def _series(names: Sequence[str]) -> dict[str, Any]:
    """Colour and dash of lines: what was measured in ink, dashed; a dash of their own where colours begin again."""
    alt = altair()
    colours, dashes = [], []
    others = [name for name in names if name != MEASURED]
    for name in names:
        place = others.index(name) if name in others else 0
        colours.append(INK if name == MEASURED else COLOURS[place % len(COLOURS)])
        dashes.append([5, 3] if name == MEASURED else _DASHES[place // len(COLOURS) % len(_DASHES)])
    return {
        "color": alt.Color("series:N", title=None, scale=alt.Scale(domain=list(names), range=colours)),
        "strokeDash": alt.StrokeDash("series:N", title=None, scale=alt.Scale(domain=list(names), range=dashes)),
    }


def _time_axis(*, log: bool = False) -> Any:
    alt = altair()
    return alt.Axis(labelExpr=NS_LABEL, labelOverlap=True, tickCount=6 if log else 7)


def known(pictures: Iterable[Picture | None]) -> list[Picture]:
    """Those there are."""
    return [picture for picture in pictures if picture is not None]
