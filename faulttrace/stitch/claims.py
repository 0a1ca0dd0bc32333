"""What stitchers tell each other: which times lie in faults already found, and which placements have ended one.

Userfaults come first, then exits, then what KVM resolved alone, then page faults of processes: each sees what those
before it claimed, of this stretch and of earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from faultreplay.faulttrace.stitch.found import UNKNOWN, Found
from faultreplay.faulttrace.stitch.keys import I64, Axis, Bools, Index, last_and_since, take


@dataclass(frozen=True)
class Spans:
    """Threads and the times from the start of a fault to its end (`UNKNOWN`: not seen)."""

    thread: I64
    start_ns: I64
    end_ns: I64

    @classmethod
    def of(cls, found: Found) -> Spans:
        """The spans of faults whose thread is known."""
        known = found.thread >= 0
        return cls(found.thread[known], found.start_ns[known], found.end_ns[known])

    @classmethod
    def concat(cls, parts: list[Spans]) -> Spans:
        """All of them, in this order."""
        empty = np.zeros(0, np.int64)
        parts = [cls(empty, empty, empty), *parts]
        names = ("thread", "start_ns", "end_ns")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def keep(self, since_ns: I64) -> Spans:
        """Per thread those from `since_ns` on, and the last that began before."""
        order = np.argsort(self.start_ns, kind="stable")
        rows = order[last_and_since(self.thread[order], self.start_ns[order], since_ns)]
        return Spans(self.thread[rows], self.start_ns[rows], self.end_ns[rows])


class Claims:
    """Where faults already found lie: an event inside one is part of it and opens no other."""

    def __init__(self, axis: Axis, spans: list[Spans]) -> None:
        whole = Spans.concat(spans)
        self._start = whole.start_ns
        # With its end unseen a fault claims its own opening event only.
        self._unended = np.append(whole.end_ns == UNKNOWN, False)
        self._end = np.where(whole.end_ns == UNKNOWN, self._start, whole.end_ns)
        self._index = Index(axis, whole.thread, self._start)

    def opened(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether a fault of each thread whose end was not seen began at that very time."""
        row = self._index.last_until(thread, ts_ns)
        began: Bools = (row >= 0) & self._unended[row] & (take(self._start, row, -1) == ts_ns)
        return began

    def inside(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether each (thread, time) lies in a fault."""
        row = self._index.last_until(thread, ts_ns)
        claimed: Bools = (row >= 0) & (ts_ns <= take(self._end, row, -1))
        return claimed


@dataclass
class Used:
    """Placements (rows) that ended a fault so far.

    Page faults of processes may take those that messages, waiters and exits left, and several may take the same one. So
    these two are kept apart: what earlier stretches found must not be more than the whole trace would know here.
    """

    asked_for: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """places of those that ended a fault of a message, a waiter or an exit in earlier stretches"""
    alone: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """the same of page faults of processes"""
    _noted: list[tuple[I64, I64, I64, Bools, bool]] = field(default_factory=list)

    @property
    def before(self) -> I64:
        """Places of all that did in earlier stretches."""
        return np.union1d(self.asked_for, self.alone)

    def note(self, rows: I64, thread: I64, ts_ns: I64, settled: Bools | None = None, *, alone: bool = False) -> None:
        """These ended one (-1: none) that is told with what each thread did at each time.

        `settled`: of those whose thread is -1, whether they are told now (None: all are). `alone`: page faults of
        processes that nobody asked for.
        """
        settled = np.ones(len(rows), bool) if settled is None else settled
        some = rows >= 0
        self._noted.append((rows[some], thread[some], ts_ns[some], settled[some], alone))

    def left(self, pos: I64) -> Bools:
        """Per placement, of which these are the places in the trace, whether messages, waiters and exits left it."""
        left: Bools = ~np.isin(pos, self.asked_for)
        for rows, *_, alone in self._noted:
            if not alone:
                left[rows[rows < len(pos)]] = False
        return left

    def told(self, pos: I64, until_ns: I64) -> Used:
        """Those that ended a fault which is told, in this stretch or before."""
        found: tuple[list[I64], list[I64]] = ([self.asked_for], [self.alone])
        for rows, thread, ts_ns, settled, alone in self._noted:
            found[alone].append(pos[rows[np.where(thread >= 0, ts_ns < until_ns[thread], settled)]])
        asked_for, by_none = (np.unique(np.concatenate(places)) for places in found)
        return Used(asked_for, by_none)

    def among(self, pos: I64) -> Used:
        """Those of these places."""
        return Used(self.asked_for[np.isin(self.asked_for, pos)], self.alone[np.isin(self.alone, pos)])
