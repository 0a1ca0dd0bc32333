"""Waiters whose message was not read: the page came for another fault on it, or the freeze ended first."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.claims import Used
from faultreplay.faulttrace.stitch.ends import fill_common, find_end
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.horizon import SLEEPS
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.stage2 import access_of
from faultreplay.faulttrace.stitch.tally import Tally


def stitch_waiters(context: Context, accounted: Bools, used: Used, tally: Tally) -> Anchored:
    """Threads that an ioctl woke although no message of theirs was read: their page came for another's fault."""
    wakes, sleeps, placements = context.wakes, context.sleeps, context.placements
    rows = np.flatnonzero(~accounted & (wakes.sleep >= 0) & context.untold(wakes.thread, wakes.ts_ns))
    thread, placed_by, sleep = wakes.thread[rows], wakes.placement[rows], wakes.sleep[rows]
    out_ns, back_ns = take(sleeps.out_ns, sleep, 0), take(sleeps.in_ns, sleep, NEVER)
    pf_row = page_fault_before(context, thread, out_ns)
    pf_ns = take(context.page_faults.rows.ts_ns, pf_row, UNKNOWN)
    pf_page = take(context.page_faults.page, pf_row, 0)
    in_guest = context.runs.inside(thread, out_ns)
    guest_ns, guest_by, guest_access = context.guest.opener(thread, out_ns)
    from_guest = in_guest & (guest_ns > pf_ns)
    start_ns = np.where(from_guest, guest_ns, pf_ns)
    end_ns, end_by, spte, closed = find_end(context, thread, start_ns, back_ns, in_guest)

    owner = take(context.tgid_of, thread, 0)
    mapped = context.memory.host_address(owner, take(context.guest.sptes.addr, spte, 0), start_ns)
    granule = context.memory.granule(owner, take(placements.lo, placed_by, 0))
    one_page = take(placements.bytes, placed_by, 0) <= granule
    guest_page = np.where(placements.covers(placed_by, mapped), mapped, take(placements.lo, placed_by, 0))
    page = context.memory.page(owner, np.where(from_guest, guest_page, pf_page))
    sure = np.where(from_guest, one_page | placements.covers(placed_by, mapped), placements.covers(placed_by, pf_page))
    # A wide unprotect wakes guests whose page is not known without memory slots: that is a fault, too.
    sure |= from_guest & (take(placements.kind, placed_by, 0) == Kind.UFFD_WRITEPROTECT)
    keep = np.flatnonzero(sure & (start_ns != UNKNOWN) & (start_ns <= out_ns))
    explained = np.zeros(len(rows), bool)
    explained[keep] = True
    tally.note("wakes_unexplained", thread, wakes.ts_ns[rows], ~explained)

    fallback = end_ns == UNKNOWN
    end_by = np.where(fallback & (back_ns < NEVER), code(ENDS, "in"), end_by)
    end_ns = np.where(fallback, np.where(back_ns < NEVER, back_ns, UNKNOWN), end_ns)
    found = Found.blank(len(rows))
    found.thread, found.start_ns, found.end_ns, found.page = thread, start_ns, end_ns, page
    found.start_by = np.where(from_guest, guest_by, code(STARTS, "page-fault"))
    found.end_by = np.where(end_ns == UNKNOWN, code(ENDS, "none"), end_by)
    fill_common(context, found, placed_by, in_guest, in_guest & ~from_guest)
    kind = take(placements.kind, placed_by, 0)
    # A bare wake tells less than what it delivered.
    continued = found.resolution == code(RESOLUTIONS, "continue")
    found.cause = np.where(continued, code(CAUSES, "minor"), cause_of_waiter(kind))
    pf_access = access_of(take(context.page_faults.rows.code, pf_row, 0))
    found.access = np.where(kind == Kind.UFFD_WRITEPROTECT, 1, np.where(from_guest, guest_access, pf_access))
    found.handler_tid = take(placements.rows.tid, placed_by, 0)
    found.wake_ns = np.where(end_ns != UNKNOWN, end_ns - wakes.ts_ns[rows], UNKNOWN)
    tally.note("waiters_without_message", thread[keep], wakes.ts_ns[rows][keep])
    used.note(placed_by[keep], thread[keep], wakes.ts_ns[rows][keep])
    began_ns = np.where(start_ns == UNKNOWN, out_ns, np.minimum(start_ns, out_ns))
    unsure = context.runs.unsure(thread, out_ns)
    began_ns = np.where(unsure & (guest_ns != UNKNOWN), np.minimum(began_ns, guest_ns), began_ns)
    is_open = ~sure | ~closed | unsure
    _note_open(context, rows, began_ns, found.end_ns, is_open)
    _note_sleepers(context)
    return Anchored(found.pick(keep), wakes.ts_ns[rows][keep])


def _note_open(context: Context, rows: I64, began_ns: I64, end_ns: I64, is_open: Bools) -> None:
    """Say which waiters (rows of wakes) an event to come may change: a late message, the way back onto a CPU."""
    if context.last or context.asked is None:
        return
    wakes, sleeps, events = context.wakes, context.sleeps, context.events
    thread, wake_ns = wakes.thread[rows], wakes.ts_ns[rows]
    away = (sleeps.out_since_ns < NEVER) & events.more(Kind.SCHED_OUT, Kind.SCHED_IN)
    is_open = is_open | ((take(sleeps.over_ns, wakes.sleep[rows], 0) == NEVER) & take(away, thread, False))
    if context.asked.last_message_ns > events.until_ns:
        is_open |= context.horizon.after(thread, wake_ns) == NEVER
    since_ns = np.minimum(began_ns, wake_ns)
    context.open.note(thread, since_ns, is_open)
    context.open.keep_together(thread, since_ns, np.maximum(wake_ns, end_ns))


def page_fault_before(context: Context, thread: I64, out_ns: I64) -> I64:
    """The page fault (row; -1: none) that each thread may wait for in the sleep that began at each time."""
    row = context.page_faults.by_thread.last_until(thread, out_ns)
    pf_ns = take(context.page_faults.rows.ts_ns, row, UNKNOWN)
    near = context.untold(thread, pf_ns) & (context.sleeps.count(thread, pf_ns, out_ns) <= SLEEPS)
    return np.where(near, row, -1)


def _note_sleepers(context: Context) -> None:
    """Say which sleepers may still turn out to be waiters: by a wake-up, or by the end of the ioctl that it is of."""
    if context.last or context.asked is None:
        return
    sleeps, pending = context.sleeps, context.wakes.pending
    away = np.flatnonzero((sleeps.out_since_ns < NEVER) & context.wakes.coming)
    last = sleeps.last_until(away, np.full(len(away), NEVER, np.int64))
    last = last[take(sleeps.over_ns, last, 0) == NEVER]
    woken = sleeps.covering(pending.thread, pending.ts_ns, pending.ts_ns)
    sleep = np.concatenate([last, woken[woken >= 0]])
    thread, out_ns = sleeps.thread[sleep], sleeps.out_ns[sleep]
    row = page_fault_before(context, thread, out_ns)
    placed = context.asked.last_placed_ns(take(context.page_faults.page, row, 0)) > context.events.until_ns
    context.open.note(thread, take(context.page_faults.rows.ts_ns, row, UNKNOWN), (row >= 0) & placed)
    guest_ns, *_ = context.guest.opener(thread, out_ns)
    in_guest = context.runs.inside(thread, out_ns) | context.runs.unsure(thread, out_ns)
    context.open.note(thread, np.where(in_guest & (guest_ns != UNKNOWN), guest_ns, out_ns))


def cause_of_waiter(kind: I64) -> I64:
    """What a waiter waited for, by the kind of the ioctl that let it go."""
    minor = np.where(kind == Kind.UFFD_CONTINUE, code(CAUSES, "minor"), code(CAUSES, "missing"))
    return np.where(kind == Kind.UFFD_WRITEPROTECT, code(CAUSES, "write-protect"), minor)
