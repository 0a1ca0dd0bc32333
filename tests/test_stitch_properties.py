"""Random interleavings: whatever k servers do, every message ends up in one fault and its times add up."""

from __future__ import annotations

import heapq

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from made_events import FD, PF, VM, at, check, frame

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.stitch.keys import Axis, Ids, Index, rank_within

BASE = 0x7F00_0000_0000


def served(
    thinks: list[list[int]], pages: list[list[int]], servers: int, services: list[int], named: bool
) -> tuple[pl.DataFrame, list[tuple[int, int, int, int, int, int]]]:
    """Threads fault on pages that `servers` first-come-first-served handlers place; events and what is true of them.

    Truth: (start, tid, handler, queue, service, wake) of each message's fault. A page is there for good once placed.
    """
    events, truth = [], []
    here: set[int] = set()
    waiting: dict[int, list[tuple[int, int]]] = {}
    queue: list[tuple[int, int, int, int]] = []  # (asleep at, tid, page, start)
    free = [(0, 500 + n) for n in range(servers)]
    heapq.heapify(free)
    wake_at: list[tuple[int, int]] = [(think[0], n) for n, think in enumerate(thinks)]
    heapq.heapify(wake_at)
    step = [0] * len(thinks)
    turn = 0

    def next_access(n: int, now: int) -> None:
        step[n] += 1
        if step[n] < len(thinks[n]):
            heapq.heappush(wake_at, (now + thinks[n][step[n]], n))

    while wake_at or queue:
        # Accesses up to the moment the next reader is free for the oldest message.
        ready = max(free[0][0], queue[0][0] + 1) if queue else None
        if wake_at and (ready is None or wake_at[0][0] < ready):
            now, n = heapq.heappop(wake_at)
            page, tid = BASE + 4096 * pages[n][step[n]], 900 + n
            if page in here:
                next_access(n, now)
                continue
            events.append(at(now, Kind.PAGE_FAULT_USER, tid, addr=page, code=2))
            events.append(at(now + 3, Kind.SCHED_OUT, tid, code=1))
            queue.append((now + 3, tid, page, now))
            queue.sort()
            waiting.setdefault(page, []).append((now, tid))
            continue
        _, handler = heapq.heappop(free)
        _, tid, page, start = queue.pop(0)
        assert ready is not None
        read, placed = ready, ready + services[turn % len(services)]
        turn += 1
        ends = [(placed + 5 + 2 * i, who, began) for i, (began, who) in enumerate(waiting.get(page, []))]
        # Later faulters on the page may still arrive before it is placed: serve them first.
        late = [
            event for event in wake_at if event[0] <= placed and BASE + 4096 * pages[event[1]][step[event[1]]] == page
        ]
        for now, n in late:
            wake_at.remove((now, n))
            heapq.heapify(wake_at)
            events.append(at(now, Kind.PAGE_FAULT_USER, 900 + n, addr=page, code=2))
            events.append(at(now + 3, Kind.SCHED_OUT, 900 + n, code=1))
            ends.append((placed + 5 + 2 * len(ends), 900 + n, now))
        events.append(at(read, Kind.UFFD_MSG, handler, fd=FD, addr=page, value=tid if named else 0, ip=PF, size=1))
        for i, (end, who, _) in enumerate(ends):
            woken = placed + i
            events.append(at(woken, Kind.SCHED_WAKING, who, value=handler))
            events.append(at(max(end, woken + 4) + 2, Kind.SCHED_IN, who))
            events.append(at(max(end, woken + 4) + 5, Kind.MMAP_LOCK_RELEASED, who))
            next_access(who - 900, max(end, woken + 4) + 6)
        done = placed + len(ends) + 1
        events.append(
            at(done, Kind.UFFD_COPY, handler, fd=FD, addr=page, size=4096, value=4096, dur_ns=done - placed + 1)
        )
        heapq.heappush(free, (done + 2, handler))
        here.add(page)
        queue = [entry for entry in queue if entry[2] != page]
        waiting.pop(page, None)
        place = next(i for i, (_, who, began) in enumerate(ends) if (who, began) == (tid, start))
        woken = placed + place
        truth.append((start, tid, handler, read - start, woken - read, max(ends[place][0], woken + 4) + 5 - woken))
    return frame(*events), sorted(truth)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int, list[int]]:
    threads = draw(st.integers(1, 5))
    accesses = draw(st.integers(1, 8))
    thinks = [draw(st.lists(st.integers(1, 200), min_size=accesses, max_size=accesses)) for _ in range(threads)]
    # Times differ by thread, so that no two events of different threads tie and the truth is one only.
    thinks = [[think * 64 + n for think in thread] for n, thread in enumerate(thinks)]
    pages = [draw(st.lists(st.integers(0, 12), min_size=accesses, max_size=accesses)) for _ in range(threads)]
    return thinks, pages, draw(st.integers(1, 3)), [draw(st.integers(20, 3000)) * 64 + 33 for _ in range(3)]


@settings(max_examples=150, deadline=None)
@given(runs(), st.booleans())
def test_every_message_is_joined_once_and_times_add_up(
    run: tuple[list[list[int]], list[list[int]], int, list[int]], named: bool
) -> None:
    events, truth = served(*run, named)
    result = stitch_events(events)
    check(result)
    assert result.report.messages_unjoined == {}
    by_message = result.faults.filter(pl.col("service_ns").is_not_null())
    found = by_message.select("start_ns", "tid", "handler_tid", "queue_ns", "service_ns", "wake_ns").rows()
    assert sorted(found) == truth
    assert (by_message["queue_ns"] + by_message["service_ns"] + by_message["wake_ns"] == by_message["stall_ns"]).all()
    # Every page fault of the run is one fault, and none waits on two pages at once.
    assert len(result.faults) == events.filter(kind=int(Kind.PAGE_FAULT_USER)).height
    assert result.faults["end_ns"].null_count() == 0
    assert (result.faults["think_ns"].drop_nulls() >= 0).all()
    assert set(result.faults["vm"]) == {VM}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=60),
    st.lists(st.tuples(st.integers(-1, 6), st.integers(-5, 60)), max_size=60),
)
def test_index_finds_what_a_search_by_hand_finds(rows: list[tuple[int, int]], questions: list[tuple[int, int]]) -> None:
    rows.sort(key=lambda row: row[1])
    group, ts = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    asked, when = (np.array([question[i] for question in questions], np.int64) for i in (0, 1))
    index = Index(Axis.spanning(ts), group, ts)
    last, first = index.last_until(asked, when), index.first_from(asked, when)
    for n, (g, t) in enumerate(questions):
        before = [i for i, row in enumerate(rows) if row[0] == g and row[1] <= t]
        after = [i for i, row in enumerate(rows) if row[0] == g and row[1] >= t]
        assert last[n] == (before[-1] if before else -1)
        assert first[n] == (after[0] if after else -1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_rank_within_counts_within_each_group(rows: list[tuple[int, int]]) -> None:
    group, order = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    seen: dict[int, int] = {}
    expected = [0] * len(rows)
    for i in sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][1], i)):
        expected[i] = seen.get(rows[i][0], 0)
        seen[rows[i][0]] = expected[i] + 1
    assert rank_within(group, order).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9), max_size=20), st.lists(st.integers(-12, 12), max_size=20))
def test_ids_number_the_distinct_values(values: list[int], asked: list[int]) -> None:
    distinct = sorted(set(values))
    expected = [distinct.index(value) if value in distinct else -1 for value in asked]
    assert Ids(np.array(values, np.int64)).of(np.array(asked, np.int64)).tolist() == expected
