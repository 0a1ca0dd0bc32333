"""Maps of guest pages over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from faultreplay.cli.report.charts import SPAN_WORDS, STALL_WORDS, WIDTH, Picture, altair, data, finished, ns_axis, tip

if TYPE_CHECKING:
    import polars as pl

FEW: Final = 20
"""A cause with fewer faults has no map of its own; it is named under the others."""


def page_heat(frame: pl.DataFrame) -> list[Picture]:
    """A map of pages over time for each cause, on the same axes."""
    counts = {cause: int(part["faults"].sum()) for (cause,), part in frame.group_by("cause", maintain_order=True)}
    drawn = [cause for cause, faults in counts.items() if faults >= FEW] or list(counts)[:1]
    left = [f"{faults:,} of {cause}" for cause, faults in counts.items() if cause not in drawn]
    found = []
    for cause in drawn:
        words = f"{counts[cause]:,} faults with a known page; empty: none."
        if left and cause == drawn[-1]:
            words += f" Not drawn, because they are few: {', '.join(left)}."
        found.append(_map(frame, str(cause), words))
    return found


def _map(frame: pl.DataFrame, cause: str, words: str) -> Picture:
    alt = altair()
    rows = [
        {
            **{key: row[key] for key in ("from_ns", "until_ns", "first", "beyond", "faults")},
            "stall_ns": row["stall_ns"] or 0,
            "address": f"{row['address']:#x}",
        }
        for row in frame.filter(frame["cause"] == cause).to_dicts()
    ]
    pages, until = frame["beyond"].max(), frame["until_ns"].max()
    chart = (
        alt.Chart(data(rows))
        .transform_calculate(shown=STALL_WORDS, span=SPAN_WORDS)
        .mark_rect()
        .encode(
            x=alt.X(
                "from_ns:Q",
                title="since the recording began",
                axis=ns_axis(),
                scale=alt.Scale(domain=[0, until], nice=False),
            ),
            x2="until_ns:Q",
            y=alt.Y(
                "first:Q",
                title="pages, in order of address",
                scale=alt.Scale(domain=[0, pages], nice=False),
                axis=alt.Axis(tickCount=5, tickMinStep=1),
            ),
            y2="beyond:Q",
            color=alt.Color(
                "faults:Q",
                scale=alt.Scale(scheme="viridis", type="symlog"),
                legend=alt.Legend(title="faults", gradientLength=180, tickMinStep=1, format="~d"),
            ),
            tooltip=[tip("span:N"), tip("address:N", "from page"), tip("faults:Q"), tip("shown:N", "stall")],
        )
        .properties(width=WIDTH, height=230)
    )
    said = f"{words} Pages are in order of address; gaps between touched pages are left out."
    return finished(f"pages-{cause}", f"Guest pages over time: {cause}", said, chart)
