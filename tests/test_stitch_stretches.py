"""However a trace is cut into stretches, its faults and its report are those of the whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_events import HANDLER, VM, at, frame, message, placed, same, userfault

from faultreplay.faulttrace.meta import Host, MapEntry, Memslot, Meta, Target
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import STRETCH_ROWS, stitch_events
from faultreplay.faulttrace.stitch import run as stitch_run
from faultreplay.faulttrace.stitch.source import FrameSource, stretches
from faultreplay.faulttrace.stitch.told import Told
from faultreplay.faulttrace.store import open_trace

IP, OTHER_IP = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1234
EPT_VIOLATION = 48
_GPA = 0x10_0000


FILE_KINDS = {"file": Kind.FILE_FAULT, "around": Kind.FILE_MAP, "add": Kind.FILE_ADD}


@st.composite
def process_events(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Page faults with and without an end, sleeps in and beside them, preemption; times may tie."""
    events = []
    for tid in range(200, 200 + draw(st.integers(1, 4))):
        now = draw(st.integers(0, 5))
        for _ in range(draw(st.integers(0, 12))):
            now += draw(st.integers(0, 4))
            what = draw(st.sampled_from(["fault", "release", "out", "in", "kernel", "file", "around", "add", "rss"]))
            if what in ("fault", "kernel"):
                kind = Kind.PAGE_FAULT_USER if what == "fault" else Kind.PAGE_FAULT_KERNEL
                events.append(at(now, kind, tid, addr=0x7000_0000 + 4096 * draw(st.integers(0, 3)), code=2))
            elif what in FILE_KINDS:
                page = 4096 * draw(st.integers(0, 2))
                events.append(at(now, FILE_KINDS[what], tid, addr=page, size=4096 * draw(st.integers(0, 2)), code=7))
            elif what == "rss":
                events.append(at(now, Kind.RSS_STAT, tid, size=draw(st.integers(0, 1))))
            elif what == "release":
                events.append(at(now, Kind.MMAP_LOCK_RELEASED, tid))
            elif what == "out":
                events.append(at(now, Kind.SCHED_OUT, tid, code=draw(st.sampled_from([0, 1, 2]))))
            else:
                events.append(at(now, Kind.SCHED_IN, tid, value=draw(st.sampled_from([0, 200, 201]))))
    return events


STEPS = ("exit", "fault", "spte", "fast", "mmio", "left", "call", "entry")
SHADOW_STEPS = ("fault", "unmap", "file", "add", "fault", "spte", "fast", "mmio", "left", "call")


def step(
    what: str, ns: int, tid: int, *, shadow: bool, calls: bool, ip: int, gpa: int, odd: bool
) -> list[dict[str, Any]]:
    """One thing that a vCPU does; nothing where it is of the other kind of paging."""
    value = -14 if odd else 0
    returned = [at(ns, Kind.KVM_RUN_EXIT, tid, fd=9, value=value, dur_ns=3)] if calls else []
    turns = {
        "exit": [at(ns, Kind.KVM_EXIT, tid, ip=ip, code=12 if odd else EPT_VIOLATION)],
        "fault": [at(ns, Kind.KVM_PAGE_FAULT, tid, ip=ip, addr=gpa, code=2)],
        "entry": [at(ns, Kind.KVM_ENTRY, tid, ip=OTHER_IP if odd else ip, vcpu=tid - 300)],
    }
    others = {
        "fault": [at(ns, Kind.KVM_MMU_WALK, tid, addr=gpa, code=2)],
        "unmap": [at(ns, Kind.KVM_UNMAP_HVA_RANGE, tid, addr=0x7F00_0000_0000, size=4096)],
        "file": [at(ns, Kind.FILE_FAULT, tid, addr=4096 * odd, code=7)],
        "add": [at(ns, Kind.FILE_ADD, tid, addr=4096 * odd, size=4096, code=7)],
        "spte": [at(ns, Kind.KVM_MMU_SET_SPTE, tid, addr=gpa, size=1)],
        "fast": [at(ns, Kind.KVM_MMU_FAST_PAGE_FAULT, tid, addr=gpa, size=1 + odd)],
        "mmio": [at(ns, Kind.KVM_MMIO, tid, addr=0xFEE0_0000 if odd else gpa, code=1)],
        "left": [at(ns, Kind.KVM_USERSPACE_EXIT, tid, code=2 if odd else 6, value=value), *returned],
        "call": [at(ns, Kind.KVM_RUN_ENTER, tid, fd=9)] if calls else [],
    }
    mine = others if shadow else others | turns
    return mine.get(what, []) * (2 if what == "entry" and odd and ns % 3 == 0 else 1)


@st.composite
def guest_events(draw: st.DrawFn) -> list[dict[str, Any]]:
    """vCPUs under hardware or shadow paging: exits, faults, entries, retries, devices, returns to userspace."""
    events = []
    for vcpu in range(draw(st.integers(1, 3))):
        tid, now = 300 + vcpu, draw(st.integers(0, 4))
        calls, shadow = draw(st.booleans()), draw(st.booleans())
        for _ in range(draw(st.integers(0, 10))):
            now += draw(st.sampled_from([0, 1, 3, 2_000_000]))
            ip = draw(st.sampled_from([IP, OTHER_IP]))
            gpa = _GPA + 4096 * draw(st.integers(0, 2))
            steps = SHADOW_STEPS if shadow else STEPS
            chosen = draw(st.sets(st.sampled_from(steps), max_size=6))
            for one in steps:
                if one in chosen:
                    now += draw(st.integers(0, 1))
                    draws = {"shadow": shadow, "calls": calls, "ip": ip, "gpa": gpa, "odd": draw(st.booleans())}
                    events += step(one, now, tid, **draws)
    return events


META = Meta(
    host=Host(kvm_flavour="vmx"),
    targets=[Target(VM, memslots=[Memslot(slot=0, gpa=_GPA, hva=0x7F00_0000_0000, size_bytes=1 << 20, ts_ns=0)])],
    memory_map=[
        MapEntry(0, VM, 0x7F00_0000_0000, 0x7F00_0010_0000, file="private"),
        MapEntry(0, VM, 0x7000_0000, 0x7000_2000, file="private"),
    ],
)


@settings(max_examples=60, deadline=None)
@given(process_events(), guest_events(), st.integers(1, 40), st.sampled_from([None, META]))
def test_any_cut_gives_the_faults_of_the_whole(
    process: list[dict[str, Any]], guest: list[dict[str, Any]], rows: int, meta: Meta | None
) -> None:
    same(frame(*process, *guest), rows, meta)


PAGES = [0x7000_0000 + 4096 * n for n in range(4)]
PLACING = [
    *(Kind.UFFD_COPY, Kind.UFFD_ZEROPAGE, Kind.UFFD_CONTINUE, Kind.UFFD_WAKE, Kind.UFFD_WRITEPROTECT),
    *(Kind.UFFD_MOVE, Kind.UFFD_UNREGISTER),
]


@st.composite
def userfault_events(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Threads that fault on few pages, handlers that read, place and wake, in any order: also what cannot be."""
    waiters, handlers = (
        [400 + n for n in range(draw(st.integers(1, 3)))],
        [500 + n for n in range(draw(st.integers(1, 2)))],
    )
    named = draw(st.sampled_from(["all", "none", "some", "strangers"]))
    events, now = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.integers(0, 3))
        tid, handler = draw(st.sampled_from(waiters)), draw(st.sampled_from(handlers))
        page = draw(st.sampled_from(PAGES))
        what = draw(
            st.sampled_from(["fault", "fault", "out", "in", "read", "place", "place", "wake", "wake", "release"])
        )
        if what == "fault":
            who = draw(st.sampled_from([tid, tid, handler]))
            kind = draw(st.sampled_from([Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL]))
            events.append(at(now, kind, who, addr=page + 8, code=2))
        elif what in ("out", "in"):
            kind = Kind.SCHED_OUT if what == "out" else Kind.SCHED_IN
            events.append(at(now, kind, draw(st.sampled_from([tid, tid, handler])), code=draw(st.integers(0, 2))))
        elif what == "read":
            told = {"all": tid, "none": 0, "some": draw(st.sampled_from([0, tid])), "strangers": 9}[named]
            flags = draw(st.sampled_from([0, 1, 3, 4]))
            events.append(message(now, page, tid=told, handler=handler, flags=flags))
        elif what == "place":
            kind = draw(st.sampled_from(PLACING))
            who = draw(st.sampled_from([handler, handler, tid]))
            more = {
                "value": draw(st.sampled_from([4096, 4096, 4096, -17])),
                "code": draw(st.sampled_from([0, 0, 0, 1, 2])),
            }
            pages = draw(st.sampled_from([1, 1, 2, 600]))
            events.append(placed(now, draw(st.integers(0, min(now, 6))), page, kind=kind, pages=pages, tid=who, **more))
        elif what == "wake":
            events.append(at(now, Kind.SCHED_WAKING, tid, value=handler))
        else:
            events.append(at(now, Kind.MMAP_LOCK_RELEASED, tid))
    return events


@st.composite
def guest_userfaults(draw: st.DrawFn) -> list[dict[str, Any]]:
    """vCPUs (those of `guest_events`) that wait for pages, too."""
    events, now = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 12))):
        now += draw(st.sampled_from([0, 1, 2, 3]))
        tid, page = draw(st.integers(300, 301)), 0x7F00_0000_0000 + 4096 * draw(st.integers(0, 2))
        what = draw(st.sampled_from(["read", "place", "wake", "out", "in", "fault"]))
        if what == "read":
            events.append(message(now, page, tid=draw(st.sampled_from([0, tid]))))
        elif what == "place":
            events.append(placed(now, draw(st.integers(0, min(now, 4))), page))
        elif what == "wake":
            events.append(at(now, Kind.SCHED_WAKING, tid, value=HANDLER))
        elif what == "fault":
            events.append(at(now, Kind.PAGE_FAULT_KERNEL, tid, addr=page, code=2))
        else:
            events.append(at(now, Kind.SCHED_OUT if what == "out" else Kind.SCHED_IN, tid, code=1))
    return events


@settings(max_examples=200, deadline=None)
@given(userfault_events(), st.integers(1, 30))
def test_any_cut_gives_the_userfaults_of_the_whole(events: list[dict[str, Any]], rows: int) -> None:
    same(frame(*events), rows)


_LOST_IN = [
    at(0, Kind.PAGE_FAULT_USER, 400, addr=PAGES[0] + 8, code=2),
    at(0, Kind.SCHED_OUT, 400, code=1),
    *[at(1, Kind.PAGE_FAULT_USER, 400, addr=PAGES[0] + 8, code=2)] * 6,
    at(1, Kind.SCHED_OUT, 400, code=0),
    message(2, PAGES[1], tid=400, handler=500),
]
"""A sleep whose switch-in was lost, and a message after the next switch-out."""


@settings(max_examples=100, deadline=None)
@example([], [], _LOST_IN, 1, None)
@given(guest_events(), guest_userfaults(), userfault_events(), st.integers(1, 40), st.sampled_from([None, META]))
def test_any_cut_gives_the_userfaults_of_guests(
    guest: list[dict[str, Any]],
    waiting: list[dict[str, Any]],
    process: list[dict[str, Any]],
    rows: int,
    meta: Meta | None,
) -> None:
    same(frame(*guest, *waiting, *process), rows, meta)


def test_a_sleep_whose_end_was_lost_is_over_at_the_next_switch_out() -> None:
    """It explains no message after that; what its thread did at its beginning is a fault of its own."""
    faults = stitch_events(frame(*_LOST_IN)).faults
    assert faults["cause"].to_list() == ["minor-host"] * 7 + ["missing"]
    assert faults["start_ns"].to_list() == [0, *[1] * 6, 2]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2), st.integers(0, 2)), max_size=20),
    st.booleans(),
    st.integers(1, 40),
)
def test_userfaults_do_not_depend_on_the_stretch(faults: list[tuple[int, int, int]], named: bool, rows: int) -> None:
    events, now = [], dict.fromkeys(range(3), 1000)
    for gap, page, n in faults:
        events += userfault(now[n], 0x7000_0000 + 4096 * page, 400 + n, named=named)
        now[n] += gap + 100
    same(frame(*events), rows)


@pytest.mark.parametrize("name", ["kernel-6.1-svm", "process-stress-ng"])
def test_sample_traces_do_not_depend_on_the_stretch(name: str) -> None:
    trace = open_trace(Path(__file__).parent.parent / "sample-traces" / f"{name}.trace")
    same(trace.events().slice(0, 40_000), 7_001, trace.meta)


def test_little_is_carried_from_stretch_to_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that fault now and then, with one that faulted at the start and never again: each stretch stays small."""
    events = []
    for n in range(3000):
        tid = 200 + n % 4
        events += [at(10 * n, Kind.PAGE_FAULT_USER, tid, addr=0x7000_0000 + 4096 * n, code=2)]
        events += [at(10 * n + 5, Kind.MMAP_LOCK_RELEASED, tid)] if n % 3 else []
    events.append(at(3, Kind.PAGE_FAULT_USER, 777, addr=0x7000_0000, code=2))
    seen = []
    original = stitch_run.Events

    def counted(*args: Any) -> Any:
        made = original(*args)
        seen.append(len(made))
        return made

    monkeypatch.setattr(stitch_run, "Events", counted)
    stitch_events(frame(*events), rows=100)
    assert len(seen) > 40
    assert max(seen) < 150


@pytest.mark.parametrize("named", [True, False])
def test_little_of_userfaults_is_carried(monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """Pages that are asked for again and again, a thread that faulted once, and a message whose page never comes."""
    events = userfault(10, 0x7100_0000, 800, named=named)
    events.append(message(120, 0x7200_0000, tid=801 if named else 0))
    for n in range(1200):
        events += userfault(1000 + 150 * n, 0x7000_0000 + 4096 * (n % 50), 400 + n % 3, named=named)
    seen = []
    original = stitch_run.Events

    def counted(*args: Any) -> Any:
        made = original(*args)
        seen.append(len(made))
        return made

    monkeypatch.setattr(stitch_run, "Events", counted)
    cut = stitch_events(frame(*events), rows=200)
    assert cut.report.messages_joined == 1201
    assert len(seen) > 30
    assert max(seen) < 700


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 12), st.integers(1, 50))
def test_stretches_hold_every_event_once_and_never_split_a_time(steps: list[int], rows: int, size: int) -> None:
    whole = frame(*(at(int(ns), Kind.PAGE_FAULT_USER, 1, addr=n) for n, ns in enumerate(np.cumsum(steps))))
    pieces = [whole.slice(n, size) for n in range(0, len(whole), size)]
    parts = list(stretches(pieces, rows))
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True] * bool(parts)
    assert pl.concat([part for part, _ in parts] or [whole]).equals(whole)
    for (before, _), (after, _) in itertools.pairwise(parts):
        assert before["ts_ns"][-1] < after["ts_ns"][0]


def test_faults_beyond_memory_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        event
        for n in range(400)
        for event in (
            at(10 * n, Kind.PAGE_FAULT_USER, 200 + n % 7, addr=4096 * n, code=2),
            at(10 * n + 35, Kind.MMAP_LOCK_RELEASED, 200 + n % 7),
        )
    ]
    # One that waits from the beginning to the end is told last and comes first.
    events += [at(1, Kind.PAGE_FAULT_USER, 900, addr=4096, code=2), at(9_000, Kind.MMAP_LOCK_RELEASED, 900)]
    whole = stitch_events(frame(*events))
    monkeypatch.setattr(stitch_run, "Told", lambda directory: Told(directory, in_memory_rows=16))
    cut = stitch_events(frame(*events), rows=20)
    assert cut.faults.equals(whole.faults)
    assert cut.faults["fault_id"].to_list() == list(range(len(whole.faults)))
    assert cut.faults["tid"][1] == 900


def test_progress_reaches_the_end() -> None:
    events = frame(*(at(n, Kind.PAGE_FAULT_USER, 1, addr=4096 * n) for n in range(100)))
    said: list[tuple[int, int]] = []
    run = stitch_run.Run(FrameSource(events, list(Kind)), Meta(), 10, progress=lambda *done: said.append(done))
    assert sum(table.num_rows for table in run.faults()) == 100
    assert said[-1] == (200, 200)
    assert STRETCH_ROWS >= 1 << 16
