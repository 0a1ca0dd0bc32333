"""Intervals in which memory was frozen or its slot gone, as the ioctls show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from faultreplay.faulttrace.meta import WindowSpan
from faultreplay.faulttrace.schema import CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.found import UNKNOWN, Found, code
from faultreplay.faulttrace.stitch.keys import I64
from faultreplay.faulttrace.stitch.memory import Memory
from faultreplay.faulttrace.stitch.placements import Placements

FREEZE = "uffd-wp"
DESTROY = "memslot-destroy"
WINDOW_KINDS = (Kind.UFFD_WRITEPROTECT, Kind.KVM_SET_MEMSLOT)
"""The kinds that windows are found from."""


@dataclass
class _Freeze:
    """A protected range: since when, and whether a page of it was opened alone."""

    start_ns: int
    by_page: bool = False


@dataclass
class WindowFinder:
    """Finds freezes (protect until unprotect of the same range, wider than a page) and slots deleted and added again.

    A window starts when the ioctl that closes memory ended and lasts until the one that opens it again ended. It is
    given the events (`WINDOW_KINDS`) of one stretch after the other.
    """

    memory: Memory
    windows: list[WindowSpan] = field(default_factory=list)
    _frozen: dict[tuple[int, int, int], _Freeze] = field(default_factory=dict)
    _gone: dict[tuple[int, int], int] = field(default_factory=dict)
    _thaw_began: dict[int, int] = field(default_factory=dict)
    """By the end of an unprotecting ioctl, when it was called."""

    def feed(self, events: Events) -> None:
        """Look at one stretch."""
        self._freezes(Placements(events), events.end_ns)
        self._destroyed(events)

    def finish(self, end_ns: int) -> None:
        """The trace ends at `end_ns`: `windows` are all there are, in order."""
        # Protection that is taken off page by page is a snapshot or a dirty log, no freeze.
        still = [WindowSpan(FREEZE, one.start_ns, end_ns) for one in self._frozen.values() if not one.by_page]
        self.windows = sorted(self.windows + still, key=lambda w: (w.start_ns, w.end_ns))

    def thaw_began_ns(self, window: WindowSpan) -> int:
        """When the ioctl that ended a freeze was called: it wakes writers before it returns."""
        return min(self._thaw_began.get(window.end_ns, window.end_ns), window.end_ns)

    def _freezes(self, placements: Placements, end_ns: int) -> None:
        wide = placements.bytes > self.memory.granule(placements.tgid, placements.lo)
        protects = placements.kind == Kind.UFFD_WRITEPROTECT
        alone = np.flatnonzero(~wide & protects & placements.done)
        ends = placements.end_ns[alone]
        seen, known = 0, len(self.windows)
        for row in np.flatnonzero(wide & protects & (placements.rows.value >= 0)).tolist():
            until = int(np.searchsorted(ends, int(placements.end_ns[row]), side="right"))
            self._opened_alone(placements, alone[seen:until])
            seen = until
            place = (int(placements.tgid[row]), int(placements.lo[row]), int(placements.hi[row]))
            row_end_ns = int(placements.end_ns[row])
            if placements.protect[row]:
                self._frozen.setdefault(place, _Freeze(row_end_ns))
            elif place in self._frozen:
                self.windows.append(WindowSpan(FREEZE, self._frozen.pop(place).start_ns, row_end_ns))
        self._opened_alone(placements, alone[seen:])
        ends_here = [window.end_ns for window in self.windows[known:]] + [end_ns]
        for row in np.flatnonzero(protects & np.isin(placements.end_ns, ends_here)).tolist():
            row_end_ns, start_ns = int(placements.end_ns[row]), int(placements.start_ns[row])
            self._thaw_began[row_end_ns] = min(self._thaw_began.get(row_end_ns, start_ns), start_ns)

    def _opened_alone(self, placements: Placements, rows: I64) -> None:
        for (tgid, lo, hi), frozen in self._frozen.items() if len(rows) else ():
            inside = (placements.tgid[rows] == tgid) & (placements.lo[rows] >= lo) & (placements.hi[rows] <= hi)
            frozen.by_page |= bool((inside & (placements.end_ns[rows] > frozen.start_ns)).any())

    def _destroyed(self, events: Events) -> None:
        rows = events.of(Kind.KVM_SET_MEMSLOT)
        for row in np.flatnonzero(rows.value == 0).tolist():
            slot = (int(rows.tgid[row]), int(rows.code[row]) & 0xFFFFFFFF)
            if rows.size[row] == 0:
                self._gone[slot] = int(rows.ts_ns[row])
            elif slot in self._gone:
                self.windows.append(WindowSpan(DESTROY, self._gone.pop(slot), int(rows.ts_ns[row])))


def mark_windowed(found: Found, windows: Sequence[WindowSpan], thaw_began_ns: Callable[[WindowSpan], int]) -> None:
    """Give cause "window" to writes stopped by a freeze and to exits on a slot that was gone.

    `thaw_began_ns`: when the ioctl that ended a freeze was called.
    """
    unprotect = found.resolution == code(RESOLUTIONS, "unprotect")
    is_wp = (found.cause == code(CAUSES, "write-protect")) & unprotect
    is_exit = (found.cause == code(CAUSES, "mmio")) | (found.cause == code(CAUSES, "exit"))
    for window in windows:
        # Memory is protected page by page and a slot gone some time before the ioctl that does it returns.
        inside = (found.start_ns <= window.end_ns) & ((found.end_ns >= window.start_ns) | (found.end_ns == UNKNOWN))
        if window.kind == FREEZE:
            # Its writers are let go by the ioctl that ends it, not by one for their page alone.
            inside &= is_wp & ((found.end_ns >= thaw_began_ns(window)) | (found.end_ns == UNKNOWN))
        else:
            inside &= is_exit
        found.cause[inside] = code(CAUSES, "window")
