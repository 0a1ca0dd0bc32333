"""How far an access reaches: which message belongs to which page fault."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_events import FAULTER, PAGE, at, frame, message, placed, sleep, userfault

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.stitch.asked import ASKED_COLUMNS, Asked
from faultreplay.faulttrace.stitch.horizon import ACCESSES, Horizon
from faultreplay.faulttrace.stitch.keys import NEVER, Axis


class Rows:
    def __init__(self, thread: list[int], ts_ns: list[int]) -> None:
        self.thread, self.ts_ns = np.array(thread, np.int64), np.array(ts_ns, np.int64)


class Held:
    def __init__(self, **rows: Rows) -> None:
        self.__dict__.update(rows)


def horizon(thread: list[int], ts_ns: list[int]) -> Horizon:
    none = Rows([], [])
    faults, guest = Held(rows=Rows(thread, ts_ns)), Held(exits=none, walks=none)
    return Horizon(Axis.between(0, 1000), faults, guest)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=40),
    st.integers(-1, 2),
    st.integers(-1, 60),
    st.integers(1, 9),
)
def test_the_nth_access_after_a_time(rows: list[tuple[int, int]], thread: int, ts_ns: int, count: int) -> None:
    found = horizon([t for t, _ in rows], [ns for _, ns in rows])
    later = sorted(ns for t, ns in rows if t == thread and ns > ts_ns)
    expected = later[count - 1] if len(later) >= count else NEVER
    assert found.after(np.array([thread]), np.array([ts_ns]), count).tolist() == [expected]


@pytest.mark.parametrize(("accesses", "joined"), [(0, True), (ACCESSES - 1, True), (ACCESSES, False)])
def test_a_message_belongs_to_one_of_the_last_accesses(accesses: int, joined: bool) -> None:
    """Its own page fault was lost: that on the page from long before is not taken for it."""
    events = [at(10, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE, code=2)]
    events += [at(100 + n, Kind.PAGE_FAULT_USER, FAULTER, addr=0x1000 * (n + 1), code=2) for n in range(accesses)]
    events += [*sleep(1010, 1090, woken_ns=1070), message(1030), placed(1080, 20)]
    events.append(at(1100, Kind.MMAP_LOCK_RELEASED, FAULTER))
    faults = stitch_events(frame(*events)).faults.filter(pl.col("cause") == "missing")
    assert faults["start_ns"].to_list() == [10 if joined else 1010]


def test_two_messages_with_another_fault_between_are_two_faults() -> None:
    """The second one's page fault was lost."""
    again = [event for event in userfault(5000) if event["kind"] != Kind.PAGE_FAULT_USER]
    other = [at(3000, Kind.PAGE_FAULT_USER, FAULTER, addr=0x5000, code=2), at(3010, Kind.MMAP_LOCK_RELEASED, FAULTER)]
    result = stitch_events(frame(*userfault(1000), *other, *again))
    faults = result.faults.filter(pl.col("cause") == "missing")
    assert faults["start_ns"].to_list() == [1000, 5010]
    assert faults["stall_ns"].to_list() == [100, 90]
    assert result.report.messages_repeated == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5), st.integers(0, 1)), max_size=20), st.integers(1, 7))
def test_what_is_asked_for_and_placed(calls: list[tuple[int, int, int]], size: int) -> None:
    events, pages, placed_pages = [], {}, set()
    for n, (page, pages_placed, reads) in enumerate(calls):
        if reads:
            events.append(message(n, 4096 * page))
            pages[page] = n
        else:
            events.append(placed(n, 0, 4096 * page, pages=pages_placed))
            placed_pages |= set(range(page, page + pages_placed))
    whole = frame(*events).select(ASKED_COLUMNS)
    asked = Asked.of([whole.slice(n, size) for n in range(0, len(whole), size)], 4096)
    every = np.arange(40, dtype=np.uint64) * np.uint64(4096)
    assert asked.last_ns(every).tolist() == [pages.get(n, -1) for n in range(40)]
    assert asked.placed(every).tolist() == [n in placed_pages for n in range(40)]
    ended = {p: n for n, (page, many, reads) in enumerate(calls) if not reads for p in range(page, page + many)}
    assert asked.last_placed_ns(every).tolist() == [ended.get(n, -1) for n in range(40)]
    assert asked.last_message_ns == max(pages.values(), default=-1)


def test_wide_ranges_end_together() -> None:
    events = [placed(5, 0, 0x10_0000, pages=100), placed(9, 0, 0x4000_0000, pages=100), placed(11, 0, 0x10_0000)]
    asked = Asked.of([frame(*events).select(ASKED_COLUMNS)], 4096)
    pages = np.array([0x10_0000, 0x10_1000, 0x4000_0000, 0x5000_0000], np.uint64)
    assert asked.last_placed_ns(pages).tolist() == [11, 9, 9, -1]
