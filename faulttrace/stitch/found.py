"""Faults while they are being found: columns of numbers, names put in at the end."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, FAULTS, RESOLUTIONS
from faultreplay.faulttrace.stitch.keys import I64, U64, Axis, Bools, Ids, Index, take

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.stitch.threads import Sleeps

UNKNOWN: Final = -1
"""In a column of durations or ends: null."""

ACCESS: Final = ("r", "w", "x")
STARTS: Final = ("page-fault", "exit", "walk", "out", "read", "fault")
ENDS: Final = ("none", "mmap-lock", "entry", "spte", "fast", "in", "ioctl", "run", "userspace")

MARKERS: Final[dict[str, str]] = {
    "page-fault": "start: exceptions:page_fault_user or _kernel of the same page",
    "exit": "start: kvm:kvm_exit (VMX, SVM, arm64)",
    "walk": "start: kvmmmu:kvm_mmu_pagetable_walk (shadow paging)",
    "out": "start: the accessor went to sleep (no better marker was seen: the time until then is missing)",
    "read": "start: the message was read (nothing earlier was seen: the whole queueing is missing)",
    "fault": "start: kvm:kvm_page_fault or kvm_guest_fault (no kvm_exit was seen: the time from it is missing)",
    "mmap-lock": "end: mmap_lock let go of after the retry",
    "entry": "end: kvm:kvm_entry (VMX, SVM, arm64)",
    "spte": "end: kvmmmu:kvm_mmu_set_spte",
    "fast": "end: kvmmmu:fast_page_fault",
    "in": "end: the accessor got the CPU back (the retry is missing)",
    "ioctl": "end: the ioctl that placed the page (the wake is missing)",
    "run": "end: KVM_RUN was called again (re-entry is missing)",
    "userspace": "end: kvm:kvm_userspace_exit for another reason: KVM was done with the fault, or will take it again",
}
"""The words of `join`, ``START/END``; ``none`` alone: the end was not found."""


def code(names: tuple[str, ...], name: str) -> int:
    """The number of `name`."""
    return names.index(name)


@dataclass
class Found:
    """Some faults. Times in ns; `UNKNOWN` where there is none; names as numbers into the tuples of the schema."""

    thread: I64
    vm: I64
    vcpu: I64
    accessor: I64
    start_ns: I64
    end_ns: I64
    page: U64
    granule: I64
    access: I64
    cause: I64
    resolution: I64
    handler_tid: I64
    queue_ns: I64
    service_ns: I64
    resolve_ns: I64
    wake_ns: I64
    start_by: I64
    end_by: I64
    rounds: I64
    ip: U64

    def __len__(self) -> int:
        return len(self.thread)

    @classmethod
    def blank(cls, count: int) -> Found:
        """`count` rows with nothing known."""
        zero: dict[str, Any] = {name: np.zeros(count, np.int64) for name in (f.name for f in fields(cls))}
        for name in ("thread", "vcpu", "end_ns", "queue_ns", "service_ns", "resolve_ns", "wake_ns", "rounds"):
            zero[name] = np.full(count, UNKNOWN, np.int64)
        zero["resolution"] = np.full(count, code(RESOLUTIONS, "none"), np.int64)
        zero["page"], zero["ip"] = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
        return cls(**zero)

    def pick(self, chosen: Bools | I64) -> Found:
        """The chosen rows."""
        return Found(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    @classmethod
    def concat(cls, parts: list[Found]) -> Found:
        """All rows of all parts."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


class Claims:
    """Where faults already found lie: an event inside one is part of it and opens no other."""

    def __init__(self, axis: Axis, found: Found) -> None:
        known = found.thread >= 0
        self._start = found.start_ns[known]
        end = found.end_ns[known]
        # With its end unseen a fault claims its own opening event only.
        self._unended = np.append(end == UNKNOWN, False)
        self._end = np.where(end == UNKNOWN, self._start, end)
        self._index = Index(axis, found.thread[known], self._start)

    def opened(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether a fault of each thread whose end was not seen began at that very time."""
        row = self._index.last_until(thread, ts_ns)
        began: Bools = (row >= 0) & self._unended[row] & (take(self._start, row, -1) == ts_ns)
        return began

    def inside(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether each (thread, time) lies in a fault."""
        row = self._index.last_until(thread, ts_ns)
        claimed: Bools = (row >= 0) & (ts_ns <= take(self._end, row, -1))
        return claimed


def to_frame(found: Found, threads: Ids, sleeps: Sleeps) -> pl.DataFrame:
    """The `FAULTS` frame: sorted, numbered, think times and what the scheduler did filled in."""
    import polars as pl

    order = np.lexsort((found.thread, found.start_ns))
    found = found.pick(order)
    joined = found.end_ns != UNKNOWN
    end_ns = np.where(joined, found.end_ns, found.start_ns)
    offcpu = np.where(joined, sleeps.off_cpu_ns(found.thread, found.start_ns, end_ns), UNKNOWN)
    preempted = np.where(joined, sleeps.preempted_ns(found.thread, found.start_ns, end_ns), UNKNOWN)
    tid = take(threads.values, found.thread, 0)
    think = _think(found, end_ns, sleeps)
    read_ns = np.where(found.queue_ns != UNKNOWN, found.start_ns + found.queue_ns, UNKNOWN)
    handler = threads.of(found.handler_tid)
    read_run, read_after, read_preempts = _on_cpu(sleeps, handler, found.start_ns, read_ns)
    queued = (read_ns != UNKNOWN) & (handler >= 0)
    read_preempted = np.where(queued, sleeps.preempted_ns(handler, found.start_ns, read_ns), UNKNOWN)
    served = (read_ns != UNKNOWN) & (found.service_ns != UNKNOWN) & (handler >= 0)
    placed_ns = np.where(served, read_ns + found.service_ns, read_ns)
    service_preempted = np.where(served, sleeps.preempted_ns(handler, read_ns, placed_ns), UNKNOWN)
    woken = np.where(joined & (found.wake_ns != UNKNOWN), end_ns, UNKNOWN)
    wake_run, wake_after, wake_preempts = _on_cpu(sleeps, found.thread, woken - found.wake_ns, woken)
    columns: dict[str, pl.Series] = {
        "fault_id": pl.Series(np.arange(len(found), dtype=np.int64)),
        "vm": pl.Series(found.vm.astype(np.int32)),
        "accessor": _named(ACCESSORS, found.accessor),
        "tid": pl.Series(tid.astype(np.int32)),
        "vcpu": pl.Series(found.vcpu.astype(np.int32)),
        "start_ns": pl.Series(found.start_ns),
        "end_ns": _nullable(found.end_ns),
        "stall_ns": _nullable(np.where(joined, found.end_ns - found.start_ns, UNKNOWN)),
        "think_ns": _nullable(think[0]),
        "think_asleep_ns": _nullable(think[1]),
        "think_preempted_ns": _nullable(think[2]),
        "page": pl.Series(found.page),
        "granule": pl.Series(found.granule),
        "access": _named(ACCESS, found.access),
        "cause": _named(CAUSES, found.cause),
        "resolution": _named(RESOLUTIONS, found.resolution),
        "handler_tid": pl.Series(found.handler_tid.astype(np.int32)),
        "queue_ns": _nullable(found.queue_ns),
        "read_run_ns": _nullable(read_run),
        "read_after_tid": _nullable(read_after.astype(np.int32)),
        "read_preempts": pl.Series(read_preempts).set(pl.Series(read_after == UNKNOWN), None),
        "read_preempted_ns": _nullable(read_preempted),
        "service_ns": _nullable(found.service_ns),
        "resolve_ns": _nullable(found.resolve_ns),
        "wake_ns": _nullable(found.wake_ns),
        "wake_run_ns": _nullable(wake_run),
        "wake_after_tid": _nullable(wake_after.astype(np.int32)),
        "wake_preempts": pl.Series(wake_preempts).set(pl.Series(wake_after == UNKNOWN), None),
        "offcpu_ns": _nullable(offcpu),
        "preempted_ns": _nullable(preempted),
        "service_preempted_ns": _nullable(service_preempted),
        "rounds": _nullable(found.rounds).cast(pl.Int32),
        "ip": pl.Series(found.ip).set(pl.Series(found.ip == 0), None),
        "join": _named(
            tuple("none" if end == "none" else f"{start}/{end}" for start in STARTS for end in ENDS),
            found.start_by * len(ENDS) + found.end_by,
        ),
    }
    return pl.DataFrame([columns[field.name].alias(field.name) for field in FAULTS])


def _think(found: Found, end_ns: I64, sleeps: Sleeps) -> tuple[I64, I64, I64]:
    """From the end of the thread's fault before to this start; of that asleep, and preempted.

    A fault whose end was not seen ends where it starts.
    """
    order = np.lexsort((found.start_ns, found.thread))
    thread, start, end = found.thread[order], found.start_ns[order], end_ns[order]
    think, asleep, preempted = (np.full(len(found), UNKNOWN, np.int64) for _ in range(3))
    follows = np.flatnonzero((thread[1:] == thread[:-1]) & (thread[1:] >= 0)) + 1
    rows, who, since, until = order[follows], thread[follows], end[follows - 1], start[follows]
    since = np.minimum(since, until)
    think[rows] = until - since
    preempted[rows] = sleeps.preempted_ns(who, since, until)
    asleep[rows] = sleeps.off_cpu_ns(who, since, until) - preempted[rows]
    return think, asleep, preempted


def _on_cpu(sleeps: Sleeps, thread: I64, from_ns: I64, until_ns: I64) -> tuple[I64, I64, Bools]:
    """How long a woken thread had its CPU until `until_ns`, who had it before, and whether that one was preempted.

    UNKNOWN where it was not asleep.
    """
    known = until_ns != UNKNOWN
    in_ns, before, preempts = sleeps.on_cpu_since(np.where(known, thread, -1), from_ns, until_ns)
    seen = known & (before >= 0)
    return np.where(seen, until_ns - in_ns, UNKNOWN), np.where(seen, before, UNKNOWN), seen & preempts


def _named(names: tuple[str, ...], codes: I64) -> pl.Series:
    import polars as pl

    return pl.Series(list(names), dtype=pl.String).gather(pl.Series(codes.astype(np.uint32)))


def _nullable(values: npt.NDArray[np.int64]) -> pl.Series:
    import polars as pl

    series = pl.Series(values)
    return series.set(series == UNKNOWN, None)
