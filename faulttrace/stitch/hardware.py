"""Faults of guests under hardware paging (VMX, SVM, arm64): kvm_exit, what happened, kvm_entry.

A fault that the VMM resolves shows as a kvm_userspace_exit with EFAULT where system calls were not recorded. An access
that faults again and again with nothing mapped between is one fault with rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.found import ENDS, UNKNOWN, Claims, Found, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.report import Repeat, StitchReport
from faultreplay.faulttrace.stitch.stage2 import Stage2
from faultreplay.faulttrace.stitch.trips import Trips, device_trips

_PAGE_BITS: Final = np.uint64(12)
_LEVEL_BITS: Final = 9
_RETRY_NS: Final = 1_000_000
"""A retried access faults at once; what ran longer in guest mode got past it, and came back to it."""
_WORST: Final = 10
"""So many of the accesses that faulted most often are told."""
_NO_ENTRIES: Final = "no kvm_entry in the source"
_CUT: Final = "still out of the guest at the end"
_LOST: Final = "its kvm_entry is not in the trace"
_AGAIN: Final = "faulting again and again at the end"
_USELESS: Final = "KVM found nothing to do, and nothing follows"


def stitch_hardware(context: Context, claims: Claims, report: StitchReport) -> Found:
    """Stage-2 faults that no userfault and no EFAULT of a recorded KVM_RUN explains."""
    faults = context.guest.stage2
    trips = Trips(context, faults)
    report.device_exits, report.device_ns, report.device_unended = device_trips(context)
    report.guest_faults = len(faults)
    report.guest_faults_untold = int((~faults.told).sum())
    report.guest_faults_of_devices = int(trips.device.sum())
    kept = (faults.thread >= 0) & ~trips.device & ~claims.inside(faults.thread, faults.ts_ns)
    kept &= ~claims.opened(faults.thread, trips.start_ns)
    # With KVM_RUN recorded a fault handed to the VMM is found there, with all its stages.
    kept &= ~(trips.handed_over & np.isin(faults.thread, context.runs.told_threads))
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((faults.pos[rows], faults.thread[rows]))]
    report.guest_faults_page_unknown = int((~faults.known[rows]).sum())
    if not len(rows):
        return Found.blank(0)
    accesses = _Accesses.of(faults, trips, rows, _is_retry(context, faults, trips, rows))
    return _found(context, accesses, report)


@dataclass(frozen=True)
class _Accesses:
    """Faults grouped into accesses: rows of all faults, of the first and the last of each access, how many it has."""

    faults: Stage2
    trips: Trips
    rows: I64
    first: I64
    last: I64
    rounds: I64

    @classmethod
    def of(cls, faults: Stage2, trips: Trips, rows: I64, again: Bools) -> _Accesses:
        begins = np.flatnonzero(~again)
        ends = np.append(begins[1:], len(rows)) - 1
        return cls(faults, trips, rows, rows[begins], rows[ends], ends - begins + 1)

    def count(self, flags: Bools) -> I64:
        """How many of each access's faults are flagged (per fault, in the order of `rows`)."""
        begins = np.cumsum(self.rounds) - self.rounds
        return np.add.reduceat(flags.astype(np.int64), begins)


def _is_retry(context: Context, faults: Stage2, trips: Trips, rows: I64) -> Bools:
    """Whether each of `rows` (by thread, in order) is the same access as the one before it, which did not get past."""
    guest = context.guest
    now, before = rows[1:], rows[:-1]
    ip = trips.ip
    page = faults.gpa >> _PAGE_BITS
    same = (faults.thread[now] == faults.thread[before]) & (ip[now] == ip[before]) & (ip[now] != 0)
    same_page = (page[now] == page[before]) & faults.known[now] & faults.known[before]
    # The fault right after the VMM's work is the same access's, also where a page is not told.
    same &= same_page | (trips.handed_over[before] & ~(faults.known[now] & faults.known[before]))
    # The guest went on elsewhere: an emulated instruction is behind it, though nothing was mapped.
    went_on_at = take(guest.entries.ip, trips.entry_row[before], 0)
    same &= (went_on_at == 0) | (went_on_at == ip[before])
    handed_over = trips.handed_over[before]
    since_pos = np.where(handed_over, trips.left_pos[before] + 1, faults.pos[before])
    left = trips.departures.index.first_from(faults.thread[before], since_pos)
    same &= take(trips.departures.pos, left, NEVER) > faults.pos[now]
    mapped = trips.mapped_from(faults.thread[before], faults.pos[before])
    same &= mapped > faults.pos[now]
    # Where new mappings are not recorded, the guest must not have been seen elsewhere either.
    tells = np.isin(faults.thread[now], np.unique(np.append(guest.sptes.thread, guest.spurious.thread)))
    run = _same_place(context)
    there, here = trips.exit_row[before], trips.exit_row[now]
    stayed = (there >= 0) & (here >= 0) & (take(run, there, -1) == take(run, here, -2))
    same &= tells | stayed | handed_over
    entered_ns = np.where(trips.entry_row[before] >= 0, trips.entry_ns[before], faults.ts_ns[before])
    # The first exit after the VMM's work is the access again, however long the host kept the guest from running; an
    # interrupt's exit at the same instruction may come before it.
    at_once = handed_over & (here >= 0) & (stayed | (trips.next_exit_pos[before] == trips.open_pos[now]))
    same &= at_once | (trips.start_ns[now] - entered_ns < _RETRY_NS)
    return np.append(np.zeros(1, bool), same)


def _same_place(context: Context) -> I64:
    """Per exit a number that stays the same while a thread exits at one instruction."""
    exits = context.guest.exits
    order = np.lexsort((exits.pos, exits.thread))
    moved = np.ones(len(order), bool)
    thread, ip = exits.thread[order], exits.ip[order]
    moved[1:] = (thread[1:] != thread[:-1]) | (ip[1:] != ip[:-1])
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(moved)
    return number


def _found(context: Context, accesses: _Accesses, report: StitchReport) -> Found:
    faults, trips = accesses.faults, accesses.trips
    first, last = accesses.first, accesses.last
    every_end_ns, every_end_by = trips.ends(context)
    found = Found.blank(len(first))
    found.thread, found.start_ns, found.start_by = faults.thread[first], trips.start_ns[first], trips.start_by[first]
    found.end_ns, found.end_by = every_end_ns[last], every_end_by[last]
    handed = accesses.count(trips.handed_over[accesses.rows])
    stuck = _stuck(accesses, handed)
    found.end_ns = np.where(stuck, UNKNOWN, found.end_ns)
    found.end_by = np.where(stuck, code(ENDS, "none"), found.end_by)
    found.vm = take(context.tgid_of, found.thread, 0)
    found.accessor = np.full(len(first), code(ACCESSORS, "vcpu"), np.int64)
    found.access = faults.access[first]
    found.rounds, found.ip = accesses.rounds, trips.ip[first]
    _resolve(context, accesses, found)
    told = np.where(faults.known[first], first, last)
    _place(context, found, faults.gpa[told], trips.spte_row[last], faults.known[told])
    _count(context, accesses, found, stuck, report)
    return found


def _stuck(accesses: _Accesses, handed: I64) -> Bools:
    """Accesses that were still faulting when the trace ends: nothing of the thread follows the last try.

    What userspace resolved faults once more before it gets past: that is no retry.
    """
    last, trips = accesses.last, accesses.trips
    useless = accesses.count((trips.spurious & ~trips.handed_over)[accesses.rows])
    tried = (accesses.rounds - handed > 1) | ((handed == 0) & (useless == accesses.rounds))
    tried |= (handed > 1) & trips.handed_over[last]
    stuck: Bools = tried & (trips.next_exit_pos[last] == NEVER) & (trips.spte_row[last] < 0)
    return stuck & ((trips.left_row[last] < 0) | trips.handed_over[last])


def _resolve(context: Context, accesses: _Accesses, found: Found) -> None:
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


def _count(context: Context, accesses: _Accesses, found: Found, stuck: Bools, report: StitchReport) -> None:
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
    counts = {reason: int((unended & chosen).sum()) for reason, chosen in why.items()}
    report.guest_faults_unended = {reason: count for reason, count in counts.items() if count}
    spurious = accesses.count(trips.spurious[accesses.rows])
    report.guest_faults_spurious = int(spurious.sum())
    by_vmm = found.cause == code(CAUSES, "exit")
    report.exits_untimed += int(by_vmm.sum())
    report.exits += int(by_vmm.sum())
    report.exits_unjoined += int((by_vmm & unended).sum())
    _note_repeats(context, accesses, found, spurious, report)


def _note_repeats(context: Context, accesses: _Accesses, found: Found, spurious: I64, report: StitchReport) -> None:
    faults, unended = accesses.faults, found.end_ns == UNKNOWN
    handed = accesses.count(accesses.trips.handed_over[accesses.rows])
    retries = accesses.rounds - 1 - handed.clip(max=1)
    report.repeated, report.retries = int((retries > 0).sum()), int(retries.clip(0).sum())
    until_ns = np.where(unended, faults.ts_ns[accesses.last], found.end_ns)
    vcpu = context.events.vcpu_of(found.thread)
    tid = take(context.events.threads.values, found.thread, 0)
    worst = np.lexsort((found.start_ns, -retries))[:_WORST]
    report.worst_repeats = [
        Repeat(
            vcpu=int(vcpu[row]),
            tid=int(tid[row]),
            ip=int(found.ip[row]),
            gpa=int(faults.gpa[accesses.first[row]]) & ~0xFFF,
            rounds=int(found.rounds[row]),
            spurious=int(spurious[row]),
            start_ns=int(found.start_ns[row]),
            duration_ns=int(until_ns[row] - found.start_ns[row]),
            ended=not unended[row],
        )
        for row in worst[retries[worst] > 0].tolist()
    ]
