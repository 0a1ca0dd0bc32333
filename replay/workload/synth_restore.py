"""A synthetic restore: runs of one guest that resumes from a snapshot; two runs have most pages in common."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS, parse_duration_ns

Ints = npt.NDArray[np.int64]

RAMP: Final = ((0, 0.0), (300_000_000, 0.5), (750_000_000, 0.98), (1_000_000_000, 1.0))
"""Half of the pages by 300 ms, 98 % by 750 (fcvm #742: a Chromium snapshot); the rest by a second, assumed."""
_SHUFFLE: Final = 0.05
"""Standard deviation of a page's position in a run's order of touches, as a share of the whole order: assumed."""


@dataclass(frozen=True)
class Restore:
    """The pages that one run of the guest touches.

    `jaccard` is the Jaccard index of the pages of two runs: all runs share a core, and each has pages of its own.
    `next_page` is the share of touches that are on the page after the previous one, in the order of the whole guest.
    `ramp` is the share of pages touched by a time if no fault took any time: (ns, share), linear between the points.
    """

    run: int = 1
    jaccard: float = 0.927
    next_page: float = 0.086
    ramp: tuple[tuple[int, float], ...] = RAMP
    writes: float = 0.5
    memory_pages: int = 0
    """of the guest; 0: ten times what a run touches"""

    def __post_init__(self) -> None:
        if self.run < 1:
            raise UsageError(f"runs are counted from 1, not {self.run}")
        for what, value in (("Jaccard", self.jaccard), ("share of writes", self.writes)):
            if not 0 <= value <= 1:
                raise UsageError(f"a {what} of {value:g} is not between 0 and 1")
        if not 0 <= self.next_page <= 0.99:
            raise UsageError(f"a share of next pages of {self.next_page:g} is not between 0 and 0.99")
        if self.ramp[0] != (0, 0.0) or self.ramp[-1][1] != 1 or self.ramp[-1][0] > LONGEST_NS:
            raise UsageError("a ramp begins with nothing at 0 and ends with all of it, as 0s:0,300ms:0.5,1s:1")
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(self.ramp)):
            raise UsageError("a ramp's times rise, and its shares do not fall")


def parse_ramp(text: str) -> tuple[tuple[int, float], ...]:
    """``300ms:0.5,750ms:0.98,1s:1`` as (ns, share) from (0, 0) on.

    Raises:
        UsageError: not of that form.
    """
    points = [(0, 0.0)]
    for part in text.split(","):
        time, colon, share = part.partition(":")
        try:
            point = parse_duration_ns(time), float(share)
        except ValueError:
            colon = ""
        if not colon:
            raise UsageError(f"--ramp {text}: write TIME:SHARE,..., as 300ms:0.5,750ms:0.98,1s:1")
        points += [point] if point != points[-1] else []
    return tuple(points)


def restore_streams(made: Restore, vcpus: int, pages: int, seed: int) -> list[dict[str, Any]]:
    """A stream for each vCPU (`make_workload`): `vcpus` x `pages` touches of as many different pages.

    The same `seed` gives the same guest; `made.run` selects one of its runs.

    Raises:
        UsageError: its memory is too small for them.
    """
    total = vcpus * pages
    core = round(total * 2 * made.jaccard / (1 + made.jaccard))
    memory = made.memory_pages or 10 * total
    guest, own = np.random.default_rng(seed), np.random.default_rng([seed, made.run])
    shared, rank = _runs(core, made.next_page, guest)
    rank = rank + own.normal(0, _SHUFFLE, rank.size)
    mine, my_rank = _runs(total - core, made.next_page, own)
    # The upper half of memory is cut into slices, one a run: no two runs share any page of their own.
    half, slice_pages = memory // 2, 2 * (total - core) + 2
    if half < 2 * core + 2 or made.run * slice_pages > half:
        raise UsageError(f"a memory of {memory:,} pages is too small for run {made.run} of {total:,} pages")
    first = memory - made.run * slice_pages
    page = np.concatenate([_spread(shared, half, guest), first + _spread(mine, slice_pages, own)])
    runs = np.concatenate([rank[shared], my_rank[mine]])
    order = np.lexsort((page, runs))
    time = _ramp_ns(made.ramp, total)
    number = np.concatenate([shared, core + mine])[order]
    vcpu = own.integers(0, vcpus, int(number.max(initial=0)) + 1)[number]
    access = (own.random(total) < made.writes).astype(np.uint8)
    streams = []
    for one in range(vcpus):
        rows = np.flatnonzero(vcpu == one)
        think = np.diff(time[rows], prepend=0)
        streams.append({"think_ns": think, "page": page[order][rows], "name": f"vcpu{one}", "access": access[rows]})
    return streams


def _runs(count: int, next_page: float, rng: np.random.Generator) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(for each page, the number of its run of adjacent pages; for each run, when it is touched: 0 to 1)."""
    if not count:
        return np.zeros(0, np.int64), np.zeros(0)
    begins = rng.random(count) >= next_page
    begins[0] = True
    number = np.cumsum(begins) - 1
    return number.astype(np.int64), rng.random(int(number[-1]) + 1)


def _spread(run: Ints, size: int, rng: np.random.Generator) -> Ints:
    """An address for each page, in order: neighbours within a run, and a gap of one page or more before the next."""
    if not run.size:
        return run
    runs = int(run[-1]) + 1
    gaps = np.sort(rng.integers(0, size - run.size - runs + 1, runs))
    page: Ints = np.arange(run.size) + run + gaps[run]
    return page


def _ramp_ns(ramp: tuple[tuple[int, float], ...], count: int) -> Ints:
    """Times of `count` touches, ns, in rising order."""
    at = (np.arange(count) + 1) / max(count, 1)
    times, shares = zip(*ramp, strict=True)
    found: Ints = np.rint(np.interp(at, shares, times)).astype(np.int64)
    return found
