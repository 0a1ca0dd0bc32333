"""Working sets of several runs of one guest, compared with each other: what a prefetch could know of the next run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.workload.faults import WORKLOAD_COLUMNS, workload_from_faults
from faultreplay.replay.workload.guest_memory import guest_memory_of
from faultreplay.replay.workload.working_set import WorkingSet, seen_by, working_set
from faultreplay.replay.workload.workload import Ints

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

HUGE_BYTES: Final = 2 << 20
WORTH: Final = 0.5
"""A 2 MiB range is worth one huge page where at least this share of its pages is touched."""
UNTIL: Final = (0.5, 0.9, 0.98)
_ONES: Final = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class SetFacts:
    """One run's working set in numbers."""

    trace: str
    pages: int
    bytes: int
    next_page_share: float
    t50_ns: int
    t90_ns: int
    t98_ns: int
    """from the first touch until 50, 90 and 98 % of the pages were touched"""
    ranges: int
    """2 MiB ranges with any touched page"""
    ranges_worth: int
    """of these, ranges of which at least half is touched"""
    in_worth_share: float
    """share of the pages that lie in ranges worth it"""


@dataclass(frozen=True)
class SetComparison:
    """Several runs' sets against each other."""

    by: str
    """what pages are counted from: guest physical, registered memory, or addresses"""
    page_bytes: int
    sets: tuple[SetFacts, ...]
    pairs: tuple[tuple[str, str, float], ...]
    """(trace, trace, Jaccard)"""
    union_pages: int
    by_all_pages: int

    @property
    def jaccard_median(self) -> float | None:
        """Median over pairs; None of one set."""
        return median(value for _, _, value in self.pairs) if self.pairs else None

    @property
    def by_all_share(self) -> float:
        """Share of the union that every run touched."""
        return self.by_all_pages / self.union_pages if self.union_pages else 0.0

    def as_records(self) -> list[dict[str, Any]]:
        """One flat record a set."""
        return [dict(one.__dict__) for one in self.sets]


def load_set(trace: Trace, vcpu_threads: Sequence[str] = ()) -> WorkingSet:
    """The working set of a trace: what faulted in guest memory, whatever served it."""
    faults = trace.faults(vcpu_threads=vcpu_threads, columns=WORKLOAD_COLUMNS, categorical=True)
    workload = workload_from_faults(faults, meta=trace.meta)
    return working_set(trace.name, workload, guest_memory_of(trace.meta))


def alike(sets: Sequence[WorkingSet]) -> None:
    """Refuse sets whose pages cannot be matched.

    Raises:
        UsageError: their pages are counted from different things, or are of different sizes.
    """
    first = sets[0]
    for other in sets[1:]:
        if other.page_bytes != first.page_bytes:
            raise UsageError(f"{other.name} has pages of {other.page_bytes} bytes, {first.name} of {first.page_bytes}")
        if other.by != first.by:
            raise UsageError(
                f"pages of {first.name} are known by {first.by}, those of {other.name} by {other.by}: which of them "
                "are the same cannot be told"
            )


def compare_sets(sets: Sequence[WorkingSet]) -> SetComparison:
    """What several runs' sets have in common.

    Raises:
        UsageError: as `alike`.
    """
    alike(sets)
    union, count = seen_by(sets)
    return SetComparison(
        by=sets[0].by,
        page_bytes=sets[0].page_bytes,
        sets=tuple(_facts(one) for one in sets),
        pairs=tuple(_pairs(sets, union)),
        union_pages=int(union.size),
        by_all_pages=int((count == len(sets)).sum()),
    )


def _pairs(sets: Sequence[WorkingSet], union: Ints) -> Iterator[tuple[str, str, float]]:
    """The Jaccard index of every two sets, as of `working_set.jaccard`; of 1000 sets these are half a million."""
    member = np.zeros((len(sets), union.size), bool)
    for row, one in zip(member, sets, strict=True):
        row[np.searchsorted(union, one.page)] = True
    sizes = member.sum(axis=1)
    bits = np.packbits(member, axis=1)
    del member
    for first, one in enumerate(sets[:-1]):
        both = _ONES[bits[first] & bits[first + 1 :]].sum(axis=1, dtype=np.int64)
        either = sizes[first] + sizes[first + 1 :] - both
        for other, shared, of in zip(sets[first + 1 :], both.tolist(), either.tolist(), strict=True):
            yield one.name, other.name, shared / of if of else 1.0


def _facts(one: WorkingSet) -> SetFacts:
    in_range = max(HUGE_BYTES // one.page_bytes, 1)
    _, touched = np.unique(one.page // in_range, return_counts=True)
    worth = touched[touched >= WORTH * in_range]
    t50, t90, t98 = (one.until_ns(share) for share in UNTIL)
    return SetFacts(
        trace=one.name,
        pages=one.pages,
        bytes=one.pages * one.page_bytes,
        next_page_share=one.next_page_share,
        t50_ns=t50,
        t90_ns=t90,
        t98_ns=t98,
        ranges=int(touched.size),
        ranges_worth=int(worth.size),
        in_worth_share=float(worth.sum() / one.pages) if one.pages else 0.0,
    )
