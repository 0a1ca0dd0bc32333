"""Check that the files of a trace belong to it: each is compared with meta.json before it is used.

A part that is missing, duplicated, renamed, from another trace, or longer or shorter than when it was written is
reported here. Its bytes are checked when they are read (`faulttrace.files.check_digest`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from faultreplay.faulttrace.directory import FAULTS_FILE, FILES, META, TRUTH_FILE, part_name, part_numbers
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.files import Footer, check_footer
from faultreplay.faulttrace.meta import LOSSES_FILE, Losses, Meta
from faultreplay.faulttrace.place import Location, size_of
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH

if TYPE_CHECKING:
    import pyarrow as pa

_COPY: Final = "copy the trace again"
NO_FAULTS: Final = "missing: a synthetic trace has nothing else, make it again"


@dataclass(frozen=True)
class Part:
    """One file of raw events."""

    path: Location
    name: str
    """within the trace"""
    number: int
    rows: int


def read_parts(path: Location, meta: Meta) -> list[Part]:
    """The event parts of the trace at `path`, in order: complete, with the right columns, and of this recording.

    Raises:
        IncompleteData: a part is not.
        NoPermission: a part may not be read.
    """
    parts = []
    for number in part_numbers(path):
        name = part_name(number)
        footer = check_footer(path / name, EVENTS)
        _check_marks(path, name, footer, meta)
        parts.append(Part(path / name, name, number, footer.rows))
    return parts


def check_belonging(path: Location, meta: Meta, parts: list[Part]) -> None:
    """Check that the files of a trace are exactly those that its meta.json lists.

    Raises:
        IncompleteData: they are not; the message names the first difference.
    """
    numbers = [part.number for part in parts]
    first = numbers[0] if numbers and (meta.extra.get("rotated") or not meta.integrity.recording) else 0
    if numbers and numbers[-1] - first + 1 != len(numbers):
        known = set(numbers)
        gone = next(number for number in range(first, numbers[-1]) if number not in known)
        count = numbers[-1] - first + 1 - len(numbers)
        raise IncompleteData(f"{path}/{part_name(gone)}: gone ({count} missing): {_COPY}")
    for name, schema in ((LOSSES_FILE, LOSSES), (TRUTH_FILE, TRUTH)):
        if (path / name).exists():
            _check_marks(path, name, check_footer(path / name, schema), meta)
    if meta.integrity.closed:
        _check_listed(path, meta, parts)
    elif TRUTH_FILE in meta.integrity.files or (path / TRUTH_FILE).exists():
        _check_one_listed(path, TRUTH_FILE, meta)
    if meta.complete and meta.recorder.events and not meta.extra.get("rotated"):
        rows = sum(part.rows for part in parts)
        if rows != meta.recorder.events:
            why = "parts are missing" if rows < meta.recorder.events else "a part is not of this recording"
            raise IncompleteData(f"{path}/events: {rows} events, meta.json says {meta.recorder.events}: {why}, {_COPY}")


def check_losses(path: Location, meta: Meta, losses: pa.Table) -> None:
    """Check that meta.json and `losses.parquet` agree on losses; if the recorder was killed, use those of the file.

    Raises:
        IncompleteData: they differ.
    """
    by_probe: dict[str, int] = {}
    for probe, lost in zip(losses["probe"].to_pylist(), losses["lost"].to_pylist(), strict=True):
        if lost < 0:
            raise IncompleteData(f"{path / LOSSES_FILE}: damaged: a negative number of lost events")
        by_probe[probe] = by_probe.get(probe, 0) + lost
    found = Losses(sum(by_probe.values()), by_probe)
    if not meta.complete:
        meta.losses = found
        return
    told = sum(meta.losses.by_probe.values())
    # Older recorders counted the losses before the oldest kept part in the total, but did not keep their rows.
    forgotten = bool(meta.extra.get("rotated")) and not meta.integrity.recording
    if found.total != meta.losses.total and not (forgotten and found.total < meta.losses.total):
        raise IncompleteData(
            f"{path / LOSSES_FILE}: {found.total} lost events, meta.json says {meta.losses.total}: {_COPY}"
        )
    if told != meta.losses.total:
        raise IncompleteData(f"{path}/meta.json: {meta.losses.total} lost events, but {told} by probe: {_COPY}")


def made_from(meta: Meta, digests: Mapping[str, str]) -> str:
    """A digest of all input of the stitch: the events, their description in meta.json, and the stitcher's version.

    Args:
        meta: of the trace.
        digests: of each event part by its name; other files are ignored.
    """
    parts = sorted((name, digest) for name, digest in digests.items() if name.startswith("events/"))
    told = {
        "targets": [asdict(target) for target in meta.targets],
        "memory_map": [asdict(entry) for entry in meta.memory_map],
        "shed": meta.extra.get("shed"),
    }
    whole = msgspec.json.encode([STITCH_VERSION, parts, told], order="deterministic")
    return hashlib.sha256(whole).hexdigest()


def _check_marks(path: Location, name: str, footer: Footer, meta: Meta) -> None:
    """Check that a file belongs to this recording and was written under this name."""
    marks, recording = footer.marks, meta.integrity.recording
    if not recording and footer.sealed:
        raise IncompleteData(f"{path / name}: has checksums, meta.json knows of none: of another trace? {_COPY}")
    if recording and not footer.sealed:
        raise IncompleteData(f"{path / name}: without checksums: rewritten by another program? {_COPY}")
    if marks.recording != recording:
        raise IncompleteData(f"{path / name}: of another recording: {_COPY}")
    if recording and marks.file != name:
        raise IncompleteData(f"{path / name}: was written as {marks.file}: a copy, or renamed: {_COPY}")


def _check_listed(path: Location, meta: Meta, parts: list[Part]) -> None:
    listed = {name for name in meta.integrity.files if name.startswith("events/")}
    here = {part.name for part in parts}
    if gone := sorted(listed - here):
        raise IncompleteData(f"{path / gone[0]}: gone ({len(gone)} missing): {_COPY}")
    if more := sorted(here - listed):
        raise IncompleteData(f"{path / more[0]}: meta.json does not list it: not of this recording")
    if unknown := sorted(set(meta.integrity.files) - listed - set(FILES)):
        raise IncompleteData(f"{path}/{META}: lists {unknown[0]!r}, which is no file of a trace: {_COPY}")
    for part in parts:
        if part.rows != meta.integrity.files[part.name].rows:
            raise IncompleteData(
                f"{part.path}: {part.rows} events, meta.json lists {meta.integrity.files[part.name].rows}: {_COPY}"
            )
    for name in (LOSSES_FILE, TRUTH_FILE):
        _check_one_listed(path, name, meta)
    if not parts and (FAULTS_FILE in meta.integrity.files or (path / FAULTS_FILE).exists()):
        _check_one_listed(path, FAULTS_FILE, meta)
        _check_marks(path, FAULTS_FILE, check_footer(path / FAULTS_FILE, FAULTS), meta)
    for name, entry in meta.integrity.files.items():
        size = size_of(path / name)
        if size != entry.bytes:
            raise IncompleteData(f"{path / name}: {size} bytes, meta.json lists {entry.bytes}: {_COPY}")


def _check_one_listed(path: Location, name: str, meta: Meta) -> None:
    if not meta.integrity.recording:
        return
    here, listed = (path / name).exists(), name in meta.integrity.files
    if here and not listed:
        raise IncompleteData(f"{path / name}: meta.json does not list it: not of this trace")
    if listed and not here:
        raise IncompleteData(f"{path / name}: {NO_FAULTS if name == FAULTS_FILE else f'gone: {_COPY}'}")
