"""How each userfault began and ended, looked up around its message, and whether that may still change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.ends import find_end
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.messages import Messages
from faultreplay.faulttrace.stitch.stage2 import access_of


@dataclass
class Opening:
    """How each fault began. `asleep`: the sleep under way when its message was read (-1: none).

    `lost`: what began it was not seen.
    """

    start_ns: I64
    start_by: I64
    access: I64
    in_guest: Bools
    by_kernel: Bools
    asleep: I64
    repeated: Bools
    lost: Bools

    def pick(self, rows: I64) -> Opening:
        """Of these rows."""
        return Opening(**{name: values[rows] for name, values in self.__dict__.items()})


@dataclass
class Ending:
    """How each fault ended: the placement that served it, the wake that came of it (-1: not seen), the way back."""

    placed_by: I64
    placed_ns: I64
    wake: I64
    first_wake: I64
    """the first wake-up, whether or not its ioctl covers the page"""
    end_ns: I64
    end_by: I64
    sleep: I64
    sure: Bools
    """no event to come changes the end"""


def openings_of(context: Context, messages: Messages) -> Opening:
    """What took each thread out of its access: the last page fault on the page, or the guest's last exit or walk."""
    thread, read_ns = messages.thread, messages.read_ns
    row = context.page_faults.last_on_page(thread, messages.page, read_ns)
    pf_ns = take(context.page_faults.rows.ts_ns, row, UNKNOWN)
    row = np.where(context.untold(thread, pf_ns) & (context.horizon.after(thread, pf_ns) >= read_ns), row, -1)
    pf_ns = np.where(row >= 0, pf_ns, UNKNOWN)
    in_guest = context.runs.inside(thread, read_ns) & (thread >= 0)
    guest_ns, guest_by, guest_access = context.guest.opener(thread, read_ns)
    guest_ns = np.where(in_guest, guest_ns, UNKNOWN)
    from_guest = guest_ns > pf_ns
    pf_access = access_of(take(context.page_faults.rows.code, row, 0))
    # A reader on another CPU may be faster than the waiter's way to sleep: then it is the next sleep.
    asleep = context.sleeps.covering(thread, read_ns, read_ns)
    following = context.sleeps.first_from(thread, read_ns)
    near = take(context.sleeps.out_ns, following, NEVER) <= context.horizon.after(thread, read_ns)
    following = np.where(near, following, -1)
    return Opening(
        start_ns=np.where(from_guest, guest_ns, pf_ns),
        start_by=np.where(from_guest, guest_by, code(STARTS, "page-fault")),
        access=np.where(from_guest, guest_access, pf_access),
        in_guest=in_guest,
        by_kernel=in_guest & ~from_guest & (pf_ns != UNKNOWN),
        asleep=np.where(asleep >= 0, asleep, following),
        repeated=np.zeros(len(thread), bool),
        lost=np.zeros(len(thread), bool),
    )


def mend_lost(context: Context, messages: Messages, opening: Opening) -> None:
    """Tell a second message of one fault from a fault whose opener was not seen; start the latter at its sleep.

    Woken with its page still missing or protected, a thread waits again and sends a second message.
    """
    same = np.zeros(len(opening.start_ns), bool)
    same[1:] = (
        (messages.thread[1:] == messages.thread[:-1])
        & (messages.thread[1:] >= 0)
        & (opening.start_ns[1:] == opening.start_ns[:-1])
        & (opening.start_ns[1:] != UNKNOWN)
    )
    same_page = np.zeros_like(same)
    same_page[1:] = messages.page[1:] == messages.page[:-1]
    # Between two messages of one fault its thread takes no other.
    last_ns = _last_fault_ns(context, messages.thread, messages.read_ns)
    went_on = np.zeros_like(same)
    went_on[1:] = last_ns[1:] > messages.read_ns[:-1]
    went_on &= opening.start_by == code(STARTS, "page-fault")
    opening.repeated = same & same_page & ~went_on
    lost = (opening.start_ns == UNKNOWN) | (same & ~opening.repeated)
    opening.lost = lost
    out_ns = take(context.sleeps.out_ns, opening.asleep, UNKNOWN)
    slept = out_ns != UNKNOWN
    by = np.where(slept, code(STARTS, "out"), code(STARTS, "read"))
    opening.start_by = np.where(lost, by, opening.start_by)
    since = np.where(slept, np.minimum(out_ns, messages.read_ns), messages.read_ns)
    opening.start_ns = np.where(lost, since, opening.start_ns)


def _last_fault_ns(context: Context, thread: I64, until_ns: I64) -> I64:
    row = context.page_faults.by_thread.last_until(thread, until_ns)
    last_ns: I64 = take(context.page_faults.rows.ts_ns, row, UNKNOWN)
    return last_ns


def endings_of(context: Context, messages: Messages, opening: Opening, spaces: I64) -> Ending:
    """How each fault ended; `spaces`: per placement the number of its userfaultfd."""
    placements, sleeps, wakes = context.placements, context.sleeps, context.wakes
    thread, read_ns = messages.thread, messages.read_ns
    # The first placement that woke this thread ended its fault; else the first that covers the page.
    over_ns = context.horizon.after(thread, read_ns)
    wake = wakes.first_from(thread, np.where(opening.repeated, read_ns, opening.start_ns))
    wake = np.where(take(wakes.ts_ns, wake, NEVER) <= over_ns, wake, -1)
    woke = placements.covers(take(wakes.placement, wake, -1), messages.page)
    unwitnessed = placements.first_covering(placements.wakes, spaces, messages.space, messages.page, read_ns)
    unwitnessed = np.where(take(placements.end_ns, unwitnessed, NEVER) <= over_ns, unwitnessed, -1)
    placed_by = np.where(woke, take(wakes.placement, wake, -1), unwitnessed)
    ioctl_start, ioctl_end = take(placements.start_ns, placed_by, NEVER), take(placements.end_ns, placed_by, NEVER)
    # The ioctl may return long after the wake, when the waiter takes its CPU: the wake itself is the better time.
    placed_ns = np.where(woke, take(wakes.ts_ns, wake, NEVER), ioctl_end)
    sleep = np.where(woke, take(wakes.sleep, wake, -1), sleeps.covering(thread, ioctl_start, ioctl_end))
    # Woken, but no ioctl was seen: the userfaultfd was closed, or that event was lost.
    asleep = opening.asleep
    other_way = (placed_by < 0) & (asleep >= 0) & (take(sleeps.in_ns, asleep, NEVER) < NEVER)
    sleep = np.where(other_way, asleep, sleep)

    back_ns = take(sleeps.in_ns, sleep, UNKNOWN)
    back_ns = np.where(back_ns == NEVER, UNKNOWN, back_ns)
    never_slept = (sleep < 0) & (placed_by >= 0)
    # Without a sleep, or with its end lost, the closing marker is looked for from the wake or the ioctl on.
    awake_ns = np.where(woke, placed_ns, np.where(never_slept, ioctl_start, NEVER))
    from_ns = np.where(back_ns >= 0, back_ns, awake_ns)
    end_ns, end_by, _, sure = find_end(context, thread, opening.start_ns, from_ns, opening.in_guest)
    unmarked = end_ns == UNKNOWN
    end_by = np.where(unmarked & (back_ns >= 0), code(ENDS, "in"), end_by)
    end_ns = np.where(unmarked, back_ns, end_ns)
    at_ioctl = unmarked & never_slept
    end_by = np.where(at_ioctl, code(ENDS, "ioctl"), end_by)
    end_ns = np.where(at_ioctl, np.maximum(placed_ns, read_ns), end_ns)
    joined = (end_ns != UNKNOWN) & (end_ns >= opening.start_ns) & (thread >= 0)
    return Ending(
        placed_by=placed_by,
        placed_ns=np.where(joined & (placed_by >= 0), np.minimum(placed_ns, end_ns), placed_ns),
        wake=np.where(woke, wake, -1),
        first_wake=wake,
        end_ns=np.where(joined, end_ns, UNKNOWN),
        end_by=np.where(joined, end_by, code(ENDS, "none")),
        sleep=sleep,
        sure=sure | (from_ns == NEVER),
    )


def still_open(context: Context, messages: Messages, opening: Opening, ending: Ending) -> Bools:
    """Which messages an event to come may still change."""
    thread, read_ns, asked = messages.thread, messages.read_ns, context.asked
    if context.last or asked is None:
        return np.zeros(len(thread), bool)
    events, sleeps, wakes = context.events, context.sleeps, context.wakes
    over_ns = context.horizon.after(thread, read_ns)
    within = over_ns == NEVER
    more = asked.last_message_ns > events.until_ns
    # Another message of the same fault.
    faulted_ns = _last_fault_ns(context, thread, np.full(len(thread), NEVER, np.int64))
    went_on = np.where(
        opening.start_by == code(STARTS, "page-fault"),
        faulted_ns > read_ns,
        context.guest.opened_ns(thread) > opening.start_ns,
    )
    is_open = more & ~opening.lost & ~went_on
    # A wake-up, and the ioctl that it is of.
    pending = wakes.pending_index.first_from(thread, np.where(opening.repeated, read_ns, opening.start_ns))
    pending_ns = take(wakes.pending.ts_ns, pending, NEVER)
    wake_ns = take(wakes.ts_ns, ending.first_wake, NEVER)
    is_open |= (pending_ns < wake_ns) & (pending_ns <= over_ns)
    is_open |= within & (ending.first_wake < 0) & take(events.more(Kind.SCHED_WAKING), thread, False)
    is_open |= within & (ending.placed_by < 0) & messages.placements_coming
    # The sleep, and what comes after it.
    away = (sleeps.out_since_ns < NEVER) & events.more(Kind.SCHED_OUT, Kind.SCHED_IN)
    for sleep in (ending.sleep, opening.asleep):
        is_open |= (sleep >= 0) & (take(sleeps.over_ns, sleep, 0) == NEVER) & take(away, thread, False)
    unslept = (opening.asleep < 0) & (opening.lost | (ending.placed_by < 0))
    is_open |= unslept & within & take(events.more(Kind.SCHED_OUT), thread, False)
    unsure = context.runs.unsure(thread, read_ns) & (thread >= 0)
    guest_ns, *_ = context.guest.opener(thread, read_ns)
    context.open.note(thread, guest_ns, unsure & (guest_ns != UNKNOWN))
    is_open |= ~ending.sure | unsure
    return is_open & (thread >= 0)
