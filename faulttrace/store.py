"""The one door to a trace on disk.

A trace is a directory: `meta.json`, `events/part-*.parquet`, `losses.parquet` and, derived or lab-made,
`faults.parquet` and `truth.parquet`. `faulttrace.writer` makes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, NoPermission, UsageError
from faultreplay.faulttrace.files import META, check_footer, part_paths, read_parquet, write_parquet
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import EVENTS, FAULTS, LOSSES, STITCH_VERSION, TRUTH, Kind

if TYPE_CHECKING:
    import polars as pl


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
            table = read_parquet(part, EVENTS, None if wanted is None else [*wanted, *keys])
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

    def faults(self, *, rebuild: bool = False, vcpu_threads: Sequence[str] = ()) -> pl.DataFrame:
        """Stitched faults (columns of `FAULTS`), sorted by (`start_ns`, `tid`).

        Faults of threads that stand for vCPUs without KVM (`faulttrace.vcpus`) are vCPUs'; `vcpu_threads` names more.

        Taken from `faults.parquet` when that is newer than every event part; otherwise stitched and, where the
        directory may be written, kept. A trace without events has nothing to stitch: its `faults.parquet` is the
        original (synthetic traces).

        Raises:
            IncompleteData: a synthetic trace without its faults, or damaged ones.
            UsageError: no thread is called as `vcpu_threads` say.
        """
        from faultreplay.faulttrace.vcpus import label_vcpus
        from faultreplay.faulttrace.vcpus import vcpu_threads as threads_of

        return label_vcpus(self._stitched(rebuild), threads_of(self.meta, vcpu_threads))

    def _stitched(self, rebuild: bool) -> pl.DataFrame:
        cached = self.path / "faults.parquet"
        if not self._parts and (self.meta.origin == "synthetic" or cached.exists()):
            if not cached.exists():
                raise IncompleteData(f"{cached}: missing: a synthetic trace has nothing else, make it again")
            return self._frame("faults.parquet", FAULTS)
        if not rebuild and self._is_fresh(cached):
            with contextlib.suppress(IncompleteData):  # derived data: a damaged copy is made anew
                return self._frame("faults.parquet", FAULTS)
        from faultreplay.faulttrace.stitch import stitch

        faults = stitch(self)
        with contextlib.suppress(OSError, FaultreplayError):  # a read-only trace is stitched each time
            write_parquet(cached, faults.to_arrow().cast(FAULTS))
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
        table = read_parquet(path, schema) if path.exists() else schema.empty_table()
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
    if not path.is_dir():
        raise UsageError(f"{path}: a trace is a directory (NAME.trace), this is a file")
    try:
        meta = Meta.read(path / META)
        parts = part_paths(path)
        for part in parts:
            check_footer(part, EVENTS)
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
