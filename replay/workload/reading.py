"""How to read faults on memory that was present: as recorded, or as if it had been missing at the first touch."""

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
"""Classes that userfaultfd or an exit served. A trace with any of them recorded faults on missing memory itself."""
_NONE: Final = np.zeros(0, np.int64)


def reading_of(workload: Workload) -> Reading:
    """The reading that fits a workload: first touches if no fault was on missing memory, else as recorded."""
    seen = {CAUSES[code] for code in np.flatnonzero(np.bincount(workload.cause, minlength=len(CAUSES)))}
    return "recorded" if seen & set(CONTENT) or not seen & {*OF_STAGE2, *OF_HOST} else "first-touch"


def first_touch(workload: Workload, until_ns: int | None = None) -> Workload:
    """The workload with the first fault on each page as one on missing memory; later faults stay as recorded.

    With vCPUs, a host fault counts only on pages that also have stage-2 faults: the others are the VMM's own memory. If
    there are no stage-2 faults (an emulator runs the guest), the host faults of the vCPUs count. Host faults before the
    first of the guest's faults (a copy or a prefetch of a restore) are start-up and not first touches. Faults at or
    after `until_ns`, when a window emptied stage 2, are on pages touched before and are not changed.
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
    """The workload without the faults in `drop` (bool[F]): their think time is added to the accessor's next fault.

    The stall of a dropped fault is dropped too; the recorded starts of the others do not change.
    """
    if not drop.any():
        return workload
    keep = ~drop
    owner = workload.accessor_of_row()
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=workload.accessors))]).astype(np.int64)

    def added(values: Ints) -> tuple[Ints, Ints]:
        """Per kept row the sum since the previous kept row; per accessor the rest after its last kept row."""
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
