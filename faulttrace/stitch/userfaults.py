"""Faults that userspace resolves through a userfaultfd: one message, one sleep, one placing ioctl, joined.

The message is the one marker that every userfault has, a guest's included. What is around it is looked up from there.
"""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import (
    CAUSES,
    UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
)
from faultreplay.faulttrace.stitch.claims import Used
from faultreplay.faulttrace.stitch.ends import fill_common
from faultreplay.faulttrace.stitch.extents import Ending, Opening, endings_of, mend_lost, openings_of, still_open
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.keys import NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.messages import Messages, note_messages, read_messages
from faultreplay.faulttrace.stitch.shed import until_next
from faultreplay.faulttrace.stitch.tally import Tally
from faultreplay.faulttrace.stitch.waiters import stitch_waiters
from faultreplay.faulttrace.stitch.waiting import Waiting


def stitch_userfaults(context: Context, used: Used, tally: Tally) -> tuple[Anchored, Anchored, Waiting]:
    """Every userfault: those whose message was read, and waiters that were woken before theirs was.

    And the messages with what is known of each, for the next stretch.
    """
    messages, spaces = read_messages(context, tally)
    opening = openings_of(context, messages)
    order = np.lexsort((messages.read_ns, opening.start_ns, messages.thread))
    messages, opening = messages.pick(order), opening.pick(order)
    mend_lost(context, messages, opening)
    ending = endings_of(context, messages, opening, spaces)
    is_open = still_open(context, messages, opening, ending)
    waiting = Waiting(messages, opening.start_ns, ending.placed_ns, ending.wake, is_open)
    waiting.note(context, ending.end_ns)

    joined = ending.end_ns != UNKNOWN
    accounted = np.zeros(len(context.wakes), bool)
    accounted[ending.wake[ending.wake >= 0]] = True
    note_messages(tally, "messages_joined", messages, joined)
    for reason, chosen in _reasons(context, messages, opening, ending, joined).items():
        note_messages(tally, "messages_unjoined", messages, chosen, reason)
    note_messages(tally, "messages_repeated", messages, opening.repeated)
    used.note(ending.placed_by, messages.thread, messages.read_ns, messages.settled)
    found = _merge(_faults(context, messages, opening, ending, tally), messages, opening, ending)
    first = ~opening.repeated
    told = Anchored(found, messages.read_ns[first], messages.settled[first])
    return told, stitch_waiters(context, accounted, used, tally), waiting


def _faults(context: Context, messages: Messages, opening: Opening, ending: Ending, tally: Tally) -> Found:
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
    note_messages(tally, "messages_late", messages, late)
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


def _merge(found: Found, messages: Messages, opening: Opening, ending: Ending) -> Found:
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


def _reasons(context: Context, messages: Messages, opening: Opening, ending: Ending, joined: Bools) -> dict[str, Bools]:
    known = np.where(messages.thread >= 0, messages.thread, -1 - np.arange(len(joined)))
    start_ns = np.where(messages.thread >= 0, opening.start_ns, messages.read_ns)
    shed = ~joined & context.shed.touch(start_ns, until_next(known, start_ns, NEVER))
    joined = joined | shed
    found, placed = messages.thread >= 0, ending.placed_by >= 0
    waiting = (opening.asleep >= 0) & (take(context.sleeps.over_ns, opening.asleep, 0) == NEVER)
    return {
        "while a group of probes was shed": shed,
        "waiting thread not found": ~joined & ~found & (messages.named_tid <= 0),
        "waiting thread not recorded (a kernel worker?)": ~joined & ~found & (messages.named_tid > 0),
        "still waiting at the end": ~joined & found & ~placed & waiting,
        "no ioctl placed its page": ~joined & found & ~placed & ~waiting,
        "end not seen": ~joined & found & placed,
    }
