"""The faults of a trace: stitched from its events, or those stored with them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from faultreplay.faulttrace.belonging import NO_FAULTS
from faultreplay.faulttrace.checked import CheckedFiles
from faultreplay.faulttrace.directory import FAULTS_FILE
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData
from faultreplay.faulttrace.files import Marks, check_digest, check_footer, read_groups, write_parquet
from faultreplay.faulttrace.place import Place
from faultreplay.faulttrace.schema import FAULTS, STITCH_VERSION

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress, StitchFacts


class TraceFaults:
    """Stitches a trace's events, stores the faults if possible, and checks whether stored faults match the events.

    Args:
        files: of the trace.
        notes: of the trace; notes about its faults are added.
        held: its faults, if only they are available.
    """

    def __init__(self, files: CheckedFiles, notes: list[str], held: pl.DataFrame | None = None) -> None:
        self._files, self._notes = files, notes
        self.path, self.meta, self._parts = files.path, files.meta, files.parts
        self._held = held  # faults that could not be stored
        self._original = held is not None
        self._facts: StitchFacts | None = None
        self.made = False
        """The faults were just stitched and stored."""
        self._kept = False  # `faults.parquet` was found to match these events

    def groups(self, columns: Sequence[str], progress: Progress | None = None) -> Iterator[pa.Table]:
        """As `stitched`, in pieces. If the faults are stored, this needs little memory."""
        if self._held is None and self._parts and not self._found_kept():
            self._stitch(progress)
        if self._held is not None or not (self.path / FAULTS_FILE).exists():
            yield self.stitched(False, columns, progress).to_arrow()
            return
        if not self._parts and not self._kept:
            self._files.check(FAULTS_FILE)
            self._kept = True
        yield from read_groups(self.path / FAULTS_FILE, FAULTS, columns)

    def facts(self, progress: Progress | None = None) -> StitchFacts:
        """The report of the stitch and the windows inferred from the ioctls; stitches if these are not stored."""
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
            # The stored faults are not the stitcher's: do not replace them.
            self._facts = stitched_tables(self._files.source(USED), self.meta)[1]
        elif self._facts is None:
            self._stitch(progress)
        assert self._facts is not None
        return self._facts

    def stitched(
        self,
        rebuild: bool,
        columns: Sequence[str] | None = None,
        progress: Progress | None = None,
        *,
        categorical: bool = False,
    ) -> pl.DataFrame:
        """The faults (columns of `FAULTS`), sorted by (`start_ns`, `tid`); see `Trace.faults`."""
        frame = self._whole(rebuild, columns, progress, categorical)
        return _with_categories(frame) if categorical else frame

    def _whole(
        self, rebuild: bool, columns: Sequence[str] | None, progress: Progress | None, categorical: bool
    ) -> pl.DataFrame:
        cached = self.path / FAULTS_FILE
        if self._original:
            assert self._held is not None
            return self._held if columns is None else self._held.select(columns)
        if not self._parts and (self.meta.origin == "synthetic" or cached.exists()):
            if not cached.exists():
                raise IncompleteData(f"{cached}: {NO_FAULTS}")
            return self._read(columns, categorical)
        if rebuild or (self._held is None and not self._found_kept()):
            self._stitch(progress)
        if self._held is not None:
            return self._held if columns is None else self._held.select(columns)
        return self._read(columns, categorical)

    def _read(self, columns: Sequence[str] | None, categorical: bool) -> pl.DataFrame:
        """The stored faults. With `categorical` they are read in pieces, so that they are never in memory twice."""
        import polars as pl

        if not categorical:
            return self._files.frame(FAULTS_FILE, FAULTS, columns)
        if not self._parts:  # kept faults: see `are_kept`
            self._files.check(FAULTS_FILE)
        frames = [FAULTS.empty_table() if columns is None else FAULTS.empty_table().select(list(columns))]
        found = [
            _with_categories(cast("pl.DataFrame", pl.from_arrow(table)))
            for table in itertools.chain(frames, read_groups(self.path / FAULTS_FILE, FAULTS, columns))
        ]
        return _without_nothing(pl.concat(found, rechunk=False))

    def _stitch(self, progress: Progress | None) -> None:
        """Stitch into `faults.parquet`. If that is not writable, stitch into memory and add a note."""
        import polars as pl

        from faultreplay.faulttrace.kept import NOT_KEPT, may_write, stitch_into, stitched_tables
        from faultreplay.faulttrace.stitch.columns import USED

        path, source = self.path / FAULTS_FILE, self._files.source(USED)
        self._held = None
        why = "" if may_write(self.path) else f"{self.path} may not be written"
        if isinstance(path, Place):
            why = f"{self.path} is not a local directory"
        elif not why and self._parts:
            try:
                self._facts = stitch_into(path, source, self.meta, self._marks(), progress)
                self._kept = True
                self.made = True
                return
            except FaultreplayError as error:
                if not str(error).startswith(str(path)):  # the error is in the events
                    raise
                why = str(error)
        tables, self._facts = stitched_tables(source, self.meta, progress)
        frame = pl.from_arrow(pa.concat_tables(tables) if tables else FAULTS.empty_table())
        assert isinstance(frame, pl.DataFrame)
        self._held = frame
        if self._parts:
            self._notes.append(NOT_KEPT.format(why))

    def _marks(self) -> Marks:
        return Marks(self.meta.integrity.recording, FAULTS_FILE, self._files.made_from(), str(STITCH_VERSION))

    def keep(self, faults: pl.DataFrame) -> None:
        """Store faults that were stitched from this trace's events, if it has events and is writable."""
        if not self._parts or isinstance(self.path, Place):  # a `Place` cannot be written
            return
        with contextlib.suppress(OSError, FaultreplayError):  # a read-only trace is stitched each time
            write_parquet(self.path / FAULTS_FILE, faults.to_arrow().cast(FAULTS), self._marks())

    def are_kept(self) -> bool:
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
                return False  # made by an older faultreplay
            check_digest(path)
            check_footer(path, FAULTS)
        except IncompleteData as error:
            raise IncompleteData(f"{error}; or {mend}") from None
        if marks.made_from != self._files.made_from():
            self._notes.append(f"{path}: made from other events or another meta.json than these: made anew")
            return False
        return True

    def _found_kept(self) -> bool:
        self._kept = self._kept or self.are_kept()
        return self._kept


def _with_categories(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    frame = frame.with_columns(pl.col(pl.String).cast(pl.Categorical))
    return _without_nothing(frame)


def _without_nothing(frame: pl.DataFrame) -> pl.DataFrame:
    """The same, but each column without any value becomes one null literal, which takes no memory."""
    import polars as pl

    empty = [column for column in frame if len(column) and column.null_count() == len(column)]
    return frame.with_columns(pl.lit(None, dtype=column.dtype).alias(column.name) for column in empty)
