"""Facts about a whole workload for the engine: the number of faults of each class, and start times in an open loop."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.workload.workload import Ints, Workload, derived


def open_loop(w: Workload) -> tuple[Ints, Ints]:
    """(order of the rows in time, time of each row): recorded start times, or sums of think times if any is
    unknown."""
    if w.recorded_start_ns.size and bool((w.recorded_start_ns >= 0).all()):
        times = w.recorded_start_ns
    else:
        total = np.cumsum(w.think_ns)
        before = np.concatenate([[0], total])[w.accessor_start[:-1]]
        times = total - np.repeat(before, np.diff(w.accessor_start))
    return np.argsort(times, kind="stable"), times


def counts_of(workload: Workload) -> Ints:
    """int64[classes, accessor kinds]: faults of each."""
    return derived(workload, "counts", lambda: _count(workload))


def _count(workload: Workload) -> Ints:
    counts = np.zeros((len(CAUSES), len(ACCESSORS)), np.int64)
    for a in range(workload.accessors):
        part = workload.cause[workload.accessor_start[a] : workload.accessor_start[a + 1]]
        # codes after the last cause are pieces of streams, not faults
        counts[:, workload.accessor_kind[a]] += np.bincount(part, minlength=len(CAUSES))[: len(CAUSES)]
    return counts
