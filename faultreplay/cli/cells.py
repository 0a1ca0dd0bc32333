"""What a command has to say: records, columns, and how a value is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from faultreplay.faulttrace.plain_text import plain
from faultreplay.faulttrace.units import format_bytes, format_ns

IMPORTANT: Final = 6  # `keep` from which a column goes only when narrow gaps do not help

Unit = Literal["text", "ns", "bytes", "count", "ratio", "percent", "error"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: the field of a record, what stands above it, and how its values are written.

    `keep` says how important the column is: the lowest goes first when the terminal is narrow; 9 is never left out,
    `IMPORTANT` and above only after the gaps were narrowed.
    """

    key: str
    title: str
    unit: Unit = "text"
    keep: int = 9


@dataclass(frozen=True)
class Report:
    """What a command has to say. `records` is the data; `rows`, where given, is what the table shows in its place.

    A cell of `rows` that is text is written unchanged, whatever the unit of its column.
    """

    records: Sequence[Record]
    columns: Sequence[Column]
    title: str = ""
    notes: Sequence[str] = ()
    rows: Sequence[Record] | None = None
    rules: frozenset[int] = frozenset()  # a line is drawn under these rows
    extra: Mapping[str, Any] = field(default_factory=dict)  # JSON only: fields besides the records
    lead: Sequence[str] = ()  # what must be read before the table: under the title
    made_of: Mapping[str, Any] = field(default_factory=dict)  # text only: what a reader needs to make it again
    brief: int = 0  # number of notes shown, followed by how many more there are; 0: all
    further: Sequence[Report] = ()  # tables under the first one, for people: their records are among `records`


SPAN: Final = "_words"
"""In a row of a table: text in place of all cells but the first."""


def format_cell(value: Any, unit: Unit) -> str:  # noqa: PLR0911 - one line a unit
    """`value` as a table shows it; None is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "text" or isinstance(value, str):
        return plain(str(value))
    if isinstance(value, float) and math.isnan(value):
        return "-"
    match unit:
        case "ns":
            return format_ns(value)
        case "bytes":
            return format_bytes(value)
        case "count":
            return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.1f}"
        case "ratio":
            return f"{value:.2f}"
        case "percent":
            return f"{value:.1f} %"
        case "error":
            return f"{value:+.1f} %"
