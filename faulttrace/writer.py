"""A trace written part by part: a part is whole, fsynced and renamed, so a killed recorder leaves a readable trace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.files import META, disk_errors, part_paths, replacing, write_file, write_parquet
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH

PART_ROWS: Final = 1 << 20
"""Rows a part holds at most; about 10 MB on disk, a second of a very busy host."""
_DIR_MODE: Final = 0o700

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
            self.bytes_written += write_parquet(part, table)
            self._parts += 1
            self._pending, self._pending_rows = [], 0
        if self._losses:
            write_parquet(self.path / "losses.parquet", pa.Table.from_pylist(self._losses, LOSSES))

    def close(self, *, complete: bool = True) -> None:
        """Flush and write the final meta.json."""
        self.flush()
        if not (self.path / "losses.parquet").exists():
            write_parquet(self.path / "losses.parquet", LOSSES.empty_table())
        self.meta.complete = complete
        self.meta.recorder.events = self.meta.recorder.events or self.rows
        self._write_meta()

    def drop_parts_before(self, ts_ns: int) -> int:
        """Delete whole parts that end before `ts_ns` (flight recorder); the number of parts deleted."""
        dropped = 0
        for part in part_paths(self.path):
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
        write_file(self.path / META, self.meta.to_json())


@contextmanager
def whole_trace(path: Path, meta: Meta, *, force: bool = False) -> Iterator[TraceWriter]:
    """A writer whose trace stands at `path` when all is well and not before; an error leaves nothing behind.

    Raises:
        UsageError: as `TraceWriter`, before anything is written.
    """
    _check_trace_path(path, force)
    beside = path.with_name(f".{path.name}.{os.getpid()}.making")
    writer = TraceWriter(beside, meta)
    try:
        yield writer
        writer.close()
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_truth(path: Path, table: pa.Table) -> None:
    """Put the accessors' own measurements (columns of `TRUTH`) into the trace at `path`."""
    write_parquet(path / "truth.parquet", table.select(TRUTH.names).cast(TRUTH))


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
        disk_errors(target),
        replacing(target) as temporary,
        pq.ParquetWriter(temporary, schema, **options) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(FAULTS).replace_schema_metadata(schema.metadata))


def update_meta(path: Path, meta: Meta) -> None:
    """Replace the trace's meta.json, whole."""
    write_file(path / META, meta.to_json())


def _check_trace_path(path: Path, force: bool) -> None:
    if path.exists():
        is_trace = (path / META).is_file()
        if not is_trace and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path}: exists and is not a trace: choose another name")
        if is_trace and not force:
            raise UsageError(f"{path}: exists: choose another name or give --force")


def _make_trace_dir(path: Path, force: bool) -> None:
    _check_trace_path(path, force)
    if path.exists():
        shutil.rmtree(path)
    with disk_errors(path):
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


def _last_ts_ns(part: Path) -> int:
    metadata = pq.read_metadata(part)
    group = metadata.row_group(metadata.num_row_groups - 1)
    return int(group.column(0).statistics.max)
