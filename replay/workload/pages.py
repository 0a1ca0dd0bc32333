"""Facts about each fault that are known before the run: whether other faults share its granule, and whether it is
this accessor's first touch.

Most pages of a VM fault once. For those the engine's kernel needs no page table; this module finds them in one
vectorised pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.replay.engine import layout as o
from faultreplay.replay.engine.jit import jit
from faultreplay.replay.language.words import CONTENT_CAUSES
from faultreplay.replay.workload.workload import Workload, derived

_CONTENT = np.array([name in CONTENT_CAUSES for name in CAUSES])


@dataclass(frozen=True)
class Pages:
    """Flags per fault, and the small table of tracked granules: those that must be looked up."""

    flags: npt.NDArray[np.uint8]
    granule: npt.NDArray[np.int32]
    """int32[F]: index in the table of tracked granules (only where flags say so); or empty"""
    tracked: int
    """granules in that table"""
    order: npt.NDArray[np.int32]
    """tracked granules by address (all of them, when everything is tracked); or empty"""


def pages_of(workload: Workload, granule_bytes: int, *, track: bool, everything: bool, refill_bytes: int) -> Pages:
    """Flags for one granule size, computed once per workload.

    Args:
        track: look up shared granules (some path coalesces)
        everything: look up every granule (a background stream may place it)
        refill_bytes: a window may empty stage 2, and one fault then maps so many bytes: mark each accessor's first
            fault on each such range; 0: no window does
    """
    options = (granule_bytes, track, everything, refill_bytes)
    return derived(workload, ("pages", *options), lambda: _pages(workload, *options))


def _pages(workload: Workload, granule_bytes: int, track: bool, everything: bool, refill_bytes: int) -> Pages:
    shift = (granule_bytes // workload.page_bytes).bit_length() - 1
    page = workload.page
    flags = np.zeros(workload.faults, np.uint8)
    granule = np.zeros(0, np.int32)
    order = np.zeros(0, np.int32)
    tracked = 0
    key = page >> shift if shift else page
    if (track or everything) and workload.faults:
        everything_content = _all_content(workload)
        content = None if everything_content else _CONTENT[workload.cause]
        shared, counts = _shared(key, content, everything)
        if shared.any():
            rows = np.flatnonzero(shared)
            names = _generations(workload, key[rows], rows)
            unique, index = np.unique(names, return_inverse=True)
            again = np.bincount(index)
            keep = np.ones(unique.size, bool) if everything else again > 1
            tracked = int(keep.sum())
            renumber = np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)
            granule = np.full(workload.faults, -1, np.int32)
            granule[rows] = renumber[index]
            flags[rows[keep[index]]] |= o.TRACKED
            if everything:
                order = np.arange(tracked, dtype=np.int32)
        del counts
    if refill_bytes:
        if refill_bytes < workload.page_bytes:
            page_bytes = workload.page_bytes
            raise UsageError(f"a fault cannot map {refill_bytes} bytes again: the trace's page has {page_bytes}")
        key = page >> ((refill_bytes // workload.page_bytes).bit_length() - 1)
        for a in range(workload.accessors):
            low, high = workload.accessor_start[a : a + 2]
            _, first = np.unique(key[low:high], return_index=True)
            flags[low + first] |= o.FIRST_TOUCH
    return Pages(flags, granule, tracked, order)


def _all_content(workload: Workload) -> bool:
    seen = np.flatnonzero(np.bincount(workload.cause, minlength=len(CAUSES)))
    return bool(_CONTENT[seen].all())


def _shared(
    key: npt.NDArray[Any], content: npt.NDArray[np.bool_] | None, everything: bool
) -> tuple[npt.NDArray[np.bool_], Any]:
    """Which rows are on a granule that content faults touch more than once."""
    if everything:
        return (np.ones(key.size, bool) if content is None else content), None
    low, high = int(key.min()), int(key.max())
    if high - low < 8 * key.size + (1 << 20):
        seen = np.zeros(high - low + 1, np.uint8)
        mask = content if content is not None else np.zeros(0, np.bool_)
        shared = np.zeros(key.size, np.bool_)
        _mark_shared(key, mask, low, seen, shared)
        return shared, None
    rows = np.arange(key.size) if content is None else np.flatnonzero(content)
    _, index, counts = np.unique(key[rows], return_inverse=True, return_counts=True)
    shared = np.zeros(key.size, np.bool_)
    shared[rows] = counts[index] > 1
    return shared, counts


@jit
def _mark_shared(key: Any, content: Any, low: Any, seen: Any, shared: Any) -> None:
    for i in range(key.size):
        if content.size == 0 or content[i]:
            at = key[i] - low
            if seen[at] < 2:
                seen[at] += 1
    for i in range(key.size):
        shared[i] = (content.size == 0 or content[i]) and seen[key[i] - low] > 1


def _generations(workload: Workload, key: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number for each (granule, generation).

    A page that faulted again after its previous fault had ended was removed in between: it is missing again. Only
    faults that overlapped in the recording were on the same missing page.
    """
    names = key.astype(np.int64)
    if not workload.recorded_start_ns.size or not workload.recorded_stall_ns.size:
        return names
    page = workload.page[rows].astype(np.int64)
    start = workload.recorded_start_ns[rows]
    finish = start + workload.recorded_stall_ns[rows]
    known = (start >= 0) & (workload.recorded_stall_ns[rows] >= 0)
    order = np.lexsort((start, page))
    generation = np.zeros(rows.size, np.int64)
    _number_generations(order, page, start, finish, known, generation)
    top = int(generation.max()) + 1 if generation.size else 1
    return (names - int(names.min())) * top + generation


@jit
def _number_generations(  # noqa: PLR0917
    order: Any, page: Any, start: Any, finish: Any, known: Any, generation: Any
) -> None:
    current = 0
    until = np.int64(-1)
    for n in range(order.size):
        i = order[n]
        if n == 0 or page[order[n - 1]] != page[i]:
            current = 0
            until = finish[i]
        elif known[i] and start[i] > until:
            current += 1
            until = finish[i]
        else:
            until = max(until, finish[i])
        generation[i] = current


@dataclass(frozen=True)
class Tracked:
    """The tracked granule for each granule of memory; if it has several generations, the first."""

    key: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]

    def at(self, key: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64: its index, -1 where it is not tracked."""
        if not self.key.size:
            return np.full(key.size, -1, np.int64)
        place = np.minimum(np.searchsorted(self.key, key), self.key.size - 1)
        return np.where(self.key[place] == key, self.index[place], -1)


def tracked_of(workload: Workload, pages: Pages, granule_pages: int) -> Tracked:
    """The tracked granules of a workload."""
    if not pages.granule.size:
        return Tracked(np.zeros(0, np.int64), np.zeros(0, np.int64))
    rows = np.flatnonzero(pages.granule >= 0)
    key, index = workload.page[rows].astype(np.int64) // granule_pages, pages.granule[rows].astype(np.int64)
    order = np.lexsort((index, key))
    unique, first = np.unique(key[order], return_index=True)
    return Tracked(unique, index[order][first])
