"""Joins of faults of guests, and of windows, each on a sequence of events made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from made_events import (
    FAULTER,
    GPA,
    META,
    OTHER,
    PAGE,
    VM,
    at,
    check,
    frame,
    guest_userfault,
    only,
    placed,
    run_enter,
    run_exit,
    sleep,
    split,
    userfault,
)

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events


def test_guest_fault_under_shadow_paging() -> None:
    result = stitch_events(frame(*guest_userfault(1000)), META)
    check(result)
    fault = only(result)
    assert (fault["accessor"], fault["vcpu"], fault["join"], fault["stall_ns"]) == ("vcpu", 0, "walk/spte", 110)
    assert split(fault) == (30, 40, 40)
    assert result.report.walks_without_entry == 0


def test_an_entry_made_by_another_vcpu_leaves_the_lock_as_the_end() -> None:
    events = [event for event in guest_userfault(1000) if event["kind"] != Kind.KVM_MMU_SET_SPTE]
    later = [
        at(1300, Kind.KVM_MMU_WALK, FAULTER, addr=0xBEEF000),
        at(1310, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 4096, size=1),
    ]
    result = stitch_events(frame(*events, *later), META)
    check(result)
    assert result.faults.select("cause", "stall_ns", "join").rows() == [
        ("missing", 100, "walk/mmap-lock"),
        ("stage2", 10, "walk/spte"),
    ]


def test_guest_fault_on_hardware_ends_at_the_entry_after_the_mapping() -> None:
    events = [event for event in guest_userfault(1000) if event["kind"] != Kind.KVM_MMU_WALK]
    result = stitch_events(
        frame(
            *events,
            at(990, Kind.KVM_EXIT, FAULTER, code=48),
            at(995, Kind.KVM_PAGE_FAULT, FAULTER, addr=GPA, code=0x182),
            at(1120, Kind.KVM_ENTRY, FAULTER),
        ),
        META,
    )
    check(result)
    fault = only(result)
    assert (fault["join"], fault["start_ns"], fault["stall_ns"]) == ("exit/entry", 990, 130)


def test_a_guest_waiter_without_message_gets_its_page_from_its_mapping() -> None:
    waiter = [
        run_enter(900, OTHER),
        at(1002, Kind.KVM_MMU_WALK, OTHER, addr=0xDEAD000),
        *sleep(1012, 1092, OTHER, woken_ns=1072),
        at(1120, Kind.KVM_MMU_SET_SPTE, OTHER, addr=GPA + 4096, size=1),
    ]
    wide = [event for event in guest_userfault(1000) if event["kind"] != Kind.UFFD_COPY]
    result = stitch_events(frame(*wide, *waiter, placed(1080, 20, pages=2)), META)
    check(result)
    assert result.faults.select("tid", "page", "stall_ns").rows() == [(FAULTER, PAGE, 110), (OTHER, PAGE + 4096, 118)]


def test_kvm_exit_and_the_vcpu_resolves() -> None:
    result = stitch_events(
        frame(
            run_enter(900),
            at(1000, Kind.KVM_MMU_WALK, FAULTER, code=2),
            run_exit(1020, 120, value=-14),
            placed(1300, 40, tid=FAULTER, code=1),
            run_enter(1310),
            at(1330, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1350, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1),
            run_exit(2000, 690),
        ),
        META,
    )
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["resolution"], fault["handler_tid"], fault["access"]) == (
        "exit",
        "copy",
        FAULTER,
        "w",
    )
    assert split(fault) == (20, 280, 50)
    assert (fault["page"], fault["resolve_ns"], fault["stall_ns"]) == (PAGE, 40, 350)
    assert (result.report.exits, result.report.exits_unjoined) == (1, 0)


def test_kvm_exit_without_system_calls_under_shadow_paging() -> None:
    """kvm_userspace_exit tells that the VMM has it; the next walk is the first that shows the guest again."""
    result = stitch_events(
        frame(
            at(500, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(510, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 0x3000, size=1),
            at(1000, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1020, Kind.KVM_USERSPACE_EXIT, FAULTER, value=-14),
            at(1330, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1350, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1),
        ),
        META,
    )
    check(result)
    assert result.faults.select(
        "cause", "resolution", "page", "stall_ns", "queue_ns", "service_ns", "wake_ns"
    ).rows() == [
        ("stage2", "kernel", PAGE + 0x3000, 10, None, None, None),
        ("exit", "userspace", PAGE, 350, 20, None, None),
    ]
    assert (result.report.exits, result.report.exits_untimed) == (1, 1)


def test_time_in_userspace_is_no_stall_under_shadow_paging() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1020, Kind.KVM_USERSPACE_EXIT, FAULTER, code=6),
            at(91350, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1),
        ),
        META,
    )
    assert result.faults.is_empty()


def test_kvm_exit_that_never_came_back_is_counted() -> None:
    result = stitch_events(frame(run_enter(900), at(1000, Kind.KVM_MMU_WALK, FAULTER), run_exit(1020, 120, value=-14)))
    check(result)
    assert only(result)["join"] == "none"
    assert result.report.exits_unjoined == 1


def test_mmio_on_memory_is_a_fault_and_on_a_device_is_not() -> None:
    def exit_at(start_ns: int, gpa: int) -> list[dict[str, Any]]:
        return [
            run_enter(start_ns - 100),
            at(start_ns, Kind.KVM_MMU_WALK, FAULTER),
            at(start_ns + 5, Kind.KVM_MMIO, FAULTER, addr=gpa, size=8, code=2),
            run_exit(start_ns + 20, 120),
        ]

    events = [*exit_at(1000, GPA), *exit_at(1500, 0xFEE0_0000), run_enter(1800)]
    result = stitch_events(frame(*events), META)
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["page"], fault["stall_ns"], fault["access"]) == ("mmio", PAGE, 400, "w")
    assert result.report.mmio_of_devices == 1


def test_stage2_fault_that_kvm_resolves_alone() -> None:
    result = stitch_events(
        frame(
            run_enter(900),
            at(1000, Kind.KVM_MMU_WALK, FAULTER, code=2),
            at(1010, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1),
            at(1100, Kind.KVM_MMU_WALK, FAULTER),  # the guest's own page fault: nothing is mapped
            at(1200, Kind.KVM_MMU_WALK, FAULTER),
            at(1230, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 0x3000, size=1),
        ),
        META,
    )
    check(result)
    assert result.faults.select("cause", "resolution", "page", "access", "stall_ns", "think_ns").rows() == [
        ("stage2", "kernel", PAGE, "w", 10, None),
        ("stage2", "kernel", PAGE + 0x3000, "r", 30, 190),
    ]
    assert result.report.walks_without_entry == 1


def test_walks_again_and_again_are_one_access_held_up() -> None:
    retries = [at(ts_ns, Kind.KVM_MMU_WALK, FAULTER, addr=0xDEAD000) for ts_ns in (400, 600, 800)]
    fault = only(stitch_events(frame(run_enter(300), *retries, *guest_userfault(1000)[1:]), META))
    assert (fault["start_ns"], fault["stall_ns"], fault["queue_ns"]) == (400, 710, 630)


@pytest.mark.parametrize("between", ["nothing", "entry", "return", "other address"])
def test_two_equal_walks_or_walks_with_something_between_are_not_retries(between: str) -> None:
    extra = {
        "nothing": [],
        "entry": [at(850, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1)],
        "return": [run_exit(850, 500), run_enter(860)],
        "other address": [at(850, Kind.KVM_MMU_WALK, FAULTER, addr=0xBEEF000)],
    }[between]
    times = (800,) if between == "nothing" else (600, 800)
    walks = [at(ts_ns, Kind.KVM_MMU_WALK, FAULTER, addr=0xDEAD000) for ts_ns in times]
    result = stitch_events(frame(run_enter(300), *walks, *extra, *guest_userfault(1000)[1:]), META)
    check(result)
    assert result.faults.filter(cause="missing")["start_ns"].to_list() == [1000]


def test_retries_after_the_thaw_belong_to_the_fault() -> None:
    events = [event for event in guest_userfault(1000) if event["kind"] != Kind.KVM_MMU_SET_SPTE]
    retries = [at(1105 + n, Kind.KVM_MMU_WALK, FAULTER, addr=0xDEAD000) for n in range(3)]
    spte = at(1110, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1)
    result = stitch_events(frame(*events, *retries, spte), META)
    check(result)
    assert (only(result)["join"], only(result)["stall_ns"]) == ("walk/spte", 110)


def test_a_stage2_fault_that_was_retried() -> None:
    walks = [at(1000 + 100 * n, Kind.KVM_MMU_WALK, FAULTER, addr=0xDEAD000) for n in range(4)]
    spte = at(1310, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1)
    result = stitch_events(frame(run_enter(900), *walks, spte), META)
    check(result)
    assert (only(result)["start_ns"], only(result)["stall_ns"]) == (1000, 310)


def test_stage2_fault_on_hardware() -> None:
    result = stitch_events(
        frame(
            run_enter(900),
            at(1000, Kind.KVM_EXIT, FAULTER),
            at(1002, Kind.KVM_PAGE_FAULT, FAULTER, addr=GPA, code=2),
            at(1020, Kind.KVM_ENTRY, FAULTER),
            at(1100, Kind.KVM_EXIT, FAULTER),  # a timer, no fault
            at(1103, Kind.KVM_ENTRY, FAULTER),
        ),
        META,
    )
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["page"], fault["stall_ns"], fault["join"]) == ("stage2", PAGE, 20, "exit/entry")


def test_freeze_makes_a_window_and_its_writers_are_its_own() -> None:
    protect = placed(500, 100, kind=Kind.UFFD_WRITEPROTECT, pages=64, value=0, code=1)
    # The ioctl returns after its writer has long gone on.
    thaw = placed(1280, 220, kind=Kind.UFFD_WRITEPROTECT, pages=64, value=0, code=0)
    events = [event for event in guest_userfault(1000) if event["kind"] not in (Kind.UFFD_COPY, Kind.UFFD_MSG)]
    result = stitch_events(frame(protect, *events, thaw), META)
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["resolution"], fault["access"], fault["page"]) == ("window", "unprotect", "w", PAGE)
    assert [(w.kind, w.start_ns, w.end_ns) for w in result.windows] == [("uffd-wp", 500, 1280)]


def test_write_protection_of_one_page_is_no_window() -> None:
    protect = placed(500, 100, kind=Kind.UFFD_WRITEPROTECT, pages=64, value=0, code=1)
    thaw = placed(1080, 20, kind=Kind.UFFD_WRITEPROTECT, value=0, code=0)
    events = [event for event in userfault(1000, flags=3) if event["kind"] != Kind.UFFD_COPY]
    result = stitch_events(frame(protect, *events, thaw), META)
    check(result)
    assert (only(result)["cause"], only(result)["resolution"]) == ("write-protect", "unprotect")


def test_memslot_deleted_and_added_makes_a_window() -> None:
    def slot(ts_ns: int, size: int) -> dict[str, Any]:
        return at(ts_ns, Kind.KVM_SET_MEMSLOT, VM, addr=GPA - 0x1000, ip=PAGE - 0x1000, size=size, code=1, dur_ns=50)

    result = stitch_events(
        frame(
            slot(100, 64 * 4096),
            run_enter(900),
            slot(950, 0),
            at(1000, Kind.KVM_MMU_WALK, FAULTER),
            at(1005, Kind.KVM_MMIO, FAULTER, addr=GPA, code=2),
            run_exit(1020, 120),
            slot(2000, 64 * 4096),
            run_enter(2010),
            at(2050, Kind.KVM_MMU_WALK, FAULTER),
            at(2060, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA + 4096, size=1),
        )
    )
    check(result)
    assert [(w.kind, w.start_ns, w.end_ns) for w in result.windows] == [("memslot-destroy", 950, 2000)]
    assert result.faults.select("cause", "page", "stall_ns").rows() == [
        ("window", PAGE, 1010),
        ("stage2", PAGE + 4096, 10),
    ]
