"""The one way out: the same records as a table, text for a mail, JSON, CSV, Markdown or Parquet.

Data goes to stdout (or to `-o FILE`), words to stderr. JSON, CSV and Parquet carry integers in the unit that
the name ends in (`_ns`, `_bytes`); only tables are rounded. A table is never wider than the terminal, than 120 columns
in a pipe or a file, than 72 as text: the columns that matter least are left out, which the table says, and no number is
ever cut short. Text from outside goes through `plain` here, whatever the format, but for JSON and Parquet: `say` and
`put` are the only ways to print a line.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from faultreplay import __version__
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.plain_text import plain, plain_frame
from faultreplay.faulttrace.units import format_bytes, format_ns

if TYPE_CHECKING:
    import polars as pl

FORMATS: Final = ("table", "text", "json", "csv", "md", "parquet")
DEFAULT_WIDTH: Final = 80
PIPED_WIDTH: Final = 120
"""Of a table that goes into a file or a pipe, where nobody says how wide it may be."""
TEXT_WIDTH: Final = 72
"""What kernel lists want of a mail."""
JSON_VERSION: Final = 2
"""Of the document around the records; 1 had no version."""
GAP: Final = 2  # between two columns of a table
_MARKUP: Final = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK: Final = re.compile(r"^(?=[#+=-])|(?<=^\d)(?=[.)] )|(?<=^\d\d)(?=[.)] )")  # a heading or a list in the list
_ESCAPED: Final = r"\\"
DEAR: Final = 6  # `keep` from which a column goes only when narrow gaps do not help

_UNIT_GAP: Final = re.compile(r"(?<=\d) (?=(?:%|[num]?s|[KMG]iB|B)(?!\w))")

Unit = Literal["text", "ns", "bytes", "count", "ratio", "percent", "error"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: the field of a record, what stands above it, and how its values are written.

    `keep` says how dear the column is: the lowest goes first when the terminal is narrow; 9 is never left out,
    `DEAR` and above only after the gaps were narrowed.
    """

    key: str
    title: str
    unit: Unit = "text"
    keep: int = 9


@dataclass(frozen=True)
class Report:
    """What a command has to say. `records` is the data; `rows`, where given, is what the table shows in its place.

    A cell of `rows` that is text is written as it stands, whatever the unit of its column.
    """

    records: Sequence[Record]
    columns: Sequence[Column]
    title: str = ""
    notes: Sequence[str] = ()
    rows: Sequence[Record] | None = None
    rules: frozenset[int] = frozenset()  # a line is drawn under these rows
    extra: Mapping[str, Any] = field(default_factory=dict)  # JSON only: what stands beside the records
    lead: Sequence[str] = ()  # what must be read before the table: under the title
    made_of: Mapping[str, Any] = field(default_factory=dict)  # text only: what a reader needs to make it again
    brief: int = 0  # so many notes are shown to people, and how many more there are; 0: all
    further: Sequence[Report] = ()  # tables under the first one, for people: their records are among `records`


SPAN: Final = "_words"
"""In a row of a table: words that stand in place of all cells but the first."""


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


def emit(report: Report, fmt: str, output: Path | None = None, *, force: bool = False) -> None:
    """Write `report` in the format `fmt` to stdout, or to `output` and say so.

    Raises:
        UsageError: an unknown format, Parquet without a file, or `output` exists and `force` is not given.
    """
    if fmt not in FORMATS:
        raise UsageError(f"'{fmt}' is not an output format: choose one of {', '.join(FORMATS)}")
    if output is not None:
        check_output(output, force=force)
    if fmt == "parquet":
        if output is None:
            raise UsageError("Parquet is binary: give it a file with -o FILE")
        _replace(output, lambda part: _write_parquet(report.records, part))
        say(f"wrote {output}")
        return
    if fmt in ("table", "text"):
        colour = fmt == "table" and output is None and sys.stdout.isatty()
        width = TEXT_WIDTH if fmt == "text" else table_width(sys.stdout.isatty() if output is None else False)
        text = to_text(report, width) if fmt == "text" else to_table(report, width, colour=colour)[0]
    else:
        text = {"json": to_json, "csv": to_csv, "md": to_markdown}[fmt](report)
    if fmt == "csv":
        for note in report.notes:
            say(note)
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(output, text)


def emit_frame(
    frame: pl.DataFrame, fmt: str, output: Path | None, columns: Sequence[Column], *, force: bool = False
) -> None:
    """Write a frame of many rows: Parquet and CSV without a Python object a row, the other formats through `emit`.

    Raises:
        UsageError: as `emit`.
    """
    if fmt in ("parquet", "csv") and output is not None:
        check_output(output, force=force)
        _replace(output, partial(_write_frame, frame) if fmt == "parquet" else plain_frame(frame).write_csv)
        say(f"wrote {output} ({len(frame):,} rows)")
    elif fmt == "csv":
        sys.stdout.write(plain_frame(frame).write_csv())
    else:
        emit(Report(frame.to_dicts(), columns), fmt, output, force=force)


def write_text(output: Path, text: str) -> None:
    """Write a whole file and say so."""
    _replace(output, lambda part: part.write_text(text, encoding="utf-8"))
    say(f"wrote {output}")


def say(words: str, width: int = 0) -> None:
    """One line for the reader, not for the next program: on stderr; folded to `width` columns where given."""
    print(_wrapped(words, width) if width else plain(words), file=sys.stderr)


def put(line: str = "") -> None:
    """One line on stdout."""
    print(plain(line))


def check_output(output: Path, *, force: bool) -> None:
    """Refuse early, before long work, to write over a file.

    Raises:
        UsageError: `output` exists, or its folder does not.
    """
    if output.exists() and not force:
        raise UsageError(f"{output} exists: choose another name or pass --force to write over it")
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent}: make it first")


def table_width(terminal: bool) -> int:
    """Columns a table may take: the terminal's, or COLUMNS, or 120 when nobody knows."""
    if terminal or os.environ.get("COLUMNS", "").isdigit():
        return max(shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns, 40)
    return PIPED_WIDTH


def to_table(report: Report, width: int = DEFAULT_WIDTH, *, colour: bool = False) -> tuple[str, list[str]]:
    """The tables as text of at most `width` columns, and the titles of the columns that found no room."""
    text, left_out = _one_table(report, width, colour=colour)
    for more in report.further:
        below, also_out = _one_table(more, width, colour=colour)
        text += "\n" + below
        left_out += also_out
    words = [*_brief(report), *_left_out_words(left_out)]
    if words and report.columns:
        text += "\n"
    return text + "".join(_wrapped(note, width) + "\n" for note in words), left_out


def to_text(report: Report, width: int = TEXT_WIDTH) -> str:
    """The tables for a mail: plain, `width` columns, and at the end what made them."""
    head, *more = [replace(part, further=()) for part in (report, *report.further)]
    text = to_table(replace(head, further=more), width)[0]
    made = [f"faultreplay {__version__}: {shlex.join(['faultreplay', *sys.argv[1:]])}"]
    made += [", ".join(f"{key} {value}" for key, value in report.made_of.items())] if report.made_of else []
    # No command is broken in two that fits a line of its own; a longer one is, as a shell lets it.
    return text + "\n-- \n" + "".join(_wrapped(line, width) + "\n" for line in made)


def _brief(report: Report) -> list[str]:
    """The notes that are shown to people."""
    hidden = len(report.notes) - report.brief
    if not report.brief or hidden <= 0:
        return list(report.notes)
    return [*report.notes[: report.brief], f"{hidden} more note{'s' * (hidden > 1)} with -v"]


def _left_out_words(left_out: Sequence[str]) -> list[str]:
    names = ", ".join(dict.fromkeys(left_out))
    return [f"left out for want of width: {names} (a wider terminal, or --format csv, shows all)"] if names else []


def _one_table(report: Report, width: int, *, colour: bool) -> tuple[str, list[str]]:
    from rich.console import Console
    from rich.text import Text

    columns, left_out, gap = _fit(report, width)
    cells = [[format_cell(row.get(c.key), c.unit) for c in columns] for row in _shown(report)]
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
        for part in _folded(report.title, width):
            write(part, "bold")
        for words in report.lead:
            for part in _wrapped(words, width).splitlines():
                write(part)
        write("")
    for level in range(deep):
        write(line([h[level] for h in heads]), "bold")
    rule = "-" * wide
    if columns:
        write(rule, "dim")
    for number, (row, shown) in enumerate(zip(cells, _shown(report), strict=True)):
        if SPAN in shown:
            lead = " " * (widths[0] + gap)
            words = textwrap.fill(
                plain(shown[SPAN]), max(width, 40), initial_indent=lead, subsequent_indent=lead, break_long_words=False
            )
            write(row[0].ljust(len(lead)) + words[len(lead) :])
        else:
            write(line(row), "dim" if row and row[0].startswith(" ") else "")
        if number in report.rules and number + 1 < len(cells):
            write(rule, "dim")
    return out.getvalue(), left_out


def to_json(report: Report) -> str:
    """`{"schema_version", "tool", "command", "title", ..., "records": [...], "notes": [...]}`, one document."""
    whole: dict[str, Any] = {
        "schema_version": JSON_VERSION,
        "tool": {"name": "faultreplay", "version": __version__},
        "command": ["faultreplay", *sys.argv[1:]],
        "title": report.title,
        **report.extra,
        "records": list(report.records),
    }
    whole["notes"] = list(report.notes)
    return json.dumps(whole, indent=2, default=_plain, allow_nan=False) + "\n"


def to_csv(report: Report) -> str:
    """One line a record, a head line, RFC 4180 quoting; the columns are all that any record has."""
    out = io.StringIO()
    flat = [_flat(r) for r in report.records]
    names = _names(flat)
    writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
    writer.writerow({name: plain(name) for name in names})
    writer.writerows({key: plain(x) if isinstance(x, str) else x for key, x in row.items()} for row in flat)
    return out.getvalue()


def to_markdown(report: Report) -> str:
    """A GitHub table as wide as it may be in a pipe, the notes as a list under it."""
    columns, left_out, _ = _fit(report, PIPED_WIDTH)
    report = replace(report, columns=columns)
    lines: list[str] = []
    if report.title:
        lines += [f"**{_markdown(report.title)}**", ""]
    lines += [line for words in report.lead for line in (_BLOCK.sub(_ESCAPED, _markdown(words)), "")]
    lines.append("| " + " | ".join(_markdown(_one_line(c.title)) for c in report.columns) + " |")
    lines.append("|" + "|".join("---" if c.unit == "text" else "--:" for c in report.columns) + "|")
    for row in _shown(report):
        if SPAN in row:
            cells = [str(row.get(report.columns[0].key)), row[SPAN], *[""] * (len(report.columns) - 2)]
        else:
            cells = [format_cell(row.get(c.key), c.unit) for c in report.columns]
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    for more in report.further:
        lines += ["", to_markdown(more).rstrip()]
    words = [*_brief(report), *_left_out_words(left_out)]
    if words:
        lines += ["", *(f"- {_BLOCK.sub(_ESCAPED, _markdown(note))}" for note in words)]
    return "\n".join(lines) + "\n"


def _shown(report: Report) -> Sequence[Record]:
    return report.records if report.rows is None else report.rows


def _fit(report: Report, width: int) -> tuple[list[Column], list[str], int]:
    """The columns that fit, the titles of those that do not, and the gap between two: narrow before a dear one goes."""
    columns = list(report.columns)
    left_out: list[str] = []
    rows = _shown(report)

    def need(column: Column) -> int:
        cells = [format_cell(row.get(column.key), column.unit) for row in rows]
        return max(len(x) for x in [*_head_lines(column), *cells])

    needs = {c.key: need(c) for c in columns}

    def fits(gap: int) -> bool:
        return sum(needs[c.key] for c in columns) + gap * (len(columns) - 1) <= width

    while not fits(GAP):
        least = min(columns, key=lambda c: (c.keep, -columns.index(c)))
        if least.keep >= DEAR and fits(1):
            return columns, left_out, 1
        if least.keep >= 9:
            return columns, left_out, 1
        columns.remove(least)
        left_out.insert(0, _one_line(least.title))
    return columns, left_out, GAP


def _head_lines(column: Column) -> list[str]:
    return [plain(line) for line in column.title.split("\n")]


def _wrapped(words: str, width: int) -> str:
    return "\n".join(_folded(words, width, "  "))


def _folded(words: str, width: int, indent: str = "") -> list[str]:
    """`words` in lines of at most `width`; a number and its unit stay together."""
    held = _UNIT_GAP.sub("\0", plain(words))
    lines = textwrap.wrap(held, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _markdown(words: str) -> str:
    """As text of a Markdown table or list: what would be a link, an image, HTML or a cell is not one."""
    text = _MARKUP.sub(r"\\\g<0>", plain(words))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _one_line(title: str) -> str:
    return title.replace("-\n", "").replace("\n", " ").strip()


def _flat(record: Record) -> dict[str, Any]:
    """Nested values as columns `a.b`; lists as text, so that one record stays one line."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{k}": v for k, v in _flat(value).items()}
        elif isinstance(value, list | tuple):
            flat[key] = json.dumps(value, default=_plain)
        else:
            flat[key] = value
    return flat


def _names(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _write_parquet(records: Sequence[Record], path: Path) -> None:
    import pyarrow as pa

    from faultreplay.faulttrace.files import put_tables

    flat = [_flat(r) for r in records]
    names = _names(flat)
    table = pa.Table.from_pylist([{n: r.get(n) for n in names} for r in flat])
    put_tables(path, table.schema, [table])


def _write_frame(frame: pl.DataFrame, path: Path) -> None:
    from faultreplay.faulttrace.files import put_tables

    table = frame.to_arrow()
    put_tables(path, table.schema, [table])


def _replace(output: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    part = output.with_name(f".{output.name}.part")
    try:
        write(part)
        part.replace(output)
    except OSError as error:
        raise FaultreplayError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
