"""The working set of a run: its pages in order of first touch. A later run of the same guest can prefetch them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from faultreplay.replay.workload.guest_memory import OUTSIDE, By, GuestMemory
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WorkingSet:
    """Pages of one run."""

    name: str
    by: By
    """what `page` counts from"""
    page: Ints
    """int64[P]: native pages of guest memory, each once, in order of first touch"""
    at_ns: Ints
    """int64[P]: when each was first touched, ns from the first of all"""
    next_page_share: float
    """share of first touches, in order of time, that are on the page after the previous one; 0 for fewer than 2"""
    page_bytes: int

    @property
    def pages(self) -> int:
        """Number of pages."""
        return int(self.page.size)

    def until_ns(self, share: float) -> int:
        """When `share` of the pages had been touched."""
        if not self.pages:
            return 0
        return int(self.at_ns[min(max(int(np.ceil(share * self.pages - 1e-9)), 1), self.pages) - 1])


def working_set(name: str, workload: Workload, memory: GuestMemory) -> WorkingSet:
    """The pages of guest memory that a workload touches, by faults of any class."""
    place = memory.places(workload.page, workload.page_bytes)
    rows = np.flatnonzero(place != OUTSIDE)
    known = workload.recorded_start_ns
    start = known if known.size else np.arange(workload.faults, dtype=np.int64)
    order = rows[np.lexsort((rows, start[rows]))]
    _, first = np.unique(place[order], return_index=True)
    touched = order[np.sort(first)]
    page, at = place[touched], start[touched]
    steps = np.diff(page)
    return WorkingSet(
        name=name,
        by=memory.by,
        page=page,
        at_ns=at - at[0] if at.size else at,
        next_page_share=float((steps == 1).mean()) if steps.size else 0.0,
        page_bytes=workload.page_bytes,
    )


def jaccard(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Jaccard index: pages in both sets / pages in either; 1 for two empty sets."""
    both = np.intersect1d(a, b, assume_unique=True).size
    either = a.size + b.size - both
    return both / either if either else 1.0


def seen_by(sets: Sequence[WorkingSet]) -> tuple[Ints, Ints]:
    """(every page that is in some set, in order of address; the number of sets that contain each)."""
    pages = np.concatenate([one.page for one in sets]) if sets else np.zeros(0, np.int64)
    union, count = np.unique(pages, return_counts=True)
    return union, count.astype(np.int64)


def in_order(sets: Sequence[WorkingSet]) -> Ints:
    """Every page that is in some set, in order of first touch; pages of the first set first."""
    pages = np.concatenate([one.page for one in sets]) if sets else np.zeros(0, np.int64)
    _, first = np.unique(pages, return_index=True)
    kept: Ints = pages[np.sort(first)]
    return kept
