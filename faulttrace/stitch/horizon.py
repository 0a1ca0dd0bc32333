"""How far an access reaches: what a thread waited for is over when it has made some more accesses.

Without such a bound a message whose page fault was lost would be joined to one of hours ago, and a fault could not be
told before the whole trace was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.faulttrace.stitch.keys import I64, NEVER

if TYPE_CHECKING:
    from faultreplay.faulttrace.stitch.keys import Axis
    from faultreplay.faulttrace.stitch.markers import GuestMarkers, PageFaults

ACCESSES: Final = 8
"""A message belongs to one of its thread's last so many accesses, and ends before so many more.

Not one: it may be read when the page is there already and its thread has gone on.
"""
SLEEPS: Final = 8
"""A waiter whose message was not read waits in one of the first so many sleeps since its page fault.

Not one: it may wait for a lock first, and again when it was woken too early. How many is a choice, not a measurement:
the shipped traces give the same faults with 1 and with 10,000. What is woken later than that waits for something else,
and is counted as a wake-up that no fault explains.
"""


class Horizon:
    """Accesses of each thread in order of time: page faults, guest exits, walks of a guest's page table."""

    def __init__(self, axis: Axis, page_faults: PageFaults, guest: GuestMarkers) -> None:
        self._axis = axis
        rows = (page_faults.rows, guest.exits, guest.walks)
        thread = np.concatenate([each.thread for each in rows])
        ts_ns = np.concatenate([each.ts_ns for each in rows])
        known = thread >= 0
        self._keys: I64 = np.sort(axis.pack(thread[known], ts_ns[known]))

    def after(self, thread: I64, ts_ns: I64, count: int = ACCESSES) -> I64:
        """When each thread makes its `count`-th access after each time; NEVER if it does not."""
        found = np.full(len(thread), NEVER, np.int64)
        if not len(self._keys):
            return found
        at = np.searchsorted(self._keys, self._axis.pack(np.maximum(thread, 0), ts_ns), side="right") + count - 1
        safe = np.minimum(at, len(self._keys) - 1)
        mine = (at < len(self._keys)) & (self._keys[safe] >> self._axis.bits == thread)
        offset = self._keys[safe] & ((1 << self._axis.bits) - 1)
        return np.where(mine, offset - 1 + self._axis.start_ns, found)
