"""Events that open a fault and events that close one, by thread."""

from __future__ import annotations

import functools

import numpy as np

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.asked import Asked
from faultreplay.faulttrace.stitch.columns import Events, Rows
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, code
from faultreplay.faulttrace.stitch.horizon import Horizon
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, Ids, Index, take
from faultreplay.faulttrace.stitch.memory import Memory
from faultreplay.faulttrace.stitch.open import Open
from faultreplay.faulttrace.stitch.placements import Placements
from faultreplay.faulttrace.stitch.shed import ShedSpans
from faultreplay.faulttrace.stitch.stage2 import Stage2, access_of
from faultreplay.faulttrace.stitch.threads import KeptSleeps, Runs, Sleeps
from faultreplay.faulttrace.stitch.wakes import Wakes
from faultreplay.faulttrace.stitch.whole import Whole

_RETRIES = 2
"""So many equal walks before this one make it a retry."""
_TURNS = (Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_PAGE_FAULT, Kind.KVM_GUEST_FAULT, Kind.KVM_USERSPACE_EXIT)
_PRESENT = np.uint64(1)
"""Of an x86 page-fault error code."""
_UNCHANGED = np.uint64(1)
"""`size` of a fast page fault that left the entry as it was."""


def _once(rows: Rows, whole: Whole) -> tuple[Rows, Rows]:
    """Each exit, entry and fault once, and those that stand twice: of guests whose exits and entries are both recorded.

    Two exits (or entries, or faults) in a row that are alike to the nanosecond are one: between two real ones the guest
    ran.
    """
    order = np.lexsort((rows.pos, rows.thread))
    again = np.zeros(len(order), bool)
    again[1:] = True
    for values in (rows.thread, rows.kind, rows.ts_ns, rows.ip, rows.addr, rows.code, rows.size, rows.value):
        again[1:] &= values[order][1:] == values[order][:-1]
    both = np.intersect1d(whole.having(Kind.KVM_EXIT), whole.having(Kind.KVM_ENTRY))
    again &= np.isin(rows.thread[order], both)
    keep = np.ones(len(order), bool)
    keep[order[again]] = False
    return rows.pick(keep), rows.pick(~keep)


class PageFaults:
    """`exceptions:page_fault_*`: a process's own accesses."""

    def __init__(self, events: Events, memory: Memory) -> None:
        self.rows: Rows = events.of(Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL)
        self.page: U64 = memory.page(self.rows.tgid, self.rows.addr)
        self.axis = events.axis
        self.by_thread = Index(events.axis, self.rows.thread, self.rows.ts_ns)

    def last_on_page(self, thread: I64, page: U64, until_ns: I64) -> I64:
        """The last page fault of each thread on each page, at or before each time."""
        pages = Ids(page)
        slot = pages.of(self.page)
        mine = np.flatnonzero((slot >= 0) & (self.rows.thread >= 0))
        pair = self.rows.thread[mine] * len(pages) + slot[mine]
        pairs = Ids(pair)
        index = Index(self.axis, pairs.of(pair), self.rows.ts_ns[mine])
        asked = np.where(thread >= 0, thread * len(pages) + pages.of(page), -1)
        return take(mine, index.last_until(pairs.of(asked), until_ns), -1)


class GuestMarkers:
    """What KVM shows of a guest's faults: exits and entries (VMX, SVM), walks and new mappings (shadow paging)."""

    def __init__(self, events: Events, flavour: str = "unknown") -> None:
        turns, self.doubled = _once(events.of(*_TURNS), events.whole)
        exits, walks = turns.pick(turns.kind == Kind.KVM_EXIT), events.of(Kind.KVM_MMU_WALK)
        with_exits = events.whole.having(Kind.KVM_EXIT)
        # Where both are traced the exit is the earlier one.
        self.exits, self.walks = exits, walks
        self._exit = Index(events.axis, exits.thread, exits.ts_ns)
        self._walk = Index(events.axis, walks.thread, walks.ts_ns)
        self.with_exits = with_exits
        self.entries = turns.pick(turns.kind == Kind.KVM_ENTRY)
        self._entry = Index(events.axis, self.entries.thread, self.entries.ts_ns)
        self.with_entries = events.whole.having(Kind.KVM_ENTRY)
        entries_made = events.of(Kind.KVM_MMU_SET_SPTE, Kind.KVM_MMU_FAST_PAGE_FAULT)
        fast = entries_made.kind == Kind.KVM_MMU_FAST_PAGE_FAULT
        self.spurious = entries_made.pick(fast & (entries_made.size == _UNCHANGED))
        """Fast page faults that left the entry as it was."""
        self.sptes = entries_made.pick(~fast | (entries_made.size != _UNCHANGED))
        self._spte = Index(events.axis, self.sptes.thread, self.sptes.ts_ns)
        self.departures = turns.pick(turns.kind == Kind.KVM_USERSPACE_EXIT)
        self._departure = Index(events.axis, self.departures.thread, self.departures.ts_ns)
        away = events.of(Kind.KVM_RUN_EXIT, Kind.KVM_USERSPACE_EXIT, Kind.KVM_RUN_ENTER)
        unmaps = events.of(Kind.KVM_UNMAP_HVA_RANGE)
        unmapped_by = Index(events.axis, unmaps.thread, unmaps.ts_ns)
        self.walk_began_ns, self.walk_run_ns = self._walk_began(
            Index(events.axis, away.thread, away.ts_ns), away.ts_ns, unmapped_by, unmaps.ts_ns
        )
        """Per walk, when the first of its run of retries was made; and of its equal walks, which may become retries."""
        self.is_last_walk: Bools = self._walk.first_from(walks.thread, walks.ts_ns + 1) < 0
        """Per walk, whether its thread makes none after it in this stretch."""
        self.other_walk_ns: I64 = self._other_walk()
        """Per walk, when the same thread next walks for another page; NEVER if it does not."""
        faults = turns.pick(np.isin(turns.kind, [Kind.KVM_PAGE_FAULT, Kind.KVM_GUEST_FAULT]))
        self.stage2 = Stage2(faults, exits, flavour)
        self._stage2 = Index(events.axis, self.stage2.thread, self.stage2.ts_ns)

    def opener(self, thread: I64, until_ns: I64) -> tuple[I64, I64, I64]:
        """(time or UNKNOWN, number in `STARTS`, access) of the last event that took each thread out of its guest."""
        hardware = np.isin(thread, self.with_exits)
        exit_row, walk_row = self._exit.last_until(thread, until_ns), self._walk.last_until(thread, until_ns)
        walked_ns = take(self.walk_began_ns, walk_row, UNKNOWN)
        ts_ns = np.where(hardware, take(self.exits.ts_ns, exit_row, UNKNOWN), walked_ns)
        fault_row = self._stage2.last_until(thread, until_ns)
        during = take(self.stage2.ts_ns, fault_row, UNKNOWN) >= ts_ns
        stage2_access = np.where(during, take(self.stage2.access, fault_row, 0), 0)
        access = np.where(hardware, stage2_access, take(access_of(self.walks.code), walk_row, 0))
        by = np.where(hardware, code(STARTS, "exit"), code(STARTS, "walk"))
        return ts_ns, by, access

    def _walk_began(self, away: Index, away_ns: I64, unmapped_by: Index, unmapped_ns: I64) -> tuple[I64, I64]:
        """While memory is being protected or unmapped KVM retries an access: it walks the same address again and again.

        Two equal walks may also be the guest's own page fault and the access after it; three in a row are retries, and
        two between which the thread itself unmapped memory: it replaced a page by its copy.
        """
        walks = self.walks
        order = np.lexsort((walks.ts_ns, walks.thread))
        thread, ts_ns = walks.thread[order], walks.ts_ns[order]
        addr, error = walks.addr[order], walks.code[order]
        mapped_ns = take(self.sptes.ts_ns, self._spte.first_from(thread, ts_ns), NEVER)
        exit_ns = take(away_ns, away.first_from(thread, ts_ns), NEVER)
        again = np.zeros(len(order), bool)
        again[1:] = (thread[1:] == thread[:-1]) & (addr[1:] == addr[:-1])
        again[1:] &= (mapped_ns[:-1] >= ts_ns[1:]) & (exit_ns[:-1] >= ts_ns[1:])
        # The entry that let the guest read is gone then: the second walk finds it absent.
        copied = np.zeros(len(order), bool)
        between = take(unmapped_ns, unmapped_by.first_from(thread[:-1], ts_ns[:-1]), NEVER)
        copied[1:] = again[1:] & (error[1:] | _PRESENT == error[:-1] | _PRESENT) & (between <= ts_ns[1:])
        again[1:] &= error[1:] == error[:-1]
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
        retried = np.arange(len(order)) - first >= _RETRIES
        began, run = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
        began[order] = np.where(retried, ts_ns[first], np.where(copied, np.roll(ts_ns, 1), ts_ns))
        run[order] = ts_ns[first]
        return began, run

    def _other_walk(self) -> I64:
        order = np.lexsort((self.walks.ts_ns, self.walks.thread))
        thread, page = self.walks.thread[order], self.walks.addr[order] >> np.uint64(12)
        last = np.ones(len(order), bool)
        last[:-1] = (thread[1:] != thread[:-1]) | (page[1:] != page[:-1])
        following = np.flatnonzero(last) + 1
        inside = np.minimum(following, max(len(order) - 1, 0))
        same_thread = (following < len(order)) & (thread[inside] == thread[following - 1])
        ts_ns = np.where(same_thread, self.walks.ts_ns[order][inside], NEVER)
        other = np.empty(len(order), np.int64)
        other[order] = ts_ns[np.searchsorted(following, np.arange(len(order)), side="right")]
        return other

    def opened_ns(self, thread: I64) -> I64:
        """When each thread was last taken out of its guest in this stretch; UNKNOWN: it was not."""
        return self.opener(thread, np.full(len(thread), NEVER, np.int64))[0]

    def last_walk(self, thread: I64, until_ns: I64) -> I64:
        """Row of the last walk of each thread at or before each time."""
        return self._walk.last_until(thread, until_ns)

    def next_exit_ns(self, thread: I64, from_ns: I64) -> I64:
        """When each thread's guest next exits; NEVER where exits are not traced or none came."""
        return take(self.exits.ts_ns, self._exit.first_from(thread, from_ns), NEVER)

    def next_departure_ns(self, thread: I64, from_ns: I64) -> I64:
        """When each thread's KVM_RUN next turns to userspace (kvm_userspace_exit); NEVER if it is not seen to."""
        return take(self.departures.ts_ns, self._departure.first_from(thread, from_ns), NEVER)

    def next_walk(self, thread: I64, from_ns: I64) -> I64:
        """Row of the next walk of each thread."""
        return self._walk.first_from(thread, from_ns)

    def next_spte(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """Row of the first entry each thread made within [from, until)."""
        row = self._spte.first_from(thread, from_ns)
        return np.where((row >= 0) & (take(self.sptes.ts_ns, row, NEVER) < until_ns), row, -1)

    def next_entry(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """Row of the first guest entry of each thread within [from, until)."""
        row = self._entry.first_from(thread, from_ns)
        return np.where((row >= 0) & (take(self.entries.ts_ns, row, NEVER) < until_ns), row, -1)

    def last_fault(self, thread: I64, until_ns: I64) -> I64:
        """Row in `stage2` of each thread's last stage-2 fault at or before each time."""
        return self._stage2.last_until(thread, until_ns)

    def next_fault(self, thread: I64, from_ns: I64) -> I64:
        """Row in `stage2` of each thread's first stage-2 fault at or after each time."""
        return self._stage2.first_from(thread, from_ns)

    def end(self, thread: I64, from_ns: I64, until_ns: I64) -> tuple[I64, I64, I64]:
        """(time or UNKNOWN, number in `ENDS`, spte row) of each thread's way back into the guest within [from, until).

        With guest entries traced, the entry after the new mapping; else the new mapping itself.
        """
        spte = self.next_spte(thread, from_ns, until_ns)
        spte_ns = take(self.sptes.ts_ns, spte, UNKNOWN)
        entry = self.next_entry(thread, np.maximum(spte_ns, from_ns), until_ns)
        entry_ns = take(self.entries.ts_ns, entry, UNKNOWN)
        fast = take(self.sptes.kind, spte, 0) == Kind.KVM_MMU_FAST_PAGE_FAULT
        by = np.where(spte >= 0, np.where(fast, code(ENDS, "fast"), code(ENDS, "spte")), code(ENDS, "none"))
        by = np.where(entry >= 0, code(ENDS, "entry"), by)
        return np.where(entry >= 0, entry_ns, spte_ns), by, spte


class Context:
    """All that the stitchers look things up in.

    Attributes:
        told_ns: per thread, what lies before was told with earlier stretches.
        asked: what the whole trace tells of userfaults; None: it has none.
        last: nothing comes after these events.
        open: what the stitchers find open at the end of this one.
    """

    def __init__(
        self,
        events: Events,
        memory: Memory,
        shed: ShedSpans,
        flavour: str = "unknown",
        *,
        sleeps: KeptSleeps | None = None,
        told_ns: I64 | None = None,
        asked: Asked | None = None,
        last: bool = True,
    ) -> None:
        self.events = events
        self.axis = events.axis
        self.memory = memory
        self.shed = shed
        self.told_ns = np.zeros(len(events.threads), np.int64) if told_ns is None else told_ns
        self.asked, self.last = asked, last
        self.open = Open(len(events.threads))
        self.sleeps = Sleeps(events, sleeps)
        self.runs = Runs(events)
        self.placements = Placements(events)
        self.page_faults = PageFaults(events, memory)
        self.guest = GuestMarkers(events, flavour)
        self.wakes = Wakes(events, self.placements, self.sleeps)
        self.releases = events.of(Kind.MMAP_LOCK_RELEASED)
        self._release = Index(events.axis, self.releases.thread, self.releases.ts_ns)
        self.tgid_of: I64 = events.whole.owner

    @functools.cached_property
    def horizon(self) -> Horizon:
        """How far each access reaches."""
        return Horizon(self.axis, self.page_faults, self.guest)

    def untold(self, thread: I64, ts_ns: I64) -> Bools:
        """Whether what each thread did at each time is not final yet."""
        new: Bools = (thread >= 0) & (ts_ns >= take(self.told_ns, thread, 0))
        return new

    def release_ns(self, thread: I64, from_ns: I64, until_ns: I64) -> I64:
        """When each thread first let go of mmap_lock within [from, until); UNKNOWN if it did not."""
        ts_ns = take(self.releases.ts_ns, self._release.first_from(thread, from_ns), NEVER)
        return np.where(ts_ns < until_ns, ts_ns, UNKNOWN)

    def next_page_fault_ns(self, thread: I64, from_ns: I64) -> I64:
        """When each thread next takes a page fault; NEVER if it does not."""
        return take(self.page_faults.rows.ts_ns, self.page_faults.by_thread.first_from(thread, from_ns), NEVER)
