"""Traces whose stitch once depended on where they were cut into stretches: each says what must be told together."""

from __future__ import annotations

from typing import Any

import pytest
from made_events import at, frame, message, placed, same
from test_stitch_stretches import EPT_VIOLATION, IP, META, OTHER_IP, PAGES

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.stitch.horizon import SLEEPS

_GPA = 0x10_0000


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


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 1000])
def test_an_exit_without_its_fault_has_none_of_before(rows: int) -> None:
    """Not that of an earlier trip, whose page is another: what is mapped after the return is what it waited for."""
    left = {"kind": Kind.KVM_EXIT, "ip": IP}
    events = [at(0, tid=300, **left, code=EPT_VIOLATION), at(1, tid=300, **left, code=12)]
    events += [at(2, Kind.KVM_USERSPACE_EXIT, 300, code=2, value=-14), at(2, Kind.KVM_RUN_EXIT, 300, fd=9, value=-14)]
    events += [at(3, Kind.KVM_RUN_ENTER, 300, fd=9), at(4, tid=300, **left, code=EPT_VIOLATION)]
    events += [
        at(5, Kind.KVM_PAGE_FAULT, 300, ip=IP, addr=_GPA, code=2),
        at(6, Kind.KVM_MMU_SET_SPTE, 300, addr=_GPA, size=1),
    ]
    faults = stitch_events(frame(*events), rows=rows).faults
    assert [(f["cause"], f["end_ns"], f["join"]) for f in faults.to_dicts()][-1] == ("exit", 6, "exit/spte")
    same(frame(*events), rows)
