"""The one door to a trace on disk.

A trace is a directory: `meta.json`, `events/part-*.parquet`, `losses.parquet` and, derived or lab-made,
`faults.parquet` and `truth.parquet`. `faulttrace.writer` makes it; `faulttrace.belonging` says what belongs to it.
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
    """An opened trace. Frames come out sorted by time; `notes` says what is incomplete."""

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
        """When the recording ended; of one whose recorder was killed, its last event."""
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
        """Faults that no events stand behind (columns of `FAULTS`); None where there are events to stitch, or none."""
        has = not self._parts and (self.path / FAULTS_FILE).exists()
        return self._files.table(FAULTS_FILE, FAULTS) if has else None

    def source(self, kinds: Iterable[Kind] | None) -> PartsSource:
        """Events of these kinds (None: all), to be read in order of time without all of them in memory."""
        return self._files.source(kinds)

    def losses(self) -> pl.DataFrame:
        """Losses (columns of `LOSSES`), sorted by `ts_ns`."""
        return self._files.frame(LOSSES_FILE, LOSSES).sort("ts_ns", maintain_order=True)

    def check_losses(self) -> None:
        """See that meta.json says of losses what `losses.parquet` does; of a killed recording the file's are taken.

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

        Faults of threads that stand for vCPUs without KVM (`faulttrace.vcpus`) are vCPUs'; `vcpu_threads` names more.

        Taken from `faults.parquet` where that was made from these very events by this stitcher; otherwise stitched
        and, where the directory may be written, kept. A trace without events has nothing to stitch: its
        `faults.parquet` is the original (synthetic traces).

        Args:
            rebuild: stitch anew.
            vcpu_threads: threads that are vCPUs, by id or name.
            columns: only these.
            progress: told how much of a stitch is done, of how much.
            categorical: words are categories in place of strings, and faults are read a piece at a time: less memory.

        Raises:
            IncompleteData: a synthetic trace without its faults; damaged ones, or those of another trace.
            UsageError: no thread is called as `vcpu_threads` say.
        """
        from faultreplay.faulttrace.vcpus import label_vcpus
        from faultreplay.faulttrace.vcpus import vcpu_threads as threads_of

        threads = threads_of(self.meta, vcpu_threads)
        needed = None if columns is None else _with_labels(columns, threads)
        found = self._faults.stitched(rebuild, needed, progress, categorical=categorical)
        frame = label_vcpus(found, threads, self.meta.targets)
        return frame if columns is None else frame.select(columns)

    def fault_frames(self, columns: Sequence[str], *, vcpu_threads: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        """As `faults`, a piece at a time (at least one): the memory of a piece where they are kept."""
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
        """The same, unlabelled, a piece at a time: little memory where they are kept."""
        return self._faults.groups(columns, progress)

    def stitch_facts(self, progress: Progress | None = None) -> StitchFacts:
        """How the stitch went, and the windows that the ioctls show; stitches where that is not kept."""
        return self._faults.facts(progress)

    @property
    def faults_made(self) -> bool:
        """Whether the faults were just stitched and stored with the events, so that the next reader gets those."""
        return self._faults.made

    def keep_faults(self, faults: pl.DataFrame) -> None:
        """Keep what was stitched from this trace's events, if it has any, beside them, where that may be written."""
        self._faults.keep(faults)

    def faults_are_kept(self) -> bool:
        """Whether `faults.parquet` was made from these events by this stitcher.

        Raises:
            IncompleteData: it is another trace's, or damaged.
        """
        return self._faults.are_kept()


def _with_labels(columns: Sequence[str], threads: Mapping[int, int]) -> list[str]:
    """The columns, and those by which threads are found that stand for vCPUs."""
    return list(dict.fromkeys([*columns, *(("tid", "accessor", "vcpu", "vm", "page") if threads else ())]))


def open_trace(path: Location | str, *, allow_incomplete: bool = True) -> Trace:
    """Open a trace for reading: version, columns and what belongs to it are checked here and nowhere else.

    Args:
        path: `NAME.trace`, a directory or one file (`faulttrace.pack`).
        allow_incomplete: take a trace whose recorder was killed; `Trace.notes` says so.

    Raises:
        UsageError: no such path.
        IncompleteData: not a trace, another version, damaged, with files missing or too many, or (if not allowed)
            unfinished.
        NoPermission: may not be read.
    """
    place = path if isinstance(path, Place) else place_of(Path(path))
    return _open(place, allow_incomplete=allow_incomplete)


def place_of(path: Path) -> Location:
    """Where the files of the trace at `path` are: that directory, or inside that file.

    Raises:
        UsageError: nothing there.
        IncompleteData: a file that is no trace.
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
