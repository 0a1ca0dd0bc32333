"""The one door to a trace on disk.

A trace is a directory: `meta.json`, `events/part-*.parquet`, `losses.parquet` and, derived or lab-made,
`faults.parquet` and `truth.parquet`. `faulttrace.writer` makes it; `faulttrace.belonging` says what belongs to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.faulttrace.belonging import NO_FAULTS, Part, check_belonging, check_losses, made_from, read_parts
from faultreplay.faulttrace.directory import FAULTS_FILE, META, TRUTH_FILE
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError
from faultreplay.faulttrace.files import Marks, check_digest, check_footer, read_groups, read_parquet, write_parquet
from faultreplay.faulttrace.limits import check_memory
from faultreplay.faulttrace.meta import LOSSES_FILE, Meta
from faultreplay.faulttrace.place import Location, Place, open_pack, size_of
from faultreplay.faulttrace.reading import PartsSource
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH, Kind

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress, StitchFacts

UNCHECKED: Final = "without checksums (an older faultreplay's trace): damage inside its files may go unnoticed"
"""The note of an older trace."""


class Trace:
    """An opened trace. Frames come out sorted by time; `notes` says what is incomplete."""

    def __init__(self, path: Location, meta: Meta, parts: Sequence[Part], notes: list[str]) -> None:
        self.path = path
        self.meta = meta
        self.notes = notes
        self._parts = parts
        self._digests: dict[str, str] = {}  # of files whose bytes were looked at, by name
        self._held: pl.DataFrame | None = None  # faults that could not be kept
        self._facts: StitchFacts | None = None
        self._kept = False  # `faults.parquet` was found to be these events'

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
            self._check(part.name)
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
            self._check(part.name)
            yield read_parquet(part.path, EVENTS)

    def losses_table(self) -> pa.Table:
        """Losses (columns of `LOSSES`), as they were written."""
        return self._table(LOSSES_FILE, LOSSES)

    def truth_table(self) -> pa.Table | None:
        """What the accessors measured themselves (columns of `TRUTH`); None where the trace has none."""
        return self._table(TRUTH_FILE, TRUTH) if (self.path / TRUTH_FILE).exists() else None

    def original_faults(self) -> pa.Table | None:
        """Faults that no events stand behind (columns of `FAULTS`); None where there are events to stitch, or none."""
        has = not self._parts and (self.path / FAULTS_FILE).exists()
        return self._table(FAULTS_FILE, FAULTS) if has else None

    def source(self, kinds: Iterable[Kind] | None) -> PartsSource:
        """Events of these kinds (None: all), to be read in order of time without all of them in memory."""
        return PartsSource(self._parts, kinds, self._check)

    def losses(self) -> pl.DataFrame:
        """Losses (columns of `LOSSES`), sorted by `ts_ns`."""
        return self._frame(LOSSES_FILE, LOSSES).sort("ts_ns", maintain_order=True)

    def check_losses(self) -> None:
        """See that meta.json says of losses what `losses.parquet` does; of a killed recording the file's are taken.

        Raises:
            IncompleteData: they differ, or a file is damaged.
        """
        check_losses(self.path, self.meta, self._table(LOSSES_FILE, LOSSES))

    def truth(self) -> pl.DataFrame | None:
        """What the accessors measured themselves (columns of `TRUTH`); None where the trace has none."""
        if not (self.path / TRUTH_FILE).exists():
            return None
        return self._frame(TRUTH_FILE, TRUTH)

    def faults(
        self,
        *,
        rebuild: bool = False,
        vcpu_threads: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        progress: Progress | None = None,
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

        Raises:
            IncompleteData: a synthetic trace without its faults; damaged ones, or those of another trace.
            UsageError: no thread is called as `vcpu_threads` say.
        """
        from faultreplay.faulttrace.vcpus import label_vcpus
        from faultreplay.faulttrace.vcpus import vcpu_threads as threads_of

        threads = threads_of(self.meta, vcpu_threads)
        needed = None
        if columns is not None:
            needed = list(dict.fromkeys([*columns, *(("tid", "accessor", "vcpu") if threads else ())]))
        frame = label_vcpus(self._stitched(rebuild, needed, progress), threads)
        return frame if columns is None else frame.select(columns)

    def fault_groups(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.Table]:
        """The same, unlabelled, a piece at a time: little memory where they are kept."""
        self.stitch_facts(progress)
        if self._held is None and (self.path / FAULTS_FILE).exists():
            yield from read_groups(self.path / FAULTS_FILE, FAULTS, columns)
        else:
            yield self._stitched(False, columns, progress).to_arrow()

    def stitch_facts(self, progress: Progress | None = None) -> StitchFacts:
        """How the stitch went, and the windows that the ioctls show; stitches where that is not kept."""
        from faultreplay.faulttrace.kept import StitchFacts, stitched_tables
        from faultreplay.faulttrace.stitch.columns import USED
        from faultreplay.faulttrace.stitch.report import StitchReport

        if not self._parts:
            return StitchFacts(StitchReport(), [])
        kept = self._facts is None and self._found_kept()
        if kept:
            told = check_footer(self.path / FAULTS_FILE, FAULTS).marks.stitch
            self._facts = StitchFacts.from_json(told) if told else None
        if self._facts is None and kept and self.meta.origin == "synthetic":
            self._facts = stitched_tables(self.source(USED), self.meta)[1]  # the kept faults are others, and stay
        elif self._facts is None:
            self._stitch(progress)
        assert self._facts is not None
        return self._facts

    def _stitched(
        self, rebuild: bool, columns: Sequence[str] | None = None, progress: Progress | None = None
    ) -> pl.DataFrame:
        cached = self.path / FAULTS_FILE
        if not self._parts and (self.meta.origin == "synthetic" or cached.exists()):
            if not cached.exists():
                raise IncompleteData(f"{cached}: {NO_FAULTS}")
            return self._frame(FAULTS_FILE, FAULTS, columns)
        if rebuild or (self._held is None and not self._found_kept()):
            self._stitch(progress)
        if self._held is not None:
            return self._held if columns is None else self._held.select(columns)
        return self._frame(FAULTS_FILE, FAULTS, columns)

    def _stitch(self, progress: Progress | None) -> None:
        """Stitch into `faults.parquet`, or where that may not be written into memory, and say so."""
        import polars as pl

        from faultreplay.faulttrace.kept import NOT_KEPT, may_write, stitch_into, stitched_tables
        from faultreplay.faulttrace.stitch.columns import USED

        path, source = self.path / FAULTS_FILE, self.source(USED)
        self._held = None
        why = "" if may_write(self.path) else f"{self.path} may not be written"
        if isinstance(path, Place):
            why = f"{self.path} is no directory here"
        elif not why and self._parts:
            try:
                self._facts = stitch_into(path, source, self.meta, self._marks(), progress)
                self._kept = True
                return
            except FaultreplayError as error:
                if not str(error).startswith(str(path)):  # the events' fault
                    raise
                why = str(error)
        tables, self._facts = stitched_tables(source, self.meta, progress)
        frame = pl.from_arrow(pa.concat_tables(tables) if tables else FAULTS.empty_table())
        assert isinstance(frame, pl.DataFrame)
        self._held = frame
        if self._parts:
            self.notes.append(NOT_KEPT.format(why))

    def _marks(self) -> Marks:
        return Marks(self.meta.integrity.recording, FAULTS_FILE, self._made_from(), str(STITCH_VERSION))

    def keep_faults(self, faults: pl.DataFrame) -> None:
        """Keep what was stitched from this trace's events, if it has any, beside them, where that may be written."""
        if not self._parts or isinstance(self.path, Place):  # what is packed is whole; it carries its faults
            return
        with contextlib.suppress(OSError, FaultreplayError):  # a read-only trace is stitched each time
            write_parquet(self.path / FAULTS_FILE, faults.to_arrow().cast(FAULTS), self._marks())

    def faults_are_kept(self) -> bool:
        """Whether `faults.parquet` was made from these events by this stitcher.

        Raises:
            IncompleteData: it is another trace's, or damaged.
        """
        path = self.path / FAULTS_FILE
        if not path.exists():
            return False
        mend = "delete it: it is made anew from the events"
        try:
            footer = check_footer(path, pa.schema([]))
            marks = footer.marks
            if marks.recording and marks.recording != self.meta.integrity.recording:
                raise IncompleteData(f"{path}: of another trace")
            if not footer.sealed or marks.stitch_version != str(STITCH_VERSION):
                return False  # an older faultreplay's
            check_digest(path)
            check_footer(path, FAULTS)
        except IncompleteData as error:
            raise IncompleteData(f"{error}; or {mend}") from None
        if marks.made_from != self._made_from():
            self.notes.append(f"{path}: made from other events or another meta.json than these: made anew")
            return False
        return True

    def _found_kept(self) -> bool:
        self._kept = self._kept or self.faults_are_kept()
        return self._kept

    def _made_from(self) -> str:
        for part in self._parts:
            self._check(part.name)
        return made_from(self.meta, self._digests)

    def _check(self, name: str) -> None:
        """See once that the bytes of a file are those that were written."""
        if name not in self._digests:
            entry = self.meta.integrity.files.get(name)
            self._digests[name] = check_digest(self.path / name, entry.sha256 if entry else None)

    def _frame(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pl.DataFrame:
        import polars as pl

        frame = pl.from_arrow(self._table(name, schema, columns))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _table(self, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
        path = self.path / name
        if not path.exists():
            return schema.empty_table()
        if name != FAULTS_FILE or not self._parts:  # kept faults: see `faults_are_kept`
            self._check(name)
        return read_parquet(path, schema, columns)


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
