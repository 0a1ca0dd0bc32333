"""Faults that userspace resolves through a userfaultfd: one message, one sleep, one placing ioctl, joined.

The message is the one marker that every userfault has, a guest's included. What is around it is looked up from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faultreplay.faulttrace.schema import (
    CAUSES,
    UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
)
from faultreplay.faulttrace.stitch.claims import Used
from faultreplay.faulttrace.stitch.ends import fill_common, find_end
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.messages import Messages, read_messages
from faultreplay.faulttrace.stitch.shed import until_next
from faultreplay.faulttrace.stitch.stage2 import access_of
from faultreplay.faulttrace.stitch.tally import Tally
from faultreplay.faulttrace.stitch.waiters import stitch_waiters


def stitch_userfaults(context: Context, used: Used, tally: Tally) -> tuple[Anchored, Anchored]:
    """Every userfault: those whose message was read, and waiters that were woken before theirs was."""
    messages, spaces = read_messages(context, tally)
    opening = _openings(context, messages)
    order = np.lexsort((messages.read_ns, opening.start_ns, messages.thread))
    messages, opening = messages.pick(order), opening.pick(order)
    _mend_lost(context, messages, opening)
    ending = _endings(context, messages, opening, spaces)

    joined = ending.end_ns != UNKNOWN
    accounted = np.zeros(len(context.wakes), bool)
    accounted[ending.wake[ending.wake >= 0]] = True
    new = messages.read_ns >= context.told_messages_ns
    tally.note("messages_joined", None, messages.read_ns, new & joined)
    for reason, chosen in _reasons(context, messages, opening, ending, joined).items():
        tally.note("messages_unjoined", None, messages.read_ns, new & chosen, reason)
    tally.note("messages_repeated", None, messages.read_ns, new & opening.repeated)
    used.note(ending.placed_by)
    found = _merge(_faults(context, messages, opening, ending, tally), messages, opening, ending)
    read_ns = messages.read_ns[~opening.repeated]
    fresh = read_ns >= context.told_messages_ns
    return Anchored(found.pick(fresh), read_ns[fresh]), stitch_waiters(context, accounted, used, tally)


@dataclass
class _Opening:
    """How each fault began. `asleep`: the sleep under way when its message was read (-1: none)."""

    start_ns: I64
    start_by: I64
    access: I64
    in_guest: Bools
    by_kernel: Bools
    asleep: I64
    repeated: Bools

    def pick(self, rows: I64) -> _Opening:
        return _Opening(**{name: values[rows] for name, values in self.__dict__.items()})


@dataclass
class _Ending:
    """How each fault ended: the placement that served it, the wake that came of it (-1: not seen), the way back."""

    placed_by: I64
    placed_ns: I64
    wake: I64
    end_ns: I64
    end_by: I64


def _openings(context: Context, messages: Messages) -> _Opening:
    """What took each thread out of its access: the last page fault on the page, or the guest's last exit or walk."""
    thread, read_ns = messages.thread, messages.read_ns
    row = context.page_faults.last_on_page(thread, messages.page, read_ns)
    pf_ns = take(context.page_faults.rows.ts_ns, row, UNKNOWN)
    in_guest = context.runs.inside(thread, read_ns) & (thread >= 0)
    guest_ns, guest_by, guest_access = context.guest.opener(thread, read_ns)
    guest_ns = np.where(in_guest, guest_ns, UNKNOWN)
    from_guest = guest_ns > pf_ns
    pf_access = access_of(take(context.page_faults.rows.code, row, 0))
    # A reader on another CPU may be faster than the waiter's way to sleep: then it is the next sleep.
    asleep = context.sleeps.covering(thread, read_ns, read_ns)
    return _Opening(
        start_ns=np.where(from_guest, guest_ns, pf_ns),
        start_by=np.where(from_guest, guest_by, code(STARTS, "page-fault")),
        access=np.where(from_guest, guest_access, pf_access),
        in_guest=in_guest,
        by_kernel=in_guest & ~from_guest & (pf_ns != UNKNOWN),
        asleep=np.where(asleep >= 0, asleep, context.sleeps.first_from(thread, read_ns)),
        repeated=np.zeros(len(thread), bool),
    )


def _mend_lost(context: Context, messages: Messages, opening: _Opening) -> None:
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
    opening.repeated = same & same_page
    lost = (opening.start_ns == UNKNOWN) | (same & ~same_page)
    out_ns = take(context.sleeps.out_ns, opening.asleep, UNKNOWN)
    slept = out_ns != UNKNOWN
    by = np.where(slept, code(STARTS, "out"), code(STARTS, "read"))
    opening.start_by = np.where(lost, by, opening.start_by)
    since = np.where(slept, np.minimum(out_ns, messages.read_ns), messages.read_ns)
    opening.start_ns = np.where(lost, since, opening.start_ns)


def _endings(context: Context, messages: Messages, opening: _Opening, spaces: I64) -> _Ending:
    placements, sleeps, wakes = context.placements, context.sleeps, context.wakes
    thread, read_ns = messages.thread, messages.read_ns
    # The first placement that woke this thread ended its fault; else the first that covers the page.
    wake = wakes.first_from(thread, np.where(opening.repeated, read_ns, opening.start_ns))
    woke = placements.covers(take(wakes.placement, wake, -1), messages.page)
    unwitnessed = placements.first_covering(placements.wakes, spaces, messages.space, messages.page, read_ns)
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
    end_ns, end_by, _ = find_end(context, thread, opening.start_ns, from_ns, opening.in_guest)
    unmarked = end_ns == UNKNOWN
    end_by = np.where(unmarked & (back_ns >= 0), code(ENDS, "in"), end_by)
    end_ns = np.where(unmarked, back_ns, end_ns)
    at_ioctl = unmarked & never_slept
    end_by = np.where(at_ioctl, code(ENDS, "ioctl"), end_by)
    end_ns = np.where(at_ioctl, np.maximum(placed_ns, read_ns), end_ns)
    joined = (end_ns != UNKNOWN) & (end_ns >= opening.start_ns) & (thread >= 0)
    return _Ending(
        placed_by=placed_by,
        placed_ns=np.where(joined & (placed_by >= 0), np.minimum(placed_ns, end_ns), placed_ns),
        wake=np.where(woke, wake, -1),
        end_ns=np.where(joined, end_ns, UNKNOWN),
        end_by=np.where(joined, end_by, code(ENDS, "none")),
    )


def _faults(context: Context, messages: Messages, opening: _Opening, ending: _Ending, tally: Tally) -> Found:
    flags, read_ns, placed_ns = messages.flags, messages.read_ns, ending.placed_ns
    found = Found.blank(len(read_ns))
    found.thread, found.page, found.handler_tid = messages.thread, messages.page, messages.handler_tid
    found.start_ns, found.start_by = opening.start_ns, opening.start_by
    found.end_ns, found.end_by = ending.end_ns, ending.end_by
    fill_common(context, found, ending.placed_by, opening.in_guest, opening.by_kernel)
    minor = np.where(flags & UFFD_PAGEFAULT_FLAG_MINOR != 0, code(CAUSES, "minor"), code(CAUSES, "missing"))
    found.cause = np.where(flags & UFFD_PAGEFAULT_FLAG_WP != 0, code(CAUSES, "write-protect"), minor)
    wrote = flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) != 0
    found.access = np.where(wrote, 1, np.where(opening.access == 2, 2, 0))

    served = ending.placed_by >= 0
    late = served & (read_ns > placed_ns)
    tally.note("messages_late", None, read_ns, late & (read_ns >= context.told_messages_ns))
    timely = ~late & (read_ns >= found.start_ns)
    # A start known only from the reading leaves the queueing unknown.
    known_start = found.start_by != code(STARTS, "read")
    found.queue_ns = np.where(timely & known_start, read_ns - found.start_ns, UNKNOWN)
    placed = served & timely
    found.service_ns = np.where(placed, placed_ns - read_ns, UNKNOWN)
    ioctl_start = np.maximum(take(context.placements.start_ns, ending.placed_by, 0), read_ns)
    found.resolve_ns = np.where(placed, placed_ns - np.minimum(ioctl_start, placed_ns), UNKNOWN)
    witnessed = (found.end_ns != UNKNOWN) & served & (found.end_by != code(ENDS, "ioctl"))
    found.wake_ns = np.where(witnessed, found.end_ns - placed_ns, UNKNOWN)
    return found


def _merge(found: Found, messages: Messages, opening: _Opening, ending: _Ending) -> Found:
    """One row for each run of messages of one fault: the first message's reading, the last one's end."""
    if not opening.repeated.any():
        return found
    first = np.flatnonzero(~opening.repeated)
    last = np.append(first[1:], len(found)) - 1
    head, tail = found.pick(first), found.pick(last)
    several = last > first
    for name in ("end_ns", "end_by", "resolution", "wake_ns", "resolve_ns"):
        setattr(head, name, getattr(tail, name))
    known = several & (tail.service_ns != UNKNOWN) & (head.queue_ns != UNKNOWN)
    whole = ending.placed_ns[last] - messages.read_ns[first]
    head.service_ns = np.where(several, np.where(known, whole, UNKNOWN), head.service_ns)
    return head


def _reasons(
    context: Context, messages: Messages, opening: _Opening, ending: _Ending, joined: Bools
) -> dict[str, Bools]:
    known = np.where(messages.thread >= 0, messages.thread, -1 - np.arange(len(joined)))
    start_ns = np.where(messages.thread >= 0, opening.start_ns, messages.read_ns)
    shed = ~joined & context.shed.touch(start_ns, until_next(known, start_ns, NEVER))
    joined = joined | shed
    found, placed = messages.thread >= 0, ending.placed_by >= 0
    waiting = (opening.asleep >= 0) & (take(context.sleeps.in_ns, opening.asleep, 0) == NEVER)
    return {
        "while a group of probes was shed": shed,
        "waiting thread not found": ~joined & ~found & (messages.named_tid <= 0),
        "waiting thread not recorded (a kernel worker?)": ~joined & ~found & (messages.named_tid > 0),
        "still waiting at the end": ~joined & found & ~placed & waiting,
        "no ioctl placed its page": ~joined & found & ~placed & ~waiting,
        "end not seen": ~joined & found & placed,
    }
