"""The engine's input: per accessor a stream of faults with the think time before each, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faulttrace.errors import IncompleteData, UsageError
from replay.language import ACCESSOR_KINDS, CLASSES

if TYPE_CHECKING:
    import polars

Ints = npt.NDArray[np.int64]
ACCESS_CODES: Final = {"r": 0, "w": 1, "x": 2}
UNKNOWN: Final = -1


@dataclass(frozen=True)
class Workload:
    """Faults of `A` accessors, `F` in all, in compressed rows: accessor a owns rows
    accessor_start[a]:accessor_start[a+1].

    Times are ns from the beginning of the recording. Rows of an accessor are in the order in which it faulted.
    """

    accessor_start: Ints
    """int64[A+1]"""
    think_ns: Ints
    """int64[F]: from the resume before (or the beginning) to this fault"""
    page: npt.NDArray[Any]
    """int32 or int64[F]: which native page"""
    access: npt.NDArray[np.uint8]
    """uint8[F]: 0 read, 1 write, 2 execute"""
    cls: npt.NDArray[np.uint8]
    """uint8[F]: index in `replay.language.CLASSES`"""
    recorded_stall_ns: Ints
    """int64[F], -1 unknown; or empty: all unknown"""
    recorded_start_ns: Ints
    """int64[F] from the beginning of the recording, -1 unknown; or empty: all unknown"""
    accessor_kind: npt.NDArray[np.uint8]
    """uint8[A]: 0 vcpu, 1 vmm, 2 kernel"""
    accessor_name: tuple[str, ...]
    tail_ns: Ints
    """int64[A]: from the last resume to the end of the recording"""
    page_bytes: int = 4096
    clock_start_ns: int = 0
    """CLOCK_MONOTONIC at the beginning of the recording"""
    origin: str = "recorded"
    notes: tuple[str, ...] = ()
    _cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def faults(self) -> int:
        """Number of faults."""
        return int(self.think_ns.size)

    @property
    def accessors(self) -> int:
        """Number of accessors."""
        return int(self.accessor_kind.size)

    def accessor_of_row(self) -> npt.NDArray[np.int32]:
        """int32[F]: which accessor a row belongs to."""
        return np.repeat(np.arange(self.accessors, dtype=np.int32), np.diff(self.accessor_start))

    def split(self, fraction: float) -> tuple[Workload, Workload]:
        """The first `fraction` of the faults in order of recorded time, and the rest.

        The second part begins when the first one ends: the think time of each accessor's first fault in it is what
        was left then.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"a split needs a fraction between 0 and 1, not {fraction:g}")
        if not self.recorded_start_ns.size:
            raise UsageError("a workload without recorded times cannot be split by time")
        order = np.argsort(self.recorded_start_ns, kind="stable")
        cut = round(self.faults * fraction)
        if not 0 < cut < self.faults:
            raise IncompleteData(f"{self.faults} faults are too few to split at {fraction:g}")
        first = np.zeros(self.faults, bool)
        first[order[:cut]] = True
        border = int(self.recorded_start_ns[order[cut]])
        return self._part(first, 0, border), self._part(~first, border, None)

    def _part(self, keep: npt.NDArray[np.bool_], begin: int, end: int | None) -> Workload:
        owner = self.accessor_of_row()
        counts = np.bincount(owner[keep], minlength=self.accessors)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        think = self.think_ns[keep].copy()
        tail = self.tail_ns.copy()
        recorded_end = self.recorded_start_ns + np.maximum(self.recorded_stall_ns, 0)
        for a in range(self.accessors):
            rows = np.flatnonzero(keep[self.accessor_start[a] : self.accessor_start[a + 1]]) + self.accessor_start[a]
            if rows.size and begin:
                before = recorded_end[rows[0] - 1] if rows[0] > self.accessor_start[a] else 0
                think[starts[a]] = max(int(self.recorded_start_ns[rows[0]]) - max(begin, int(before)), 0)
            if end is not None:
                resumed = int(recorded_end[rows[-1]]) if rows.size else begin
                tail[a] = max(end - resumed, 0)
            elif not rows.size:
                tail[a] = max(int(self.tail_ns[a]) + self._last_resume(a) - begin, 0)
        starts_ns = self.recorded_start_ns[keep] - begin
        return Workload(
            accessor_start=starts,
            think_ns=think,
            page=self.page[keep],
            access=self.access[keep],
            cls=self.cls[keep],
            recorded_stall_ns=self.recorded_stall_ns[keep] if self.recorded_stall_ns.size else self.recorded_stall_ns,
            recorded_start_ns=starts_ns,
            accessor_kind=self.accessor_kind,
            accessor_name=self.accessor_name,
            tail_ns=tail,
            page_bytes=self.page_bytes,
            clock_start_ns=self.clock_start_ns + begin,
            origin=self.origin,
            notes=self.notes,
        )

    def _last_resume(self, a: int) -> int:
        last = int(self.accessor_start[a + 1]) - 1
        if last < self.accessor_start[a]:
            return 0
        return int(self.recorded_start_ns[last] + max(int(self.recorded_stall_ns[last]), 0))


def make_workload(
    streams: list[dict[str, Any]], *, page_bytes: int = 4096, origin: str = "synthetic", notes: tuple[str, ...] = ()
) -> Workload:
    """A workload from one dict per accessor: think_ns, and where they matter page, access, cls, kind, name,
    recorded_stall_ns.

    `access` and `cls` are arrays of codes or one name for all; `page` defaults to pages nobody else touches.
    """
    counts = [len(stream["think_ns"]) for stream in streams]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])

    def column(key: str, default: Any, codes: Any, dtype: Any) -> npt.NDArray[Any]:
        parts = []
        for stream, count in zip(streams, counts, strict=True):
            value = stream.get(key, default)
            value = codes[value] if isinstance(value, str) else value
            parts.append(np.full(count, value) if np.ndim(value) == 0 else np.asarray(value))
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    pages = [np.asarray(s.get("page", np.arange(starts[i], starts[i + 1]))) for i, s in enumerate(streams)]
    known = any("recorded_stall_ns" in stream for stream in streams)
    class_codes = {name: code for code, name in enumerate(CLASSES)}
    return Workload(
        accessor_start=starts,
        think_ns=np.concatenate([np.asarray(s["think_ns"], np.int64) for s in streams])
        if streams
        else np.zeros(0, np.int64),
        page=_compact(np.concatenate(pages)) if pages else np.zeros(0, np.int32),
        access=column("access", "w", ACCESS_CODES, np.uint8),
        cls=column("cls", "missing", class_codes, np.uint8),
        recorded_stall_ns=(column("recorded_stall_ns", -1, {}, np.int64) if known else np.zeros(0, np.int64)),
        recorded_start_ns=np.zeros(0, np.int64),
        accessor_kind=np.array([ACCESSOR_KINDS.index(s.get("kind", "vcpu")) for s in streams], np.uint8),
        accessor_name=tuple(str(s.get("name", f"vcpu{i}")) for i, s in enumerate(streams)),
        tail_ns=np.array([int(s.get("tail_ns", 0)) for s in streams], np.int64),
        page_bytes=page_bytes,
        origin=origin,
        notes=notes if total else (*notes, "no faults"),
    )


def workload_from_faults(
    faults: polars.DataFrame,
    *,
    meta: Any = None,
    page_bytes: int = 4096,
    begin_ns: int | None = None,
    end_ns: int | None = None,
) -> Workload:
    """The workload behind stitched faults (columns of `faulttrace.schema.FAULTS`).

    Faults whose end was not seen, or that carry the cause of something else than an access, are left out and counted in
    `notes`. Think time is from the resume before to the fault; where stitched times overlap by a little it is 0. Faults
    of a synthetic trace never stalled (unknown, -1) and their accessors end with their last one.

    Args:
        faults: stitched faults of one virtual machine or process
        meta: the trace's `Meta` (for the clock's start and end, the recorded windows and the origin), if there is one
        page_bytes: native page
        begin_ns: CLOCK_MONOTONIC of the beginning of the recording, if `meta` is not given
        end_ns: and of its end
    """
    import polars as pl

    notes: list[str] = []
    clock = getattr(meta, "clock", None)
    begin = begin_ns if begin_ns is not None else _clock(clock, "start_ns")
    end = end_ns if end_ns is not None else _clock(clock, "end_ns")
    unknown = faults.filter(pl.col("end_ns").is_null()).height
    if unknown:
        notes.append(f"{unknown} faults left out: their end was not seen")
    frame = faults.filter(pl.col("end_ns").is_not_null() & pl.col("cause").is_in(list(CLASSES)))
    odd = faults.height - unknown - frame.height
    if odd:
        notes.append(f"{odd} faults left out: their cause is not one of {', '.join(CLASSES)}")
    frame = frame.with_columns(
        pl.col("accessor")
        .replace_strict({k: i for i, k in enumerate(ACCESSOR_KINDS)}, default=1, return_dtype=pl.UInt8)
        .alias("_kind")
    ).sort("_kind", "vcpu", "vm", "tid", "start_ns", "fault_id")
    start = frame["start_ns"].to_numpy().astype(np.int64)
    finish = frame["end_ns"].to_numpy().astype(np.int64)
    if begin is None:
        begin = int(start.min()) if start.size else 0
    if end is None or (finish.size and end < finish.max()):
        end = int(finish.max()) if finish.size else begin
    keys = np.stack([frame[c].to_numpy().astype(np.int64) for c in ("_kind", "vcpu", "vm", "tid")], axis=1)
    new = np.ones(len(start), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    first_rows = np.flatnonzero(new)
    starts = np.append(first_rows, len(start)).astype(np.int64)
    resume = np.empty_like(start)
    resume[1:] = finish[:-1]
    resume[first_rows] = begin
    think = start - resume
    overlaps = int((think < 0).sum())
    if overlaps:
        notes.append(f"{overlaps} faults begin before the same thread's fault before was over; their think time is 0")
    stall = frame["stall_ns"].fill_null(-1).to_numpy().astype(np.int64)
    synthetic = getattr(meta, "origin", "") == "synthetic"
    if not synthetic:
        stall = np.where(stall < 0, finish - start, stall)
    kinds = keys[first_rows, 0].astype(np.uint8)
    names = tuple(_accessor_name(*map(int, keys[row])) for row in first_rows)
    page = (frame["page"].to_numpy().astype(np.uint64) // np.uint64(page_bytes)).astype(np.int64)
    cls = frame["cause"].replace_strict({name: i for i, name in enumerate(CLASSES)}, return_dtype=pl.UInt8).to_numpy()
    cls = _classes_in_windows(cls.astype(np.uint8), start, getattr(meta, "windows", None) or (), notes)
    last = starts[1:] - 1
    return Workload(
        accessor_start=starts,
        think_ns=np.maximum(think, 0),
        page=_compact(page),
        access=frame["access"]
        .replace_strict(ACCESS_CODES, default=0, return_dtype=pl.UInt8)
        .to_numpy()
        .astype(np.uint8),
        cls=cls,
        recorded_stall_ns=stall,
        recorded_start_ns=start - begin,
        accessor_kind=kinds,
        accessor_name=names,
        tail_ns=np.zeros(kinds.size, np.int64) if synthetic else np.maximum(end - finish[last], 0),
        page_bytes=page_bytes,
        clock_start_ns=begin,
        origin=str(getattr(meta, "origin", "recorded")),
        notes=tuple(notes),
    )


def _clock(clock: Any, key: str) -> int | None:
    value: Any = clock.get(key) if isinstance(clock, dict) else getattr(clock, key, None)
    return int(value) if value else None


def _accessor_name(kind: int, vcpu: int, _vm: int, tid: int) -> str:
    return f"vcpu{vcpu}" if kind == 0 and vcpu >= 0 else f"{ACCESSOR_KINDS[kind]}:{tid}"


def _classes_in_windows(
    cls: npt.NDArray[np.uint8], start: Ints, windows: Any, notes: list[str]
) -> npt.NDArray[np.uint8]:
    """A write-protect fault inside a recorded freeze is the window's doing, not a page's."""
    protect, window = CLASSES.index("write-protect"), CLASSES.index("window")
    changed = 0
    for item in windows:
        begin, end = _clock(item, "start_ns") or 0, _clock(item, "end_ns") or 0
        inside = (cls == protect) & (start >= begin) & (start < end)
        cls = np.where(inside, np.uint8(window), cls)
        changed += int(inside.sum())
    if changed:
        notes.append(f"{changed} write-protect faults lie in a recorded window: replayed as its effect")
    return cls


def _compact(page: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """int32 where the range allows it: half the memory of a large replay."""
    if page.size and (page.min() < 0 or page.max() >= 1 << 31):
        return np.ascontiguousarray(page, dtype=np.int64)
    return np.ascontiguousarray(page, dtype=np.int32)
