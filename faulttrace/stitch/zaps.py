"""Why guest memory was zapped: each KVM_UNMAP_HVA_RANGE and what caused it.

A zap carries its addresses and its thread, no reason. The reason is the next MM_CAUSE of the same thread, where that
belongs to the same system call; else the system call (or KVM_RUN) that the thread is in; else its name, for the
kernel's own threads; else a page fault that it took just before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import MIGRATE_REASONS, UFFD_IOCTLS, Kind, ZapCause
from faultreplay.faulttrace.stitch.columns import Events, Rows
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, take

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

_UFFD: Final = tuple(UFFD_IOCTLS.values())
_CALLS: Final = (
    *_UFFD,
    *(Kind.MMAP, Kind.MUNMAP, Kind.MADVISE, Kind.FALLOCATE, Kind.MREMAP, Kind.MPROTECT),
    *(Kind.KVM_RUN_EXIT, Kind.KVM_SET_MEMSLOT, Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG),
)
_FAULTS: Final = (Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL)
_USED: Final = (Kind.KVM_UNMAP_HVA_RANGE, Kind.MM_CAUSE, Kind.KVM_RUN_ENTER, *_CALLS, *_FAULTS)

_OF_CALL: Final = {
    Kind.MUNMAP: ZapCause.UNMAP,
    Kind.MMAP: ZapCause.UNMAP,
    Kind.MREMAP: ZapCause.UNMAP,
    Kind.MPROTECT: ZapCause.PROTECT,
    Kind.UFFD_WRITEPROTECT: ZapCause.UFFD_WRITEPROTECT,
    Kind.UFFD_REGISTER: ZapCause.UFFD_WRITEPROTECT,
    Kind.UFFD_UNREGISTER: ZapCause.UFFD_WRITEPROTECT,
    Kind.UFFD_MOVE: ZapCause.UFFD_MOVE,
    Kind.KVM_RUN_EXIT: ZapCause.PAGE_FAULT,
}
_OF_ADVICE: Final = {  # include/uapi/asm-generic/mman-common.h
    4: ZapCause.DISCARD,  # MADV_DONTNEED
    8: ZapCause.DISCARD,  # MADV_FREE
    24: ZapCause.DISCARD,  # MADV_DONTNEED_LOCKED
    9: ZapCause.PUNCH_HOLE,  # MADV_REMOVE
    13: ZapCause.KSM,  # MADV_UNMERGEABLE
    20: ZapCause.RECLAIM,  # MADV_COLD
    21: ZapCause.RECLAIM,  # MADV_PAGEOUT
    22: ZapCause.PAGE_FAULT,  # MADV_POPULATE_READ
    23: ZapCause.PAGE_FAULT,  # MADV_POPULATE_WRITE
    25: ZapCause.THP_COLLAPSE,  # MADV_COLLAPSE
}
_FREES_FILE: Final = 0x02 | 0x08 | 0x10  # FALLOC_FL_PUNCH_HOLE, _COLLAPSE_RANGE, _ZERO_RANGE
_OF_THREAD: Final = {
    "ksmd": ZapCause.KSM,
    "kswapd": ZapCause.RECLAIM,
    "khugepaged": ZapCause.THP_COLLAPSE,
    "kcompactd": ZapCause.MIGRATION,
}
_HUGE: Final = np.uint64(2 << 20)
_MOST_TOLD: Final = 3


@dataclass(frozen=True)
class ZapGroup:
    """Zaps of one cause by one kind of thread.

    Attributes:
        cause: label of a `ZapCause`.
        detail: why pages were migrated, where known.
        by: role of the thread (``vcpu``, ``vmm``, ``handler``), name of a kernel thread, or ``an outsider``: a thread
            of another process, or one that has ended.
        zaps: how many.
        size_bytes: of the ranges together; one range may be zapped again and again.
        tids: the threads, at most `_MOST_TOLD`.
        sizes: (bytes, how many) of the most frequent sizes, at most `_MOST_TOLD`.
        ranges: distinct ranges.
        most_often: how often the range was zapped that was zapped most.
    """

    cause: str
    detail: str
    by: str
    zaps: int
    size_bytes: int
    tids: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    ranges: int = 0
    most_often: int = 0


def zap_groups(trace: Trace) -> list[ZapGroup]:
    """All zaps of a trace by cause, the most frequent first."""
    if not trace.events([Kind.KVM_UNMAP_HVA_RANGE], columns=["ts_ns"]).height:
        return []
    return group_zaps(trace.events(kinds=sorted(_USED)), trace.meta)


def group_zaps(frame: pl.DataFrame, meta: Meta) -> list[ZapGroup]:
    """Zaps by cause in raw events (columns of `EVENTS`, sorted by `ts_ns`)."""
    zaps = _Zaps(frame, meta)
    cause, reason = zaps.causes()
    zapped = zaps.rows
    by = [zaps.who(tgid, tid) for tgid, tid in zip(zapped.tgid.tolist(), zapped.tid.tolist(), strict=True)]
    rows: dict[tuple[str, str, str], list[int]] = {}
    for row, (number, why, who) in enumerate(zip(cause.tolist(), reason.tolist(), by, strict=True)):
        known = ZapCause(number) is ZapCause.MIGRATION and 0 <= why < len(MIGRATE_REASONS)
        rows.setdefault((ZapCause(number).label, MIGRATE_REASONS[why] if known else "", who), []).append(row)
    groups = []
    for key, chosen in rows.items():
        addr, size, tid = zapped.addr[chosen], zapped.size[chosen], zapped.tid[chosen]
        often = Counter(zip(addr.tolist(), size.tolist(), strict=True))
        groups.append(
            ZapGroup(
                *key,
                zaps=len(chosen),
                size_bytes=int(size.sum()),
                tids=tuple(np.unique(tid).tolist()[:_MOST_TOLD]),
                sizes=tuple(Counter(size.tolist()).most_common(_MOST_TOLD)),
                ranges=len(often),
                most_often=max(often.values()),
            )
        )
    return sorted(groups, key=lambda group: -group.zaps)


class _Zaps:
    """The zaps of some events, and what may have caused them."""

    def __init__(self, frame: pl.DataFrame, meta: Meta) -> None:
        self._events = Events(frame)
        self._axis = self._events.axis
        self.rows: Rows = self._pick([Kind.KVM_UNMAP_HVA_RANGE])
        self._roles = {(t.tgid, thread.tid): thread for t in meta.targets for thread in t.threads}

    def who(self, tgid: int, tid: int) -> str:
        """The thread that zapped, for people."""
        thread = self._roles.get((tgid, tid))
        if thread is None:
            return "an outsider"
        if thread.role == "other":
            return f"{thread.comm or 'thread'} {tid}"
        return thread.comm if thread.role == "kernel" else thread.role

    def causes(self) -> tuple[I64, I64]:
        """Cause of each zap (`ZapCause`), and the reason of those that are migrations (-1: not known)."""
        zap = self.rows
        calls, faults = self._pick(_CALLS), self._pick(_FAULTS)
        at = self._index(calls).first_from(zap.thread, zap.ts_ns)
        begin = take(calls.ts_ns - calls.dur_ns, at, NEVER)
        in_call = begin <= zap.ts_ns
        until = np.where(in_call, take(calls.ts_ns, at, NEVER), begin)

        cause = np.zeros(len(zap), np.int64)
        by_call = self._by_call(calls, at, in_call)
        enters = self._pick([Kind.KVM_RUN_ENTER])
        running = ~in_call & self._still_running(enters, calls)
        before = self._index(faults).last_until(zap.thread, zap.ts_ns)
        ended = self._index(calls).last_until(zap.thread, zap.ts_ns)
        faulting = (before >= 0) & (take(faults.ts_ns, before, -1) > take(calls.ts_ns, ended, -1)) & ~in_call
        by_fault = np.where(faulting | running, int(ZapCause.PAGE_FAULT), 0)
        for weakest in (by_fault, self._by_thread(), by_call):
            cause = np.where(weakest > 0, weakest, cause)

        reason = np.full(len(zap), -1, np.int64)
        told = self._pick([Kind.MM_CAUSE])
        migration = told.code == np.uint64(ZapCause.MIGRATION)
        # The end of a batch of migrations (no address) is weaker than what was said of this very page.
        for chosen in (np.flatnonzero(migration & (told.addr == 0)), np.flatnonzero(~migration | (told.addr != 0))):
            index = Index(self._axis, told.thread[chosen], told.ts_ns[chosen])
            row = take(chosen, index.first_from(zap.thread, zap.ts_ns), -1)
            where = take(told.addr, row, 0)
            elsewhere = take(migration, row, 0) & (where != 0) & ((where < zap.addr) | (where >= zap.addr + zap.size))
            is_told = (row >= 0) & (take(told.ts_ns, row, NEVER) <= until) & ~elsewhere
            cause = np.where(is_told, take(told.code.astype(np.int64), row, 0), cause)
            reason = np.where(is_told, take(told.value, row, -1), reason)
        # A newer recorder may tell causes that are not known here.
        return np.where(np.isin(cause, list(ZapCause)), cause, int(ZapCause.UNKNOWN)), reason

    def _pick(self, kinds: Iterable[Kind]) -> Rows:
        return self._events.of(*kinds)

    def _index(self, rows: Rows) -> Index:
        return Index(self._axis, rows.thread, rows.ts_ns)

    def _still_running(self, enters: Rows, calls: Rows) -> Bools:
        """Whether the thread called KVM_RUN and had not returned when recording ended."""
        zap = self.rows
        entered = take(enters.ts_ns, self._index(enters).last_until(zap.thread, zap.ts_ns), -1)
        last = take(calls.ts_ns, self._index(calls).last_until(zap.thread, zap.ts_ns), -1)
        running: Bools = entered > last
        return running

    def _by_call(self, calls: Rows, at: I64, in_call: Bools) -> I64:
        zap = self.rows
        kind, code = take(calls.kind, at, 0), take(calls.code.astype(np.int64), at, 0)
        cause = _looked_up(kind, {int(k): int(v) for k, v in _OF_CALL.items()})
        advice = _looked_up(code, {k: int(v) for k, v in _OF_ADVICE.items()})
        cause = np.where(kind == Kind.MADVISE, advice, cause)
        holed = (kind == Kind.FALLOCATE) & (code & _FREES_FILE != 0)
        cause = np.where(holed, int(ZapCause.PUNCH_HOLE), cause)
        # Wider than what was asked for, a whole huge page: it is split first.
        start, size = take(calls.addr, at, 0), take(calls.size, at, 0)
        ranged = np.isin(kind, [Kind.MADVISE, Kind.MUNMAP, Kind.MPROTECT, Kind.UFFD_WRITEPROTECT])
        wider = (zap.addr < start) | (zap.addr + zap.size > start + size)
        split = ranged & wider & (zap.size == _HUGE) & (zap.addr % _HUGE == 0)
        cause = np.where(split, int(ZapCause.THP_SPLIT), cause)
        return np.where(in_call, cause, 0)

    def _by_thread(self) -> I64:
        zap = self.rows
        of: dict[int, int] = {}
        for (_, tid), thread in self._roles.items():
            if thread.role == "kernel":
                of[tid] = next((int(c) for name, c in _OF_THREAD.items() if thread.comm.startswith(name)), 0)
        return _looked_up(zap.tid, of)


def _looked_up(keys: npt.NDArray[np.int64], table: dict[int, int]) -> I64:
    """`table[key]` of each key, 0 where it has none."""
    out = np.zeros(len(keys), np.int64)
    for key, value in table.items():
        out[keys == key] = value
    return out
