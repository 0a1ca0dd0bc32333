"""Write a trace part by part. Each part is complete, fsynced and renamed: a killed recorder leaves a readable trace."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from faultreplay.faulttrace.directory import (
    FAULTS_FILE,
    META,
    TRUTH_FILE,
    check_free,
    make_trace_dir,
    part_name,
    remove_trace,
)
from faultreplay.faulttrace.files import EVENTS_OPTIONS, Marks, write_file, write_parquet, write_tables
from faultreplay.faulttrace.growing import GrowingFile
from faultreplay.faulttrace.meta import LOSSES_FILE, FileEntry, Integrity, Meta
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH

PART_ROWS: Final = 1 << 20
"""Most rows of a part; about 10 MB on disk, a second of a very busy host."""

GROUP_ROWS: Final = 1 << 16
"""Rows of a row group for events that arrive in time order."""

EventBatch: TypeAlias = pa.RecordBatch | pa.Table | npt.NDArray[np.void]


class TraceWriter:
    """Writes a trace part by part. Use as a context manager; leaving it normally marks the trace complete.

    Args:
        path: `NAME.trace`, created here.
        meta: written at once with ``complete: false``, again at `close`; callers may change it in between. Its
            ``integrity`` is set here; a computed trace may supply its own number of the recording.
        force: replace an existing trace, but nothing else.
        part_rows: rows buffered before a part is written.

    Raises:
        UsageError: `path` exists and `force` is off, or exists and is not a trace.
        NoPermission: the directory may not be created.
    """

    def __init__(self, path: Path, meta: Meta, *, force: bool = False, part_rows: int = PART_ROWS) -> None:
        self.path = path
        self.meta = meta
        self._part_rows = part_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._growing: GrowingFile | None = None
        self._last_ns = 0
        self._losses: list[dict[str, Any]] = []
        self._parts = 0
        self._first_part = 0
        self._files: dict[str, FileEntry] = {}
        self.rows = 0
        self.dropped_rows = 0
        """rows of deleted parts"""
        self._dropped_losses = 0
        self.bytes_written = 0
        meta.integrity = Integrity(meta.integrity.recording or secrets.token_hex(16))
        make_trace_dir(path, force=force)
        self._write_meta()

    def append_events(self, batch: EventBatch) -> None:
        """Add events in any order: Arrow or a numpy structured array, with at least the columns of `EVENTS`."""
        record_batch = _as_event_batch(batch)
        if record_batch.num_rows == 0:
            return
        if self._growing is not None:
            self.flush()
        self._pending.append(record_batch)
        self._pending_rows += record_batch.num_rows
        self.rows += record_batch.num_rows
        if self._pending_rows >= self._part_rows:
            self.flush()

    def append_in_order(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add events that are later than all before; they are written at once as a row group and not buffered.

        If the first one is earlier than the last event written, a new part begins: a part is in time order.

        Args:
            columns: those of `EVENTS`, of equal length, in time order; the caller may reuse the arrays afterwards.
        """
        arrays = [pa.array(columns[field.name], field.type) for field in EVENTS]
        first_ns, last_ns = int(columns["ts_ns"][0]), int(columns["ts_ns"][-1])
        if self._pending or (self._growing is not None and first_ns < self._last_ns):
            self.flush()
        if self._growing is None:
            self._growing = GrowingFile(self.path / part_name(self._parts), EVENTS, **EVENTS_OPTIONS)
        try:
            self._growing.add(pa.Table.from_arrays(arrays, schema=EVENTS))
        except BaseException:
            self._growing = None
            raise
        self._last_ns = last_ns
        self.rows += len(arrays[0])

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Rows of `LOSSES` so far, without those of deleted parts."""
        return list(self._losses)

    def append_losses(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of `LOSSES`; they also count in ``meta.losses``."""
        added = list(rows)
        self._losses += added
        self._count_losses(added, 1)

    def flush(self) -> None:
        """Write the buffered events as one complete part, and the losses so far."""
        if self._pending_rows:
            table = pa.Table.from_batches(self._pending, EVENTS)
            times = table["ts_ns"].to_numpy()
            if (times[1:] < times[:-1]).any():  # the recorder sends them in order
                table = table.sort_by("ts_ns")
            self.bytes_written += self._write(part_name(self._parts), table).bytes
            self._parts += 1
            self._pending, self._pending_rows = [], 0
        if self._growing is not None:
            name, growing = part_name(self._parts), self._growing
            self._growing = None
            entry = self._files[name] = growing.finish(self._marks(name))
            self.bytes_written += entry.bytes
            self._parts += 1
        if self._losses:
            self._write(LOSSES_FILE, pa.Table.from_pylist(self._losses, LOSSES))

    def write_faults(self, tables: Iterable[pa.Table]) -> None:
        """Write faults into a trace without events (columns of `FAULTS`, in time order)."""
        growing = ("fault_id", "start_ns", "end_ns", "think_ns", "page")  # values rarely repeat: a dictionary is wasted
        options: dict[str, Any] = {
            "use_dictionary": [name for name in FAULTS.names if name not in growing],
            "column_encoding": dict.fromkeys(growing, "DELTA_BINARY_PACKED"),
        }
        cast = (table.cast(FAULTS) for table in tables)
        marks = replace(self._marks(FAULTS_FILE), stitch_version=str(STITCH_VERSION))
        self._files[FAULTS_FILE] = write_tables(self.path / FAULTS_FILE, FAULTS, cast, marks, **options)

    def give_up(self) -> None:
        """Stop as if killed, but remove the unfinished file; meta.json keeps ``complete: false``."""
        if self._growing is not None:
            self._growing.abandon()
            self._growing = None

    def close(self, *, complete: bool = True) -> None:
        """Flush and write the final meta.json, which lists every file."""
        self.flush()
        if LOSSES_FILE not in self._files:
            self._write(LOSSES_FILE, LOSSES.empty_table())
        self.meta.complete = complete
        self.meta.integrity.files = dict(sorted(self._files.items()))
        self.meta.recorder.events = self.meta.recorder.events or self.rows
        self._write_meta()

    def drop_parts_before(self, ts_ns: int) -> int:
        """Delete whole parts that end before `ts_ns` (flight recorder), and earlier losses; returns how many parts."""
        old = []
        for number in range(self._first_part, self._parts):
            if _last_ts_ns(self.path / part_name(number)) >= ts_ns:
                break
            old.append(number)
        if not old:
            return 0
        if not self.meta.extra.get("rotated"):  # written first, in case the recorder is killed
            self.meta.extra["rotated"] = True
            self._write_meta()
        for number in old:
            (self.path / part_name(number)).unlink()
            entry = self._files.pop(part_name(number))
            self.bytes_written -= entry.bytes
            self.dropped_rows += entry.rows
            self._first_part = number + 1
        gone = [row for row in self._losses if row["ts_ns"] < ts_ns]
        self._losses = [row for row in self._losses if row["ts_ns"] >= ts_ns]
        if gone:
            self._count_losses(gone, -1)
            self._write(LOSSES_FILE, pa.Table.from_pylist(self._losses, LOSSES))
        self._dropped_losses += sum(row["lost"] for row in gone)
        told = {"parts": self._first_part, "events": self.dropped_rows, "losses": self._dropped_losses}
        self.meta.extra["dropped"] = told
        return len(old)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self.close(complete=exc_type is None)

    def _count_losses(self, rows: list[dict[str, Any]], sign: int) -> None:
        losses = self.meta.losses
        for row in rows:
            losses.total += sign * row["lost"]
            losses.by_probe[row["probe"]] = losses.by_probe.get(row["probe"], 0) + sign * row["lost"]
            if not losses.by_probe[row["probe"]]:
                del losses.by_probe[row["probe"]]

    def _marks(self, name: str) -> Marks:
        return Marks(recording=self.meta.integrity.recording, file=name)

    def _write(self, name: str, table: pa.Table) -> FileEntry:
        entry = self._files[name] = write_parquet(self.path / name, table, self._marks(name))
        return entry

    def _write_meta(self) -> None:
        write_file(self.path / META, self.meta.to_json())


@contextmanager
def whole_trace(path: Path, meta: Meta, *, force: bool = False) -> Iterator[TraceWriter]:
    """A writer whose trace appears at `path` only after the body succeeds; an error leaves nothing behind.

    Raises:
        UsageError: as `TraceWriter`, before anything is written.
    """
    check_free(path, force=force)
    beside = path.with_name(f".{path.name}.{os.getpid()}.making")
    writer = TraceWriter(beside, meta)
    try:
        yield writer
        writer.close()
        remove_trace(path)
        beside.rename(path)
    finally:
        remove_trace(beside)


def write_truth(path: Path, table: pa.Table) -> None:
    """Write the accessors' own measurements (columns of `TRUTH`) into the trace at `path`; list them in meta.json."""
    meta = Meta.read(path / META)
    marks = Marks(recording=meta.integrity.recording, file=TRUTH_FILE)
    entry = write_parquet(path / TRUTH_FILE, table.select(TRUTH.names).cast(TRUTH), marks)
    if meta.integrity.recording:
        meta.integrity.files[TRUTH_FILE] = entry
        update_meta(path, meta)


def update_meta(path: Path, meta: Meta) -> None:
    """Replace the trace's meta.json atomically."""
    write_file(path / META, meta.to_json())


def _as_event_batch(batch: EventBatch) -> pa.RecordBatch:
    if isinstance(batch, np.ndarray):
        # The C record in the ring can be longer; only the schema's columns are kept.
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
