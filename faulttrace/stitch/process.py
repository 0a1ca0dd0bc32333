"""Page faults of processes that no userfaultfd message explains."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.backing import FILE_KINDS, counted_ns
from faultreplay.faulttrace.stitch.claims import Claims, Used
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.horizon import SLEEPS
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.placements import RESOLUTION
from faultreplay.faulttrace.stitch.stage2 import access_of
from faultreplay.faulttrace.stitch.tally import Tally
from faultreplay.faulttrace.stitch.waiters import cause_of_waiter
from faultreplay.faulttrace.stitch.waiting import Waiting

_UNINTERRUPTIBLE = 2  # TASK_UNINTERRUPTIBLE in prev_state: waiting for a disk
_SLEEPS_LOOKED_AT = 16


def stitch_process_faults(context: Context, claims: Claims, used: Used, tally: Tally, waiting: Waiting) -> Anchored:
    """What the kernel resolved alone (minor-host, major-host), and SIGBUS faults that their thread resolved (exit)."""
    faults, placements = context.page_faults, context.placements
    untold = context.untold(faults.rows.thread, faults.rows.ts_ns)
    tally.note("page_faults", faults.rows.thread, faults.rows.ts_ns, untold)
    rows = np.flatnonzero(untold & ~claims.inside(faults.rows.thread, faults.rows.ts_ns))
    thread, start_ns, page = faults.rows.thread[rows], faults.rows.ts_ns[rows], faults.page[rows]
    next_ns = context.next_page_fault_ns(thread, start_ns + 1)
    end_ns, released = _ends(context, thread, start_ns, next_ns)

    # A sleep before the lock is released of was part of the fault: waiting for a disk, or for the lock itself.
    sleep = context.sleeps.first_from(thread, start_ns)
    slept = (sleep >= 0) & (take(context.sleeps.out_ns, sleep, NEVER) < np.where(end_ns == UNKNOWN, 0, end_ns))
    on_disk = slept & (take(context.sleeps.state, sleep, 0) & _UNINTERRUPTIBLE != 0)

    # UFFD_FEATURE_SIGBUS: the signal handler of the faulting thread places the page.
    free = placements.places & used.left(placements.rows.pos)
    own = placements.first_covering(free, placements.thread, thread, page, start_ns)
    same = faults.last_on_page(thread, page, take(placements.start_ns, own, -1)) == rows
    own = np.where((own >= 0) & same, own, -1)
    _note_open(context, waiting, rows, own)
    sigbus = own >= 0

    # A waiter of a userfault whose message nobody read and whose wake-up was not recorded.
    anywhere, here = np.zeros(len(placements), np.int64), np.zeros(len(rows), np.int64)
    woken = placements.first_covering(placements.wakes, anywhere, here, page, start_ns)
    woken = np.where(slept & ~sigbus & (take(placements.end_ns, woken, NEVER) <= end_ns), woken, -1)
    waited = woken >= 0
    # Nobody else waits interruptibly in a fault: that sleep was a system call's, the release after it not the fault's.
    end_ns = np.where(~sigbus & ~waited & _slept_interruptibly(context, thread, start_ns, end_ns), UNKNOWN, end_ns)
    on_disk &= end_ns != UNKNOWN
    # Until its thread faults again files' events may be of a fault without an end.
    context.open.note(
        thread,
        start_ns,
        (end_ns == UNKNOWN) & (next_ns == NEVER) & take(context.events.more(*FILE_KINDS), thread, False),
    )

    found = Found.blank(len(rows))
    found.thread, found.start_ns, found.page = thread, start_ns, page
    found.end_ns = np.where(sigbus, take(placements.end_ns, own, 0), end_ns)
    found.start_by = np.full(len(rows), code(STARTS, "page-fault"), np.int64)
    seen = np.where(released, code(ENDS, "mmap-lock"), code(ENDS, "rss"))
    seen = np.where(end_ns != UNKNOWN, seen, code(ENDS, "none"))
    found.end_by = np.where(sigbus, code(ENDS, "ioctl"), seen)
    found.vm = faults.rows.tgid[rows]
    found.granule = context.memory.granule(found.vm, page)
    in_kvm = context.runs.inside(thread, start_ns) & (faults.rows.kind[rows] == Kind.PAGE_FAULT_KERNEL)
    found.accessor = np.where(in_kvm, code(ACCESSORS, "kernel"), code(ACCESSORS, "vmm"))
    found.access = access_of(faults.rows.code[rows])
    host = np.where(on_disk, code(CAUSES, "major-host"), code(CAUSES, "minor-host"))
    by_placement = cause_of_waiter(take(placements.kind, woken, 0))
    found.cause = np.where(sigbus, code(CAUSES, "exit"), np.where(waited, by_placement, host))
    resolution = np.full(len(rows), code(RESOLUTIONS, "kernel"), np.int64)
    for number, name in RESOLUTION.items():
        resolution[(take(placements.kind, np.where(sigbus, own, woken), 0) == number)] = code(RESOLUTIONS, name)
    found.resolution = resolution
    found.handler_tid = np.where(
        sigbus, faults.rows.tid[rows], np.where(waited, take(placements.rows.tid, woken, 0), 0)
    )
    found.wake_ns = np.where(waited, end_ns - take(placements.end_ns, woken, 0), UNKNOWN)
    found.resolve_ns = np.where(sigbus, found.end_ns - take(placements.start_ns, own, 0), UNKNOWN)
    found.service_ns = np.where(sigbus, found.end_ns - start_ns, UNKNOWN)
    used.note(own, thread, start_ns, alone=True)
    used.note(woken, thread, start_ns, alone=True)
    tally.note("waiters_without_message", thread, start_ns, waited)
    tally.note("page_faults_unjoined", thread, start_ns, found.end_ns == UNKNOWN)
    return Anchored(found, start_ns)


def _ends(context: Context, thread: I64, start_ns: I64, next_ns: I64) -> tuple[I64, Bools]:
    """When each fault ended, or UNKNOWN, and whether the release of mmap_lock tells it: the counter of pages does else.

    Notes which are open: an event to come can tell of another end until the thread faults again.
    """
    end_ns = context.release_ns(thread, start_ns, next_ns)
    released: Bools = end_ns != UNKNOWN
    end_ns = np.where(released, end_ns, counted_ns(context, thread, start_ns, next_ns))
    coming = context.events.more(
        Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL, Kind.MMAP_LOCK_RELEASED, Kind.RSS_STAT, *FILE_KINDS
    )
    context.open.note(thread, start_ns, ~released & (next_ns == NEVER) & take(coming, thread, False))
    return end_ns, released


def _note_open(context: Context, waiting: Waiting, rows: I64, own: I64) -> None:
    """Say which page faults may still turn out to be userfaults: those (`rows`) on pages that are asked for, or placed.

    `own`: the placement by which each one's thread resolved it itself (-1: none).
    """
    asked, events, faults = context.asked, context.events, context.page_faults
    thread, ts_ns, page = faults.rows.thread, faults.rows.ts_ns, faults.page
    new = context.untold(thread, ts_ns)
    in_kvm = faults.rows.kind == Kind.PAGE_FAULT_KERNEL
    context.open.note(thread, ts_ns, new & in_kvm & context.runs.unsure(thread, ts_ns))
    if context.last or asked is None:
        return
    within = context.horizon.after(thread, ts_ns) == NEVER
    coming = asked.last_ns(page) > events.until_ns
    messages = waiting.messages
    open_pages = messages.page[waiting.open | ((messages.thread < 0) & ~messages.settled)]
    is_asked = coming | np.isin(page, open_pages)
    context.open.note(thread, ts_ns, new & within & is_asked)
    # A sleep to come may be a waiter's, whose message nobody reads.
    near = context.next_page_fault_ns(thread, ts_ns + 1) == NEVER
    near &= context.sleeps.count(thread, ts_ns, np.full(len(ts_ns), NEVER, np.int64)) < SLEEPS
    near &= take(context.wakes.coming, thread, False) & take(events.more(Kind.SCHED_OUT), thread, False)
    context.open.note(thread, ts_ns, new & near & (asked.last_placed_ns(page) > events.until_ns))
    placer = take(events.more(*(Kind(kind) for kind in RESOLUTION)), thread, False) & asked.placed(page)
    found = np.full(len(thread), -1, np.int64)
    found[rows] = own
    context.open.note(thread, ts_ns, new & np.where(found < 0, within & placer, is_asked & asked.placed(page)))


def _slept_interruptibly(context: Context, thread: I64, start_ns: I64, end_ns: I64) -> Bools:
    """Whether each thread slept in a way in which a page is never waited for, within [start, end)."""
    sleeps = context.sleeps
    found = np.zeros(len(thread), np.bool_)
    sleep = sleeps.first_from(thread, start_ns)
    for _ in range(_SLEEPS_LOOKED_AT):
        within = (sleep >= 0) & (take(sleeps.out_ns, sleep, NEVER) < end_ns)
        found |= within & (take(sleeps.state, sleep, 0) & _UNINTERRUPTIBLE == 0)
        sleep = np.where(within, sleeps.first_from(thread, take(sleeps.in_ns, sleep, NEVER)), -1)
        if not (sleep >= 0).any():
            break
    return found
