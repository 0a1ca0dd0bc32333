"""What all ways of finding a fault share: its end marker, its owner, its resolution."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.found import ENDS, UNKNOWN, Found, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.placements import RESOLUTION

_PLACES_NOTHING = [Kind.UFFD_WAKE, Kind.UFFD_UNREGISTER]


def find_end(
    context: Context, thread: I64, start_ns: I64, from_ns: I64, in_guest: Bools
) -> tuple[I64, I64, I64, Bools]:
    """(time or UNKNOWN, number in `ENDS`, spte row): the first closing marker of each thread from `from_ns` on.

    And whether no event to come can change it.
    """
    searched = (thread >= 0) & (from_ns < NEVER)
    who = np.where(searched, thread, -1)
    after = np.where(searched, from_ns, 0)
    next_fault = context.next_page_fault_ns(who, np.maximum(start_ns + 1, after))
    left_ns = context.runs.next_exit_ns(who, after)
    until_ns = _until_next_access_ns(context, who, after, left_ns)
    release_ns = context.release_ns(who, after, np.where(in_guest, until_ns, next_fault))
    guest_ns, guest_by, spte = context.guest.end(who, after, until_ns)
    in_guest = in_guest & searched
    # Another vCPU may have made the entry: then nothing is mapped, and the end of the host's retry is the best marker.
    by_guest = in_guest & (guest_ns != UNKNOWN)
    end_ns = np.where(by_guest, guest_ns, release_ns)
    released = np.where(release_ns != UNKNOWN, code(ENDS, "mmap-lock"), code(ENDS, "none"))
    end_by = np.where(by_guest, guest_by, released)
    # Whether no event to come can change it: a mapping may still be followed by an entry.
    coming = context.events.more(Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL, Kind.MMAP_LOCK_RELEASED)
    closed = (end_ns != UNKNOWN) | (next_fault < NEVER) | ~take(coming, who, False)
    entered = ~np.isin(who, context.guest.with_entries) | (guest_by == code(ENDS, "entry"))
    closed_guest = (by_guest & entered) | (until_ns < NEVER) | ~take(context.events.alive(), who, False)
    return end_ns, end_by, np.where(in_guest, spte, -1), np.where(in_guest, closed_guest, closed)


def _until_next_access_ns(context: Context, thread: I64, from_ns: I64, limit_ns: I64) -> I64:
    """Until when a guest entry made by `thread` still belongs to its fault: a retry may walk the same address again."""
    guest = context.guest
    before = guest.last_walk(thread, from_ns)
    unopened_ns = take(guest.walks.ts_ns, guest.next_walk(thread, from_ns), NEVER)
    until_ns = np.where(before >= 0, take(guest.other_walk_ns, before, NEVER), unopened_ns)
    return np.minimum(np.minimum(until_ns, guest.next_exit_ns(thread, from_ns)), limit_ns)


def awaits(context: Context) -> Bools:
    """Per thread, whether what last took it out of its guest may still turn out to be more than it seems.

    By an event of its own, or by a message of a fault in which it left the guest.
    """
    events, asked = context.events, context.asked
    alive = events.alive()
    if context.last or asked is None or asked.last_message_ns <= events.until_ns:
        return alive
    everyone = np.arange(len(alive))
    return alive | context.runs.inside(everyone, np.full(len(everyone), events.until_ns))


def fill_common(context: Context, found: Found, placed_by: I64, in_guest: Bools, by_kernel: Bools) -> None:
    """Owner, granule, accessor and resolution of faults that the placements `placed_by` (-1: none) ended."""
    placements = context.placements
    owner = take(context.tgid_of, found.thread, 0)
    # The handler may be another process than the memory's owner; with the thread unknown it is the best guess.
    found.vm = np.where(found.thread >= 0, owner, take(placements.tgid, placed_by, 0))
    found.granule = context.memory.granule(found.vm, found.page)
    found.accessor = np.where(
        by_kernel, code(ACCESSORS, "kernel"), np.where(in_guest, code(ACCESSORS, "vcpu"), code(ACCESSORS, "vmm"))
    )
    kind = take(placements.kind, placed_by, 0)
    resolution = np.full(len(found), code(RESOLUTIONS, "none"), np.int64)
    for number, name in RESOLUTION.items():
        resolution[kind == number] = code(RESOLUTIONS, name)
    # A bare wake delivers what was placed without waking (…_DONTWAKE) just before.
    bare = np.flatnonzero(np.isin(kind, _PLACES_NOTHING))
    if len(bare):
        quiet = placements.places & ~placements.wakes
        anywhere, here = np.zeros(len(placements), np.int64), np.zeros(len(bare), np.int64)
        earlier = placements.first_covering(quiet, anywhere, here, found.page[bare], found.start_ns[bare])
        until_ns = take(placements.end_ns, placed_by[bare], 0)
        delivered = (earlier >= 0) & (take(placements.end_ns, earlier, NEVER) <= until_ns)
        for number, name in RESOLUTION.items():
            resolution[bare[delivered & (take(placements.kind, earlier, 0) == number)]] = code(RESOLUTIONS, name)
    found.resolution = resolution
