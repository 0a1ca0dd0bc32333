"""What all pictures share: the library, a theme in the page's own ink (`currentColor`), axes of time, colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.picture.ticks import round_values
from faultreplay.analysis.picture.times import MEASURED
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.plain_text import plain
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    import polars as pl

# Okabe and Ito's colours: told apart by colour-blind readers too. Their black is the page's own ink, for what was
# measured. After the last one they begin again, dashed.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
INK: Final = "currentColor"
WIDTH: Final = 760
BAR: Final = 26
_LONGEST_LABEL_PX: Final = 264.0
_DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])


def ns_words(value: str) -> str:
    """As `units.format_ns`, in Vega's language: an expression in ns with its unit."""
    parts = ((1e3, 1, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms"), (math.inf, 1e9, "s"))
    words = " : ".join(
        (f"abs({value}) < {below:g} ? " if below < math.inf else "") + f"format({value} / {by:g}, '.3~g') + ' {unit}'"
        for below, by, unit in parts
    )
    return f"({value} === 0 ? '0' : {words})"


NS_LABEL: Final = ns_words("datum.value")
# What tooltips say is worked out where they are shown: a page holds numbers, not words for each of them.
STALL_WORDS: Final = ns_words("datum.stall_ns")
SPAN_WORDS: Final = f"{ns_words('datum.from_ns')} + ' to ' + {ns_words('datum.until_ns')}"


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
        raise MissingFeature("a picture needs altair and vl-convert: pip install 'faultreplay[report]'") from None
    return alt


def finished(name: str, title: str, words: str, chart: Any, legend: Sequence[str] = ()) -> Picture:
    """A chart with the report's theme; `legend`: the labels of its legend, which say how many fit beside each other."""
    spec = chart.to_dict(validate=False)
    label_px = min(34 + 6.5 * max(map(len, legend), default=20), _LONGEST_LABEL_PX)
    spec["usermeta"] = {"label_px": label_px}  # a page has another width
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    spec["config"] = {
        "background": None,
        "font": "system-ui, sans-serif",
        "axis": {**text, "gridColor": INK, "gridOpacity": 0.13, "domainColor": INK, "tickColor": INK},
        "axisY": {"labelLimit": 150},
        "legend": {**text, "orient": "bottom", "columns": int(WIDTH // label_px), "labelLimit": 230}
        | {"symbolStrokeWidth": 2},
        "view": {"stroke": None},
        "text": {"color": INK},
    }
    return Picture(name, title, words, spec)


def known(pictures: Iterable[Picture | None]) -> list[Picture]:
    """Those there are."""
    return [picture for picture in pictures if picture is not None]


def data(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a chart's own data."""
    return altair().Data(values=list(rows))


def tip(field: str, title: str | None = None, **more: Any) -> Any:
    """A line of a tooltip."""
    return altair().Tooltip(field, title=title or field.partition(":")[0].replace("_", " "), **more)


def labelled(frame: pl.DataFrame, column: str, labels: Mapping[str, str]) -> pl.DataFrame:
    """`frame` with mechanisms called as their rows are, marks and all; others as they are."""
    import polars as pl

    return frame.with_columns(pl.col(column).replace({plain(name): plain(label) for name, label in labels.items()}))


def span(from_ns: int, until_ns: int) -> str:
    """A span of time in words."""
    return f"{format_ns(from_ns)} to {format_ns(until_ns)}"


def series_colours(names: Sequence[str]) -> dict[str, Any]:
    """Colour and dash of lines: what was measured in ink, dashed; a dash of their own where colours begin again."""
    alt = altair()
    colours, dashes = [], []
    others = [name for name in names if name != MEASURED]
    for name in names:
        place = others.index(name) if name in others else 0
        colours.append(INK if name == MEASURED else COLOURS[place % len(COLOURS)])
        dashes.append([5, 3] if name == MEASURED else _DASHES[place // len(COLOURS) % len(_DASHES)])
    legend = alt.Legend(symbolType="stroke", symbolSize=300)
    return {
        "color": alt.Color("series:N", title=None, scale=alt.Scale(domain=list(names), range=colours), legend=legend),
        "strokeDash": alt.StrokeDash("series:N", title=None, scale=alt.Scale(domain=list(names), range=dashes)),
    }


def ns_axis() -> Any:
    """An axis of times from 0."""
    return altair().Axis(labelExpr=NS_LABEL, labelOverlap=True, tickCount=7)


def log_axis(low: float, high: float, *, unit: str = "ns") -> Any:
    """A logarithmic axis from `low` to `high`, labelled at round values; `unit` other than ns: as numbers."""
    alt = altair()
    label = {"labelExpr": NS_LABEL} if unit == "ns" else {"format": "~s" if unit == "bytes" else ".3~g"}
    return alt.Axis(values=round_values(low, high), labelOverlap=True, **label)
