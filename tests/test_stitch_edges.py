"""Edges of the stitch that mutation testing found untested: equal times, absent names, whose slot, whose wake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_events import (
    ASLEEP,
    FAULTER,
    GPA,
    HANDLER,
    PAGE,
    VM,
    at,
    check,
    frame,
    message,
    only,
    placed,
    sleep,
    userfault,
)

from faultreplay.faulttrace.meta import Memslot, Meta, Target, WindowSpan
from faultreplay.faulttrace.schema import CAUSES, RESOLUTIONS, UFFD_MODE_DONTWAKE, Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.stitch.columns import Events
from faultreplay.faulttrace.stitch.found import UNKNOWN, Found, code
from faultreplay.faulttrace.stitch.markers import Context
from faultreplay.faulttrace.stitch.memory import Memory
from faultreplay.faulttrace.stitch.windows import DESTROY, FREEZE, WindowFinder, mark_windowed


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "inside"),
    [
        (100, 200, True),
        (200, 300, True),  # taken at the instant at which the slot came back
        (201, 300, False),
        (10, 100, True),  # over at the instant at which the slot went
        (10, 99, False),
        (10, UNKNOWN, True),
        (200, UNKNOWN, True),
        (201, UNKNOWN, False),
    ],
)
@pytest.mark.parametrize("cause", ["exit", "mmio", "missing"])
def test_which_faults_belong_to_a_window(start_ns: int, end_ns: int, inside: bool, cause: str) -> None:
    found = Found.blank(1)
    found.start_ns[:], found.end_ns[:], found.cause[:] = start_ns, end_ns, code(CAUSES, cause)
    mark_windowed(found, [WindowSpan(DESTROY, 100, 200)], lambda window: window.end_ns)
    expected = "window" if inside and cause != "missing" else cause
    assert CAUSES[found.cause[0]] == expected
    assert RESOLUTIONS[found.resolution[0]] == "none"


@pytest.mark.parametrize(
    ("cause", "resolution", "end_ns", "inside"),
    [
        ("write-protect", "unprotect", 149, False),  # let go by an ioctl for its page alone, before the thaw began
        ("write-protect", "unprotect", 150, True),
        ("write-protect", "unprotect", 190, True),
        ("write-protect", "unprotect", UNKNOWN, True),
        ("write-protect", "copy", 190, False),
        ("missing", "unprotect", 190, False),
        ("exit", "copy", 190, False),
        ("exit", "copy", UNKNOWN, False),
    ],
)
def test_which_writes_belong_to_a_freeze(cause: str, resolution: str, end_ns: int, inside: bool) -> None:
    found = Found.blank(1)
    found.start_ns[:], found.end_ns[:] = 120, end_ns
    found.cause[:], found.resolution[:] = code(CAUSES, cause), code(RESOLUTIONS, resolution)
    finder = WindowFinder(Memory(Meta(), []))
    finder.feed(
        Events(
            frame(  # closed; the thaw, another range's that ends with it later begun, a copy, an earlier one
                placed(100, 5, pages=8, kind=Kind.UFFD_WRITEPROTECT, code=1, value=0),
                placed(199, 179, PAGE - 4096, kind=Kind.UFFD_WRITEPROTECT, value=0),
                placed(200, 50, pages=8, kind=Kind.UFFD_WRITEPROTECT, value=0),
                placed(200, 30, PAGE - 4096, kind=Kind.UFFD_WRITEPROTECT, value=0),
                placed(200, 190, PAGE - 4096),
            )
        )
    )
    finder.finish(200)
    assert finder.windows == [WindowSpan(FREEZE, 100, 200)]
    mark_windowed(found, finder.windows, finder.thaw_began_ns)
    assert CAUSES[found.cause[0]] == ("window" if inside else cause)


def test_a_message_without_a_name_is_not_the_idle_threads() -> None:
    """Thread 0 is each CPU's idle task: it stands in the scheduler's events and never waits for a page."""
    events = userfault(1000, named=False)
    result = stitch_events(frame(at(900, Kind.SCHED_IN, 0), at(1011, Kind.SCHED_IN, 0), *events))
    check(result)
    assert (only(result)["tid"], only(result)["stall_ns"]) == (FAULTER, 100)


def test_a_message_may_name_the_first_thread_of_all() -> None:
    """Thread 1 (a container's init) is named, though a thread of the same page has faulted before it."""
    other = [at(990, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE + 8, code=2), *sleep(995, 1500)]
    events = [*other, *userfault(1000, tid=1)]
    result = stitch_events(frame(*events))
    assert result.faults.filter(cause="missing")["tid"].to_list() == [1]
    assert result.report.messages_without_thread == 0


@pytest.mark.parametrize(("fault_ns", "found"), [(1029, True), (1030, True), (1031, False)])
def test_the_waiter_of_a_nameless_message_faulted_before_it_was_read(fault_ns: int, found: bool) -> None:
    """At the same instant at the latest: a page fault behind the read is another's."""
    events = [
        at(fault_ns, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE + 8, code=2),
        message(1030, tid=0),
        placed(1080, 20),
        at(1100, Kind.MMAP_LOCK_RELEASED, FAULTER),
    ]
    result = stitch_events(frame(*events))
    check(result)
    assert (result.report.messages_joined == 1) is found


@pytest.mark.parametrize(
    ("state", "cause"), [(2, "major-host"), (ASLEEP, "minor-host"), (0, "minor-host"), (3, "major-host")]
)
def test_only_an_uninterruptible_sleep_is_a_disk(state: int, cause: str) -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            at(1010, Kind.SCHED_OUT, FAULTER, code=state),
            at(5000, Kind.SCHED_IN, FAULTER),
            at(5010, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(result)
    assert only(result)["cause"] == cause


def test_an_uninterruptible_sleep_after_the_fault_is_not_its_disk() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            at(1005, Kind.MMAP_LOCK_RELEASED, FAULTER),
            at(1010, Kind.SCHED_OUT, FAULTER, code=2),
            at(5000, Kind.SCHED_IN, FAULTER),
        )
    )
    check(result)
    assert (only(result)["cause"], only(result)["stall_ns"]) == ("minor-host", 5)


def memory_of(slots: list[Memslot], *changes: dict[str, Any]) -> Memory:
    return Memory(Meta(targets=[Target(VM, memslots=slots)]), [Events(frame(*changes)).of(Kind.KVM_SET_MEMSLOT)])


def host_address(memory: Memory, gpa: int, ts_ns: int) -> int:
    return int(memory.host_address(np.array([VM]), np.array([gpa], np.uint64), np.array([ts_ns]))[0])


def test_the_slots_of_the_start_were_there_before_and_later_ones_were_not() -> None:
    """Two slots at one address, one after the other: each fault has the memory of its time."""
    first = Memslot(100, slot=0, gpa=GPA, hva=0x10_0000, size_bytes=0x4000)
    gone = replace(first, ts_ns=500, size_bytes=0)
    second = Memslot(600, slot=1, gpa=GPA, hva=0x90_0000, size_bytes=0x4000)
    memory = memory_of([first, gone, second])
    assert host_address(memory, GPA + 0x1000, 50) == 0x10_1000  # found in the state at the start
    assert host_address(memory, GPA + 0x1000, 100) == 0x10_1000
    assert host_address(memory, GPA + 0x1000, 500) == 0x10_1000
    assert host_address(memory, GPA + 0x1000, 600) == 0x90_1000
    assert host_address(memory, GPA + 0x1000, 10_000) == 0x90_1000
    assert host_address(memory, GPA - 1, 100) == 0
    assert host_address(memory, GPA + 0x3FFF, 100) == 0x10_3FFF
    assert host_address(memory, GPA + 0x4000, 100) == 0


def test_another_processs_slot_does_not_make_this_ones_first() -> None:
    """What was first is a matter of each process: a late slot of one is not there from the beginning of the other."""
    early = Target(VM + 1, memslots=[Memslot(10, 0, GPA, 0x50_0000, 0x1000)])
    late = Target(VM, memslots=[Memslot(100, 0, GPA, 0x10_0000, 0x1000), Memslot(300, 1, GPA, 0x20_0000, 0x1000)])
    memory = Memory(Meta(targets=[early, late]), [])
    assert host_address(memory, GPA, 50) == 0x10_0000
    assert host_address(memory, GPA, 300) == 0x20_0000


def wake(ts_ns: int, tid: int, by: int) -> dict[str, Any]:
    return at(ts_ns, Kind.SCHED_WAKING, tid, value=by)


def wakes_of(*events: dict[str, Any]) -> list[tuple[int, int]]:
    from faultreplay.faulttrace.stitch.shed import ShedSpans

    whole = Events(frame(*events))
    memory = Memory(Meta(), [])
    context = Context(whole, memory, ShedSpans({}))
    threads = {int(context.events.threads.of(np.array([tid]))[0]): tid for tid in (FAULTER, FAULTER + 1, HANDLER)}
    return [
        (threads.get(int(t), -1), int(p)) for t, p in zip(context.wakes.thread, context.wakes.placement, strict=True)
    ]


def test_a_wake_counts_inside_a_waking_ioctl_of_the_thread_that_ran_it_only() -> None:
    copy = placed(1080, 20)
    silent = placed(2080, 20, page=PAGE + 4096, code=UFFD_MODE_DONTWAKE)
    inside = wake(1070, FAULTER, HANDLER)
    assert wakes_of(copy, inside) == [(FAULTER, 0)]
    assert wakes_of(copy, wake(1070, 1, HANDLER)) == [(-1, 0)]  # the thread of the lowest number counts too
    assert wakes_of(copy, wake(1059, FAULTER, HANDLER)) == []  # before it was called
    assert wakes_of(copy, wake(1081, FAULTER, HANDLER)) == []  # after it returned
    assert wakes_of(copy, wake(1070, FAULTER, FAULTER + 1)) == []  # by another thread meanwhile
    assert wakes_of(silent, wake(2070, FAULTER, HANDLER)) == []
    assert wakes_of(copy, silent, inside, wake(2070, FAULTER + 1, HANDLER)) == [(FAULTER, 0)]


# The message, the sleep and the ioctl of one fault, where one of them is at an edge or not there.


def test_a_message_read_at_the_instant_of_the_wake_is_in_time() -> None:
    """By a second handler, after the first had placed the page: nothing was late, nothing took time."""
    events = [event for event in userfault(1000) if event["kind"] != Kind.UFFD_MSG]
    result = stitch_events(frame(*events, message(1070)))
    check(result)
    assert (only(result)["queue_ns"], only(result)["service_ns"]) == (70, 0)
    assert result.report.messages_late == 0
    late = stitch_events(frame(*events, message(1071)))
    assert (only(late)["queue_ns"], only(late)["service_ns"]) == (None, None)
    assert late.report.messages_late == 1


def woken_for_nothing(read_ns: int, *rest: dict[str, Any]) -> list[dict[str, Any]]:
    """A fault whose first message is read at `read_ns`; a bare wake at 1045 sends it to sleep again until 1150."""
    return [
        at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
        *sleep(1010, 1050, woken_ns=1045),
        message(read_ns),
        placed(1048, 5, kind=Kind.UFFD_WAKE, value=0),
        at(1060, Kind.SCHED_OUT, FAULTER, code=ASLEEP),
        message(1080),
        at(1150, Kind.SCHED_IN, FAULTER),
        at(1160, Kind.MMAP_LOCK_RELEASED, FAULTER),
        *rest,
    ]


def test_the_service_of_two_messages_needs_both_their_ends() -> None:
    """It is from the first reading to the last placing: unknown where either is."""
    served = [at(1140, Kind.SCHED_WAKING, FAULTER, value=HANDLER), placed(1145, 20)]
    columns = ("stall_ns", "queue_ns", "service_ns", "resolution")
    whole = only(stitch_events(frame(*woken_for_nothing(1020, *served))))
    assert [whole[name] for name in columns] == [160, 20, 120, "copy"]
    closed = only(stitch_events(frame(*woken_for_nothing(1020))))  # under the waiter: no ioctl placed the page
    assert [closed[name] for name in columns] == [160, 20, None, "none"]
    late = only(stitch_events(frame(*woken_for_nothing(1049, *served))))  # the first message: after its wake
    assert [late[name] for name in columns] == [160, None, None, "copy"]


def test_each_message_without_a_fault_has_one_reason() -> None:
    fault = at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE)
    asleep = at(1010, Kind.SCHED_OUT, FAULTER, code=ASLEEP)
    for events, reason in (
        ([fault, asleep, message(1030)], "still waiting at the end"),
        ([fault, asleep, message(1030), placed(1080, 20)], "end not seen"),
        ([fault, message(1030)], "no ioctl placed its page"),
        ([message(1030, tid=0)], "waiting thread not found"),
        ([message(1030, tid=77)], "waiting thread not recorded (a kernel worker?)"),
    ):
        result = stitch_events(frame(*events))
        check(result)
        assert result.report.messages_unjoined == {reason: 1}
