"""Who was woken from inside of a placing ioctl."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.keys import I64, Bools, Index, take
from faultreplay.faulttrace.stitch.placements import RESOLUTION, Placements
from faultreplay.faulttrace.stitch.threads import Sleeps


class Wakes:
    """Threads woken from inside a placing ioctl by the thread that ran it: the waiters of a userfault."""

    def __init__(self, events: Events, placements: Placements, sleeps: Sleeps) -> None:
        rows = events.of(Kind.SCHED_WAKING)
        waker = events.threads.of(rows.value)
        placement = placements.running(waker, rows.ts_ns)
        coming = events.more(*(Kind(kind) for kind in RESOLUTION))
        later = take(coming, waker, False) & (placements.first_by(waker, rows.ts_ns) < 0) & (rows.thread >= 0)
        self.pending = rows.pick(later)
        """Wake-ups by a thread whose next placing ioctl is still to end: they may be from inside of it."""
        self.pending_index = Index(events.axis, self.pending.thread, self.pending.ts_ns)
        self.coming: Bools = events.more(Kind.SCHED_WAKING)
        """Per thread, whether it may still turn out to be woken from inside of an ioctl."""
        self.coming[self.pending.thread] = True
        inside = np.flatnonzero((placement >= 0) & take(placements.wakes, placement, 0) & (rows.thread >= 0))
        self.thread: I64 = rows.thread[inside]
        self.ts_ns: I64 = rows.ts_ns[inside]
        self.placement: I64 = placement[inside]
        self.at: I64 = rows.at[inside]
        # -1: it was woken before it came to sleep.
        self.sleep: I64 = sleeps.covering(self.thread, self.ts_ns, self.ts_ns)
        self._index = Index(events.axis, self.thread, self.ts_ns)

    def __len__(self) -> int:
        return len(self.thread)

    def first_from(self, thread: I64, ts_ns: I64) -> I64:
        """The first wake of each thread at or after each time."""
        return self._index.first_from(thread, ts_ns)
