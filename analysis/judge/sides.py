"""The sides of a comparison, from a replay and from a recording: stalls outside windows, time held inside, refaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.metrics import Ints
from faultreplay.analysis.compare.predict import (
    Used,
    counted,
    measured_run_time_ns,
)
from faultreplay.analysis.compare.restore_metrics import last_first_touch_ns
from faultreplay.analysis.judge.side import Side
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import format_ns
from faultreplay.lab.restore import working_set_of
from faultreplay.lab.spec import PAGE_BYTES
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.workload.reading import CONTENT, first_touch, without
from faultreplay.replay.workload.workload import Workload

OF_KERNEL: Final = ("stage2", "minor-host")

_BROUGHT_UNASKED: Final = frozenset(
    {"file-private", "restore-copy", "uffd-fault-around", "prefetch-before", "prefetch-beside"}
)
"""Restores of the lab in which pages are there before their first touch, which is then a stage-2 fault: under a
mechanism that brings nothing unasked it is one of missing memory."""


def predicted_side(workload: Workload, result: Result, left_out: npt.NDArray[np.bool_] | None = None) -> Side:
    """A replay's vCPUs (all accessors where there are none); without the faults that are `left_out`."""
    owner = workload.accessor_of_row()
    who = counted(workload)
    mine = who[owner] & (result.start_ns >= 0)
    if left_out is not None:
        mine &= ~left_out
    outside, inside = _part_at_windows(result.start_ns[mine], result.stall_ns[mine], result.windows)
    held = int(inside.sum() + result.window_stall_ns[who].sum())
    stood = np.union1d(owner[mine][inside > 0], np.flatnonzero(who & (result.window_stall_ns > 0)))
    refaults, refault_ns = _refaults(workload, result.start_ns, result.stall_ns, mine, result.windows)
    assumed_ns = int(result.refault_stall_ns[who].sum())
    told = result.restored
    touched_ns = last_first_touch_ns(workload.page[mine], result.start_ns[mine], result.stall_ns[mine])
    startup_ns = told.startup_ns if told else 0
    side = Side.of(outside, owner[mine], result.run_time_ns, held_ns=held, unrecorded_ns=assumed_ns)
    return replace(
        side,
        held_accessors=len(stood),
        refaults=refaults + int(result.refaults[who].sum()),
        refault=refault_ns + assumed_ns,
        last_touch=startup_ns + touched_ns - workload.resume_ns,
        startup=startup_ns,
        left=told.left_faults if told else int(_on_content(workload, mine).sum()),
        brought=told.set_pages if told else 0,
        unused=told.set_pages - told.covered_pages if told else 0,
    )


def measured_side(case: Case) -> Side:
    """A recording's vCPUs; inside windows by the lab guests' own clock where that is known."""
    workload = case.workload
    owner = workload.accessor_of_row()
    mine = counted(workload)[owner] & (workload.recorded_stall_ns >= 0) & ~elsewhere(case)
    spans = _spans(case)
    outside, inside = _part_at_windows(workload.recorded_start_ns[mine], workload.recorded_stall_ns[mine], spans)
    lab = case.trace.meta.lab
    held, held_accessors = int(inside.sum()), len(np.unique(owner[mine][inside > 0]))
    if waiters := lab.get("waiters"):
        held, held_accessors = sum(w.get("waited_ns", 0) for w in waiters), sum(w.get("accesses", 0) for w in waiters)
    # A vCPU that was computing when a pause came has no access that waited; the lab knows how long it was parked.
    parked = [ns for a in lab.get("accessors") or [] if (ns := a.get("parked_ns", 0))]
    if parked:
        held, held_accessors = sum(parked), len(parked)
    start_ns, stall_ns = workload.recorded_start_ns, workload.recorded_stall_ns
    refaults, refault_ns = _refaults(workload, start_ns, stall_ns, mine, spans)
    side = Side.of(outside, owner[mine], measured_run_time_ns(workload), held_ns=held if spans else 0)
    touched_ns = last_first_touch_ns(workload.page[mine], start_ns[mine], stall_ns[mine])
    startup_ns = int(lab.get("startup_ns", 0))
    brought = prefetched(case)
    return replace(
        side,
        held_accessors=held_accessors if spans else 0,
        refaults=refaults,
        refault=refault_ns,
        last_touch=startup_ns + touched_ns - workload.resume_ns,
        startup=startup_ns,
        left=int(_on_content(workload, mine).sum()),
        brought=brought.size,
        unused=int((~np.isin(brought, workload.page)).sum()),
    )


def prefetched(case: Case) -> Ints:
    """int64[P]: pages that a recorded run of the lab prefetched, as its workload numbers them."""
    pages, mapped = working_set_of(case.trace.meta), case.trace.meta.memory_map
    if pages is None or not mapped:
        return np.zeros(0, np.int64)
    return (mapped[0].start + pages * PAGE_BYTES) // case.workload.page_bytes


def _on_content(workload: Workload, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of these faults were on memory that userspace brings."""
    return rows & np.isin(workload.cause, [CAUSES.index(name) for name in CONTENT])


def elsewhere(case: Case) -> npt.NDArray[np.bool_]:
    """Refaults on memory that is not in the trace's memory map: a window empties stage 2 of all of a VM's memory.

    The lab's guest keeps code, lists and logs in a separate slot. A replay of the accesses elsewhere has other such
    memory, or none. If most faults are not in the map, the map is not used.
    """
    workload, entries = case.workload, case.trace.meta.memory_map
    inside = np.zeros(workload.faults, dtype=np.bool_)
    for entry in entries:
        first, end = entry.start // workload.page_bytes, -(-entry.end // workload.page_bytes)
        inside |= (workload.page >= first) & (workload.page < end)
    if 2 * np.count_nonzero(inside) < workload.faults:
        return np.zeros(workload.faults, dtype=np.bool_)
    return _after_first(workload, workload.recorded_start_ns, _spans(case)) & ~inside


def elsewhere_notes(case: Case) -> list[str]:
    """What `elsewhere` leaves out, in words; nothing where it leaves nothing out."""
    rows = elsewhere(case) & counted(case.workload)[case.workload.accessor_of_row()]
    if not rows.any():
        return []
    stall_ns = int(np.maximum(case.workload.recorded_stall_ns[rows], 0).sum())
    return [
        f"{case.trace.name}: {rows.sum()} refaults ({format_ns(stall_ns)}) on memory that is not in its memory map"
        " are not counted"
    ]


def _spans(case: Case) -> list[tuple[int, int]]:
    begin = case.workload.clock_start_ns
    return [(w.start_ns - begin, w.end_ns - begin) for w in case.trace.meta.windows]


def _after_first(workload: Workload, start_ns: Ints, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Faults that the kernel alone resolved from the first window on.

    From its beginning, because a vCPU may touch memory again before the thread that made the window records its end.
    """
    after: npt.NDArray[np.bool_] = workload.cause == CAUSES.index("stage2")
    return after & (start_ns >= spans[0][0]) if spans else np.zeros_like(after)


def _refaults(
    workload: Workload, start_ns: Ints, stall_ns: Ints, mine: npt.NDArray[np.bool_], spans: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(number, stall) of refaults."""
    after = mine & _after_first(workload, start_ns, spans)
    return int(after.sum()), int(stall_ns[after].sum())


def _part_at_windows(start_ns: Ints, stall_ns: Ints, spans: Sequence[tuple[int, int]]) -> tuple[Ints, Ints]:
    """(stall outside, stall held) by the spans, per fault: a window holds a fault that waits for the window's end."""
    inside = np.zeros(len(stall_ns), dtype=np.int64)
    for begin, end in spans:
        waits = (start_ns < end) & (start_ns + stall_ns >= end)
        inside += np.where(waits, end - np.maximum(start_ns, begin), 0)
    return stall_ns - inside, inside


def of_start_up(workload: Workload, used: Used | None) -> npt.NDArray[np.bool_]:
    """bool[F]: what other threads than vCPUs did before the guest of a restore ran: no page that came back.

    `as_missing` leaves these out.
    """
    if used is None or used.name not in _BROUGHT_UNASKED:
        return np.zeros(workload.faults, np.bool_)
    vcpu = (workload.accessor_kind == ACCESSORS.index("vcpu"))[workload.accessor_of_row()]
    found: npt.NDArray[np.bool_] = ~vcpu & (workload.recorded_start_ns < workload.resume_ns)
    return found


def as_missing(workload: Workload, used: Used | None) -> Workload:
    """Where the kernel alone filled memory in, the first fault on each page is what another mechanism calls missing."""
    if used is not None and used.name in _BROUGHT_UNASKED:
        return first_touch(without(workload, of_start_up(workload, used)))
    if used is None or used.name != "host-lazy":
        return workload
    kernel = np.isin(workload.cause, [CAUSES.index(name) for name in OF_KERNEL])
    rows = np.flatnonzero(kernel)
    order = rows[np.argsort(workload.recorded_start_ns[rows], kind="stable")]
    _, first = np.unique(workload.page[order], return_index=True)
    cause = workload.cause.copy()
    cause[order[first]] = CAUSES.index("missing")
    return replace(workload, cause=cause)
