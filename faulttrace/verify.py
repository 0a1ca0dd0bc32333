"""Read every file of a trace completely and check it against its checksums, its digest and meta.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from faultreplay.faulttrace.directory import FAULTS_FILE, META, TRUTH_FILE, part_name, part_numbers
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.files import check_digest, check_footer, read_parquet
from faultreplay.faulttrace.meta import LOSSES_FILE, Meta
from faultreplay.faulttrace.place import Location, size_of
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, TRUTH
from faultreplay.faulttrace.store import open_trace, place_of

_SCHEMAS: Final = {LOSSES_FILE: LOSSES, FAULTS_FILE: FAULTS, TRUTH_FILE: TRUTH}


@dataclass(frozen=True)
class Verified:
    """The result for one file."""

    file: str
    """its name within the trace; for the trace as a whole, ``(the trace)`` or its file name"""
    rows: int | None
    size_bytes: int | None
    checked: str
    """what its bytes were checked against; empty: nothing, it has no checksums"""
    problem: str
    """one line; empty: good"""

    def as_record(self) -> dict[str, Any]:
        """Columns ``file, rows, size_bytes, checked, result``."""
        return {
            "file": self.file,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "checked": self.checked or "nothing: no checksums",
            "result": f"BAD: {self.problem}" if self.problem else "ok",
        }


Tell = Callable[[str, int, int], None]
"""called with the name of the file being read, its index and the number of files"""


def verify_trace(path: Path, tell: Tell = lambda _name, _number, _all: None) -> list[Verified]:
    """Each file of the trace at `path`: meta.json, the parts, the other files, and last the trace as a whole.

    Raises:
        UsageError: nothing there.
        NoPermission: it may not be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such trace")
    try:
        place = place_of(path)
    except IncompleteData as error:
        return [Verified(path.name, None, size_of(path), "", str(error))]
    return _verify(place, tell)


def _verify(path: Location, tell: Tell) -> list[Verified]:
    try:
        meta = Meta.read(path / META)
    except IncompleteData as error:
        return [Verified(META, None, _size(path / META), "", str(error))]
    found = [Verified(META, None, _size(path / META), "its digest" if meta.integrity.recording else "", "")]
    numbers, broken = _parts(path)
    names = {part_name(number): EVENTS for number in numbers}
    names |= {name: EVENTS for name in meta.integrity.files if name.startswith("events/")}
    names |= {n: schema for n, schema in _SCHEMAS.items() if (path / n).exists() or n in meta.integrity.files}
    for number, (name, schema) in enumerate(sorted(names.items())):
        tell(name, number, len(names))
        found.append(_file(path, name, schema, meta))
    return [*found, _whole(path, broken)]


def _file(path: Location, name: str, schema: pa.Schema, meta: Meta) -> Verified:
    place = path / name
    entry = meta.integrity.files.get(name)
    rows, checked = None, ""
    try:
        footer = check_footer(place, schema)
        rows = footer.rows
        check_digest(place, entry.sha256 if entry else None)
        if footer.sealed:
            checked = "meta.json, digest, pages" if entry else "digest, pages"
        read_parquet(place, schema)
        problem = ""
    except FileNotFoundError:
        problem = f"{place}: gone: meta.json lists it"
    except FaultreplayError as error:
        problem = str(error)
    return Verified(name, rows, _size(place), checked, problem)


def _whole(path: Location, broken: str) -> Verified:
    """Whether the files belong together, and whether the stored faults match the events."""

    def kept() -> None:
        trace = open_trace(path)
        trace.faults_are_kept() if trace.event_rows else trace.faults()

    return Verified("(the trace)", None, None, "meta.json and footers", broken or _problem(kept))


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except FaultreplayError as error:
        return str(error)
    return ""


def _parts(path: Location) -> tuple[list[int], str]:
    try:
        return part_numbers(path), ""
    except IncompleteData as error:
        return [], str(error)


def _size(path: Location) -> int | None:
    return size_of(path) if path.exists() else None
