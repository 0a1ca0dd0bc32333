"""Raw events as numpy columns, picked by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.keys import I64, U64, Axis, Bools, Ids

if TYPE_CHECKING:
    import polars as pl

USED: Final = frozenset(
    {
        *(
            Kind.UFFD_MSG,
            Kind.UFFD_COPY,
            Kind.UFFD_ZEROPAGE,
            Kind.UFFD_CONTINUE,
            Kind.UFFD_WRITEPROTECT,
            Kind.UFFD_WAKE,
        ),
        *(Kind.UFFD_MOVE, Kind.UFFD_POISON, Kind.UFFD_UNREGISTER),
        *(Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL, Kind.MMAP_LOCK_RELEASED),
        *(Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING),
        *(Kind.KVM_RUN_ENTER, Kind.KVM_RUN_EXIT, Kind.KVM_SET_MEMSLOT, Kind.KVM_EXIT, Kind.KVM_ENTRY),
        *(Kind.KVM_PAGE_FAULT, Kind.KVM_USERSPACE_EXIT, Kind.KVM_MMIO, Kind.KVM_MMU_WALK, Kind.KVM_MMU_SET_SPTE),
        *(Kind.KVM_MMU_FAST_PAGE_FAULT, Kind.KVM_PIO, Kind.KVM_FAST_MMIO, Kind.KVM_GUEST_FAULT),
    }
)
"""The kinds a stitch reads; the others pass it by."""


class Rows:
    """Some events, in order of time. `thread` is the dense number of `tid` (see `Events.threads`).

    `pos` is each one's place among all events: it orders also those that have one time stamp.
    """

    def __init__(self, frame: pl.DataFrame, threads: Ids, pos: I64 | None = None) -> None:
        def signed(name: str) -> I64:
            return frame[name].to_numpy().astype(np.int64, copy=False)

        def unsigned(name: str) -> U64:
            return frame[name].to_numpy().astype(np.uint64, copy=False)

        self.ts_ns = signed("ts_ns")
        self.kind = signed("kind")
        self.tgid = signed("tgid")
        self.tid = signed("tid")
        self.fd = signed("fd")
        self.vcpu = signed("vcpu")
        self.addr = unsigned("addr")
        self.ip = unsigned("ip")
        self.code = unsigned("code")
        self.size = unsigned("size")
        self.value = signed("value")
        self.dur_ns = signed("dur_ns")
        self.thread = threads.of(self.tid)
        self.pos: I64 = np.arange(len(frame), dtype=np.int64) if pos is None else pos

    def __len__(self) -> int:
        return len(self.ts_ns)

    def pick(self, chosen: Bools | I64) -> Rows:
        """The chosen ones."""
        part = Rows.__new__(Rows)
        for name, values in vars(self).items():
            setattr(part, name, values[chosen])
        return part

    def merged(self, others: Rows) -> Rows:
        """These and `others`, in the order of the trace."""
        if not len(others):
            return self
        whole = Rows.__new__(Rows)
        order = np.argsort(np.concatenate([self.pos, others.pos]), kind="stable")
        for name, values in vars(self).items():
            setattr(whole, name, np.concatenate([values, getattr(others, name)])[order])
        return whole


class Events:
    """All events of a trace that a stitch reads, sorted by time."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self._kind = frame["kind"].to_numpy()
        self.axis = Axis.spanning(frame["ts_ns"].to_numpy())
        self.end_ns = int(frame["ts_ns"][-1]) if len(frame) else 0
        self.threads = Ids(frame["tid"].to_numpy().astype(np.int64))

    def of(self, *kinds: Kind) -> Rows:
        """Events of these kinds."""
        import polars as pl

        mask: Bools = np.isin(self._kind, np.array([int(kind) for kind in kinds], np.uint8))
        return Rows(self.frame.filter(pl.Series(mask)), self.threads, np.flatnonzero(mask).astype(np.int64))

    def vcpu_of(self, thread: I64) -> I64:
        """The vCPU number that some event of each thread tells, -1: none does."""
        rows = self.of(Kind.KVM_ENTRY, Kind.KVM_EXIT, Kind.KVM_PAGE_FAULT, Kind.KVM_MMU_FAST_PAGE_FAULT)
        number = np.full(len(self.threads), -1, np.int64)
        np.maximum.at(number, rows.thread[rows.thread >= 0], rows.vcpu[rows.thread >= 0])
        return np.where(thread >= 0, number[thread], -1) if len(number) else np.full(len(thread), -1, np.int64)
