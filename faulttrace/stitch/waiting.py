"""Userfaults that are not final yet, and which events the next stretch needs of theirs.

A userfault is spread over threads: its message is its reader's, what places its page another's. Those events are handed
on with the thread that waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faultreplay.faulttrace.stitch.found import Found
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.messages import Messages


@dataclass
class Waiting:
    """The messages of a stretch with what was found of each. `wake`: row of its wake-up (-1: none)."""

    messages: Messages
    start_ns: I64
    placed_ns: I64
    wake: I64
    open: Bools

    def note(self, context: Context, end_ns: I64) -> None:
        """Say what is open, and what must become final together."""
        messages = self.messages
        since_ns = np.minimum(self.start_ns, messages.read_ns)
        context.open.note(messages.thread, since_ns, self.open)
        until_ns = np.maximum(np.maximum(messages.read_ns, end_ns), take(context.wakes.ts_ns, self.wake, 0))
        known = messages.thread >= 0
        context.open.keep_together(messages.thread[known], since_ns[known], until_ns[known])
        pending = context.wakes.pending
        context.open.note(pending.thread, pending.ts_ns, context.untold(pending.thread, pending.ts_ns))

    def untold(self, until_ns: I64) -> I64:
        """Rows of the messages whose faults are not final."""
        thread = self.messages.thread
        told = np.where(thread >= 0, self.messages.read_ns < until_ns[thread], self.messages.settled)
        return np.flatnonzero(~told)

    def named(self, context: Context, rows: I64) -> tuple[I64, I64]:
        """Of these messages those that name no thread and whose thread was found: rows of their events, and its id."""
        chosen = rows[self.messages.nameless[rows] & (self.messages.thread[rows] >= 0)]
        return self.messages.at[chosen], take(context.events.threads.values, self.messages.thread[chosen], 0)

    def handlers(self, rows: I64) -> list[tuple[I64, I64]]:
        """(thread, time): of whose sleeps the faults of these messages tell."""
        messages = self.messages
        times = (self.start_ns, messages.read_ns, self.placed_ns)
        return [(messages.handler[rows], np.minimum(ts_ns[rows], NEVER)) for ts_ns in times]

    def event_rows(self, context: Context, rows: I64, waiters: Found, since_ns: I64) -> I64:
        """Rows of the events that the next stretch needs, besides those of each thread since `since_ns`.

        Args:
            context: of this stretch.
            rows: of the messages whose faults are not told.
            waiters: those that are not told.
            since_ns: per thread since when its events are handed on.
        """
        wakes, placements, faults = context.wakes, context.placements, context.page_faults
        kept = wakes.ts_ns >= since_ns[wakes.thread]
        later = wakes.pending.ts_ns >= since_ns[wakes.pending.thread]
        asked = (faults.rows.thread >= 0) & (faults.rows.ts_ns >= take(since_ns, faults.rows.thread, NEVER))
        pages = np.concatenate([self.messages.page[rows], faults.page[asked], waiters.page])
        starts = [np.minimum(self.start_ns, self.messages.read_ns)[rows], faults.rows.ts_ns[asked], waiters.start_ns]
        from_ns = min((int(each.min()) for each in starts if len(each)), default=NEVER)
        covering = _covering(context, pages) & (placements.end_ns >= from_ns)
        covering[wakes.placement[kept]] = True
        parts = [self.messages.at[rows], wakes.at[kept], wakes.pending.at[later], placements.rows.at[covering]]
        return np.concatenate(parts)


def _covering(context: Context, pages: U64) -> Bools:
    """Per placement, whether it holds one of these pages."""
    known = np.unique(pages)
    placements = context.placements
    found: Bools = np.searchsorted(known, placements.lo) < np.searchsorted(known, placements.hi)
    return found
