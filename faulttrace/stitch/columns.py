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
        Kind.KVM_MMU_FAST_PAGE_FAULT,
    }
)
"""The kinds a stitch reads; the others pass it by."""


class Rows:
    """Some events, in order of time. `thread` is the dense number of `tid` (see `Events.threads`)."""

    def __init__(self, frame: pl.DataFrame, threads: Ids) -> None:
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

    def __len__(self) -> int:
        return len(self.ts_ns)


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
        return Rows(self.frame.filter(pl.Series(mask)), self.threads)
