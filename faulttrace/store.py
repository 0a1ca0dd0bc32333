"""The one door to a trace on disk.

A trace is a directory: `meta.json`, `events/part-*.parquet`, `losses.parquet` and, derived or lab-made,
`faults.parquet` and `truth.parquet`. A part is written whole, fsynced and renamed, so a killed recorder leaves a
readable trace that ends at its last whole part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faulttrace.errors import FaultreplayError, IncompleteData, NoPermission, UsageError
from faulttrace.meta import Meta
from faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH, Kind

if TYPE_CHECKING:
    import polars as pl

PART_ROWS = 1 << 20
"""Rows a part holds at most; about 10 MB on disk, a second of a very busy host."""

_DIR_MODE = 0o700
_FILE_MODE = 0o600  # addresses of a production guest are nobody else's business
_META = "meta.json"
_TIMES = {"ts_ns", "start_ns", "end_ns"}

EventBatch: TypeAlias = pa.RecordBatch | pa.Table | npt.NDArray[np.void]


class TraceWriter:
    """Writes a trace part by part. Use as a context manager; leaving it normally marks the trace complete.

    Args:
        path: `NAME.trace`, made here.
        meta: written at once with ``complete: false``, again at `close`; callers may change it in between.
        force: replace an existing trace.
        part_rows: rows buffered before a part is written.

    Raises:
        UsageError: `path` exists and `force` is off, or exists and is no trace.
        NoPermission: the directory may not be made.
    """

    def __init__(self, path: Path, meta: Meta, *, force: bool = False, part_rows: int = PART_ROWS) -> None:
        self.path = path
        self.meta = meta
        self._part_rows = part_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._losses: list[dict[str, Any]] = []
        self._parts = 0
        self.rows = 0
        self.bytes_written = 0
        _make_trace_dir(path, force)
        self._write_meta()

    def append_events(self, batch: EventBatch) -> None:
        """Add events: arrow, or a numpy structured array, with at least the columns of `EVENTS`; any order."""
        record_batch = _as_event_batch(batch)
        if record_batch.num_rows == 0:
            return
        self._pending.append(record_batch)
        self._pending_rows += record_batch.num_rows
        self.rows += record_batch.num_rows
        if self._pending_rows >= self._part_rows:
            self.flush()

    def append_losses(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of `LOSSES`; they also count in ``meta.losses``."""
        losses = self.meta.losses
        for row in rows:
            self._losses.append(row)
            losses.total += row["lost"]
            losses.by_probe[row["probe"]] = losses.by_probe.get(row["probe"], 0) + row["lost"]

    def flush(self) -> None:
        """Write what is buffered as one whole part, and the losses so far."""
        if self._pending_rows:
            table = pa.Table.from_batches(self._pending, EVENTS)
            times = table["ts_ns"].to_numpy()
            if (times[1:] < times[:-1]).any():  # the recorder sends them in order
                table = table.take(pc.sort_indices(table, sort_keys=[("ts_ns", "ascending")]))
            part = self.path / "events" / f"part-{self._parts:06d}.parquet"
            self.bytes_written += _write_parquet(part, table)
            self._parts += 1
            self._pending, self._pending_rows = [], 0
        if self._losses:
            _write_parquet(self.path / "losses.parquet", pa.Table.from_pylist(self._losses, LOSSES))

    def close(self, *, complete: bool = True) -> None:
        """Flush and write the final meta.json."""
        self.flush()
        if not (self.path / "losses.parquet").exists():
            _write_parquet(self.path / "losses.parquet", LOSSES.empty_table())
        self.meta.complete = complete
        self.meta.recorder.events = self.meta.recorder.events or self.rows
        self._write_meta()

    def drop_parts_before(self, ts_ns: int) -> int:
        """Delete whole parts that end before `ts_ns` (flight recorder); the number of parts deleted."""
        dropped = 0
        for part in _part_paths(self.path):
            if _last_ts_ns(part) >= ts_ns:
                break
            self.bytes_written -= part.stat().st_size
            part.unlink()
            dropped += 1
        if dropped:
            self._losses = [row for row in self._losses if row["ts_ns"] >= ts_ns]
        return dropped

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self.close(complete=exc_type is None)

    def _write_meta(self) -> None:
        _write_file(self.path / _META, self.meta.to_json())


class Trace:
    """An opened trace. Frames come out sorted by time; `notes` says what is incomplete."""

    def __init__(self, path: Path, meta: Meta, parts: Sequence[Path], notes: list[str]) -> None:
        self.path = path
        self.meta = meta
        self.notes = notes
        self._parts = parts

    @property
    def name(self) -> str:
        """The directory's name without ``.trace``."""
        return self.path.name.removesuffix(".trace")

    @property
    def event_rows(self) -> int:
        """Raw events in all parts (from the Parquet footers)."""
        return sum(pq.read_metadata(part).num_rows for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the event parts on disk."""
        return sum(part.stat().st_size for part in self._parts)

    def events(
        self,
        kinds: Iterable[Kind] | None = None,
        columns: Sequence[str] | None = None,
        tgid: int | None = None,
    ) -> pl.DataFrame:
        """Raw events (columns of `EVENTS`), sorted by `ts_ns`; ties keep the order they were written in.

        Args:
            kinds: only these; all when None.
            columns: only these, `ts_ns` is always first.
            tgid: only this process.

        Raises:
            IncompleteData: a part cannot be read or holds impossible values; the message names it.
        """
        import polars as pl

        wanted = None if columns is None else list(dict.fromkeys(["ts_ns", *columns]))
        keys = [] if wanted is None else [key for key in ("kind", "tgid") if key not in wanted]
        tables = []
        for part in self._parts:
            table = _read_parquet(part, EVENTS, None if wanted is None else [*wanted, *keys])
            if kinds is not None:
                codes = pa.array([int(kind) for kind in kinds], pa.uint8())
                table = table.filter(pc.is_in(table["kind"], codes))
            if tgid is not None:
                table = table.filter(pc.equal(table["tgid"], tgid))
            tables.append(table.drop_columns(keys) if keys else table)
        schema = EVENTS if wanted is None else pa.schema([EVENTS.field(name) for name in wanted])
        whole = pa.concat_tables(tables) if tables else schema.empty_table()
        frame = pl.from_arrow(whole)
        assert isinstance(frame, pl.DataFrame)
        return frame.sort("ts_ns", maintain_order=True)

    def losses(self) -> pl.DataFrame:
        """Losses (columns of `LOSSES`), sorted by `ts_ns`."""
        return self._frame("losses.parquet", LOSSES).sort("ts_ns", maintain_order=True)

    def truth(self) -> pl.DataFrame | None:
        """What the accessors measured themselves (columns of `TRUTH`); None where the trace has none."""
        if not (self.path / "truth.parquet").exists():
            return None
        return self._frame("truth.parquet", TRUTH)

    def faults(self, *, rebuild: bool = False) -> pl.DataFrame:
        """Stitched faults (columns of `FAULTS`), sorted by (`start_ns`, `tid`).

        Taken from `faults.parquet` when that is newer than every event part; otherwise stitched and, where the
        directory may be written, kept. A trace without events has nothing to stitch: its `faults.parquet` is the
        original (synthetic traces).

        Raises:
            IncompleteData: a synthetic trace without its faults, or damaged ones.
        """
        cached = self.path / "faults.parquet"
        if not self._parts and (self.meta.origin == "synthetic" or cached.exists()):
            if not cached.exists():
                raise IncompleteData(f"{cached}: missing: a synthetic trace has nothing else, make it again")
            return self._frame("faults.parquet", FAULTS)
        if not rebuild and self._is_fresh(cached):
            with contextlib.suppress(IncompleteData):  # derived data: a damaged copy is made anew
                return self._frame("faults.parquet", FAULTS)
        from faulttrace.stitch import stitch

        faults = stitch(self)
        with contextlib.suppress(OSError, FaultreplayError):  # a read-only trace is stitched each time
            _write_parquet(cached, faults.to_arrow().cast(FAULTS))
        return faults

    def _is_fresh(self, derived: Path) -> bool:
        """Derived data carries the stitcher's version and outlives no event part."""
        try:
            written_ns = derived.stat().st_mtime_ns
            stored = pq.read_schema(derived).metadata or {}
        except (OSError, pa.ArrowInvalid):
            return False
        newest_ns = max((part.stat().st_mtime_ns for part in self._parts), default=0)
        return bool(written_ns >= newest_ns and stored.get(b"stitch_version") == str(STITCH_VERSION).encode())

    def _frame(self, name: str, schema: pa.Schema) -> pl.DataFrame:
        import polars as pl

        path = self.path / name
        table = _read_parquet(path, schema) if path.exists() else schema.empty_table()
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame


def open_trace(path: Path | str, *, allow_incomplete: bool = True) -> Trace:
    """Open a trace for reading: version, columns and parts are checked here and nowhere else.

    Args:
        path: the `NAME.trace` directory.
        allow_incomplete: take a trace whose recorder was killed; `Trace.notes` says so.

    Raises:
        UsageError: no such path.
        IncompleteData: not a trace, another version, damaged or (if not allowed) unfinished.
        NoPermission: may not be read.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such trace")
    try:
        meta = Meta.read(path / _META)
        parts = _part_paths(path)
        for part in parts:
            _check_footer(part, EVENTS)
    except PermissionError as error:
        raise NoPermission(f"{error.filename}: may not be read: traces are private to who recorded them") from None
    notes = []
    if not meta.complete:
        note = f"{path}: the recorder did not finish: the trace ends at its last whole part"
        if not allow_incomplete:
            raise IncompleteData(note)
        notes.append(note)
    numbers = [int(part.stem.removeprefix("part-")) for part in parts]
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers else []
    if missing:
        raise IncompleteData(
            f"{path}/events: part-{missing[0]:06d}.parquet is gone ({len(missing)} missing): copy the trace again"
        )
    if meta.complete and meta.recorder.events and not meta.extra.get("rotated"):
        rows = sum(pq.read_metadata(part).num_rows for part in parts)
        if rows < meta.recorder.events:
            raise IncompleteData(
                f"{path}/events: {rows} events, meta.json says {meta.recorder.events}: parts are missing, "
                "copy the trace again"
            )
    return Trace(path, meta, parts, notes)


def write_truth(path: Path, table: pa.Table) -> None:
    """Put the accessors' own measurements (columns of `TRUTH`) into the trace at `path`."""
    _write_parquet(path / "truth.parquet", table.select(TRUTH.names).cast(TRUTH))


def write_faults(path: Path, tables: Iterable[pa.Table]) -> None:
    """Put faults that no events stand behind (columns of `FAULTS`, in order) into the trace at `path`."""
    target = path / "faults.parquet"
    schema = FAULTS.with_metadata({"stitch_version": str(STITCH_VERSION)})
    growing = ("fault_id", "start_ns", "end_ns", "think_ns", "page")  # no value comes twice: a dictionary is wasted
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [name for name in FAULTS.names if name not in growing],
        "column_encoding": dict.fromkeys(growing, "DELTA_BINARY_PACKED"),
    }
    with (
        _disk_errors(target),
        _replacing(target) as temporary,
        pq.ParquetWriter(temporary, schema, **options) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(FAULTS).replace_schema_metadata(schema.metadata))


def update_meta(path: Path, meta: Meta) -> None:
    """Replace the trace's meta.json, whole."""
    _write_file(path / _META, meta.to_json())


def _make_trace_dir(path: Path, force: bool) -> None:
    if path.exists():
        is_trace = (path / _META).is_file()
        if not is_trace and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path}: exists and is not a trace: choose another name")
        if is_trace and not force:
            raise UsageError(f"{path}: exists: choose another name or give --force")
        shutil.rmtree(path)
    with _disk_errors(path):
        path.mkdir(mode=_DIR_MODE, parents=True)
        (path / "events").mkdir(mode=_DIR_MODE)


def _as_event_batch(batch: EventBatch) -> pa.RecordBatch:
    if isinstance(batch, np.ndarray):
        # The record in the ring is as long as C makes it; only the schema's columns are kept.
        return pa.RecordBatch.from_arrays(
            [pa.array(np.ascontiguousarray(batch[f.name]), f.type, from_pandas=False) for f in EVENTS], schema=EVENTS
        )
    if isinstance(batch, pa.Table):
        if batch.num_rows == 0:
            return pa.RecordBatch.from_pylist([], EVENTS)
        return batch.select(EVENTS.names).cast(EVENTS).combine_chunks().to_batches()[0]
    return batch.select(EVENTS.names).cast(EVENTS)


def _part_paths(path: Path) -> list[Path]:
    return sorted((path / "events").glob("part-*.parquet"))


def _last_ts_ns(part: Path) -> int:
    metadata = pq.read_metadata(part)
    group = metadata.row_group(metadata.num_row_groups - 1)
    return int(group.column(0).statistics.max)


def _write_parquet(path: Path, table: pa.Table) -> int:
    """Write whole or not at all; the file's size in bytes."""
    if table.schema.equals(EVENTS):
        # Times and addresses grow slowly: deltas take a fifth of plain pages.
        encodings = {f.name: "DELTA_BINARY_PACKED" for f in table.schema if not pa.types.is_uint8(f.type)}
        options: dict[str, Any] = {"column_encoding": encodings, "use_dictionary": ["kind"]}
    else:
        options = {}
        table = table.replace_schema_metadata({"stitch_version": str(STITCH_VERSION)})
    with _disk_errors(path), _replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3, **options)
    return path.stat().st_size


def _write_file(path: Path, data: bytes) -> None:
    with _disk_errors(path), _replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that replaces `path` when the body ends well: data first, then the name."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        temporary.chmod(_FILE_MODE)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}: choose a directory you may write") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FaultreplayError(f"{path}: no space left: what was written before is whole and readable") from None
        raise FaultreplayError(f"{path}: {error.strerror or error}") from None


def _check_footer(path: Path, schema: pa.Schema) -> None:
    try:
        stored = pq.read_schema(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise IncompleteData(f"{path}: not a whole Parquet file (truncated?): copy the trace again") from None
    for column in schema:
        index = stored.get_field_index(column.name)
        if index < 0:
            raise IncompleteData(f"{path}: column {column.name} is missing")
        if stored.field(index).type != column.type:
            raise IncompleteData(
                f"{path}: column {column.name} is {stored.field(index).type}, the schema says {column.type}"
            )


def _read_parquet(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    _check_footer(path, schema)
    try:
        table = pq.read_table(path, columns=list(columns or schema.names), partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise IncompleteData(f"{path}: damaged: {str(error).splitlines()[0][:200]}") from None
    for field in schema:
        if field.name not in table.column_names:
            continue
        column = table[field.name]
        if not field.nullable and column.null_count:
            raise IncompleteData(f"{path}: column {field.name} has {column.null_count} empty values")
        if field.name in _TIMES and len(column) and (low := pc.min(column).as_py()) is not None and low < 0:
            raise IncompleteData(f"{path}: column {field.name} has the impossible time {low} ns")
    if columns is None:
        return table.cast(schema)
    return table.cast(pa.schema([schema.field(name) for name in columns]))
