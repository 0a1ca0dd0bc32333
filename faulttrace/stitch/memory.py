"""What an address is: its page size, and for guests the host address behind a guest physical one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.stitch.columns import Rows
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools

PAGE_BYTES = 4096


class Memory:
    """Page sizes and memory slots of the targets over time, from meta.json and from memory-slot ioctls."""

    def __init__(self, meta: Meta, slots: Sequence[Rows]) -> None:
        """Of `meta`, and of events of KVM_SET_MEMSLOT."""
        self._huge = [entry for entry in meta.memory_map if entry.page_bytes != PAGE_BYTES]
        self._private = [entry for entry in meta.memory_map if entry.file == "private"]
        # (tgid, from_ns, until_ns, gpa, hva, bytes); one row a slot's life
        self._slots: list[tuple[int, int, int, int, int, int]] = []
        changes = [
            (slot.ts_ns, target.tgid, slot.slot, slot.gpa, slot.hva, slot.size_bytes)
            for target in meta.targets
            for slot in target.memslots
        ]
        seen = {(ts_ns, tgid, slot) for ts_ns, tgid, slot, *_ in changes}
        changes += [change for rows in slots for change in _changes(rows) if change[:3] not in seen]
        changes.sort()
        alive: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        for ts_ns, tgid, slot, gpa, hva, size in changes:
            before = alive.pop((tgid, slot), None)
            if before is not None:
                start, *place = before
                self._slots.append((tgid, start, ts_ns, place[0], place[1], place[2]))
            if size:
                alive[tgid, slot] = (ts_ns, gpa, hva, size)
        self._slots += [(tgid, start, NEVER, gpa, hva, size) for (tgid, _), (start, gpa, hva, size) in alive.items()]
        first: dict[int, int] = {}
        for tgid, start, *_ in self._slots:
            first[tgid] = min(start, first.get(tgid, start))
        # A slot found in the state at start was there before its timestamp.
        self._slots = [
            (tgid, 0 if start == first[tgid] else start, end, gpa, hva, size)
            for tgid, start, end, gpa, hva, size in self._slots
        ]

    @property
    def has_private_files(self) -> bool:
        """Whether any private mapping of a file is known."""
        return bool(self._private)

    def private_file(self, tgid: I64, addr: U64) -> Bools:
        """Whether each address lies in a private mapping of a file, by the process's maps."""
        found = np.zeros(len(addr), np.bool_)
        for entry in self._private:
            found |= (tgid == entry.tgid) & (addr >= np.uint64(entry.start)) & (addr < np.uint64(entry.end))
        return found

    def granule(self, tgid: I64, addr: U64) -> I64:
        """Bytes of the page that holds each address."""
        size = np.full(len(addr), PAGE_BYTES, np.int64)
        for entry in self._huge:
            inside = (tgid == entry.tgid) & (addr >= np.uint64(entry.start)) & (addr < np.uint64(entry.end))
            size[inside] = entry.page_bytes
        return size

    def page(self, tgid: I64, addr: U64) -> U64:
        """Start of the page that holds each address."""
        return addr & ~(self.granule(tgid, addr).astype(np.uint64) - np.uint64(1))

    def host_address(self, tgid: I64, gpa: U64, ts_ns: I64) -> U64:
        """Host virtual address of each guest physical one; 0 where no slot holds it."""
        found = np.zeros(len(gpa), np.uint64)
        # An exit on a slot that is gone for a moment (memslot-destroy) still means the memory that was there.
        for at_the_time in (False, True):
            for owner, start, end, base, hva, size in self._slots:
                inside = (tgid == owner) & (gpa >= np.uint64(base)) & (gpa < np.uint64(base + size))
                if at_the_time:
                    inside &= (ts_ns >= start) & (ts_ns <= end)
                found[inside] = gpa[inside] - np.uint64(base) + np.uint64(hva)
        return found


def _changes(rows: Rows) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(ts_ns, tgid, slot, gpa, hva, bytes) of each change of a memory slot that was made."""
    for i in np.flatnonzero(rows.value == 0).tolist():
        place = (int(rows.addr[i]), int(rows.ip[i]), int(rows.size[i]))
        yield (int(rows.ts_ns[i]), int(rows.tgid[i]), int(rows.code[i]) & 0xFFFFFFFF, *place)
