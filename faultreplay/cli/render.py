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
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from faultreplay import __version__
from faultreplay.cli.cells import IMPORTANT, SPAN, Column, Record, Report, Unit, format_cell
from faultreplay.cli.manners import quiet
from faultreplay.cli.tables import (
    DEFAULT_WIDTH,
    TEXT_WIDTH,
    brief_notes,
    fit,
    left_out_words,
    one_line,
    shown,
    to_table,
    to_text,
    wrapped,
)
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.plain_text import plain, plain_frame

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "DEFAULT_WIDTH",
    "FORMATS",
    "IMPORTANT",
    "SPAN",
    "Column",
    "Record",
    "Report",
    "Unit",
    "emit",
    "format_cell",
    "to_table",
    "to_text",
]

FORMATS: Final = ("table", "text", "json", "csv", "md", "parquet")
PIPED_WIDTH: Final = 120
"""Width of a table in a file or a pipe, which has no width of its own."""
JSON_VERSION: Final = 2
"""Of the document around the records; 1 had no version."""
_MARKUP: Final = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK: Final = re.compile(r"^(?=[#+=-])|(?<=^\d)(?=[.)] )|(?<=^\d\d)(?=[.)] )")  # a heading or a list in the list
_ESCAPED: Final = r"\\"


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


def say(words: str, width: int = 0, *, always: bool = False) -> None:
    """One line for the reader, not for the next program: on stderr; folded to `width` columns where given.

    With -q only messages marked `always`: those that make a result doubtful.
    """
    if quiet() and not always:
        return
    print(wrapped(words, width) if width else plain(words), file=sys.stderr)


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
    """Columns a table may take: the terminal's, or COLUMNS, or 120 if unknown."""
    if terminal or os.environ.get("COLUMNS", "").isdigit():
        return max(shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns, 40)
    return PIPED_WIDTH


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
    plain_heads = [replace(column, title=one_line(column.title)) for column in report.columns]
    columns, left_out, _ = fit(replace(report, columns=plain_heads), PIPED_WIDTH - 16)  # bars take more than gaps
    report = replace(report, columns=columns)
    lines: list[str] = []
    if report.title:
        lines += [f"**{_markdown(report.title)}**", ""]
    lines += [line for words in report.lead for line in (_BLOCK.sub(_ESCAPED, _markdown(words)), "")]
    lines.append("| " + " | ".join(_markdown(one_line(c.title)) for c in report.columns) + " |")
    lines.append("|" + "|".join("---" if c.unit == "text" else "--:" for c in report.columns) + "|")
    for row in shown(report):
        if SPAN in row:
            cells = [str(row.get(report.columns[0].key)), row[SPAN], *[""] * (len(report.columns) - 2)]
        else:
            cells = [format_cell(row.get(c.key), c.unit) for c in report.columns]
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    for more in report.further:
        lines += ["", to_markdown(more).rstrip()]
    words = [*brief_notes(report), *left_out_words(left_out)]
    if words:
        lines += ["", *(f"- {_BLOCK.sub(_ESCAPED, _markdown(note))}" for note in words)]
    return "\n".join(lines) + "\n"


def _markdown(words: str) -> str:
    """As text of a Markdown table or list: what would be a link, an image, HTML or a cell is not one."""
    text = _MARKUP.sub(r"\\\g<0>", plain(words))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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
