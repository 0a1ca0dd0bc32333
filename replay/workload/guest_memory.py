"""The place of a page in guest memory, which is the same in every run of a guest.

Host virtual addresses differ between runs. A place is the guest physical page if the trace has the memory slots, else
the offset in the memory registered with userfaultfd, else the address itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.meta import Memslot, Meta

Ints = npt.NDArray[np.int64]
By = Literal["guest physical", "registered memory", "addresses"]

OUTSIDE: Final = -1
"""Value of `GuestMemory.places` for a page that is not in guest memory."""


@dataclass(frozen=True)
class GuestMemory:
    """Ranges of addresses that hold guest memory."""

    by: By
    ranges: tuple[tuple[int, int, int], ...]
    """(first address, end, place of the first), bytes; if several contain an address, the last counts; if there are
    none, every address is its own place"""

    def places(self, pages: npt.NDArray[Any], page_bytes: int) -> Ints:
        """int64: the native page of guest memory for each page (address // `page_bytes`); `OUTSIDE`: not in it."""
        pages = pages.astype(np.int64)
        if not self.ranges:
            return pages
        found = np.full(pages.size, OUTSIDE, np.int64)
        for first, end, place in self.ranges:
            inside = (pages >= first // page_bytes) & (pages < -(-end // page_bytes))
            found[inside] = pages[inside] - first // page_bytes + place // page_bytes
        return found

    def pages(self, places: Ints, page_bytes: int) -> Ints:
        """int64: the page (address // `page_bytes`) at each place, in order; places outside all ranges are left out."""
        if not self.ranges:
            return places
        found = np.full(places.size, OUTSIDE, np.int64)
        for first, end, place in self.ranges:
            count = -(-end // page_bytes) - first // page_bytes
            inside = (places >= place // page_bytes) & (places < place // page_bytes + count)
            found[inside] = places[inside] - place // page_bytes + first // page_bytes
        known: Ints = found[found != OUTSIDE]
        return known

    @property
    def size_bytes(self) -> int:
        """Total size; 0: not known."""
        return sum(end - first for first, end, _ in self.ranges)


def guest_memory_of(meta: Meta) -> GuestMemory:
    """The guest memory that a trace's meta.json describes."""
    slots = [slot for target in meta.targets for slot in _last(target.memslots)]
    if slots:
        return GuestMemory("guest physical", tuple((s.hva, s.hva + s.size_bytes, s.gpa) for s in slots))
    mapped = sorted({(entry.start, entry.end) for entry in meta.memory_map if entry.uffd})
    ranges, place = [], 0
    for first, end in mapped:
        ranges.append((first, end, place))
        place += end - first
    return GuestMemory("registered memory" if ranges else "addresses", tuple(ranges))


def _last(slots: Sequence[Memslot]) -> list[Memslot]:
    """Each slot as it was last set with a non-zero size: slots can move, and a deleted one existed before."""
    return list({one.slot: one for one in sorted(slots, key=lambda one: one.ts_ns) if one.size_bytes}.values())
