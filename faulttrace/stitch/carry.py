"""What one stretch leaves to the next: nothing that is settled, all that is open, and of each kind the last before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.claims import Spans, Used
from faultreplay.faulttrace.stitch.columns import Kept
from faultreplay.faulttrace.stitch.keys import I64
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.threads import KeptSleeps

STAGES: Final = 5
"""Stitchers: messages, waiters, exits, what KVM resolves alone, processes."""
_KINDS: Final = 256
_USELESS: Final = _KINDS - 1
"""Stands for a kind of their own: fast page faults that left the entry as it was hide no other one before them."""
_ONLY_OPEN: Final = np.array([Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING, Kind.UFFD_MSG], np.uint8)
"""Handed on only where they are open: sleeps are handed on as such, a message with the thread that waits."""


@dataclass(frozen=True)
class Carry:
    """Handed from stretch to stretch.

    Attributes:
        events: per thread those since something of it is open, and of each kind the last one before.
        sleeps: the same of off-CPU intervals, which are paired already.
        told_ns: per thread, what it did before was told.
        used: places in the trace of the placements handed on that ended a fault which was told.
        claims: per stitcher the faults told that what is open may lie in.
    """

    events: Kept | None
    sleeps: KeptSleeps | None
    told_ns: I64
    used: Used
    claims: list[Spans]

    @classmethod
    def none(cls, threads: int) -> Carry:
        """Before the first stretch."""
        return cls(None, None, np.zeros(threads, np.int64), Used(), [Spans.concat([]) for _ in range(STAGES)])


def kept_events(context: Context, since_ns: I64, open_rows: I64, named: tuple[I64, I64]) -> Kept:
    """The events that are handed on.

    Args:
        context: of the stretch.
        since_ns: per thread.
        open_rows: of events that are wanted whenever they were.
        named: rows of messages without a thread id, and the id that was found.

    What looks back finds the last event of its kind, or one since `since_ns`; what looks ahead begins since then. So
    the answers are those of the whole trace.
    """
    events = context.events
    columns = events.columns
    thread, kind = columns["thread"], columns["kind"]
    since = columns["ts_ns"] >= since_ns[thread]
    # What stands twice is like the one before it, which stays.
    wanted = ~np.isin(kind, _ONLY_OPEN)
    wanted[context.guest.doubled.at] = False
    chosen = since & wanted
    earlier = np.flatnonzero(~since & wanted)
    sort = kind.astype(np.int64)
    sort[context.guest.spurious.at] = _USELESS
    last = np.full(len(since_ns) * _KINDS, -1, np.int64)
    last[thread[earlier].astype(np.int64) * _KINDS + sort[earlier]] = earlier  # of several the last stays
    chosen[last[last >= 0]] = True
    chosen[open_rows] = True
    shown = context.runs.shown.at
    columns["shown"][shown] = True
    calls = _calls_before(thread, shown[~since[shown] & ~chosen[shown]])
    chosen[calls] = True
    kept = Kept.of(events, chosen)
    place = np.cumsum(chosen) - 1
    kept.columns["kind"][place[calls]] = Kind.KVM_RUN_ENTER
    rows, tids = named
    kept.columns["shown"][place[rows]] = True
    kept.columns["value"][place[rows]] = tids
    return kept


def _calls_before(thread: I64, rows: I64) -> I64:
    """Of these walks that stand for a call of KVM_RUN each thread's last: handed on as that call, as no walk."""
    last: dict[int, int] = dict(zip(thread[rows].tolist(), rows.tolist(), strict=True))
    return np.array(sorted(last.values()), np.int64)
