"""What is open when a stretch ends: since when something of each thread is not settled.

A stitcher settles a fault when no event to come can change it. Until then it names the time since which the fault's
thread has something open; what of the thread lies before that is told, what comes after is looked at again together
with the next stretch.
"""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools


class Open:
    """Per thread the earliest time that is not settled."""

    def __init__(self, threads: int) -> None:
        self._since_ns: I64 = np.full(threads, NEVER, np.int64)
        self._spans: list[tuple[I64, I64, I64]] = []

    def note(self, thread: I64, since_ns: I64, chosen: Bools | None = None) -> None:
        """Of these threads something is open since these times; only where `chosen`."""
        if chosen is not None:
            thread, since_ns = thread[chosen], np.broadcast_to(since_ns, thread.shape)[chosen]
        known = thread >= 0
        np.minimum.at(self._since_ns, thread[known], since_ns[known])

    def keep_together(self, thread: I64, first_ns: I64, last_ns: I64) -> None:
        """What each thread did from `first_ns` to `last_ns` belongs together: all of it is final, or nothing."""
        self._spans.append((thread, first_ns, last_ns))

    def since_ns(self, most_ns: int) -> I64:
        """Per thread since when something is open; `most_ns` where nothing is."""
        since_ns = np.minimum(self._since_ns, most_ns)
        while True:
            before = since_ns.copy()
            for thread, first_ns, last_ns in self._spans:
                split = (first_ns < since_ns[thread]) & (last_ns >= since_ns[thread])
                np.minimum.at(since_ns, thread[split], first_ns[split])
            if (since_ns == before).all():
                return since_ns
