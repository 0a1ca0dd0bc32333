"""Why guest memory was zapped: each KVM_UNMAP_HVA_RANGE and what caused it.

A zap carries its addresses and its thread, no reason. The reason is the next MM_CAUSE of the same thread, where that
belongs to the same system call; else the system call (or KVM_RUN) that the thread is in; else its name, for the
kernel's own threads; else a page fault that it took just before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import UFFD_IOCTLS, Kind, ZapCause
from faultreplay.faulttrace.stitch.columns import Events, Rows
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, Index, take

if TYPE_CHECKING:
    import polars as pl

_UFFD: Final = tuple(UFFD_IOCTLS.values())
_CALLS: Final = (
    *_UFFD,
    *(Kind.MMAP, Kind.MUNMAP, Kind.MADVISE, Kind.FALLOCATE, Kind.MREMAP, Kind.MPROTECT),
    *(Kind.KVM_RUN_EXIT, Kind.KVM_SET_MEMSLOT, Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG),
)
_FAULTS: Final = (Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL)
ZAP_KINDS: Final = (Kind.KVM_UNMAP_HVA_RANGE, Kind.MM_CAUSE, Kind.KVM_RUN_ENTER, *_CALLS, *_FAULTS)

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


def _of_a_batch(code: U64, addr: U64) -> Bools:
    """The end of a batch of migrations (no address): weaker than what was said of a very page."""
    found: Bools = (code == np.uint64(ZapCause.MIGRATION)) & (addr == 0)
    return found


class Coming:
    """When the last event of each thread is, of each kind of those that tell zaps' causes."""

    def __init__(self, frames: Iterable[pl.DataFrame]) -> None:
        """Columns ts_ns, kind, tid, code and addr of the events."""
        import polars as pl

        self.zapping: list[int] = []
        """threads that zap"""
        told = pl.col("kind") == int(Kind.MM_CAUSE)
        batch = told & (pl.col("code") == int(ZapCause.MIGRATION)) & (pl.col("addr") == 0)
        which = {
            "zap": pl.col("kind") == int(Kind.KVM_UNMAP_HVA_RANGE),
            "call": pl.col("kind").is_in([int(kind) for kind in _CALLS]),
            "batch": batch,
            "page": told & ~batch,
        }
        parts = [
            frame.group_by("tid").agg(pl.col("ts_ns").filter(rows).max().alias(name) for name, rows in which.items())
            for frame in frames
        ]
        last = pl.concat(parts).group_by("tid").agg(pl.col(list(which)).max()).sort("tid") if parts else None
        if last is not None:
            self.zapping = last.filter(pl.col("zap").is_not_null())["tid"].to_list()
        self._tids = np.zeros(0, np.int64) if last is None else last["tid"].to_numpy().astype(np.int64)
        self._last = {n: last[n].fill_null(-1).to_numpy() for n in which} if last is not None else {}

    def after(self, name: str, tid: I64, ts_ns: int) -> Bools:
        """Whether an event of that kind comes later of each of these threads, which are all known."""
        later: Bools = self._last[name][np.searchsorted(self._tids, tid)] > ts_ns
        return later


class Zaps:
    """The zaps of some events, and what may have caused them."""

    def __init__(self, frame: pl.DataFrame, meta: Meta) -> None:
        self._events = Events(frame)
        self._axis = self._events.axis
        self.rows: Rows = self._pick([Kind.KVM_UNMAP_HVA_RANGE])
        self._roles = {(t.tgid, thread.tid): thread for t in meta.targets for thread in t.threads}

    def settled(self, coming: Coming) -> Bools:
        """Of each zap whether no event after these can change what it was caused by.

        A call that the thread returns from later ends what may have caused it; where none is to come, causes do.
        """
        zap = self.rows
        found = {
            name: self._index(rows).first_from(zap.thread, zap.ts_ns) >= 0 for name, rows in self._enders().items()
        }
        over = {name: seen | ~coming.after(name, zap.tid, self._events.until_ns) for name, seen in found.items()}
        done: Bools = found["call"] | (over["call"] & over["batch"] & over["page"])
        return done

    def left(self, pending: Bools) -> Bools:
        """Which of the events zaps to come need, and those that are `pending`: these and what follows of their thread,
        and of each thread the last call, the last way into KVM_RUN and the last page fault before.
        """
        rows, thread = np.arange(len(self._events)), self._events.columns["thread"]
        cut = np.full(len(self._events.threads), len(rows), np.int64)
        waiting = self.rows.at[pending]
        np.minimum.at(cut, thread[waiting], waiting)
        keep: Bools = rows >= cut[thread]
        for kinds in (_CALLS, [Kind.KVM_RUN_ENTER], _FAULTS):
            before = self._pick(kinds).at
            before = before[before < cut[thread[before]]]
            last = np.full(len(cut), -1, np.int64)
            np.maximum.at(last, thread[before], before)
            keep[last[last >= 0]] = True
        return keep

    def _enders(self) -> dict[str, Rows]:
        told = self._pick([Kind.MM_CAUSE])
        batch = _of_a_batch(told.code, told.addr)
        return {"call": self._pick(_CALLS), "batch": told.pick(batch), "page": told.pick(~batch)}

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
        batch = _of_a_batch(told.code, told.addr)
        for chosen in (np.flatnonzero(batch), np.flatnonzero(~batch)):
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
