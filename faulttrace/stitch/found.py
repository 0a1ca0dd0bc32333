"""Faults while they are being found: columns of numbers, names put in at the end."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from faultreplay.faulttrace.schema import RESOLUTIONS
from faultreplay.faulttrace.stitch.keys import I64, U64, Bools

UNKNOWN: Final = -1
"""In a column of durations or ends: null."""

ACCESS: Final = ("r", "w", "x")
STARTS: Final = ("page-fault", "exit", "walk", "out", "read", "fault")
ENDS: Final = ("none", "mmap-lock", "entry", "spte", "fast", "in", "ioctl", "run", "userspace", "rss")

MARKERS: Final[dict[str, str]] = {
    "page-fault": "start: exceptions:page_fault_user or _kernel of the same page",
    "exit": "start: kvm:kvm_exit (VMX, SVM, arm64)",
    "walk": "start: kvmmmu:kvm_mmu_pagetable_walk (shadow paging)",
    "out": "start: the accessor went to sleep (no better marker was seen: the time until then is missing)",
    "read": "start: the message was read (nothing earlier was seen: the whole queueing is missing)",
    "fault": "start: kvm:kvm_page_fault or kvm_guest_fault (no kvm_exit was seen: the time from it is missing)",
    "mmap-lock": "end: mmap_lock released after the retry",
    "entry": "end: kvm:kvm_entry (VMX, SVM, arm64)",
    "spte": "end: kvmmmu:kvm_mmu_set_spte",
    "fast": "end: kvmmmu:fast_page_fault",
    "in": "end: the accessor got the CPU back (the retry is missing)",
    "ioctl": "end: the ioctl that placed the page (the wake is missing)",
    "run": "end: KVM_RUN was called again (re-entry is missing)",
    "rss": "end: kmem:rss_stat of the process's own memory (the return to the program is missing)",
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
    backing: I64
    copied: I64

    def __len__(self) -> int:
        return len(self.thread)

    @classmethod
    def blank(cls, count: int) -> Found:
        """`count` rows with nothing known."""
        zero: dict[str, Any] = {name: np.zeros(count, np.int64) for name in (f.name for f in fields(cls))}
        for name in (
            "thread",
            "vcpu",
            "end_ns",
            "queue_ns",
            "service_ns",
            "resolve_ns",
            "wake_ns",
            "rounds",
            "backing",
            "copied",
        ):
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


@dataclass(frozen=True)
class Anchored:
    """Faults, each with the time of the event that it was found from: that event is counted with its fault.

    `settled`: of faults whose thread is not known, whether it will not be known (None: all are).
    """

    found: Found
    ts_ns: I64
    settled: Bools | None = None

    def told(self, until_ns: I64) -> Bools:
        """Which are final, where everything of each thread before `until_ns` is final."""
        thread = self.found.thread
        settled = np.ones(len(thread), bool) if self.settled is None else self.settled
        return np.where(thread >= 0, self.ts_ns < until_ns[thread], settled)

    @classmethod
    def concat(cls, parts: list[Anchored]) -> Anchored:
        """All rows of all parts."""
        return cls(Found.concat([part.found for part in parts]), np.concatenate([part.ts_ns for part in parts]))
