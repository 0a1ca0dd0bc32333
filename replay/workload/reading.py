"""How faults of memory that was there are read: as they were, or as the question "what if it had been missing?"."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.workload.workload import Ints, Workload

Reading = Literal["recorded", "first-touch"]
OF_STAGE2: Final = ("stage2",)
OF_HOST: Final = ("minor-host", "major-host")
CONTENT: Final = ("missing", "minor", "exit")
"""Classes that userfaultfd or an exit served: where one occurs, a trace answers for missing memory itself."""
_NONE: Final = np.zeros(0, np.int64)


def reading_of(workload: Workload) -> Reading:
    """The reading that a workload asks for: first touches where no fault was of missing memory, else as recorded."""
    seen = {CAUSES[code] for code in np.flatnonzero(np.bincount(workload.cause, minlength=len(CAUSES)))}
    return "recorded" if seen & set(CONTENT) or not seen & {*OF_STAGE2, *OF_HOST} else "first-touch"


def first_touch(workload: Workload, until_ns: int | None = None) -> Workload:
    """Each page's first fault in time as one of missing memory; every later one as it was recorded.

    With vCPUs a host fault counts only on pages that stage-2 faults touch too: the rest is the VMM's own memory. Where
    no vCPU has a stage-2 fault (an emulator runs the guest) its own host faults are the guest's. What other threads
    touched before the first of these (a copy or a prefetch of a restore) is start-up, and nobody's first touch. What
    faulted at or after `until_ns`, when a window emptied stage 2, had been touched before and stays.
    """
    stage2 = np.isin(workload.cause, _codes(OF_STAGE2))
    content = np.isin(workload.cause, _codes(CONTENT))
    host = np.isin(workload.cause, _codes(OF_HOST))
    times = workload.recorded_start_ns if workload.recorded_start_ns.size else np.arange(workload.faults)
    if (workload.accessor_kind == 0).any():
        kept = stage2 | content
        if kept.any():
            host &= np.isin(workload.page, workload.page[kept]) & (times >= times[kept].min())
        else:
            host &= workload.accessor_kind[workload.accessor_of_row()] == 0
    rows = np.flatnonzero(stage2 | content | host)
    order = rows[np.argsort(times[rows], kind="stable")]
    _, first = np.unique(workload.page[order], return_index=True)
    changed = order[first]
    changed = changed[~content[changed]]
    if until_ns is not None:
        changed = changed[times[changed] < until_ns]
    cause = workload.cause.copy()
    cause[changed] = CAUSES.index("missing")
    return replace(workload, cause=cause)


def without(workload: Workload, drop: npt.NDArray[np.bool_]) -> Workload:
    """The workload without some faults (bool[F]): what its accessors thought before them, they think before the next.

    The stall of a dropped fault is dropped with it; recorded starts of the others stay.
    """
    if not drop.any():
        return workload
    keep = ~drop
    owner = workload.accessor_of_row()
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=workload.accessors))]).astype(np.int64)

    def added(values: Ints) -> tuple[Ints, Ints]:
        """Per kept row the sum since the kept row before it; per accessor what is left behind its last one."""
        until = np.concatenate([[0], np.cumsum(values)])
        ends = until[1:][keep]
        before = np.concatenate([[0], ends[:-1]]) if ends.size else ends
        first = starts[:-1][np.diff(starts) > 0]
        before[first] = until[workload.accessor_start[:-1]][np.diff(starts) > 0]
        last = until[workload.accessor_start[:-1]].copy()
        some = np.diff(starts) > 0
        last[some] = ends[starts[1:][some] - 1]
        return ends - before, until[workload.accessor_start[1:]] - last

    think, left = added(workload.think_ns)
    return replace(
        workload,
        accessor_start=starts,
        think_ns=think,
        page=workload.page[keep],
        access=workload.access[keep],
        cause=workload.cause[keep],
        recorded_stall_ns=workload.recorded_stall_ns[keep] if workload.recorded_stall_ns.size else _NONE,
        recorded_start_ns=workload.recorded_start_ns[keep] if workload.recorded_start_ns.size else _NONE,
        tail_ns=workload.tail_ns + left,
        asleep_ns=added(workload.asleep_ns)[0] if workload.asleep_ns.size else _NONE,
        preempted_ns=added(workload.preempted_ns)[0] if workload.preempted_ns.size else _NONE,
    )


def _codes(names: tuple[str, ...]) -> list[int]:
    return [CAUSES.index(name) for name in names]
