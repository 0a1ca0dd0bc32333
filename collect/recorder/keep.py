"""What of a long recording stays: the last segments (flight recorder), or the last seconds before a long stall."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from faultreplay.collect.recorder.drain import Columns
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.writer import PART_ROWS, TraceWriter

_PART_ROWS = PART_ROWS // 4  # what waits to be written is the most that a busy recorder holds: 20 MB
_PARTS_A_SEGMENT = 4
_THREADS = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels
_ROW_BYTES = 6  # on disk; 2 to 9 are measured


@dataclass(frozen=True)
class Rotation:
    """A new segment after this many bytes or this much time; only the last `keep` stay on disk."""

    keep: int
    segment_bytes: int | None = None
    segment_ns: int | None = None


@dataclass(frozen=True)
class Trigger:
    """End when a stall is longer than `stall_ns`, with the last `keep_ns` on disk."""

    stall_ns: int
    keep_ns: int


@dataclass(frozen=True)
class Stall:
    """A stall that was seen while recording."""

    tid: int
    start_ns: int
    stall_ns: int


class Retention:
    """Deletes parts that need not stay; asked after each part that was written."""

    def __init__(self, rotation: Rotation | None, trigger: Trigger | None) -> None:
        self._rotation = rotation
        self._trigger = trigger
        self._segments: deque[int] = deque()  # start of each segment still on disk, ns
        self._segment_bytes = 0

    @property
    def part_age_ns(self) -> int | None:
        """How old a part may become before it is written, where this matters; None: any age."""
        if self._rotation is not None and self._rotation.segment_ns is not None:
            return self._rotation.segment_ns
        return self._trigger.keep_ns // 4 if self._trigger is not None else None

    @property
    def part_rows(self) -> int:
        """How many events a part may have, so that a small segment is of several parts."""
        if self._rotation is None or self._rotation.segment_bytes is None:
            return _PART_ROWS
        return min(max(self._rotation.segment_bytes // (_PARTS_A_SEGMENT * _ROW_BYTES), 1), _PART_ROWS)

    def after_part(self, writer: TraceWriter, start_ns: int, end_ns: int, part_bytes: int) -> None:
        """A part with events from `start_ns` to `end_ns` was written."""
        before_ns = 0
        if self._trigger is not None:
            before_ns = end_ns - self._trigger.keep_ns
        elif self._rotation is not None:
            before_ns = self._rotated(self._rotation, start_ns, end_ns, part_bytes)
        if before_ns > 0:
            writer.drop_parts_before(before_ns)

    def _rotated(self, rotation: Rotation, start_ns: int, end_ns: int, part_bytes: int) -> int:
        """Start of the oldest segment that stays."""
        segments = self._segments
        full = rotation.segment_bytes is not None and self._segment_bytes >= rotation.segment_bytes
        old = rotation.segment_ns is not None and segments and end_ns - segments[-1] > rotation.segment_ns
        if not segments or full or old:
            segments.append(start_ns)
            self._segment_bytes = 0
        self._segment_bytes += part_bytes
        while len(segments) > rotation.keep:
            segments.popleft()
        return segments[0]


class Lengths:
    """How long stalls were of late, to an eighth of a doubling: a histogram that forgets."""

    _STEPS = 8
    _KEPT = 0.7

    def __init__(self) -> None:
        self._counts = np.zeros(64 * self._STEPS)
        self._lock = threading.Lock()

    def add(self, lengths_ns: npt.NDArray[Any]) -> None:
        """Count these; all above 0."""
        if len(lengths_ns):
            at = (np.log2(lengths_ns) * self._STEPS).astype(np.int64)
            with self._lock:
                self._counts += np.bincount(at, minlength=len(self._counts))

    def quantile_ns(self, share: float) -> int | None:
        """The length that `share` of the late stalls do not pass, and forget a part of them; None: there was none."""
        with self._lock:
            counts = self._counts.copy()
            self._counts *= self._KEPT
        total = counts.sum()
        if total < 0.5:
            return None
        at = int(np.searchsorted(np.cumsum(counts), share * total))
        return round(2 ** ((min(at, len(counts) - 1) + 1) / self._STEPS))


@dataclass
class StallWatch:
    """Sees long stalls in the stream, without stitching.

    Two shapes: a page fault until its thread, having slept, lets go of mmap_lock; and a sleep that a userfaultfd
    handler's thread ends.
    """

    stall_ns: int | None = None
    """the length of which the first is noted; None: none is"""
    seen: Stall | None = None
    lengths: Lengths = field(default_factory=Lengths)
    _handlers: set[int] = field(default_factory=set)
    _open_ns: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    """per shape and thread id: since when it is open; 0: it is not. Memory that no id touches is never there."""

    def see(self, columns: Columns) -> None:
        """Look at one batch, in order of time."""
        kind, tid, ts_ns = columns["kind"], columns["tid"], columns["ts_ns"]
        message = kind == Kind.UFFD_MSG
        if message.any():
            self._handlers.update(np.unique(tid[message]).tolist())
        fault = (kind == Kind.PAGE_FAULT_USER) | (kind == Kind.PAGE_FAULT_KERNEL)
        self._pairs(0, fault, kind == Kind.MMAP_LOCK_RELEASED, tid, ts_ns)
        if self._handlers:
            sleep = (kind == Kind.SCHED_OUT) & (columns["code"] != 0)
            woken = (kind == Kind.SCHED_WAKING) & np.isin(columns["value"], list(self._handlers))
            self._pairs(1, sleep, woken, tid, ts_ns)

    def _pairs(
        self,
        shape: int,
        opens: npt.NDArray[np.bool_],
        closes: npt.NDArray[np.bool_],
        tid: npt.NDArray[Any],
        ts_ns: npt.NDArray[Any],
    ) -> None:
        """Note the longest time from an opening row to the closing row that follows it in the same thread."""
        if shape not in self._open_ns:
            self._open_ns[shape] = np.zeros(_THREADS, np.int64)
        open_ns = self._open_ns[shape]
        if not closes.any():  # most faults never sleep
            open_ns[tid[opens]] = ts_ns[opens]  # of a thread's rows the last stays
            return
        at = np.flatnonzero(opens | closes)
        tids, times, is_open = tid[at], ts_ns[at], opens[at]
        order = np.argsort(tids, kind="stable")
        tids, times, is_open = tids[order], times[order], is_open[order]
        same = tids[1:] == tids[:-1]
        since = open_ns[tids]  # right for a thread's first row; the others' is the row before them
        since[1:][same] = np.where(is_open[:-1], times[:-1], 0)[same]
        took = np.where(~is_open & (since > 0), times - since, 0)
        last = np.append(~same, True)
        open_ns[tids[last]] = np.where(is_open[last], times[last], 0)
        self.lengths.add(took[took > 0])
        if self.stall_ns is not None and took.max() > self.stall_ns:
            i = int(took.argmax())
            if self.seen is None:
                self.seen = Stall(int(tids[i]), int(since[i]), int(took[i]))
