"""Where the page of a mapped file was when a thread faulted on it, and whether a write copied it."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import BACKINGS, CAUSES, Kind
from faultreplay.faulttrace.stitch.columns import Rows
from faultreplay.faulttrace.stitch.found import ACCESS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, take
from faultreplay.faulttrace.stitch.markers import Context

FILE_KINDS = (Kind.FILE_FAULT, Kind.FILE_MAP, Kind.FILE_ADD)
_LONGEST_NS = 200_000
"""Without a sleep; what is counted later may be another call's doing."""
_PAGE_BYTES = 4096
_UNINTERRUPTIBLE = 2
_ADDS_LOOKED_AT = 64
"""Pages that one fault brings into the cache are looked through for its own; readahead begins with or around it."""
_KERNEL_CAUSES = ("minor-host", "major-host", "stage2")


def mark_backing(context: Context, stages: list[Anchored]) -> None:
    """Fill in `backing` and `copied` of the faults that the kernel resolved, and make `major-host` what was read.

    A fault's own events lie between its start and its end; where the end was not seen, before whatever its thread
    faulted on next. `filemap:mm_filemap_fault` names the page; it was read if the page entered the cache meanwhile, or
    the thread then slept uninterruptibly and the fault ended after that (somebody else reads it).
    """
    asked = context.events.of(Kind.FILE_FAULT)
    mapped = context.events.of(Kind.FILE_MAP)
    unmaps = context.events.of(Kind.KVM_UNMAP_HVA_RANGE)
    if not any(map(len, (asked, mapped, unmaps))) and not context.memory.has_private_files:
        return
    by_kernel = [code(CAUSES, name) for name in _KERNEL_CAUSES]
    starts = np.concatenate([stage.found.start_ns for stage in stages])
    following = Index(context.axis, np.concatenate([stage.found.thread for stage in stages]), starts)
    for stage in stages:
        found = stage.found
        ended = (found.end_ns != UNKNOWN) | (found.cause != code(CAUSES, "stage2"))
        rows = np.flatnonzero(np.isin(found.cause, by_kernel) & (found.thread >= 0) & ended)
        if not len(rows):
            continue
        thread, start_ns = found.thread[rows], found.start_ns[rows]
        until_ns = take(starts, following.first_from(thread, start_ns + 1), NEVER) - 1
        # Also where that access is no fault, or not known to be one yet.
        accessed_ns = np.minimum(
            take(context.guest.walks.ts_ns, context.guest.next_walk(thread, start_ns + 1), NEVER),
            context.guest.next_exit_ns(thread, start_ns + 1),
        )
        until_ns = np.minimum(until_ns, accessed_ns - 1)
        until_ns = np.where(found.end_ns[rows] == UNKNOWN, until_ns, found.end_ns[rows])
        fault = _within(context, asked, thread, start_ns, until_ns)
        around = _within(context, mapped, thread, start_ns, until_ns) >= 0
        slept = _slept(context, asked, fault, until_ns) & (found.end_ns[rows] != UNKNOWN)
        read = (fault >= 0) & (_was_read(context, asked, fault, until_ns) | slept)
        told = (fault >= 0) | around
        found.backing[rows[told]] = code(BACKINGS, "cache")
        found.backing[rows[read]] = code(BACKINGS, "disk")
        own = found.cause[rows] != code(CAUSES, "stage2")
        found.cause[rows[read & own]] = code(CAUSES, "major-host")
        _mark_copies(context, found, rows, told | (_within(context, unmaps, thread, start_ns, until_ns) >= 0))


def counted_ns(context: Context, thread: I64, start_ns: I64, until_ns: I64) -> I64:
    """When each process's fault that did not sleep had its page counted as held; UNKNOWN: not seen, or too late for it.

    The neighbours of a file's page may be mapped, and counted, before the page itself is asked for; that they were
    mapped is told after they were counted.
    """
    counts, asked = context.events.of(Kind.RSS_STAT), context.events.of(Kind.FILE_FAULT)
    counts = counts.pick(counts.size == np.uint64(1))
    index = Index(context.axis, counts.thread, counts.ts_ns)
    fault_ns = take(asked.ts_ns, Index(context.axis, asked.thread, asked.ts_ns).first_from(thread, start_ns), NEVER)
    from_ns = np.where(fault_ns < np.minimum(until_ns, start_ns + _LONGEST_NS), fault_ns, start_ns)
    ts_ns = take(counts.ts_ns, index.first_from(thread, from_ns), NEVER)
    latest_ns = np.minimum(until_ns - 1, start_ns + _LONGEST_NS)
    mapped = context.events.of(Kind.FILE_MAP)
    mapped_ns = take(mapped.ts_ns, Index(context.axis, mapped.thread, mapped.ts_ns).first_from(thread, from_ns), NEVER)
    end_ns = np.where((mapped_ns > ts_ns) & (mapped_ns <= latest_ns), mapped_ns, ts_ns)
    return np.where(ts_ns <= latest_ns, end_ns, UNKNOWN)


def _mark_copies(context: Context, found: Found, rows: I64, seen: Bools) -> None:
    """A process's write fault on a private mapping makes a copy. A guest's may also be KVM's own affair (the copy was
    made before): there it takes an event of the host's page tables in it."""
    private = context.memory.private_file(found.vm[rows], found.page[rows])
    writes = found.access[rows] == ACCESS.index("w")
    own = found.cause[rows] != code(CAUSES, "stage2")
    found.copied[rows[private & writes & (own | seen)]] = 1


def _within(context: Context, events: Rows, thread: I64, start_ns: I64, until_ns: I64) -> I64:
    """Row of each thread's first of these events in [start, until]; -1: none."""
    row = Index(context.axis, events.thread, events.ts_ns).first_from(thread, start_ns)
    return np.where(take(events.ts_ns, row, NEVER) <= until_ns, row, -1)


def _was_read(context: Context, asked: Rows, fault: I64, until_ns: I64) -> Bools:
    """Whether the page that was asked for entered the page cache between its fault and `until_ns`."""
    adds = context.events.of(Kind.FILE_ADD)
    index = Index(context.axis, adds.thread, adds.ts_ns)
    thread = take(asked.thread, fault, -1)
    wanted = [take(values, fault, 0) for values in (asked.addr, asked.code, asked.value)]
    row = index.first_from(thread, take(asked.ts_ns, fault, NEVER))
    found = np.zeros(len(fault), np.bool_)
    for _ in range(_ADDS_LOOKED_AT):
        here = (row >= 0) & (take(adds.ts_ns, row, NEVER) <= until_ns)
        first, bytes_ = take(adds.addr, row, 0), np.maximum(take(adds.size, row, 0), np.uint64(_PAGE_BYTES))
        same = (take(adds.code, row, 0) == wanted[1]) & (take(adds.value, row, 0) == wanted[2])
        found |= here & same & (first <= wanted[0]) & (wanted[0] < first + bytes_)
        after = np.where(here & ~found, take(adds.ts_ns, row, NEVER) + 1, NEVER)
        if not (here & ~found).any():
            break
        row = np.where(after < NEVER, index.first_from(thread, after), -1)
    return found


def _slept(context: Context, asked: Rows, fault: I64, until_ns: I64) -> Bools:
    """Whether the thread slept uninterruptibly after it asked for the page."""
    sleep = context.sleeps.first_from(take(asked.thread, fault, -1), take(asked.ts_ns, fault, NEVER))
    inside = (sleep >= 0) & (take(context.sleeps.out_ns, sleep, NEVER) <= until_ns)
    found: Bools = inside & (take(context.sleeps.state, sleep, 0) & _UNINTERRUPTIBLE != 0)
    return found
