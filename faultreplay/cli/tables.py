"""A report as text of a given width: columns that find no room are named, and no number is ever cut short."""

from __future__ import annotations

import io
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from faultreplay import __version__
from faultreplay.cli.cells import IMPORTANT, SPAN, Column, Record, Report, format_cell
from faultreplay.faulttrace.plain_text import plain

DEFAULT_WIDTH: Final = 80
TEXT_WIDTH: Final = 72
"""What kernel lists want of a mail."""
GAP: Final = 2  # between two columns of a table
_UNIT_GAP: Final = re.compile(r"(?<=\d) (?=(?:%|[num]?s|[KMG]iB|B)(?!\w))")


def to_table(report: Report, width: int = DEFAULT_WIDTH, *, colour: bool = False) -> tuple[str, list[str]]:
    """The tables as text of at most `width` columns, and the titles of the columns that found no room."""
    text, left_out = _one_table(report, width, colour=colour)
    for more in report.further:
        below, also_out = _one_table(more, width, colour=colour)
        text += "\n" + below
        left_out += also_out
    words = [*brief_notes(report), *left_out_words(left_out)]
    if words and report.columns:
        text += "\n"
    return text + "".join(wrapped(note, width) + "\n" for note in words), left_out


def to_text(report: Report, width: int = TEXT_WIDTH) -> str:
    """The tables for a mail: plain, `width` columns, and at the end what made them."""
    head, *more = [replace(part, further=()) for part in (report, *report.further)]
    text = to_table(replace(head, further=more), width)[0]
    made = [f"faultreplay {__version__}: {shlex.join(['faultreplay', *sys.argv[1:]])}"]
    made += [", ".join(f"{key} {value}" for key, value in report.made_of.items())] if report.made_of else []
    # No command is broken in two that fits a line of its own; a longer one is, as a shell lets it.
    return text + "\n-- \n" + "".join(wrapped(line, width) + "\n" for line in made)


def brief_notes(report: Report) -> list[str]:
    """The notes that are shown to people."""
    hidden = len(report.notes) - report.brief
    if not report.brief or hidden <= 0:
        return list(report.notes)
    return [*report.notes[: report.brief], f"{hidden} more note{'s' * (hidden > 1)} with -v"]


def left_out_words(left_out: Sequence[str]) -> list[str]:
    """One line that names the columns without room; none where all have it."""
    names = ", ".join(dict.fromkeys(left_out))
    return [f"columns that do not fit: {names} (a wider terminal, or --format csv, shows all)"] if names else []


def _one_table(report: Report, width: int, *, colour: bool) -> tuple[str, list[str]]:
    from rich.console import Console
    from rich.text import Text

    columns, left_out, gap = fit(report, width)
    cells = [[format_cell(row.get(c.key), c.unit) for c in columns] for row in shown(report)]
    heads = [_head_lines(c) for c in columns]
    deep = max((len(h) for h in heads), default=0)
    heads = [[""] * (deep - len(h)) + h for h in heads]
    widths = [max(len(x) for x in [*h, *(row[i] for row in cells)]) for i, h in enumerate(heads)]

    def line(parts: Sequence[str]) -> str:
        done = (p.ljust(w) if c.unit == "text" else p.rjust(w) for p, w, c in zip(parts, widths, columns, strict=True))
        return (" " * gap).join(done).rstrip()

    out = io.StringIO()
    wide = sum(widths) + gap * max(len(widths) - 1, 0)
    full = max(width, wide, 1)
    console = Console(file=out, width=full, force_terminal=colour, no_color=not colour, highlight=False)

    def write(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), no_wrap=True, overflow="ignore", crop=False, soft_wrap=True)

    if report.title:
        for part in folded(report.title, width):
            write(part, "bold")
        for words in report.lead:
            for part in wrapped(words, width).splitlines():
                write(part)
        write("")
    for level in range(deep):
        write(line([h[level] for h in heads]), "bold")
    rule = "-" * wide
    if columns:
        write(rule, "dim")
    for number, (row, data) in enumerate(zip(cells, shown(report), strict=True)):
        if SPAN in data:
            lead = " " * (widths[0] + gap)
            words = textwrap.fill(
                plain(data[SPAN]), max(width, 40), initial_indent=lead, subsequent_indent=lead, break_long_words=False
            )
            write(row[0].ljust(len(lead)) + words[len(lead) :])
        else:
            write(line(row), "dim" if row and row[0].startswith(" ") else "")
        if number in report.rules and number + 1 < len(cells):
            write(rule, "dim")
    return out.getvalue(), left_out


def shown(report: Report) -> Sequence[Record]:
    """The rows of its table."""
    return report.records if report.rows is None else report.rows


def fit(report: Report, width: int) -> tuple[list[Column], list[str], int]:
    """The columns that fit, the titles of those that do not, and the gap between two: narrow before that."""
    columns = list(report.columns)
    left_out: list[str] = []
    rows = shown(report)

    def need(column: Column) -> int:
        cells = [format_cell(row.get(column.key), column.unit) for row in rows]
        return max(len(x) for x in [*_head_lines(column), *cells])

    needs = {c.key: need(c) for c in columns}

    def fits(gap: int) -> bool:
        return sum(needs[c.key] for c in columns) + gap * (len(columns) - 1) <= width

    while not fits(GAP):
        least = min(columns, key=lambda c: (c.keep, -columns.index(c)))
        if least.keep >= IMPORTANT and fits(1):
            return columns, left_out, 1
        if least.keep >= 9:
            return columns, left_out, 1
        columns.remove(least)
        left_out.insert(0, one_line(least.title))
    return columns, left_out, GAP


def _head_lines(column: Column) -> list[str]:
    return [plain(line) for line in column.title.split("\n")]


def wrapped(words: str, width: int) -> str:
    """`words` in lines of at most `width`, further ones indented."""
    return "\n".join(folded(words, width, "  "))


def folded(words: str, width: int, indent: str = "") -> list[str]:
    """`words` in lines of at most `width`; a number and its unit stay together."""
    held = _UNIT_GAP.sub("\0", plain(words))
    lines = textwrap.wrap(held, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def one_line(title: str) -> str:
    """A column's title without its line breaks."""
    return title.replace("-\n", "").replace("\n", " ").strip()
