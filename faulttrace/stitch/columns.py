"""Raw events as numpy columns, picked by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.keys import I64, Bools
from faultreplay.faulttrace.stitch.whole import Whole

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
        *(Kind.FILE_FAULT, Kind.FILE_MAP, Kind.FILE_ADD, Kind.RSS_STAT, Kind.KVM_UNMAP_HVA_RANGE),
    }
)
"""The kinds a stitch reads; the others pass it by."""
_COLUMNS: Final = (*("ts_ns", "kind", "tgid", "tid", "fd", "vcpu", "addr", "ip", "code", "size", "value", "dur_ns"),)


_WIDE: Final[dict[str, type[np.generic]]] = {
    "shown": np.bool_,
    **dict.fromkeys(("addr", "ip", "code", "size"), np.uint64),
}
_BIGGEST_TABLE: Final = 1 << 23
_KINDS: Final = 256


class Rows:
    """Some events, in order of time; a column is gathered when it is first asked for.

    `thread` is the dense number of `tid` (see `Whole.threads`), `pos` each one's place among all events of the trace:
    it orders also those that have one time stamp.
    """

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]], at: I64) -> None:
        self._columns = columns
        self._at = at
        self._gathered: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name not in self._gathered:
            values = self._columns[name][self._at]
            self._gathered[name] = values.astype(_WIDE.get(name, np.int64), copy=False)
        return self._gathered[name]

    ts_ns = property(lambda self: self._column("ts_ns"))
    kind = property(lambda self: self._column("kind"))
    tgid = property(lambda self: self._column("tgid"))
    tid = property(lambda self: self._column("tid"))
    fd = property(lambda self: self._column("fd"))
    vcpu = property(lambda self: self._column("vcpu"))
    addr = property(lambda self: self._column("addr"))
    ip = property(lambda self: self._column("ip"))
    code = property(lambda self: self._column("code"))
    size = property(lambda self: self._column("size"))
    value = property(lambda self: self._column("value"))
    dur_ns = property(lambda self: self._column("dur_ns"))
    thread = property(lambda self: self._column("thread"))
    pos = property(lambda self: self._column("pos"))
    shown = property(lambda self: self._column("shown"))

    @property
    def at(self) -> I64:
        """Which rows of the events these are."""
        return self._at

    def pick(self, chosen: Bools | I64) -> Rows:
        """The chosen ones."""
        return Rows(self._columns, self._at[chosen])

    def merged(self, others: Rows) -> Rows:
        """These and `others`, in the order of the trace."""
        return Rows(self._columns, np.sort(np.concatenate([self._at, others._at]))) if len(others) else self


class Events:
    """A stretch of a trace, with what earlier ones left, in order of time; all of it where `whole` is not given."""

    def __init__(
        self, frame: pl.DataFrame, whole: Whole | None = None, before: Kept | None = None, first_pos: int = 0
    ) -> None:
        self.whole = Whole.of([frame]) if whole is None else whole
        self.axis, self.threads = self.whole.axis, self.whole.threads
        self.end_ns = self.whole.end_ns
        columns = {name: frame[name].to_numpy() for name in _COLUMNS}
        columns["thread"] = self._numbered(columns["tid"])
        columns["pos"] = np.arange(first_pos, first_pos + len(frame), dtype=np.int64)
        columns["shown"] = np.zeros(len(frame), bool)
        if before is not None and len(before):
            columns = {name: np.concatenate([before.columns[name], values]) for name, values in columns.items()}
        self.columns: dict[str, npt.NDArray[Any]] = columns
        self.until_ns = int(frame["ts_ns"][-1]) if len(frame) else 0
        """The last event of the stretch; those to come are later."""
        kind = columns["kind"]
        self._by_kind = np.argsort(kind, kind="stable").astype(np.int64)
        self._begins = np.concatenate([[0], np.cumsum(np.bincount(kind, minlength=_KINDS))])

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def _numbered(self, tid: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        known = self.threads.values
        if not len(known) or known[0] < 0 or known[-1] >= _BIGGEST_TABLE:
            return self.threads.of(tid).astype(np.int32)
        table = np.full(int(known[-1]) + 1, -1, np.int32)
        table[known] = np.arange(len(known), dtype=np.int32)
        numbers: npt.NDArray[np.int32] = table[tid]
        return numbers

    def of(self, *kinds: Kind) -> Rows:
        """Events of these kinds."""
        some = [self._by_kind[self._begins[kind] : self._begins[kind + 1]] for kind in sorted(set(kinds))]
        return Rows(self.columns, some[0] if len(some) == 1 else np.sort(np.concatenate(some)))

    def more(self, *kinds: Kind) -> Bools:
        """Per thread, whether an event of one of these kinds comes after this stretch."""
        return self.whole.more(self.until_ns, *kinds)

    def alive(self) -> Bools:
        """Per thread, whether anything but the scheduler's events comes after this stretch."""
        return self.whole.alive(self.until_ns)

    def vcpu_of(self, thread: I64) -> I64:
        """The vCPU number that some event of each thread tells, -1: none does."""
        number = self.whole.named_vcpus()
        return np.where(thread >= 0, number[thread], -1) if len(number) else np.full(len(thread), -1, np.int64)


class Kept:
    """Events that a stretch leaves to the next."""

    def __init__(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["kind"])

    @classmethod
    def of(cls, events: Events, chosen: Bools) -> Kept:
        """The chosen events."""
        at = np.flatnonzero(chosen)
        return cls({name: values[at] for name, values in events.columns.items()})
