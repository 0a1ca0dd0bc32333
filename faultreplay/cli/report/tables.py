"""A report's table as HTML that mouse and keyboard can sort; every text from outside is escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Final

from faultreplay.cli.cells import SPAN, Column, Record, Report, format_cell
from faultreplay.faulttrace.plain_text import plain

LONG: Final = frozenset({"mechanisms", "words"})
"""Columns of words that are folded."""
_PATH: Final = re.compile(r"(?<![^\s=,:(\'\"])/(?:[^\s/,:'\"]+/)+(?=[^\s/,:'\"])")
"""The folders of an absolute path among words."""
SORTED_BY: Final = {"change_text": "change_percent", "served_text": "served_percent"}
"""Columns of words whose rows are sorted by a number of the record."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


def escape(words: str) -> str:
    """As text of the page; a number stays on the line of its per cent."""
    return html.escape(plain(words)).replace(" %", "&nbsp;%")


def table(report: Report, name: str) -> str:
    """The rows of its table, each with what stands under it in a body of its own. `name` is read aloud."""
    head = "".join(_head(column) for column in report.columns)
    values = {str(r.get(report.columns[0].key)): r for r in report.records if r.get("row") != "measured"}
    bodies: list[list[str]] = []
    for row in report.records if report.rows is None else report.rows:
        cells = [format_cell(row.get(c.key), c.unit) for c in report.columns]
        sub = bool(cells) and cells[0].startswith(" ")
        record = {} if sub else values.get(cells[0].removesuffix(" *"), {})
        if not sub or not bodies:
            bodies.append([])
        bodies[-1].append(_row(report.columns, row, cells, record, sub=sub))
    whole = "".join(f"<tbody>{''.join(rows)}</tbody>\n" for rows in bodies)
    label = html.escape(name, quote=True)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>\n'
        f"{whole}</table></div>"
    )


def section(title: str, columns: Sequence[Column], records: Sequence[Record], words: str = "") -> str:
    """A heading, words and a table; nothing of no records."""
    if not records:
        return ""
    said = f'<p class="soft">{escape(words)}</p>\n' if words else ""
    return headed(title, f"{said}{table(Report(records, columns), title)}")


def headed(title: str, body: str) -> str:
    """A heading that can be linked to, and what stands under it."""
    anchor = plain_id(title).strip("-").lower() or "part"
    return f'<h2 id="{anchor}">{escape(title)}</h2>\n{body}'


def plain_id(name: str) -> str:
    """`name` as an element's id."""
    return _UNSAFE.sub("-", name)


def _row(columns: Sequence[Column], row: Record, cells: Sequence[str], record: Record, *, sub: bool) -> str:
    if SPAN in row:
        span = f'<td class="text long" colspan="{len(columns) - 1}"><span class="reason">'
        span += f"{html.escape(plain(str(row[SPAN])))}</span></td>"
        return f"<tr><td>{html.escape(cells[0])}</td>{span}</tr>"
    data = []
    for column, cell in zip(columns, cells, strict=True):
        value = _number(row.get(column.key), record.get(SORTED_BY.get(column.key, column.key)))
        sorts = "" if value is None else f' data-v="{value!r}"'
        data.append(f"<td{_class(column)}{sorts}>{html.escape(cell.strip())}</td>")
    kind = ' class="sub"' if sub else ""
    return f"<tr{kind}>{''.join(data)}</tr>"


def _number(shown: object, told: object) -> float | int | None:
    """What a cell is sorted by: its value, or that of the record where it shows words in its place."""
    for value in (shown, told):
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            return value
    if isinstance(shown, str):
        first = shown.split(" ", 1)[0].replace(",", "").rstrip("%")
        try:
            return float(first) if shown[:1] in "+-0123456789" and "%" in shown else None
        except ValueError:
            return None
    return None


def _head(column: Column) -> str:
    title = "<br>".join(html.escape(plain(line)) for line in column.title.replace("-\n", "").split("\n"))
    return f'<th scope="col"{_class(column)}><button type="button">{title}</button></th>'


def _class(column: Column) -> str:
    if column.unit != "text":
        return ""
    return ' class="text long"' if column.key in LONG else ' class="text"'


def without_folders(words: str) -> str:
    """Words without the folders of absolute paths, which are private."""
    return _PATH.sub("", words)
