"""Traces by address: a directory here, an fsspec URL, or a bare `faults.parquet`.

What is far away is read for its faults only, never for its events: they were stitched where they were recorded.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, MissingFeature, UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import FAULTS, STITCH_VERSION
from faultreplay.faulttrace.store import Trace, open_trace

if TYPE_CHECKING:
    import polars as pl

_TAIL_BYTES = 1 << 16
"""Of each Parquet file: its footer, with row counts and statistics of all columns, is in there."""


class FaultsOnly(Trace):
    """A trace of which only `meta.json` (if any) and the faults are at hand."""

    def __init__(self, address: str, meta: Meta, table: pa.Table) -> None:
        super().__init__(Path(address), meta, (), [])
        self.address = address
        self._table = table

    @property
    def name(self) -> str:
        """The last part of the address without ``.trace`` or ``.parquet``."""
        return name_of(self.address)

    @property
    def event_rows(self) -> int:
        """Raw events, as the recorder counted them."""
        return self.meta.recorder.events

    def _stitched(self, rebuild: bool) -> pl.DataFrame:
        import polars as pl

        frame = pl.from_arrow(self._table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def events(self, *_: Any, **__: Any) -> pl.DataFrame:
        """Refused.

        Raises:
            IncompleteData: always.
        """
        raise IncompleteData(f"{self.address}: its events are not read from there: copy the trace here")


def open_address(address: str) -> Trace:
    """The trace at a path or URL (``s3://bucket/x.trace``, ``https://...``), or a bare file of faults.

    Raises:
        UsageError: nothing there.
        IncompleteData: no faults of this version there.
        MissingFeature: a URL, and fsspec (or its driver for that protocol) is not installed.
    """
    if not _is_far(address):
        return open_trace(address)
    fs, path = _filesystem(address)
    if address.endswith(".parquet"):
        return FaultsOnly(address, Meta(origin="imported", complete=True), _faults(address, _read(fs, path, address)))
    meta = Meta.from_json(_read(fs, f"{path}/meta.json", address), f"{address}/meta.json")
    table = _faults(address, _read(fs, f"{path}/faults.parquet", address))
    return FaultsOnly(address, meta, table)


def identity(address: str) -> str:
    """A hash of what the trace at `address` holds; it does not depend on where it lies.

    Of `meta.json` and the ends of the files the faults come from, not of every byte.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, size, tail in _parts(address):
        digest.update(f"{name}:{size}:".encode())
        digest.update(tail)
    return digest.hexdigest()


def name_of(address: str) -> str:
    """What to call the trace: the last part of its address."""
    return address.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet").removesuffix(".trace")


def _is_far(address: str) -> bool:
    return "://" in address or address.endswith(".parquet")


def _parts(address: str) -> Iterable[tuple[str, int, bytes]]:
    if not _is_far(address):
        path = Path(address)
        open_trace(path)  # says what is wrong, if anything is
        events = sorted((path / "events").glob("part-*.parquet"))
        files = [path / "meta.json", *(events or [path / "faults.parquet"])]
        return [(file.name, file.stat().st_size, _tail(file)) for file in files if file.exists()]
    fs, place = _filesystem(address)
    if address.endswith(".parquet"):
        data = _read(fs, place, address)
        return [("faults.parquet", len(data), data[-_TAIL_BYTES:])]
    found = [(name, _read(fs, f"{place}/{name}", address)) for name in ("meta.json", "faults.parquet")]
    return [(name, len(data), data[-_TAIL_BYTES:]) for name, data in found]


def _tail(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        return stream.read()


def _filesystem(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        if "://" not in address:
            return _Here(), address
        raise MissingFeature(
            f"{address}: a URL needs fsspec, which is not installed: pip install 'faultreplay[dask]'"
        ) from None
    try:
        fs, path = url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise MissingFeature(f"{address}: {str(error).splitlines()[0]}") from None
    return fs, path


class _Here:
    """The one thing of fsspec's that a local file needs."""

    def cat_file(self, path: str) -> bytes:
        return Path(path).read_bytes()


def _read(fs: Any, path: str, address: str) -> bytes:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        if path.endswith("/faults.parquet"):
            raise IncompleteData(
                f"{address}: no faults.parquet there: run 'faultreplay inspect' on the trace before copying it"
            ) from None
        raise UsageError(f"{address}: no such trace ({path.rsplit('/', 1)[-1]} is not there)") from None
    except (OSError, ValueError) as error:
        raise FaultreplayError(f"{address}: {str(error).splitlines()[0] if str(error) else 'cannot be read'}") from None


def _faults(address: str, data: bytes) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(data))
        version = (table.schema.metadata or {}).get(b"stitch_version", b"none").decode()
        if version != str(STITCH_VERSION):
            raise IncompleteData(
                f"{address}: its faults were stitched by version {version}, this is {STITCH_VERSION}: "
                "run 'faultreplay inspect' on the trace again"
            )
        return table.select(FAULTS.names).cast(FAULTS)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        raise IncompleteData(f"{address}: no table of faults: {str(error).splitlines()[0][:200]}") from None
