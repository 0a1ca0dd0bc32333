"""Out of the guest and back: what happened between a kvm_exit of a thread and its next kvm_entry.

All looked up by place in the trace, not by time: text has microseconds, and an exit, its fault and the entry may share
one.
"""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.exits import EXIT_MEMORY_FAULT, EXIT_MMIO
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Rows
from faultreplay.faulttrace.stitch.found import ENDS, STARTS, UNKNOWN, code
from faultreplay.faulttrace.stitch.keys import I64, NEVER, Bools, Index, take
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.stage2 import Stage2
from faultreplay.faulttrace.stitch.tally import Tally

_EFAULT = -14


class Departures:
    """Returns of KVM_RUN to userspace: kvm_userspace_exit, or where a thread has none the end of the ioctl."""

    def __init__(self, context: Context) -> None:
        told, left = context.guest.departures, context.runs.exit
        silent = ~np.isin(left.thread, context.events.whole.having(Kind.KVM_USERSPACE_EXIT))
        pos = np.concatenate([told.pos, left.pos[silent]])
        order = np.argsort(pos, kind="stable")
        efault = np.concatenate(
            [(told.value == _EFAULT) | (told.code == np.uint64(EXIT_MEMORY_FAULT)), left.value[silent] == _EFAULT]
        )
        mmio = (told.value == 0) & (told.code == np.uint64(EXIT_MMIO))
        self.mmio: Bools = np.concatenate([mmio, np.zeros(int(silent.sum()), bool)])[order]
        """An access to a device was handed to the VMM: KVM_EXIT_MMIO."""
        self.pos: I64 = pos[order]
        self.thread: I64 = np.concatenate([told.thread, left.thread[silent]])[order]
        self.ts_ns: I64 = np.concatenate([told.ts_ns, left.ts_ns[silent]])[order]
        self.handed_over: Bools = efault[order]
        """A fault was handed to the VMM: EFAULT, or KVM_EXIT_MEMORY_FAULT."""
        self.index = Index.by_place(self)


class Trips:
    """For each stage-2 fault: the exit that began it and how it went on. -1 and UNKNOWN: not in the trace."""

    def __init__(self, context: Context, faults: Stage2) -> None:
        guest = context.guest
        exits, entries = guest.exits, guest.entries
        self.departures = Departures(context)
        self.exits_at, self.entries_at = Index.by_place(exits), Index.by_place(entries)
        self._sptes_at = Index.by_place(guest.sptes)
        thread, pos = faults.thread, faults.pos
        exit_row = self.exits_at.last_until(thread, pos)
        before = take(entries.pos, self.entries_at.last_until(thread, pos), UNKNOWN)
        lost = take(exits.pos, exit_row, UNKNOWN) <= before
        # An entry after the last exit: that exit was another trip's, this one's was not recorded.
        self.exit_row = np.where(lost, -1, exit_row)
        self.open_pos = np.where(self.exit_row >= 0, take(exits.pos, self.exit_row, 0), pos)
        self.start_ns = np.where(self.exit_row >= 0, take(exits.ts_ns, self.exit_row, 0), faults.ts_ns)
        self.start_by = np.where(self.exit_row >= 0, code(STARTS, "exit"), code(STARTS, "fault"))
        self.ip = np.where(faults.ip != 0, faults.ip, take(exits.ip, self.exit_row, 0))
        following = self.exits_at.first_from(thread, pos + 1)
        self.next_exit_pos = take(exits.pos, following, NEVER)
        entry = self.entries_at.first_from(thread, pos)
        self.entry_row = np.where(take(entries.pos, entry, NEVER) < self.next_exit_pos, entry, -1)
        self.entry_ns = take(entries.ts_ns, self.entry_row, UNKNOWN)
        self.limit_pos = np.minimum(take(entries.pos, self.entry_row, NEVER), self.next_exit_pos)
        left = self.departures.index.first_from(thread, pos)
        self.left_row = np.where(take(self.departures.pos, left, NEVER) < self.limit_pos, left, -1)
        self.left_pos = take(self.departures.pos, self.left_row, NEVER)
        self.left_ns = take(self.departures.ts_ns, self.left_row, UNKNOWN)
        self.handed_over: Bools = take(self.departures.handed_over, self.left_row, False)
        spte = self._sptes_at.first_from(thread, pos)
        self._sptes = guest.sptes
        mapped = take(guest.sptes.pos, spte, NEVER) < np.minimum(self.limit_pos, self.left_pos)
        self.spte_row = np.where(mapped, spte, -1)
        useless = Index.by_place(guest.spurious).first_from(thread, pos)
        self.spurious: Bools = (take(guest.spurious.pos, useless, NEVER) < self.limit_pos) & (self.spte_row < 0)
        self.device: Bools = self._at_device(context, faults)

    def mapped_from(self, thread: I64, pos: I64) -> I64:
        """Place of the first entry that each thread made from `pos` on; NEVER: none."""
        return take(self._sptes.pos, self._sptes_at.first_from(thread, pos), NEVER)

    def _at_device(self, context: Context, faults: Stage2) -> Bools:
        """Whether KVM or the VMM emulated a device at the very page: an access to no memory at all."""
        devices = context.events.of(Kind.KVM_MMIO, Kind.KVM_FAST_MMIO)
        row = Index.by_place(devices).first_from(faults.thread, self.open_pos)
        gpa = take(devices.addr, row, 0)
        here = (row >= 0) & (take(devices.pos, row, NEVER) < self.limit_pos)
        here &= ~faults.known | (gpa >> np.uint64(12) == faults.gpa >> np.uint64(12))
        owner = take(context.tgid_of, faults.thread, 0)
        told = here & (context.memory.host_address(owner, gpa, faults.ts_ns) == 0)
        # The access itself may be lost; KVM_EXIT_MMIO says as much, where the page is no memory's.
        asked = (self.left_row >= 0) & take(self.departures.mmio, self.left_row, False)
        found: Bools = told | (asked & (context.memory.host_address(owner, faults.gpa, faults.ts_ns) == 0))
        return found

    def ends(self, context: Context) -> tuple[I64, I64]:
        """(time or UNKNOWN, number in `ENDS`): the entry, or what KVM last did where it left to userspace before."""
        sptes = context.guest.sptes
        mapped_ns = take(sptes.ts_ns, self.spte_row, UNKNOWN)
        fast = take(sptes.kind, self.spte_row, 0) == Kind.KVM_MMU_FAST_PAGE_FAULT
        mapped_by = np.where(fast, code(ENDS, "fast"), code(ENDS, "spte"))
        mapped = self.spte_row >= 0
        # Userspace got the CPU for another reason than this fault: its time is in no stall.
        away = (self.left_row >= 0) & ~self.handed_over
        end_ns = np.where(away, np.where(mapped, mapped_ns, self.left_ns), self.entry_ns)
        end_by = np.where(away, np.where(mapped, mapped_by, code(ENDS, "userspace")), code(ENDS, "entry"))
        only = (end_ns == UNKNOWN) & mapped & ~self.handed_over
        end_ns, end_by = np.where(only, mapped_ns, end_ns), np.where(only, mapped_by, end_by)
        return end_ns, np.where(end_ns == UNKNOWN, code(ENDS, "none"), end_by)


def device_trips(context: Context, tally: Tally) -> None:
    """Count trips in which a device was emulated, ns of those that ended, and those that did not.

    Of guests whose exits were recorded.
    """
    guest, events = context.guest, context.events
    devices: Rows = events.of(Kind.KVM_MMIO, Kind.KVM_FAST_MMIO, Kind.KVM_PIO)
    owner = take(context.tgid_of, devices.thread, 0)
    port = devices.kind == Kind.KVM_PIO
    emulated = port | (context.memory.host_address(owner, devices.addr, devices.ts_ns) == 0)
    exits, entries = guest.exits, guest.entries
    row = Index.by_place(exits).last_until(devices.thread, devices.pos)
    trip = np.unique(row[emulated & (row >= 0)])
    trip = trip[context.untold(exits.thread[trip], exits.ts_ns[trip])]
    entry = Index.by_place(entries).first_from(exits.thread[trip], exits.pos[trip])
    following = Index.by_place(exits).first_from(exits.thread[trip], exits.pos[trip] + 1)
    ended = take(entries.pos, entry, NEVER) < take(exits.pos, following, NEVER)
    spent = np.where(ended, take(entries.ts_ns, entry, 0) - exits.ts_ns[trip], 0)
    for name, amount in (("device_exits", np.ones(len(trip), bool)), ("device_ns", spent), ("device_unended", ~ended)):
        tally.note(name, exits.thread[trip], exits.ts_ns[trip], amount)
