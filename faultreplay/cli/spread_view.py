"""Many traces as one table: each mechanism against another one, quantiles over traces, and which of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from faultreplay.cli.render import Column, Record, Report

if TYPE_CHECKING:
    from faultreplay.analysis.explore.spread import Spread

MOST_TABLES: Final = 20
"""Of more traces only this table is shown; the other formats have every row."""
_MOST_NAMED: Final = 5


def spread_report(spreads: Sequence[Spread], what: str, first: str, notes: Sequence[str] = ()) -> Report:
    """The table; `what` is compared, as ``total stall``, against the mechanism `first`."""
    from faultreplay.analysis.explore.spread import QUANTILES

    records: list[Record] = [
        {
            "mechanism": one.mechanism,
            "traces": one.traces,
            **one.percent,
            "against": _some(one.against),
            "outliers": _some(one.outliers),
        }
        for one in spreads
    ]
    columns = [Column("mechanism", "mechanism"), Column("traces", "traces", "count")]
    columns += [Column(name, name, "percent") for name in QUANTILES]
    columns += [Column("against", "the other way round at"), Column("outliers", "outliers")]
    words = "quantiles over traces and points; unweighted: a trace of a minute counts as much as one of an hour"
    return Report(records, columns, title=f"over all traces: {what} against {first}", notes=[words, *notes])


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(labels[:_MOST_NAMED]) + more
