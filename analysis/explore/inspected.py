"""What each of many traces holds, in sums: a worker stitches one, keeps its faults beside it, returns one record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from faultreplay.analysis.compare.inspection import spread
from faultreplay.analysis.compare.working_sets import load_set
from faultreplay.analysis.explore.fleet import TraceTask, check_key
from faultreplay.analysis.explore.versions import version
from faultreplay.faulttrace.remote import open_address
from faultreplay.replay.workload.working_set import WorkingSet


@dataclass(frozen=True)
class TraceSums:
    """One trace: counts, and its stalls of which the length is known."""

    trace: str
    duration_ns: int
    events: int
    lost_events: int
    faults: int
    unjoined: int
    """of `faults`: their end was not seen"""
    total_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        return dict(self.__dict__)


def sums_of(task: TraceTask) -> TraceSums:
    """Stitch a trace where its faults are not kept, and count.

    Raises:
        UsageError: no such trace, or this worker has another faultreplay.
        IncompleteData: it is damaged.
    """
    check_key(task, version())
    trace = open_address(task.address)
    trace.stitch_facts()
    parts = [table["stall_ns"].fill_null(-1).to_numpy() for table in trace.fault_groups(["stall_ns"])]
    stalls = np.concatenate([np.zeros(0, np.int64), *parts])
    known = spread(stalls[stalls >= 0])
    return TraceSums(
        trace=task.label,
        duration_ns=max(trace.end_ns - trace.meta.clock.start_ns, 0),
        events=trace.event_rows,
        lost_events=trace.meta.losses.total,
        faults=len(stalls),
        unjoined=len(stalls) - known.n,
        total_ns=known.total_ns,
        p50_ns=known.p50_ns,
        p99_ns=known.p99_ns,
        max_ns=known.max_ns,
    )


def set_of(task: TraceTask) -> WorkingSet:
    """The pages that a trace's guest touched, in order: no row a fault.

    Raises:
        UsageError, IncompleteData: as `sums_of`.
    """
    check_key(task, version())
    return replace(load_set(open_address(task.address)), name=task.label)
