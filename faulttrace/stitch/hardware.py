"""Faults of guests under hardware paging (VMX, SVM, arm64): kvm_exit, what happened, kvm_entry.

A fault that the VMM resolves shows as a kvm_userspace_exit with EFAULT where system calls were not recorded. An access
that faults again and again with nothing mapped between is one fault with rounds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.accesses import RETRY_NS, Accesses, is_retry, same_place
from faultreplay.faulttrace.stitch.claims import Claims
from faultreplay.faulttrace.stitch.ends import awaits
from faultreplay.faulttrace.stitch.found import ENDS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.stage2 import Stage2
from faultreplay.faulttrace.stitch.tally import Repeats, Tally
from faultreplay.faulttrace.stitch.trips import Trips, device_trips

_LEVEL_BITS: Final = 9
_TRIP_KINDS: Final = (
    *(Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_USERSPACE_EXIT, Kind.KVM_RUN_EXIT, Kind.KVM_MMU_SET_SPTE),
    *(Kind.KVM_MMU_FAST_PAGE_FAULT, Kind.KVM_MMIO, Kind.KVM_FAST_MMIO),
)
"""What may still happen to a fault while its trip has not ended."""
_NO_ENTRIES: Final = "no kvm_entry in the source"
_CUT: Final = "still out of the guest at the end"
_LOST: Final = "its kvm_entry is not in the trace"
_AGAIN: Final = "faulting again and again at the end"
_USELESS: Final = "KVM found nothing to do, and nothing follows"


def stitch_hardware(context: Context, claims: Claims, tally: Tally) -> Anchored:
    """Stage-2 faults that no userfault and no EFAULT of a recorded KVM_RUN explains."""
    faults = context.guest.stage2
    trips = Trips(context, faults)
    device_trips(context, tally)
    untold = context.untold(faults.thread, faults.ts_ns)
    for name, counted in (
        ("guest_faults", untold),
        ("guest_faults_untold", untold & ~faults.told),
        ("guest_faults_of_devices", untold & trips.device),
    ):
        tally.note(name, faults.thread, faults.ts_ns, counted)
    kept = untold & ~trips.device & ~claims.inside(faults.thread, faults.ts_ns)
    kept &= ~claims.opened(faults.thread, trips.start_ns)
    # With KVM_RUN recorded a fault handed to the VMM is found there, with all its stages.
    kept &= ~(trips.handed_over & np.isin(faults.thread, context.runs.told_threads))
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((faults.pos[rows], faults.thread[rows]))]
    tally.note("guest_faults_page_unknown", faults.thread[rows], faults.ts_ns[rows], ~faults.known[rows])
    if not len(rows):
        _note_open(context, None)
        return Anchored(Found.blank(0), np.zeros(0, np.int64))
    accesses = Accesses.of(faults, trips, rows, is_retry(context, faults, trips, rows))
    _note_open(context, accesses)
    return Anchored(_found(context, accesses, tally), faults.ts_ns[accesses.first])


def _note_open(context: Context, accesses: Accesses | None) -> None:
    """The last trip of a thread is open; so is an access that the thread's next fault may be a retry of."""
    guest, alive = context.guest, context.events.alive()
    exits = guest.exits
    last_exit = np.full(len(alive), -1, np.int64)
    last_exit[exits.thread] = np.arange(len(exits))  # in order of time: the last stays
    out = np.flatnonzero(awaits(context) & (last_exit >= 0))
    context.open.note(out, exits.ts_ns[last_exit[out]])
    if accesses is None:
        return
    faults, trips, last = accesses.faults, accesses.trips, accesses.last
    thread = faults.thread[last]
    # An exit whose own fault event is still to come looks like a fault on an unknown page: what it is shows later.
    uncertain = ~faults.told[accesses.first] & (faults.pos[accesses.first] == take(exits.pos, last_exit[thread], -1))
    final = np.append((thread[1:] != thread[:-1]) | uncertain[1:], True)
    since_ns = np.minimum(trips.start_ns[accesses.first], faults.ts_ns[accesses.first])
    coming = context.events.more(*_TRIP_KINDS)
    context.open.keep_together(thread, since_ns, faults.ts_ns[last])
    in_trip = (trips.limit_pos[last] == NEVER) & coming[thread]
    retried = final & ~_is_over(context, trips, faults, last, last_exit[thread])
    # Its next exit would show that the guest ran after all.
    stuck = _stuck(accesses) & context.events.more(Kind.KVM_EXIT)[thread]
    context.open.note(thread, since_ns, stuck | (alive[thread] & (in_trip | retried)))


def _is_over(context: Context, trips: Trips, faults: Stage2, rows: I64, last_exit: I64) -> Bools:
    """Whether no fault to come can be a retry of each of `rows`; see `is_retry`.

    `last_exit`: the thread's last exit in this stretch, -1: none. A fault to come lies in a trip that began with it,
    or in a later one.
    """
    guest, thread, ip = context.guest, faults.thread[rows], trips.ip[rows]
    handed = trips.handed_over[rows]
    went_on_at = take(guest.entries.ip, trips.entry_row[rows], 0)
    over = (ip == 0) | ((went_on_at != 0) & (went_on_at != ip))
    over |= trips.mapped_from(thread, faults.pos[rows]) < NEVER
    since_pos = np.where(handed, trips.left_pos[rows] + 1, faults.pos[rows])
    over |= take(trips.departures.pos, trips.departures.index.first_from(thread, since_pos), NEVER) < NEVER
    entered_ns = np.where(trips.entry_row[rows] >= 0, trips.entry_ns[rows], faults.ts_ns[rows])
    since_ns = take(guest.exits.ts_ns, last_exit, 0)
    since_ns = np.where(last_exit >= 0, since_ns, context.events.until_ns)
    late = since_ns - entered_ns >= RETRY_NS
    run = same_place(context)
    moved = (trips.exit_row[rows] < 0) | (take(run, trips.exit_row[rows], -1) != take(run, last_exit, -2))
    later = trips.next_exit_pos[rows] < take(guest.exits.pos, last_exit, -1)
    found: Bools = over | (late & (~handed | (moved & later)))
    return found


def _found(context: Context, accesses: Accesses, tally: Tally) -> Found:
    faults, trips = accesses.faults, accesses.trips
    first, last = accesses.first, accesses.last
    every_end_ns, every_end_by = trips.ends(context)
    found = Found.blank(len(first))
    found.thread, found.start_ns, found.start_by = faults.thread[first], trips.start_ns[first], trips.start_by[first]
    found.end_ns, found.end_by = every_end_ns[last], every_end_by[last]
    stuck = _stuck(accesses)
    found.end_ns = np.where(stuck, UNKNOWN, found.end_ns)
    found.end_by = np.where(stuck, code(ENDS, "none"), found.end_by)
    found.vm = take(context.tgid_of, found.thread, 0)
    found.accessor = np.full(len(first), code(ACCESSORS, "vcpu"), np.int64)
    found.access = faults.access[first]
    found.rounds, found.ip = accesses.rounds, trips.ip[first]
    _resolve(context, accesses, found)
    told = np.where(faults.known[first], first, last)
    _place(context, found, faults.gpa[told], trips.spte_row[last], faults.known[told])
    _count(context, accesses, found, stuck, tally)
    return found


def _stuck(accesses: Accesses) -> Bools:
    """Accesses that were still faulting when the trace ends: nothing of the thread follows the last try.

    What userspace resolved faults once more before it gets past: that is no retry.
    """
    last, trips = accesses.last, accesses.trips
    handed = accesses.count(trips.handed_over[accesses.rows])
    useless = accesses.count((trips.spurious & ~trips.handed_over)[accesses.rows])
    tried = (accesses.rounds - handed > 1) | ((handed == 0) & (useless == accesses.rounds))
    tried |= (handed > 1) & trips.handed_over[last]
    stuck: Bools = tried & (trips.next_exit_pos[last] == NEVER) & (trips.spte_row[last] < 0)
    return stuck & ((trips.left_row[last] < 0) | trips.handed_over[last])


def _resolve(context: Context, accesses: Accesses, found: Found) -> None:
    """Who resolved each access: KVM, or the VMM behind an exit whose stages after the exit nothing tells apart."""
    trips = accesses.trips
    handed_row = np.where(trips.handed_over[accesses.rows], accesses.rows, np.int64(NEVER))
    begins = np.cumsum(accesses.rounds) - accesses.rounds
    over = np.minimum.reduceat(handed_row, begins)
    by_vmm = over < NEVER
    over = np.where(by_vmm, over, accesses.first)
    found.cause = np.where(by_vmm, code(CAUSES, "exit"), code(CAUSES, "stage2"))
    returned = trips.entry_row[over] >= 0
    vmm = np.where(returned, code(RESOLUTIONS, "userspace"), code(RESOLUTIONS, "none"))
    kernel = np.where(found.end_ns != UNKNOWN, code(RESOLUTIONS, "kernel"), code(RESOLUTIONS, "none"))
    found.resolution = np.where(by_vmm, vmm, kernel)
    found.handler_tid = np.where(by_vmm, take(context.events.threads.values, found.thread, 0), 0)
    found.queue_ns = np.where(by_vmm, trips.left_ns[over] - found.start_ns, UNKNOWN)


def _place(context: Context, found: Found, gpa: U64, spte: I64, known: Bools) -> None:
    """Page and granule: host virtual where a memory slot is known, else guest physical; granule 0: not known."""
    sptes = context.guest.sptes
    # A fast fix has no level: its `size` says whether the entry was changed.
    fast = take(sptes.kind, spte, 0) == Kind.KVM_MMU_FAST_PAGE_FAULT
    level = np.where(fast, 1, np.clip(take(sptes.size, spte, 1).astype(np.int64), 1, 3))
    granule = np.int64(4096) << (_LEVEL_BITS * (level - 1))
    host = context.memory.host_address(found.vm, gpa, found.start_ns)
    found.page = np.where(host > 0, host, gpa) & ~(granule.astype(np.uint64) - np.uint64(1))
    found.page = np.where(known, found.page, np.uint64(0))
    found.granule = np.where(known, granule, 0)


def _count(context: Context, accesses: Accesses, found: Found, stuck: Bools, tally: Tally) -> None:
    last, trips = accesses.last, accesses.trips
    unended = found.end_ns == UNKNOWN
    with_entries = np.isin(found.thread, context.guest.with_entries)
    why = {
        _AGAIN: stuck & (accesses.rounds > 1),
        _USELESS: stuck & (accesses.rounds == 1),
        _NO_ENTRIES: ~stuck & ~with_entries,
        _CUT: ~stuck & with_entries & (trips.next_exit_pos[last] == NEVER),
        _LOST: ~stuck & with_entries & (trips.next_exit_pos[last] != NEVER),
    }
    ts_ns = accesses.faults.ts_ns[accesses.first]
    for reason, chosen in why.items():
        tally.note("guest_faults_unended", found.thread, ts_ns, unended & chosen, reason)
    spurious = accesses.count(trips.spurious[accesses.rows])
    by_vmm = found.cause == code(CAUSES, "exit")
    for name, amount in (
        ("guest_faults_spurious", spurious),
        ("exits_untimed", by_vmm),
        ("exits", by_vmm),
        ("exits_unjoined", by_vmm & unended),
    ):
        tally.note(name, found.thread, ts_ns, amount)
    _note_repeats(context, accesses, found, spurious, tally)


def _note_repeats(context: Context, accesses: Accesses, found: Found, spurious: I64, tally: Tally) -> None:
    faults, unended = accesses.faults, found.end_ns == UNKNOWN
    handed = accesses.count(accesses.trips.handed_over[accesses.rows])
    retries = accesses.rounds - 1 - handed.clip(max=1)
    until_ns = np.where(unended, faults.ts_ns[accesses.last], found.end_ns)
    tally.note_repeats(
        Repeats(
            thread=found.thread,
            ts_ns=faults.ts_ns[accesses.first],
            retries=retries,
            vcpu=context.events.vcpu_of(found.thread),
            tid=take(context.events.threads.values, found.thread, 0),
            ip=found.ip,
            gpa=faults.gpa[accesses.first],
            rounds=found.rounds,
            spurious=spurious,
            start_ns=found.start_ns,
            duration_ns=until_ns - found.start_ns,
            ended=~unended,
        )
    )
