"""Faults of a guest that no userfaultfd message shows: exits to userspace, and what KVM resolves by itself."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch.claims import Claims, Used
from faultreplay.faulttrace.stitch.ends import awaits
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, Anchored, Found, code
from faultreplay.faulttrace.stitch.hardware import stitch_hardware
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, Index, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.placements import RESOLUTION
from faultreplay.faulttrace.stitch.stage2 import access_of
from faultreplay.faulttrace.stitch.tally import Tally

_EFAULT = -14
_LEVEL_BITS = 9


def stitch_exits(context: Context, claims: Claims, used: Used, tally: Tally) -> Anchored:
    """KVM_RUN fails with EFAULT or exits on MMIO; the vCPU thread resolves it and calls KVM_RUN again."""
    runs, guest, placements = context.runs, context.guest, context.placements
    left = runs.exit
    mmio = context.events.of(Kind.KVM_MMIO)
    mmio_row = Index(context.axis, mmio.thread, mmio.ts_ns).last_until(left.thread, left.ts_ns)
    entered_ns = runs.last_enter_ns(left.thread, left.ts_ns)
    is_mmio = (left.value == 0) & (mmio_row >= 0) & (take(mmio.ts_ns, mmio_row, -1) >= entered_ns)
    rows = np.flatnonzero(((left.value == _EFAULT) | is_mmio) & context.untold(left.thread, left.ts_ns))
    thread, exit_ns, mmio_row, is_mmio = left.thread[rows], left.ts_ns[rows], mmio_row[rows], is_mmio[rows]
    tally.note("exits", thread, exit_ns, ~is_mmio)

    start_ns, start_by, access = guest.opener(thread, exit_ns)
    within = (start_ns != UNKNOWN) & (start_ns >= entered_ns[rows])
    # With neither exit nor walk traced, the return of KVM_RUN is the first that is seen.
    start_by = np.where(within, start_by, code(STARTS, "out"))
    since_ns = np.where(start_ns != UNKNOWN, np.minimum(start_ns, exit_ns), exit_ns)
    start_ns = np.where(within, start_ns, exit_ns)
    again_ns = runs.next_enter_ns(thread, exit_ns)
    own_fault = _own_fault(context, thread, np.where(within, start_ns, NEVER), exit_ns)
    end_ns, end_by, spte = _after_reentry(context, thread, own_fault, again_ns, is_mmio)
    _note_open_exits(context, thread, since_ns, again_ns)
    # A message's fault that it began with is what it is claimed by.
    context.open.keep_together(thread, since_ns, exit_ns)
    own = _own_ioctl(context, thread, exit_ns, again_ns)
    used.note(own, thread, exit_ns)
    done = (own >= 0) & take(placements.done, own, 0)

    found = _kernel_faults(context, thread, start_ns, end_ns)
    found.start_by, found.end_by = start_by, end_by
    gpa = np.where(is_mmio, take(mmio.addr, mmio_row, 0), _faulted(context, own_fault, spte))
    mapped = context.memory.host_address(found.vm, gpa, exit_ns)
    known = np.where(own >= 0, take(placements.lo, own, 0), np.where(mapped > 0, mapped, gpa))
    found.page = context.memory.page(found.vm, known)
    found.granule = context.memory.granule(found.vm, found.page)
    # KVM_MMIO: 0 unsatisfied read, 1 read, 2 write.
    found.access = np.where(is_mmio, (take(mmio.code, mmio_row, 0) == 2).astype(np.int64), access)
    found.cause = np.where(is_mmio, code(CAUSES, "mmio"), code(CAUSES, "exit"))
    resolution = np.full(len(rows), code(RESOLUTIONS, "userspace"), np.int64)
    kind = take(placements.kind, own, 0)
    for number, name in RESOLUTION.items():
        resolution[done & (kind == number)] = code(RESOLUTIONS, name)
    found.resolution = np.where(again_ns < NEVER, resolution, code(RESOLUTIONS, "none"))
    found.handler_tid = take(context.events.threads.values, thread, 0)
    placed_ns = np.where(done, take(placements.end_ns, own, 0), again_ns)
    returned = again_ns < NEVER
    found.queue_ns = exit_ns - start_ns
    found.service_ns = np.where(returned, placed_ns - exit_ns, UNKNOWN)
    found.resolve_ns = np.where(done, placed_ns - take(placements.start_ns, own, 0), UNKNOWN)
    found.wake_ns = np.where(end_ns != UNKNOWN, end_ns - placed_ns, UNKNOWN)
    # When KVM_RUN was called again is a guess: the next walk only shows that it had been.
    untimed = np.isin(thread, runs.untimed_threads)
    found.service_ns, found.wake_ns = (np.where(untimed, UNKNOWN, ns) for ns in (found.service_ns, found.wake_ns))
    tally.note("exits_untimed", thread, exit_ns, untimed & ~is_mmio)
    # A device that userspace emulates is no missing memory.
    device = is_mmio & (mapped == 0)
    tally.note("mmio_of_devices", thread, exit_ns, device)
    kept = ~device & ~claims.inside(thread, start_ns)
    tally.note("exits_unjoined", thread, exit_ns, kept & (found.end_ns == UNKNOWN) & ~is_mmio)
    return Anchored(found.pick(kept), exit_ns[kept])


def _note_open_exits(context: Context, thread: I64, since_ns: I64, again_ns: I64) -> None:
    """An exit is settled when the thread has returned from the next KVM_RUN, or nothing more comes of it."""
    returned = again_ns < NEVER
    out_again = returned & (context.runs.next_exit_ns(thread, np.where(returned, again_ns, 0)) < NEVER)
    # An exit without its fault is taken for one: that may come until the next exit.
    stage2 = context.guest.stage2
    after = context.guest.next_fault(np.where(returned, thread, -1), np.where(returned, again_ns, 0))
    unsure = (after >= 0) & ~take(stage2.told, after, True)
    unsure &= context.guest.next_exit_ns(thread, take(stage2.ts_ns, after, 0) + 1) == NEVER
    context.open.note(thread, since_ns, (~out_again | unsure) & take(context.events.alive(), thread, False))


def _own_fault(context: Context, thread: I64, from_ns: I64, exit_ns: I64) -> I64:
    """The stage-2 fault from `from_ns` on that each exit was for; -1: none was seen."""
    guest = context.guest
    fault = guest.last_fault(thread, exit_ns)
    return np.where((fault >= 0) & (take(guest.stage2.ts_ns, fault, -1) >= from_ns), fault, -1)


def _faulted(context: Context, own_fault: I64, spte: I64) -> U64:
    """Guest physical address that each exit was for: of its stage-2 fault, else of the entry after it."""
    guest = context.guest
    return np.where(own_fault >= 0, take(guest.stage2.gpa, own_fault, 0), take(guest.sptes.addr, spte, 0))


def _after_reentry(context: Context, thread: I64, before: I64, again_ns: I64, is_mmio: Bools) -> tuple[I64, I64, I64]:
    """How the vCPU got past its access after KVM_RUN was called again; `before`: the fault it left the guest for."""
    returned = again_ns < NEVER
    who, from_ns = np.where(returned, thread, -1), np.where(returned, again_ns, 0)
    limit_ns = context.runs.next_exit_ns(who, from_ns)
    guest = context.guest
    # The first entry only leads to the access that faults again; the entry after that fault is the end.
    # It is the same access only on the same page: else the first entry already got past.
    after = guest.next_fault(who, from_ns)
    fault_ns = take(guest.stage2.ts_ns, after, NEVER)
    page, again = take(guest.stage2.gpa, before, 0), take(guest.stage2.gpa, after, 0)
    elsewhere = (before >= 0) & (page >> np.uint64(12) != again >> np.uint64(12))
    limit_ns = np.where(elsewhere, np.minimum(limit_ns, fault_ns), limit_ns)
    fault_ns = np.where(fault_ns < limit_ns, fault_ns, from_ns)
    end_ns, end_by, spte = guest.end(who, fault_ns, limit_ns)
    # KVM finishes an MMIO instruction itself with what userspace left: the first entry is its end, no mapping follows.
    entry_ns = take(guest.entries.ts_ns, guest.next_entry(who, from_ns, limit_ns), UNKNOWN)
    end_ns, spte = np.where(is_mmio, entry_ns, end_ns), np.where(is_mmio, -1, spte)
    end_by = np.where(is_mmio & (entry_ns != UNKNOWN), code(ENDS, "entry"), end_by)
    nothing = end_ns == UNKNOWN
    end_by = np.where(nothing & returned, code(ENDS, "run"), end_by)
    return np.where(nothing & returned, again_ns, end_ns), end_by, spte


def _own_ioctl(context: Context, thread: I64, from_ns: I64, until_ns: I64) -> I64:
    """The first ioctl on a userfaultfd that each thread itself ended within (from, until)."""
    row = context.placements.first_by(thread, from_ns)
    return np.where((row >= 0) & (take(context.placements.end_ns, row, NEVER) <= until_ns), row, -1)


def stitch_stage2(context: Context, claims: Claims, tally: Tally) -> Anchored:
    """What KVM resolves alone: memory that the host has, or makes, while stage 2 (or the shadow) is empty."""
    return Anchored.concat([_shadow(context, claims, tally), stitch_hardware(context, claims, tally)])


def _shadow(context: Context, claims: Claims, tally: Tally) -> Anchored:
    """Walk, then the new entry by the same thread before its next walk."""
    guest = context.guest
    walks = guest.walks
    mine = ~np.isin(walks.thread, guest.with_exits) & context.untold(walks.thread, walks.ts_ns)
    tally.note("walks", walks.thread[mine], walks.ts_ns[mine])
    alive = context.events.alive()
    # The next walk may be the same access again, and an exit to come is one for the last walk.
    since_ns = np.minimum(guest.walk_began_ns, guest.walk_run_ns)
    context.open.note(walks.thread, since_ns, guest.is_last_walk & take(awaits(context), walks.thread, False))
    rows = np.flatnonzero(mine & ~claims.inside(walks.thread, walks.ts_ns))
    thread, start_ns = walks.thread[rows], walks.ts_ns[rows]
    until_ns = take(walks.ts_ns, guest.next_walk(thread, start_ns + 1), NEVER)
    until_ns = np.minimum(until_ns, context.runs.next_exit_ns(thread, start_ns))
    until_ns = np.minimum(until_ns, guest.next_departure_ns(thread, start_ns))
    spte = guest.next_spte(thread, start_ns, until_ns)
    tally.note("walks_without_entry", thread, start_ns, spte < 0)
    context.open.note(thread, guest.walk_began_ns[rows], (spte < 0) & (until_ns == NEVER) & take(alive, thread, False))
    mapped = np.flatnonzero(spte >= 0)
    thread, start_ns, spte = thread[mapped], start_ns[mapped], spte[mapped]
    fast = take(guest.sptes.kind, spte, 0) == Kind.KVM_MMU_FAST_PAGE_FAULT
    began_ns = guest.walk_began_ns[rows][mapped]
    found = _kernel_faults(context, thread, began_ns, take(guest.sptes.ts_ns, spte, 0))
    found.start_by = np.full(len(thread), code(STARTS, "walk"), np.int64)
    found.end_by = np.where(fast, code(ENDS, "fast"), code(ENDS, "spte"))
    found.access = access_of(walks.code[rows][mapped])
    level = np.clip(take(guest.sptes.size, spte, 1).astype(np.int64), 1, 3)
    _place(context, found, take(guest.sptes.addr, spte, 0), np.where(fast, 1, level))
    return Anchored(found, start_ns)


def _kernel_faults(context: Context, thread: I64, start_ns: I64, end_ns: I64) -> Found:
    found = Found.blank(len(thread))
    found.thread, found.start_ns, found.end_ns = thread, start_ns, end_ns
    found.vm = take(context.tgid_of, thread, 0)
    found.accessor = np.full(len(thread), code(ACCESSORS, "vcpu"), np.int64)
    found.cause = np.full(len(thread), code(CAUSES, "stage2"), np.int64)
    found.resolution = np.full(len(thread), code(RESOLUTIONS, "kernel"), np.int64)
    return found


def _place(context: Context, found: Found, gpa: U64, level: I64) -> None:
    """Page and granule: host virtual where a memory slot is known, else guest physical."""
    granule = np.int64(4096) << (_LEVEL_BITS * (level - 1))
    host = context.memory.host_address(found.vm, gpa, found.start_ns)
    found.granule = granule
    found.page = np.where(host > 0, host, gpa) & ~(granule.astype(np.uint64) - np.uint64(1))
