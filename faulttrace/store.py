"""Open a trace on disk: the only way to read one.

A trace is a directory: `meta.json`, `events/part-*.parquet`, `losses.parquet` and optionally `faults.parquet`
(derived) and `truth.parquet` (from the lab). `faulttrace.writer` writes it; `faulttrace.belonging` checks which files
belong to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.faulttrace.belonging import Part, check_belonging, check_losses, read_parts
from faultreplay.faulttrace.checked import CheckedFiles
from faultreplay.faulttrace.directory import FAULTS_FILE, META, TRUTH_FILE
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.files import read_parquet
from faultreplay.faulttrace.limits import check_memory
from faultreplay.faulttrace.meta import LOSSES_FILE, Meta
from faultreplay.faulttrace.place import Location, Place, open_pack, size_of
from faultreplay.faulttrace.reading import PartsSource
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, TRUTH, Kind
from faultreplay.faulttrace.trace_faults import TraceFaults

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress, StitchFacts

UNCHECKED: Final = "without checksums (an older faultreplay's trace): damage inside its files may go unnoticed"
"""The note of an older trace."""


class Trace:
    """An opened trace. Frames are sorted by time; `notes` says what is incomplete."""

    def __init__(
        self, path: Location, meta: Meta, parts: Sequence[Part], notes: list[str], *, held: pl.DataFrame | None = None
    ) -> None:
        self.path = path
        self.meta = meta
        self.notes = notes
        self._parts = parts
        self._files = CheckedFiles(path, meta, parts)
        self._faults = TraceFaults(self._files, notes, held)

    @property
    def name(self) -> str:
        """The directory's name without ``.trace``."""
        return self.path.name.removesuffix(".trace")

    @property
    def event_rows(self) -> int:
        """Raw events in all parts."""
        return sum(part.rows for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the event parts on disk."""
        return sum(size_of(part.path) for part in self._parts)

    @property
    def end_ns(self) -> int:
        """When the recording ended; if the recorder was killed, the time of the last event."""
        if self.meta.clock.end_ns or not self._parts:
            return self.meta.clock.end_ns
        return int(self.events(columns=["ts_ns"])["ts_ns"].max() or 0)  # type: ignore[arg-type]

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
            IncompleteData: a part cannot be read, is not what was recorded, needs more memory than there is, or
                holds impossible values; the message names it.
        """
        import polars as pl

        wanted = None if columns is None else list(dict.fromkeys(["ts_ns", *columns]))
        keys = [] if wanted is None else [key for key in ("kind", "tgid") if key not in wanted]
        schema = EVENTS if wanted is None else pa.schema([EVENTS.field(name) for name in wanted])
        check_memory(str(self.path), self.event_rows, schema)
        tables = []
        for part in self._parts:
            self._files.check(part.name)
            table = read_parquet(part.path, EVENTS, None if wanted is None else [*wanted, *keys])
            if kinds is not None:
                codes = pa.array([int(kind) for kind in kinds], pa.uint8())
                table = table.filter(pc.is_in(table["kind"], codes))
            if tgid is not None:
                table = table.filter(pc.equal(table["tgid"], tgid))
            tables.append(table.drop_columns(keys) if keys else table)
        whole = pa.concat_tables(tables) if tables else schema.empty_table()
        frame = pl.from_arrow(whole)
        assert isinstance(frame, pl.DataFrame)
        return frame.sort("ts_ns", maintain_order=True)

    def event_tables(self) -> Iterator[pa.Table]:
        """Raw events part by part (columns of `EVENTS`), each sorted by `ts_ns`.

        Raises:
            IncompleteData: a part cannot be read, or is not what was recorded.
        """
        for part in self._parts:
            self._files.check(part.name)
            yield read_parquet(part.path, EVENTS)

    def losses_table(self) -> pa.Table:
        """Losses (columns of `LOSSES`), as they were written."""
        return self._files.table(LOSSES_FILE, LOSSES)

    def truth_table(self) -> pa.Table | None:
        """What the accessors measured themselves (columns of `TRUTH`); None where the trace has none."""
        return self._files.table(TRUTH_FILE, TRUTH) if (self.path / TRUTH_FILE).exists() else None

    def original_faults(self) -> pa.Table | None:
        """Faults of a trace without events (columns of `FAULTS`); None if there are events to stitch, or no faults."""
        has = not self._parts and (self.path / FAULTS_FILE).exists()
        return self._files.table(FAULTS_FILE, FAULTS) if has else None

    def source(self, kinds: Iterable[Kind] | None) -> PartsSource:
        """Events of these kinds (None: all), for reading in time order without holding all of them in memory."""
        return self._files.source(kinds)

    def losses(self) -> pl.DataFrame:
        """Losses (columns of `LOSSES`), sorted by `ts_ns`."""
        return self._files.frame(LOSSES_FILE, LOSSES).sort("ts_ns", maintain_order=True)

    def check_losses(self) -> None:
        """Check that meta.json and `losses.parquet` agree on losses; if the recorder was killed, use those of the file.

        Raises:
            IncompleteData: they differ, or a file is damaged.
        """
        check_losses(self.path, self.meta, self._files.table(LOSSES_FILE, LOSSES))

    def truth(self) -> pl.DataFrame | None:
        """What the accessors measured themselves (columns of `TRUTH`); None where the trace has none."""
        if not (self.path / TRUTH_FILE).exists():
            return None
        return self._files.frame(TRUTH_FILE, TRUTH)

    def faults(
        self,
        *,
        rebuild: bool = False,
        vcpu_threads: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        progress: Progress | None = None,
        categorical: bool = False,
    ) -> pl.DataFrame:
        """Stitched faults (columns of `FAULTS`), sorted by (`start_ns`, `tid`).

        Threads that are vCPUs without KVM (`faulttrace.vcpus`) are labelled as vCPUs; `vcpu_threads` names more.

        The faults are read from `faults.parquet` if this stitcher made it from the same events. Otherwise they are
        stitched, and stored if the directory is writable. A trace without events has nothing to stitch: its
        `faults.parquet` is the original (synthetic traces).

        Args:
            rebuild: stitch again.
            vcpu_threads: threads that are vCPUs, by id or name.
            columns: only these.
            progress: called during a stitch with the amount done and the total.
            categorical: words are categories instead of strings, and faults are read in pieces: less memory.

        Raises:
            IncompleteData: a synthetic trace without its faults; damaged faults, or those of another trace.
            UsageError: no thread has an id or name of `vcpu_threads`.
        """
        from faultreplay.faulttrace.vcpus import label_vcpus
        from faultreplay.faulttrace.vcpus import vcpu_threads as threads_of

        threads = threads_of(self.meta, vcpu_threads)
        needed = None if columns is None else _with_labels(columns, threads)
        found = self._faults.stitched(rebuild, needed, progress, categorical=categorical)
        frame = label_vcpus(found, threads, self.meta.targets)
        return frame if columns is None else frame.select(columns)

    def fault_frames(self, columns: Sequence[str], *, vcpu_threads: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        """As `faults`, in pieces (at least one). If the faults are stored, only one piece is in memory."""
        import itertools

        import polars as pl

        from faultreplay.faulttrace.vcpus import label_vcpus
        from faultreplay.faulttrace.vcpus import vcpu_threads as threads_of

        threads = threads_of(self.meta, vcpu_threads)
        needed = _with_labels(columns, threads)
        tables = self.fault_groups(needed)
        for table in itertools.chain([next(tables, FAULTS.empty_table().select(needed))], tables):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            yield label_vcpus(frame, threads, self.meta.targets).select(columns)

    def fault_groups(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.Table]:
        """Faults in pieces, without the labels of `vcpu_threads`. If they are stored, this needs little memory."""
        return self._faults.groups(columns, progress)

    def stitch_facts(self, progress: Progress | None = None) -> StitchFacts:
        """The report of the stitch and the windows inferred from the ioctls; stitches if these are not stored."""
        return self._faults.facts(progress)

    @property
    def faults_made(self) -> bool:
        """Whether the faults were just stitched and stored with the events, so that the next reader need not stitch."""
        return self._faults.made

    def keep_faults(self, faults: pl.DataFrame) -> None:
        """Store faults that were stitched from this trace's events, if it has events and is writable."""
        self._faults.keep(faults)

    def faults_are_kept(self) -> bool:
        """Whether `faults.parquet` was made from these events by this stitcher.

        Raises:
            IncompleteData: it is another trace's, or damaged.
        """
        return self._faults.are_kept()


def _with_labels(columns: Sequence[str], threads: Mapping[int, int]) -> list[str]:
    """The columns, and those needed to label threads that are vCPUs."""
    return list(dict.fromkeys([*columns, *(("tid", "accessor", "vcpu", "vm", "page") if threads else ())]))


def open_trace(path: Location | str, *, allow_incomplete: bool = True) -> Trace:
    """Open a trace for reading. Version, columns and the list of files are checked here and nowhere else.

    Args:
        path: `NAME.trace`, a directory or one file (`faulttrace.pack`).
        allow_incomplete: accept a trace whose recorder was killed; `Trace.notes` says so.

    Raises:
        UsageError: no such path.
        IncompleteData: not a trace, another version, damaged, with missing or extra files, or (if not allowed)
            unfinished.
        NoPermission: may not be read.
    """
    place = path if isinstance(path, Place) else place_of(Path(path))
    return _open(place, allow_incomplete=allow_incomplete)


def place_of(path: Path) -> Location:
    """Where the files of the trace at `path` are: that directory, or inside that file.

    Raises:
        UsageError: nothing there.
        IncompleteData: a file that is not a trace.
        NoPermission: it may not be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such trace")
    return path if path.is_dir() else open_pack(path)


def _open(path: Location, *, allow_incomplete: bool) -> Trace:
    meta = Meta.read(path / META)
    parts = read_parts(path, meta)
    notes = []
    if not meta.complete:
        note = f"{path}: the recorder did not finish: the trace ends at its last whole part"
        if not allow_incomplete:
            raise IncompleteData(note)
        notes.append(note)
    check_belonging(path, meta, parts)
    if not meta.integrity.recording:
        notes.append(UNCHECKED)
    trace = Trace(path, meta, parts, notes)
    trace.check_losses()
    return trace
