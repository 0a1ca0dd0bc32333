"""The ioctls that end a userfault: which pages, when, how, and which of them served a given page first."""

from __future__ import annotations

from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import UFFD_MODE_DONTWAKE, UFFD_WRITEPROTECT_MODE_WP, Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.keys import I64, U64, Bools, Ids, Index, take

RESOLUTION: Final[dict[int, str]] = {
    Kind.UFFD_COPY: "copy",
    Kind.UFFD_ZEROPAGE: "zeropage",
    Kind.UFFD_CONTINUE: "continue",
    Kind.UFFD_MOVE: "move",
    Kind.UFFD_POISON: "poison",
    Kind.UFFD_WRITEPROTECT: "unprotect",
    Kind.UFFD_WAKE: "wake",
    Kind.UFFD_UNREGISTER: "kernel",
}
_WRITEPROTECT_DONTWAKE: Final = 2
_NARROW_PAGES: Final = 512
"""Ranges of up to so many asked-for pages are spelled out page by page; wider ones are few and go one at a time."""


class Placements:
    """Range ioctls on userfaultfds, in order of their end. `done`: succeeded; `wakes`: also woke the waiters."""

    def __init__(self, events: Events) -> None:
        rows = events.of(*(Kind(kind) for kind in RESOLUTION))
        protects = (rows.kind == Kind.UFFD_WRITEPROTECT) & (rows.code & np.uint64(UFFD_WRITEPROTECT_MODE_WP) != 0)
        self.protect: Bools = protects & (rows.value >= 0)
        dontwake_bit = np.where(rows.kind == Kind.UFFD_WRITEPROTECT, _WRITEPROTECT_DONTWAKE, UFFD_MODE_DONTWAKE)
        has_mode = ~np.isin(rows.kind, [Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER])
        dontwake = has_mode & (rows.code & dontwake_bit.astype(np.uint64) != 0)
        self.axis = events.axis
        self.rows = rows
        self.done: Bools = (rows.value >= 0) & ~protects
        self.wakes: Bools = self.done & ~dontwake
        self.places: Bools = self.done & ~np.isin(rows.kind, [Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER])
        self.kind, self.thread, self.tgid, self.fd = rows.kind, rows.thread, rows.tgid, rows.fd
        self.end_ns = rows.ts_ns
        self.start_ns: I64 = rows.ts_ns - rows.dur_ns
        self.lo: U64 = rows.addr
        # A short copy tells how far it came; write-protect, wake and unregister return 0 for all of it.
        self.bytes: I64 = np.where(
            rows.value > 0, np.minimum(rows.value, rows.size.astype(np.int64)), rows.size.astype(np.int64)
        )
        self.hi: U64 = self.lo + self.bytes.astype(np.uint64)
        self._by_thread = Index(events.axis, self.thread, self.end_ns)

    def __len__(self) -> int:
        return len(self.end_ns)

    def covers(self, row: I64, page: U64) -> Bools:
        """Whether placement `row` (-1: none) holds each page."""
        lo, hi = take(self.lo, row, 0), take(self.hi, row, 0)
        inside: Bools = (row >= 0) & (lo <= page) & (page < hi)
        return inside

    def running(self, thread: I64, ts_ns: I64) -> I64:
        """The placement that each thread was inside of at each time (-1: none)."""
        row = self._by_thread.first_from(thread, ts_ns)
        return np.where((row >= 0) & (take(self.start_ns, row, 0) <= ts_ns), row, -1)

    def first_by(self, thread: I64, from_ns: I64) -> I64:
        """The first of each thread's ioctls, failed ones too, to end at or after each time."""
        return self._by_thread.first_from(thread, from_ns)

    def first_covering(self, chosen: Bools, space: I64, own_space: I64, page: U64, ts_ns: I64) -> I64:
        """For each (space, page, time) the first of the `chosen` placements that ends at or after it.

        Args:
            chosen: which placements count.
            space: per placement, a number for its userfaultfd.
            own_space: per question, the same number.
            page: per question, the address asked for.
            ts_ns: per question, the time.
        """
        if not len(page) or not chosen.any():
            return np.full(len(page), -1, np.int64)
        pages = Ids(page)
        rows = np.flatnonzero(chosen)
        lo = np.searchsorted(pages.values, self.lo[rows])
        hi = np.searchsorted(pages.values, self.hi[rows])
        width = hi - lo
        narrow = np.flatnonzero((width > 0) & (width <= _NARROW_PAGES))
        counts = width[narrow]
        expanded = np.repeat(rows[narrow], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = space[expanded] * len(pages) + np.repeat(lo[narrow], counts) + within
        asked_page = pages.of(page)
        asked = np.where(own_space >= 0, own_space * len(pages) + asked_page, -1)
        slots = Ids(slot)
        index = Index(self.axis, slots.of(slot), self.end_ns[expanded])
        best = take(expanded, index.first_from(slots.of(asked), ts_ns), -1)
        order = np.argsort(asked_page, kind="stable")
        sorted_page = asked_page[order]
        for wide in np.flatnonzero(width > _NARROW_PAGES):
            row = rows[wide]
            inside = order[np.searchsorted(sorted_page, lo[wide]) : np.searchsorted(sorted_page, hi[wide])]
            inside = inside[(own_space[inside] == space[row]) & (ts_ns[inside] <= self.end_ns[row])]
            better = (best[inside] < 0) | (self.end_ns[row] < self.end_ns[best[inside]])
            best[inside[better]] = row
        return best
