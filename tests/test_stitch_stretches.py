"""However a trace is cut into stretches, its faults and its report are those of the whole."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_events import HANDLER, VM, at, frame, message, placed, userfault

from faultreplay.faulttrace.meta import Host, MapEntry, Memslot, Meta, Target
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import STRETCH_ROWS, stitch_events
from faultreplay.faulttrace.stitch import run as stitch_run
from faultreplay.faulttrace.stitch.horizon import SLEEPS
from faultreplay.faulttrace.stitch.source import FrameSource, stretches
from faultreplay.faulttrace.stitch.told import Told
from faultreplay.faulttrace.store import open_trace

IP, OTHER_IP = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1234
EPT_VIOLATION = 48
_GPA = 0x10_0000


FILE_KINDS = {"file": Kind.FILE_FAULT, "around": Kind.FILE_MAP, "add": Kind.FILE_ADD}


def same(events: pl.DataFrame, rows: int, meta: Meta | None = None) -> None:
    whole, cut = stitch_events(events, meta), stitch_events(events, meta, rows=rows)
    assert cut.faults.equals(whole.faults), (rows, cut.faults, whole.faults)
    assert cut.windows == whole.windows
    assert asdict(cut.report) == asdict(whole.report)


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


@pytest.mark.parametrize("switched_out_ns", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_waiter_woken_when_the_recording_ends_is_one_fault(rows: int, switched_out_ns: int) -> None:
    """Its message was not read, and its switch-in not recorded."""
    events = [
        at(2, Kind.PAGE_FAULT_USER, 400, addr=PAGES[0] + 8, code=2),
        at(switched_out_ns, Kind.SCHED_OUT, 400, code=1),
        at(5, Kind.SCHED_WAKING, 400, value=500),
        placed(6, 2, PAGES[0], tid=500),
    ]
    cut = stitch_events(frame(*events), rows=rows)
    assert cut.faults["cause"].to_list() == ["missing"]
    assert cut.report.waiters_without_message == 1
    same(frame(*events), rows)


@pytest.mark.parametrize(("sleeps", "waits"), [(1, True), (SLEEPS, True), (SLEEPS + 1, False)])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_a_waiter_waits_in_one_of_the_first_sleeps(rows: int, sleeps: int, waits: bool) -> None:
    """A page fault of long before is not taken for what a thread was woken from."""
    events = [at(2, Kind.PAGE_FAULT_USER, 400, addr=PAGES[0] + 8, code=2)]
    for n in range(sleeps):
        events += [at(10 * n + 10, Kind.SCHED_OUT, 400, code=1), at(10 * n + 15, Kind.SCHED_IN, 400)]
    woken_ns = 10 * sleeps + 2
    events += [at(woken_ns, Kind.SCHED_WAKING, 400, value=500), placed(woken_ns + 20, 21, PAGES[0], tid=500)]
    result = stitch_events(frame(*events), rows=rows)
    assert result.faults["cause"].to_list() == ["missing" if waits else "minor-host"]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_a_waiter_without_a_message_ends_where_its_lock_is_released(rows: int) -> None:
    """The stretch ends between its switch-in and the release."""
    events = [
        at(2, Kind.PAGE_FAULT_USER, 400, addr=PAGES[0] + 8, code=2),
        at(3, Kind.SCHED_OUT, 400, code=1),
        at(5, Kind.SCHED_WAKING, 400, value=500),
        at(6, Kind.SCHED_IN, 400),
        placed(7, 2, PAGES[0], tid=500),
        at(9, Kind.MMAP_LOCK_RELEASED, 400),
    ]
    cut = stitch_events(frame(*events), rows=rows)
    assert cut.faults["end_ns"].to_list() == [9]
    same(frame(*events), rows)


@pytest.mark.parametrize("exit_ns", [13, 14])
def test_equal_walks_that_become_retries_are_told_together(exit_ns: int) -> None:
    """The third equal walk makes the first one the beginning of what the VMM gets."""
    events = [at(ns, Kind.KVM_MMU_WALK, 301, addr=_GPA, code=2) for ns in (11, 12, 13)]
    events.append(at(exit_ns, Kind.KVM_RUN_EXIT, 301, fd=9, value=-14, dur_ns=3))
    whole = stitch_events(frame(*events))
    assert whole.faults["start_ns"].to_list() == [11]
    for rows in (1, 2, 3):
        same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 1000])
def test_a_walk_after_a_return_to_userspace_is_no_retry(rows: int) -> None:
    """Told by kvm_userspace_exit alone: each exit begins at its own walk."""
    steps = [(4, 0), (5, 1), (6, 0), (8, 1), (13, 0), (15, 1), (18, 0), (19, 1)]
    walk, left = {"kind": Kind.KVM_MMU_WALK, "addr": _GPA, "code": 2}, {"kind": Kind.KVM_USERSPACE_EXIT, "code": 2}
    events = [at(ns, tid=300, **(left | {"value": -14} if out else walk)) for ns, out in steps]
    assert stitch_events(frame(*events), rows=rows).faults["start_ns"].to_list() == [4, 6, 13, 18]
    same(frame(*events), rows)


@pytest.mark.parametrize("entered_ns", [5, 6, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 1000])
def test_a_walk_after_a_lost_exit_is_no_retry(rows: int, entered_ns: int) -> None:
    """That KVM_RUN was called again tells that it had been left."""
    events = [at(ns, Kind.KVM_MMU_WALK, 301, addr=_GPA, code=2) for ns in (4, 5, 8)]
    events += [at(13, Kind.KVM_MMU_WALK, 301, addr=_GPA + 4096, code=2), at(entered_ns, Kind.KVM_RUN_ENTER, 301, fd=9)]
    events += [at(ns, Kind.KVM_RUN_EXIT, 301, fd=9, value=-14, dur_ns=3) for ns in (10, 28)]
    assert stitch_events(frame(*events), rows=rows).faults["start_ns"].to_list() == [8, 13]
    same(frame(*events), rows)


_UNENDED = at(6, Kind.PAGE_FAULT_KERNEL, 300, addr=PAGES[0], code=2)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("after", "backing"),
    [
        (
            [
                at(7, Kind.SCHED_OUT, 300, code=1),
                at(10, Kind.MMAP_LOCK_RELEASED, 300),
                at(11, Kind.FILE_MAP, 300, addr=4096, size=4096, code=7),
            ],
            "cache",
        ),
        (
            [
                at(11, Kind.KVM_MMU_WALK, 300, addr=_GPA, code=2),
                at(12, Kind.FILE_FAULT, 300, addr=4096, code=7),
                at(13, Kind.KVM_USERSPACE_EXIT, 300, code=2, value=-14),
            ],
            None,
        ),
    ],
)
def test_files_of_a_fault_without_an_end(after: list[dict[str, Any]], backing: str | None, rows: int) -> None:
    """Up to the thread's next access, which may be the guest's."""
    events = frame(_UNENDED, *after)
    assert stitch_events(events, rows=rows).faults["backing"][0] == backing
    same(events, rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_walk_that_stands_for_a_call_is_remembered(rows: int) -> None:
    """The first walk tells that a thread is in KVM_RUN, also many walks later."""
    events = [at(ns, Kind.KVM_MMU_WALK, 300, addr=_GPA + 4096 * ns, code=2) for ns in range(1, 6)]
    events += [_UNENDED | {"ts_ns": 8}, at(9, Kind.KVM_MMU_WALK, 300, addr=_GPA, code=2)]
    events.append(at(13, Kind.KVM_USERSPACE_EXIT, 300, code=2, value=-14))
    assert stitch_events(frame(*events), rows=rows).faults["accessor"].to_list() == ["kernel", "vcpu"]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 1000])
def test_one_walk_stands_for_a_call(rows: int) -> None:
    """The first one after a return, however many follow: the access to a device lies between it and the next return."""
    walk: dict[str, Any] = {"kind": Kind.KVM_MMU_WALK, "tid": 300, "code": 2}
    events = [at(9, Kind.KVM_USERSPACE_EXIT, 300, code=6), at(10, addr=_GPA, **walk)]
    events += [at(14, Kind.KVM_MMIO, 300, addr=_GPA + 4096, code=1), at(15, addr=_GPA + 4096, **walk)]
    events += [at(22, addr=_GPA + 8192, **walk), at(23, Kind.KVM_USERSPACE_EXIT, 300, code=6)]
    assert stitch_events(frame(*events), rows=rows).report.mmio_of_devices == 1
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_return_to_come_tells_that_a_message_was_the_guests(rows: int) -> None:
    """How long KVM_RUN took is told when it returns: what the guest did before the message is no fault of its own."""
    events = [
        at(6, Kind.KVM_MMU_FAST_PAGE_FAULT, 300, addr=_GPA, size=2),
        at(6, Kind.KVM_MMU_WALK, 300, addr=_GPA + 4096, code=2),
    ]
    events += [message(7, PAGES[0], tid=300), at(8, Kind.KVM_MMU_WALK, 300, addr=_GPA + 4096, code=2)]
    events.append(at(10, Kind.KVM_RUN_EXIT, 300, fd=9, value=-14, dur_ns=3))
    faults = stitch_events(frame(*events), rows=rows).faults
    assert faults.select("start_ns", "cause").rows() == [(6, "missing"), (8, "exit")]
    same(frame(*events), rows)


@pytest.mark.parametrize(
    ("more", "end_ns"), [([at(27, Kind.KVM_EXIT, 301, ip=IP, code=EPT_VIOLATION)], 13), ([], None)]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_fault_for_which_nothing_was_done_ended_if_the_guest_exits_again(
    more: list[dict[str, Any]], end_ns: int | None, rows: int
) -> None:
    """Then it ran; else it is still there when the recording ends."""
    events = [
        at(11, Kind.KVM_PAGE_FAULT, 301, ip=IP, addr=_GPA, code=2),
        at(13, Kind.KVM_MMU_FAST_PAGE_FAULT, 301, addr=_GPA, size=1),
        at(13, Kind.KVM_ENTRY, 301, ip=OTHER_IP, vcpu=1),
        *more,
    ]
    assert stitch_events(frame(*events), rows=rows).faults["end_ns"][0] == end_ns
    same(frame(*events), rows)


@pytest.mark.parametrize(
    "left", [at(9, Kind.KVM_MMU_WALK, 300, addr=_GPA, code=2), at(9, Kind.KVM_EXIT, 300, ip=IP, code=EPT_VIOLATION)]
)
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_a_guests_last_access_is_its_messages(left: dict[str, Any], rows: int) -> None:
    """Nothing of the vCPU follows but the message, which is its reader's event."""
    events = [at(7, Kind.KVM_RUN_ENTER, 300, fd=9), left, message(21, PAGES[0], tid=300)]
    result = stitch_events(frame(*events), META, rows=rows)
    assert result.faults.select("start_ns", "cause").rows() == [(9, "missing")]
    assert result.report.walks_without_entry == 0
    same(frame(*events), rows, META)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_an_access_that_was_mapped_is_not_copied_later(rows: int) -> None:
    """Also where the entry was then found as it should be."""
    walk: dict[str, Any] = {"kind": Kind.KVM_MMU_WALK, "tid": 301, "addr": _GPA, "code": 2}
    events = [
        at(14, Kind.KVM_MMU_FAST_PAGE_FAULT, 301, addr=_GPA + 4096, size=2),
        at(14, **walk),
        at(15, Kind.KVM_MMU_FAST_PAGE_FAULT, 301, addr=_GPA, size=1),
        at(17, Kind.KVM_UNMAP_HVA_RANGE, 301, addr=0x7F00_0000_0000, size=4096),
        at(19, **walk),
        at(20, Kind.KVM_MMU_SET_SPTE, 301, addr=_GPA, size=1),
    ]
    assert stitch_events(frame(*events), rows=rows).faults["start_ns"].to_list() == [14, 19]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_return_is_of_the_message_that_began_with_the_same_walk(rows: int) -> None:
    """Another message came between, and its thread is off the CPU from its return on."""
    walk: dict[str, Any] = {"kind": Kind.KVM_MMU_WALK, "tid": 300, "addr": _GPA, "code": 2}
    events = [at(5, **walk), message(6, PAGES[2], tid=300), message(7, PAGES[0], tid=300)]
    events += [at(10, Kind.KVM_USERSPACE_EXIT, 300, code=2, value=-14), at(10, Kind.SCHED_OUT, 300, code=1)]
    events += [at(11, **walk), message(64, PAGES[3], tid=401)]
    faults = stitch_events(frame(*events), rows=rows).faults
    assert faults.select("tid", "start_ns", "cause").rows() == [
        (300, 5, "missing"),
        (300, 7, "missing"),
        (0, 64, "missing"),
    ]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_reader_that_is_said_to_be_off_the_cpu(rows: int) -> None:
    """Events of two CPUs may be out of order: how long it was preempted shows when it is back."""
    events = [at(42, Kind.SCHED_OUT, 401, code=1), at(45, Kind.SCHED_OUT, 500, code=0)]
    events += [message(47, PAGES[0], tid=401, handler=500), at(62, Kind.SCHED_IN, 500)]
    assert stitch_events(frame(*events), rows=rows).faults["read_preempted_ns"].to_list() == [2]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_return_ends_at_the_entry_before_another_fault(rows: int) -> None:
    """An exit whose fault comes late is taken for a fault itself until then."""
    events = [at(6, Kind.KVM_RUN_EXIT, 300, fd=9, value=-14, dur_ns=3), at(7, Kind.KVM_RUN_ENTER, 300, fd=9)]
    events += [at(9, Kind.KVM_ENTRY, 300, ip=OTHER_IP), at(10, Kind.KVM_EXIT, 300, ip=IP, code=EPT_VIOLATION)]
    events += [at(12, Kind.KVM_RUN_EXIT, 300, fd=9, dur_ns=3), at(17, Kind.KVM_PAGE_FAULT, 300, ip=IP, addr=_GPA)]
    assert stitch_events(frame(*events), rows=rows).faults.select("start_ns", "end_ns").rows() == [(6, 9), (10, None)]
    same(frame(*events), rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_page_faults_of_processes_may_share_a_placement(rows: int) -> None:
    """One thread places a page in its own fault on it, and so ends another's; the placement counts for both."""
    events = [
        at(3, Kind.PAGE_FAULT_KERNEL, 500, addr=PAGES[0] + 8, code=2),
        at(24, Kind.PAGE_FAULT_USER, 500, addr=PAGES[1] + 8, code=2),
        at(33, Kind.PAGE_FAULT_KERNEL, 402, addr=PAGES[1] + 8, code=2),
        at(41, Kind.SCHED_OUT, 402, code=1),
        placed(45, 4, PAGES[1], kind=Kind.UFFD_ZEROPAGE, tid=500, code=2),
        message(45, PAGES[0], tid=9, handler=500, flags=3),
        at(53, Kind.MMAP_LOCK_RELEASED, 402),
        placed(55, 4, PAGES[1], kind=Kind.UFFD_CONTINUE, tid=500),
    ]
    faults = stitch_events(frame(*events), rows=rows).faults
    assert faults.select("tid", "end_ns").rows() == [(500, None), (500, 45), (402, 53)]
    same(frame(*events), rows)


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
