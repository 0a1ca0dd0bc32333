"""Intervals in which memory was frozen or its slot gone, as the ioctls show them."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.meta import WindowSpan
from faultreplay.faulttrace.schema import CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.found import UNKNOWN, Found, code
from faultreplay.faulttrace.stitch.markers import Context

FREEZE = "uffd-wp"
DESTROY = "memslot-destroy"


def find_windows(context: Context) -> list[WindowSpan]:
    """Freezes (protect until unprotect of the same range, wider than a page) and slots deleted and added again.

    A window starts when the ioctl that closes memory ended and lasts until the one that opens it again ended.
    """
    return sorted(_freezes(context) + _destroyed(context), key=lambda w: (w.start_ns, w.end_ns))


def _freezes(context: Context) -> list[WindowSpan]:
    placements = context.placements
    wide = placements.bytes > context.memory.granule(placements.tgid, placements.lo)
    protects = placements.kind == Kind.UFFD_WRITEPROTECT
    windows = []
    open_since: dict[tuple[int, int, int], int] = {}
    for row in np.flatnonzero(wide & protects & (placements.rows.value >= 0)):
        place = (int(placements.tgid[row]), int(placements.lo[row]), int(placements.hi[row]))
        if placements.protect[row]:
            open_since.setdefault(place, int(placements.end_ns[row]))
        elif place in open_since:
            windows.append(WindowSpan(FREEZE, open_since.pop(place), int(placements.end_ns[row])))
    # Protection that is taken off page by page is a snapshot or a dirty log, no freeze.
    single = ~wide & protects & placements.done
    for (tgid, lo, hi), start in open_since.items():
        inside = (placements.tgid == tgid) & (placements.lo >= lo) & (placements.hi <= hi) & (placements.end_ns > start)
        if not (single & inside).any():
            windows.append(WindowSpan(FREEZE, start, context.events.end_ns))
    return windows


def _destroyed(context: Context) -> list[WindowSpan]:
    rows = context.events.of(Kind.KVM_SET_MEMSLOT)
    windows = []
    gone: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(rows.value == 0):
        slot = (int(rows.tgid[row]), int(rows.code[row]) & 0xFFFFFFFF)
        if rows.size[row] == 0:
            gone[slot] = int(rows.ts_ns[row])
        elif slot in gone:
            windows.append(WindowSpan(DESTROY, gone.pop(slot), int(rows.ts_ns[row])))
    return windows


def mark_windowed(context: Context, found: Found, windows: list[WindowSpan]) -> None:
    """Give cause "window" to writes stopped by a freeze and to exits on a slot that was gone."""
    unprotect = found.resolution == code(RESOLUTIONS, "unprotect")
    is_wp = (found.cause == code(CAUSES, "write-protect")) & unprotect
    is_exit = (found.cause == code(CAUSES, "mmio")) | (found.cause == code(CAUSES, "exit"))
    for window in windows:
        # Memory is protected page by page and a slot gone some time before the ioctl that does it returns.
        inside = (found.start_ns <= window.end_ns) & ((found.end_ns >= window.start_ns) | (found.end_ns == UNKNOWN))
        if window.kind == FREEZE:
            # Its writers are let go by the ioctl that ends it, not by one for their page alone.
            inside &= is_wp & ((found.end_ns >= _thaw_began_ns(context, window)) | (found.end_ns == UNKNOWN))
        else:
            inside &= is_exit
        found.cause[inside] = code(CAUSES, "window")


def _thaw_began_ns(context: Context, window: WindowSpan) -> int:
    """When the ioctl that ended a freeze was called: it wakes writers before it returns."""
    placements = context.placements
    thaw = (placements.end_ns == window.end_ns) & (placements.kind == Kind.UFFD_WRITEPROTECT)
    return int(placements.start_ns[thaw].min(initial=window.end_ns))
