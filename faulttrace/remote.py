"""Open traces by address: a local path, an fsspec URL, or a bare `faults.parquet`.

Of a remote directory only the faults are read, if it has them: they were stitched where the trace was recorded.
"""

from __future__ import annotations

import glob
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from faultreplay.faulttrace.belonging import made_from
from faultreplay.faulttrace.directory import EVENTS_DIR, FAULTS_FILE, META, part_name, part_numbers
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, MissingFeature, UsageError
from faultreplay.faulttrace.files import checked, footer_of, read_source
from faultreplay.faulttrace.limits import MEMORY_VARIABLE, allowed_bytes
from faultreplay.faulttrace.meta import MAX_META_BYTES, Meta
from faultreplay.faulttrace.place import ZIP_BEGINS, Location, Place, UrlFiles, ZipFiles, size_of
from faultreplay.faulttrace.regular import open_regular, read_bytes_file
from faultreplay.faulttrace.schema import FAULTS, STITCH_VERSION
from faultreplay.faulttrace.seal import digest_stream
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.units import format_bytes

if TYPE_CHECKING:
    import polars as pl

_TAIL_BYTES = 1 << 16
"""Bytes at the end of a Parquet file that `identity` hashes: they hold its footer, with row counts and statistics."""


class FaultsOnly(Trace):
    """A trace of which only `meta.json` (if any) and the faults are available."""

    def __init__(self, address: str, meta: Meta, table: pa.Table, notes: list[str]) -> None:
        import polars as pl

        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        super().__init__(Path(address), meta, (), notes, held=frame)
        self.address = address

    @property
    def name(self) -> str:
        """The last part of the address without ``.trace`` or ``.parquet``."""
        return name_of(self.address)

    @property
    def event_rows(self) -> int:
        """Raw events, as the recorder counted them."""
        return self.meta.recorder.events

    def events(self, *_: Any, **__: Any) -> pl.DataFrame:
        """Not available here.

        Raises:
            IncompleteData: always.
        """
        raise IncompleteData(f"{self.address}: its events are not read from there: copy the trace here")


def open_address(address: str) -> Trace:
    """The trace at a path or URL (``s3://bucket/x.trace``, ``https://...``), or a bare file of faults.

    A trace in one file is read in place, range by range. Of a directory behind a URL the faults are read; if it has
    none and can be listed, its events are read and stitched.

    Raises:
        UsageError: nothing there.
        IncompleteData: no faults of this stitcher's version there, or faults of another trace.
        MissingFeature: a URL, and fsspec (or its driver for that protocol) is not installed.
    """
    if not _is_far(address):
        return open_trace(address)
    if address.endswith(".parquet"):
        data = _read(address, address)
        table, notes = _faults(address, data, None)
        return FaultsOnly(address, Meta(origin="imported", complete=True), table, notes)
    if (packed := _far_pack(address)) is not None:
        return open_trace(packed)
    meta = Meta.from_json(_read(address, f"{address}/{META}"), f"{address}/{META}")
    name = f"{address}/{FAULTS_FILE}"
    if (whole := _far_events(address, meta)) is not None:
        return open_trace(whole)
    table, notes = _faults(name, _read(address, name), meta)
    return FaultsOnly(address, meta, table, notes)


def _far_pack(address: str) -> Place | None:
    """The root of the trace in one file at a URL; None: there is no such file."""
    fs, path = _filesystem(address)
    try:
        if bytes(fs.cat_file(path, start=0, end=len(ZIP_BEGINS))) != ZIP_BEGINS:
            return None
        return Place(ZipFiles(fs.open(path, "rb"), address))
    except (OSError, ValueError):  # no file: a directory, or nothing, which is reported later
        return None


def _far_events(address: str, meta: Meta) -> Place | None:
    """The directory at a URL if it has events but no faults and can be listed; else None."""
    if not any(name.startswith(f"{EVENTS_DIR}/") for name in meta.integrity.files):
        return None
    fs, path = _filesystem(address)
    try:
        files = UrlFiles(fs, path, address)
    except (OSError, ValueError, NotImplementedError):
        return None
    return Place(files) if FAULTS_FILE not in files.sizes and META in files.sizes else None


def expand(addresses: Iterable[str]) -> list[str]:
    """Addresses; each pattern with ``*``, ``?`` or ``[`` is replaced by its sorted matches, local or at a URL.

    Raises:
        UsageError: a pattern matches nothing.
        MissingFeature: a URL, and fsspec (or its driver for that protocol) is not installed.
    """
    found: list[str] = []
    for address in addresses:
        if not any(sign in address for sign in "*?[") or Path(address).exists():
            found.append(address)
            continue
        if "://" in address:
            fs, path = _filesystem(address)
            matches = sorted(str(fs.unstrip_protocol(name)) for name in fs.glob(path))
        else:
            matches = sorted(glob.glob(address, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise UsageError(f"{address}: matches nothing")
        found += matches
    return list(dict.fromkeys(found))


def identity(address: str) -> str:
    """A hash of the content of the trace at `address`, independent of its path.

    It covers `meta.json`, which holds the digests of all files. For older traces it also covers the ends of the files
    that the faults come from, but not every byte.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, size, tail in _parts(address):
        digest.update(f"{name}:{size}:".encode())
        digest.update(tail)
    return digest.hexdigest()


def name_of(address: str) -> str:
    """Name of the trace: the last part of its address, without the suffix."""
    return address.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet").removesuffix(".trace")


def _is_far(address: str) -> bool:
    return "://" in address or address.endswith(".parquet")


def _parts(address: str) -> Iterable[tuple[str, int, bytes]]:
    if not _is_far(address):
        trace = open_trace(address)  # raises an error if anything is wrong
        path = trace.path
        told = read_bytes_file(path / META, MAX_META_BYTES)
        if trace.meta.integrity.closed:
            return [(META, len(told), told)]
        events = [path / part_name(number) for number in part_numbers(path)]
        files = [path / META, *(events or [path / FAULTS_FILE])]
        return [(file.name, size_of(file), _tail(file)) for file in files if file.exists()]
    if address.endswith(".parquet"):
        data = _read(address, address)
        return [(FAULTS_FILE, len(data), data[-_TAIL_BYTES:])]
    if (packed := _far_pack(address)) is not None:
        told = read_bytes_file(packed / META, MAX_META_BYTES)
        return [(META, len(told), told)]
    told = _read(address, f"{address}/{META}")
    if Meta.from_json(told, f"{address}/{META}").integrity.closed:
        return [(META, len(told), told)]
    data = _read(address, f"{address}/{FAULTS_FILE}")
    return [(META, len(told), told[-_TAIL_BYTES:]), (FAULTS_FILE, len(data), data[-_TAIL_BYTES:])]


def _tail(path: Location) -> bytes:
    with open_regular(path) as stream:
        stream.seek(max(size_of(path) - _TAIL_BYTES, 0))
        return stream.read()


def _filesystem(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingFeature(
            f"{address}: a URL needs fsspec, which is not installed: pip install 'faultreplay[dask]'"
        ) from None
    try:
        fs, path = url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise MissingFeature(f"{address}: {str(error).splitlines()[0]}") from None
    return fs, path


def _read(address: str, name: str) -> bytes:
    """All bytes of a file of the trace at `address`."""
    allowed, why = allowed_bytes()
    try:
        if "://" not in name:
            return read_bytes_file(Path(name), allowed)
        fs, path = _filesystem(name)
        if (size := fs.size(path) or 0) > allowed:
            raise IncompleteData(f"{name}: {format_bytes(size)}, {why}: {MEMORY_VARIABLE}=64G allows more")
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        if name.endswith(f"/{FAULTS_FILE}") and name != address:
            raise IncompleteData(
                f"{address}: no {FAULTS_FILE} there: run 'faultreplay inspect' on the trace before copying it"
            ) from None
        raise UsageError(f"{address}: no such trace ({name.rsplit('/', 1)[-1]} is not there)") from None
    except (OSError, ValueError) as error:
        raise FaultreplayError(f"{address}: {str(error).splitlines()[0] if str(error) else 'cannot be read'}") from None


def _faults(where: str, data: bytes, meta: Meta | None) -> tuple[pa.Table, list[str]]:
    """The faults in `data`, and notes; checked against the trace's `meta`, if they are part of a trace."""
    again = "run 'faultreplay inspect' on the trace again"
    footer = footer_of(pa.BufferReader(data), where, pa.schema([]))
    marks = footer.marks
    if footer.sealed:
        listed = meta.integrity.files.get(FAULTS_FILE) if meta else None
        checked(digest_stream(io.BytesIO(data), where), where, listed.sha256 if listed else None)
    if marks.stitch_version != str(STITCH_VERSION):
        raise IncompleteData(
            f"{where}: its faults were stitched by version {marks.stitch_version or 'none'}, this is {STITCH_VERSION}: "
            f"{again}"
        )
    if meta is not None and meta.integrity.recording:
        if marks.recording != meta.integrity.recording:
            raise IncompleteData(f"{where}: of another trace: {again}")
        digests = {name: entry.sha256 for name, entry in meta.integrity.files.items()}
        if marks.made_from and meta.integrity.closed and marks.made_from != made_from(meta, digests):
            raise IncompleteData(f"{where}: made from other events or another meta.json than these: {again}")
    notes = [] if footer.sealed else [f"{where}: without checksums: damage inside it may go unnoticed"]
    return read_source(pa.BufferReader(data), where, FAULTS), notes
