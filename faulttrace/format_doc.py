"""Generate the tables of docs/trace-format.md from the schema.

`python -m faultreplay.faulttrace.format_doc docs/trace-format.md`
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa

from faultreplay.faulttrace.schema import (
    ACCESSORS,
    CAUSES,
    EVENTS,
    FAULT_COLUMNS,
    KINDS,
    LOSSES,
    RESOLUTIONS,
    SCHEMA_LOG,
    STITCH_LOG,
    TRUTH,
    Kind,
)
from faultreplay.faulttrace.stitch.found import MARKERS

_BLOCK = re.compile(r"(<!-- made from the schema: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def kinds_table() -> str:
    """Every kind of event: number, source, meaning and the columns it fills."""
    lines = ["| kind | number | source | meaning | columns it fills |", "|---|--:|---|---|---|"]
    for kind in Kind:
        info = KINDS[kind]
        columns = "; ".join(f"`{name}` {meaning}" for name, meaning in info.columns.items()) or "-"
        cells = (kind.name, str(int(kind)), info.source, info.meaning, columns)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def columns_table(schema: pa.Schema) -> str:
    """Columns of one file: name, type, whether it may be null."""
    lines = ["| column | type | null |", "|---|---|---|"]
    lines += [f"| {field.name} | {field.type} | {'yes' if field.nullable else 'no'} |" for field in schema]
    return "\n".join(lines)


def faults_table() -> str:
    """Columns of faults: name, type, unit, meaning, what an empty cell means."""
    lines = ["| column | type | unit | meaning | empty |", "|---|---|---|---|---|"]
    for column in FAULT_COLUMNS:
        cells = (column.name, str(column.type), column.unit or "-", column.meaning, column.null or "never")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versions_table() -> str:
    """Changes of each version of the format and of the stitcher."""
    lines = ["| version of | number | change |", "|---|--:|---|"]
    for name, log in (("format", SCHEMA_LOG), ("stitch", STITCH_LOG)):
        lines += [f"| {name} | {number} | {text} |" for number, text in log.items()]
    return "\n".join(lines)


def words_table() -> str:
    """The words that `accessor`, `cause`, `resolution` and `join` are made of."""
    lines = ["| column | words |", "|---|---|"]
    for name, words in (("accessor", ACCESSORS), ("cause", CAUSES), ("resolution", RESOLUTIONS)):
        lines.append(f"| {name} | {', '.join(words)} |")
    lines += ["", "| word of `join` | meaning |", "|---|---|"]
    lines += [f"| {word} | {meaning} |" for word, meaning in MARKERS.items()]
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with every marked block regenerated.

    Raises:
        KeyError: a block names a table that does not exist.
    """
    tables = {
        "kinds": kinds_table(),
        "words": words_table(),
        "events": columns_table(EVENTS),
        "losses": columns_table(LOSSES),
        "faults": faults_table(),
        "versions": versions_table(),
        "truth": columns_table(TRUTH),
    }
    return _BLOCK.sub(lambda match: f"{match[1]}{tables[match['name']]}\n{match[3]}", text)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
