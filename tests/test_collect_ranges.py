"""Whose memory a range of addresses is, and how it is told to the kernel side in few words."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from faultreplay.collect.targets.ranges import VmRanges, merged

RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 40)).map(lambda r: (r[0], r[0] + r[1])), max_size=30)


def _covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {address for start, end in ranges for address in range(start, end)}


@given(RANGES)
def test_merging_keeps_every_address_and_leaves_gaps(ranges: list[tuple[int, int]]) -> None:
    out = merged(ranges)
    assert _covered(out) == _covered(ranges)
    assert all(before[1] < later[0] for before, later in itertools.pairwise(out))


@given(RANGES, RANGES, st.integers(2, 8))
def test_few_ranges_cover_all_of_each_process(
    one: list[tuple[int, int]], other: list[tuple[int, int]], limit: int
) -> None:
    ranges = VmRanges()
    ranges.set(1, one)
    ranges.set(2, other)
    few = ranges.at_most(limit)
    assert len(few) <= limit
    for tgid, mapped in ((1, one), (2, other)):
        told = [(start, end) for start, end, owner in few if owner == tgid]
        assert _covered(told) >= _covered(mapped)


def test_the_narrowest_gap_goes_first() -> None:
    ranges = VmRanges()
    ranges.set(7, [(0, 10), (12, 20), (100, 110)])
    assert ranges.at_most(2) == [(0, 20, 7), (100, 110, 7)]


def test_owner() -> None:
    ranges = VmRanges()
    ranges.set(7, [(0x1000, 0x3000)])
    ranges.add(8, 0x8000, 0x9000)
    asked = ((0x2FFF, 0x3000), (0x3000, 0x8000), (0x0, 0x10000), (0x8000, 0x8001))
    assert [ranges.owner(*r) for r in asked] == [7, 0, 7, 8]
    ranges.clear()
    assert ranges.owner(0, 1 << 60) == 0
