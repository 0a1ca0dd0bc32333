"""Every way to join, each on a sequence of events made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from made_events import (
    ASLEEP,
    FAULTER,
    GPA,
    HANDLER,
    META,
    OTHER,
    PAGE,
    PREEMPTED,
    VM,
    WRITE,
    at,
    check,
    frame,
    guest_userfault,
    message,
    only,
    placed,
    run_enter,
    sleep,
    split,
    userfault,
)

from faultreplay.faulttrace.meta import MapEntry, Meta
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, Kind
from faultreplay.faulttrace.stitch import stitch_events


def test_no_events() -> None:
    result = stitch_events(frame())
    check(result)
    assert len(result.faults) == 0


def test_process_fault() -> None:
    result = stitch_events(frame(*userfault(1000)))
    check(result)
    fault = only(result)
    assert (fault["start_ns"], fault["end_ns"], fault["stall_ns"]) == (1000, 1100, 100)
    assert split(fault) == (30, 40, 30)
    assert fault["resolve_ns"] == 10
    assert fault["offcpu_ns"] == 80
    assert (fault["tid"], fault["handler_tid"], fault["vm"], fault["page"]) == (FAULTER, HANDLER, VM, PAGE)
    assert (fault["accessor"], fault["access"], fault["cause"], fault["resolution"]) == ("vmm", "r", "missing", "copy")
    assert fault["join"] == "page-fault/mmap-lock"
    assert fault["think_ns"] is None


def test_access_is_the_messages_flag() -> None:
    reading = stitch_events(frame(*userfault(1000)))
    writing = stitch_events(frame(*userfault(1000, flags=WRITE)))
    assert (only(reading)["access"], only(writing)["access"]) == ("r", "w")


def test_think_time_is_from_the_end_of_the_threads_fault_before() -> None:
    result = stitch_events(frame(*userfault(1000), *userfault(1500, PAGE + 4096), *userfault(1200, PAGE + 8192, OTHER)))
    check(result)
    assert result.faults["think_ns"].to_list() == [None, None, 400]


@pytest.mark.parametrize("known", [True, False], ids=["THREAD_ID", "no thread id"])
def test_waiter_is_found_without_thread_id(known: bool) -> None:
    faults = [userfault(1000 + 500 * n, PAGE + 4096 * n, FAULTER + n % 3, named=known) for n in range(9)]
    result = stitch_events(frame(*(event for fault in faults for event in fault)))
    check(result)
    assert result.faults["tid"].to_list() == [FAULTER + n % 3 for n in range(9)]
    assert result.faults["stall_ns"].to_list() == [100] * 9
    assert result.report.messages_without_thread == (0 if known else 9)


def test_guest_waiter_without_thread_id_is_who_the_ioctl_woke() -> None:
    result = stitch_events(frame(*guest_userfault(1000, tid=0)))
    check(result)
    assert (only(result)["tid"], only(result)["stall_ns"]) == (FAULTER, 110)


def test_two_waiters_of_one_page_both_read() -> None:
    result = stitch_events(
        frame(
            *[at(1000 + i, Kind.PAGE_FAULT_USER, tid, addr=PAGE) for i, tid in enumerate((FAULTER, OTHER))],
            *sleep(1010, 1090, FAULTER, woken_ns=1070),
            *sleep(1012, 1095, OTHER, woken_ns=1072),
            message(1030, tid=0),
            message(1040, tid=0),
            placed(1080, 20),
            at(1100, Kind.MMAP_LOCK_RELEASED, FAULTER),
            at(1111, Kind.MMAP_LOCK_RELEASED, OTHER),
        )
    )
    check(result)
    assert result.faults["tid"].to_list() == [FAULTER, OTHER]
    assert result.faults["stall_ns"].to_list() == [100, 110]
    assert result.report.placements_unasked == 0


def test_a_waiter_whose_message_was_never_read_is_a_fault() -> None:
    result = stitch_events(
        frame(
            *userfault(1000),
            at(1005, Kind.PAGE_FAULT_USER, OTHER, addr=PAGE),
            *sleep(1015, 1095, OTHER, woken_ns=1071),
            at(1111, Kind.MMAP_LOCK_RELEASED, OTHER),
        )
    )
    check(result)
    fault = result.faults.filter(tid=OTHER).row(0, named=True)
    assert (fault["stall_ns"], fault["queue_ns"], fault["service_ns"], fault["wake_ns"]) == (106, None, None, 40)
    assert (fault["cause"], fault["resolution"], fault["handler_tid"]) == ("missing", "copy", HANDLER)
    assert result.report.waiters_without_message == 1


def test_a_waiter_whose_message_and_wake_were_lost_is_found_by_its_page() -> None:
    result = stitch_events(
        frame(
            *userfault(1000),
            at(1005, Kind.PAGE_FAULT_USER, OTHER, addr=PAGE),
            *sleep(1015, 1095, OTHER),
            at(1111, Kind.MMAP_LOCK_RELEASED, OTHER),
        )
    )
    check(result)
    found = result.faults.filter(tid=OTHER)
    # its page was there at 1080, when the ioctl ended
    assert found.select("cause", "handler_tid", "wake_ns", "stall_ns").rows() == [("missing", HANDLER, 31, 106)]
    assert result.report.waiters_without_message == 1


def test_a_lock_waiter_woken_in_the_ioctl_is_no_fault() -> None:
    result = stitch_events(frame(*userfault(1000), *sleep(1015, 1095, OTHER, woken_ns=1071)))
    check(result)
    assert len(result.faults) == 1
    assert result.report.wakes_unexplained == 1


def test_being_preempted_is_no_stall_and_counts_as_off_cpu() -> None:
    result = stitch_events(
        frame(
            *userfault(1000),
            at(1092, Kind.SCHED_OUT, FAULTER, code=PREEMPTED),
            at(1097, Kind.SCHED_IN, FAULTER),
            at(1200, Kind.SCHED_OUT, FAULTER, code=PREEMPTED),
            at(1300, Kind.SCHED_IN, FAULTER),
        )
    )
    check(result)
    assert (only(result)["stall_ns"], only(result)["offcpu_ns"]) == (100, 85)


def scheduled(start_ns: int = 1000, *, handler_after: int = 0, accessor_after: int = 0) -> list[dict[str, Any]]:
    """`userfault` whose handler has its CPU from 22; and who had both CPUs before."""
    events = [event for event in userfault(start_ns) if event["kind"] != Kind.SCHED_IN]
    return [
        *events,
        at(start_ns - 100, Kind.SCHED_OUT, HANDLER, code=ASLEEP),
        at(start_ns + 22, Kind.SCHED_IN, HANDLER, value=handler_after),
        at(start_ns + 90, Kind.SCHED_IN, FAULTER, value=accessor_after),
    ]


def away(out_ns: int, in_ns: int, tid: int, state: int = PREEMPTED) -> list[dict[str, Any]]:
    return [at(out_ns, Kind.SCHED_OUT, tid, code=state), at(in_ns, Kind.SCHED_IN, tid, value=OTHER)]


@pytest.mark.parametrize(("handler_after", "accessor_after"), [(0, 0), (OTHER, 0), (0, HANDLER)])
def test_woken_threads_on_their_cpu(handler_after: int, accessor_after: int) -> None:
    result = stitch_events(frame(*scheduled(handler_after=handler_after, accessor_after=accessor_after)))
    check(result)
    fault = only(result)
    assert (fault["read_run_ns"], fault["read_after_tid"]) == (8, handler_after)  # from 22, read at 30
    assert (fault["wake_run_ns"], fault["wake_after_tid"]) == (10, accessor_after)  # from 90, on at 100
    assert [fault[name] for name in ("read_preempted_ns", "service_preempted_ns", "preempted_ns")] == [0, 0, 0]


@pytest.mark.parametrize(("state", "preempts"), [(PREEMPTED, True), (ASLEEP, False)])
def test_a_woken_thread_either_takes_a_cpu_or_gets_one_that_was_left(state: int, preempts: bool) -> None:
    left = [at(1022, Kind.SCHED_OUT, OTHER, code=state), at(1090, Kind.SCHED_OUT, OTHER, code=state)]
    result = stitch_events(
        frame(*scheduled(handler_after=OTHER, accessor_after=OTHER), *left, at(1060, Kind.SCHED_IN, OTHER))
    )
    check(result)
    assert (only(result)["read_preempts"], only(result)["wake_preempts"]) == (preempts, preempts)
    alone = only(stitch_events(frame(*scheduled())))
    assert (alone["read_preempts"], alone["wake_preempts"]) == (False, False)  # the CPU was idle


def test_preempted_time_is_told_for_each_stage() -> None:
    result = stitch_events(
        frame(
            *scheduled(),
            *away(1003, 1005, FAULTER),  # before it sleeps
            *away(1024, 1027, HANDLER),  # before it reads
            *away(1040, 1045, HANDLER),  # while it serves
            *away(1092, 1098, FAULTER),  # when it had been woken
        )
    )
    check(result)
    fault = only(result)
    assert (fault["read_preempted_ns"], fault["service_preempted_ns"], fault["preempted_ns"]) == (3, 5, 8)
    assert fault["offcpu_ns"] == 88
    # On their CPUs since they were woken, whoever took those away meanwhile.
    assert (fault["read_run_ns"], fault["read_after_tid"]) == (8, 0)
    assert (fault["wake_run_ns"], fault["wake_after_tid"]) == (10, 0)


def test_a_handler_preempted_across_the_read_counts_in_both_stages() -> None:
    events = [event for event in scheduled() if event["kind"] != Kind.UFFD_MSG]
    result = stitch_events(frame(*events, message(1030), *away(1028, 1036, HANDLER)))
    check(result)
    assert (only(result)["read_preempted_ns"], only(result)["service_preempted_ns"]) == (2, 6)


def test_what_a_thread_did_between_its_faults() -> None:
    second = userfault(2000, PAGE + 4096)
    result = stitch_events(
        frame(*userfault(1000), *away(1200, 1250, FAULTER, ASLEEP), *away(1300, 1370, FAULTER), *second)
    )
    check(result)
    columns = ("think_ns", "think_asleep_ns", "think_preempted_ns")
    assert result.faults.select(columns).rows() == [(None, None, None), (900, 50, 70)]


def test_what_the_scheduler_did_is_null_where_it_was_not_seen() -> None:
    awake = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            message(1005),
            placed(1030, 20),
            at(1032, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(awake)
    fault = only(awake)
    # Neither slept: there is no CPU that they came back to. Nobody was preempted.
    names = ("read_run_ns", "read_after_tid", "read_preempts", "wake_run_ns", "wake_after_tid", "wake_preempts")
    assert [fault[name] for name in names] == [None] * 6
    assert [fault[name] for name in ("read_preempted_ns", "service_preempted_ns", "preempted_ns")] == [0, 0, 0]
    unjoined = stitch_events(frame(*scheduled()[:4]))
    check(unjoined)
    fault = unjoined.faults.row(0, named=True)
    names = ("preempted_ns", "service_preempted_ns", "wake_run_ns", "wake_after_tid", "offcpu_ns")
    assert [fault[name] for name in names] == [None] * 5


def test_a_fault_that_kvm_resolves_alone_has_no_handler_that_ran() -> None:
    result = stitch_events(
        frame(
            run_enter(500),
            at(1000, Kind.KVM_MMU_WALK, FAULTER),
            *away(1004, 1009, FAULTER),
            at(1020, Kind.KVM_MMU_SET_SPTE, FAULTER, addr=GPA, size=1),
        ),
        META,
    )
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["stall_ns"], fault["preempted_ns"]) == ("stage2", 20, 5)
    names = ("read_run_ns", "read_after_tid", "read_preempted_ns", "service_preempted_ns", "wake_run_ns")
    assert [fault[name] for name in names] == [None] * 5


def test_the_reader_may_be_faster_than_the_waiter_falls_asleep() -> None:
    events = userfault(1000)
    events[4]["ts_ns"] = 1008  # before the switch-out at 1010
    result = stitch_events(frame(*events))
    check(result)
    assert split(only(result)) == (8, 62, 30)


def test_a_waiter_that_never_slept() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            message(1005),
            at(1015, Kind.SCHED_WAKING, FAULTER, value=HANDLER),
            placed(1030, 20),
            at(1022, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(result)
    fault = only(result)
    assert split(fault) == (5, 10, 7)
    assert fault["offcpu_ns"] == 0


def test_end_markers_fall_back_to_the_switch_in_and_to_the_ioctl() -> None:
    events = userfault(1000)[:-1]
    assert (only(stitch_events(frame(*events)))["join"], only(stitch_events(frame(*events)))["stall_ns"]) == (
        "page-fault/in",
        90,
    )
    awake = [event for event in events if event["kind"] not in (Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING)]
    fault = only(stitch_events(frame(*awake)))
    assert (fault["join"], fault["stall_ns"], fault["wake_ns"]) == ("page-fault/ioctl", 80, None)


def test_start_markers_fall_back_to_the_switch_out_and_to_the_read() -> None:
    events = userfault(1000)[1:]
    fault = only(stitch_events(frame(*events)))
    assert (fault["join"], fault["start_ns"], fault["queue_ns"]) == ("out/mmap-lock", 1010, 20)
    awake = [event for event in events if event["kind"] not in (Kind.SCHED_OUT, Kind.SCHED_IN)]
    fault = only(stitch_events(frame(*awake)))
    assert (fault["join"], fault["start_ns"], fault["queue_ns"]) == ("read/mmap-lock", 1030, None)


def test_a_lost_switch_in_does_not_lose_the_fault() -> None:
    events = [event for event in userfault(1000) if event["kind"] != Kind.SCHED_IN]
    fault = only(stitch_events(frame(*events)))
    assert (fault["stall_ns"], fault["join"]) == (100, "page-fault/mmap-lock")


def test_still_waiting_at_the_end() -> None:
    result = stitch_events(frame(*userfault(1000)[:2], message(1030)))
    check(result)
    assert only(result)["join"] == "none"
    assert result.report.messages_unjoined == {"still waiting at the end": 1}


def test_the_userfaultfd_was_closed_under_the_waiter() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            *sleep(1010, 1090),
            message(1030),
            at(1100, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(result)
    fault = only(result)
    assert (fault["stall_ns"], fault["resolution"], fault["service_ns"]) == (100, "none", None)


def test_nobody_can_be_found_for_a_message() -> None:
    result = stitch_events(frame(message(1030, tid=0), placed(1080, 20)))
    check(result)
    assert (only(result)["tid"], only(result)["join"]) == (0, "none")
    assert result.report.messages_unjoined == {"waiting thread not found": 1}


def test_a_kernel_worker_that_waits_for_a_guest_is_said() -> None:
    result = stitch_events(frame(message(1030, tid=77), placed(1080, 20)))
    check(result)
    assert result.report.messages_unjoined == {"waiting thread not recorded (a kernel worker?)": 1}


def test_a_thread_id_of_another_pid_namespace_does_not_lose_the_waiter() -> None:
    events = userfault(1000)
    events[4]["value"] = 12  # what the thread is called in its container
    result = stitch_events(frame(*events))
    check(result)
    assert (only(result)["tid"], only(result)["stall_ns"]) == (FAULTER, 100)


def test_an_opener_that_was_lost_is_not_taken_from_the_fault_before() -> None:
    events = [
        *guest_userfault(1000),
        *[e for e in guest_userfault(2000, PAGE + 4096) if e["kind"] != Kind.KVM_MMU_WALK],
    ]
    result = stitch_events(frame(*events))
    check(result)
    assert result.faults["join"].to_list() == ["walk/spte", "out/spte"]


def test_a_prefetching_range_serves_every_page_in_it() -> None:
    first, second = userfault(1000), userfault(1001, PAGE + 3 * 4096, OTHER)
    events = [event for event in (*first, *second) if event["kind"] != Kind.UFFD_COPY]
    result = stitch_events(frame(*events, placed(1080, 20, pages=4)))
    check(result)
    assert result.faults["stall_ns"].to_list() == [100, 100]
    assert (result.report.placements, result.report.placements_unasked) == (1, 0)


def test_a_push_nobody_waited_for_is_counted() -> None:
    result = stitch_events(frame(*userfault(1000), placed(1500, 20, PAGE + 4096)))
    assert (result.report.placements, result.report.placements_unasked) == (2, 1)


def test_copy_that_does_not_wake_and_a_wake_after_it() -> None:
    events = [event for event in userfault(1000) if event["kind"] != Kind.UFFD_COPY]
    quiet = placed(1055, 10, code=1)
    result = stitch_events(frame(*events, quiet, placed(1080, 20, kind=Kind.UFFD_WAKE, value=0)))
    check(result)
    assert (only(result)["resolution"], only(result)["stall_ns"]) == ("copy", 100)


def test_the_page_was_there_already_and_a_wake_follows() -> None:
    events = [event for event in userfault(1000) if event["kind"] != Kind.UFFD_COPY]
    failed = placed(1055, 10, value=-17)
    result = stitch_events(frame(*events, failed, placed(1080, 20, kind=Kind.UFFD_WAKE, value=0)))
    check(result)
    assert only(result)["resolution"] == "wake"
    assert result.report.placements_failed == {17: 1}


def test_woken_for_nothing_it_waits_again_and_is_one_fault() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            *sleep(1010, 1050, woken_ns=1045),
            message(1020),
            placed(1048, 5, kind=Kind.UFFD_WAKE, value=0),
            *sleep(1060, 1150, woken_ns=1140),
            message(1080),
            placed(1145, 20),
            at(1160, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(result)
    fault = only(result)
    assert (fault["stall_ns"], fault["resolution"]) == (160, "copy")
    assert split(fault) == (20, 120, 20)
    assert result.report.messages_repeated == 1


def test_a_handler_preempted_by_the_waiter_it_woke() -> None:
    """The ioctl returns long after the fault is over; the wake tells when the page was placed."""
    events = userfault(1000)
    events[5] = placed(5000, 3940)
    result = stitch_events(frame(*events))
    check(result)
    assert split(only(result)) == (30, 40, 30)


def test_two_processes_with_the_same_addresses_and_descriptors() -> None:
    ours, theirs = userfault(1000), userfault(1020, tid=202)
    for event in theirs:
        event["tgid"] = 200
        if event["tid"] == HANDLER:
            event["tid"] = 201
        if event["kind"] == Kind.SCHED_WAKING:
            event["value"] = 201
    result = stitch_events(frame(*ours, *theirs))
    check(result)
    assert result.faults.select("vm", "tid", "handler_tid", "stall_ns").rows() == [
        (VM, FAULTER, HANDLER, 100),
        (200, 202, 201, 100),
    ]


def test_huge_pages_are_one_granule() -> None:
    huge = 2 << 20
    base = 0x7F00_0020_0000
    meta = Meta(memory_map=[MapEntry(0, VM, base, base + 8 * huge, huge, "missing")])
    events = userfault(1000, base + huge)
    events[0]["addr"] = base + huge + 0x12345
    events[5] = placed(1080, 20, base + huge, pages=512)
    result = stitch_events(frame(*events), meta)
    check(result)
    assert (only(result)["page"], only(result)["granule"], only(result)["stall_ns"]) == (base + huge, huge, 100)


def test_minor_fault_and_continue() -> None:
    events = userfault(1000, flags=4)
    events[5] = placed(1080, 20, kind=Kind.UFFD_CONTINUE)
    fault = only(stitch_events(frame(*events)))
    assert (fault["cause"], fault["resolution"]) == ("minor", "continue")


def test_messages_of_other_kinds_are_counted_and_open_no_fault() -> None:
    fork = message(900) | {"ip": 0x13}
    result = stitch_events(frame(fork, *userfault(1000)))
    check(result)
    assert result.report.messages_other == 1
    assert len(result.faults) == 1


def test_minor_faults_have_no_end_under_the_vma_lock() -> None:
    result = stitch_events(frame(at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE + 5, code=2)))
    check(result)
    fault = only(result)
    assert (fault["cause"], fault["page"], fault["join"], fault["access"]) == ("minor-host", PAGE, "none", "w")
    assert result.report.page_faults_unjoined == 1


def test_a_fault_that_waited_for_a_disk() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            at(1010, Kind.SCHED_OUT, FAULTER, code=2),
            at(5000, Kind.SCHED_IN, FAULTER),
            at(5010, Kind.MMAP_LOCK_RELEASED, FAULTER),
        )
    )
    check(result)
    assert (only(result)["cause"], only(result)["stall_ns"]) == ("major-host", 4010)


def test_sigbus_resolved_by_its_own_thread() -> None:
    result = stitch_events(
        frame(
            at(1000, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE),
            at(1010, Kind.PAGE_FAULT_USER, FAULTER, addr=PAGE + 0x100000),  # the handler's own stack
            placed(1300, 40, tid=FAULTER),
        )
    )
    check(result)
    fault = result.faults.filter(cause="exit").row(0, named=True)
    assert (fault["handler_tid"], fault["resolve_ns"], fault["wake_ns"]) == (FAULTER, 40, None)
    assert (fault["resolution"], fault["stall_ns"], fault["service_ns"], fault["join"]) == (
        "copy",
        300,
        300,
        "page-fault/ioctl",
    )


def test_a_handlers_old_fault_on_a_page_it_places_later_is_not_a_sigbus() -> None:
    result = stitch_events(frame(at(500, Kind.PAGE_FAULT_USER, HANDLER, addr=PAGE), *userfault(1000)))
    check(result)
    assert result.faults.select("tid", "cause").rows() == [(HANDLER, "minor-host"), (FAULTER, "missing")]


def test_what_was_shed_is_not_called_a_riddle() -> None:
    unanswered = [message(5000, PAGE + 4096), message(9000, PAGE + 8192, tid=OTHER)]
    events = frame(*userfault(1000), *unanswered, at(9500, Kind.SCHED_WAKING, OTHER))
    spans = [("sched", 4000, 6000), ("mm", 0, 9999)]  # a join needs nothing of mm
    shed = {"shed": [{"group": group, "start_ns": start, "end_ns": end} for group, start, end in spans]}
    report = stitch_events(events, Meta(extra=shed)).report
    plain = stitch_events(events, Meta()).report
    assert sum(plain.messages_unjoined.values()) == sum(report.messages_unjoined.values()) == 2
    assert report.messages_unjoined["while a group of probes was shed"] == 1
    assert "while a group of probes was shed" not in plain.messages_unjoined
    assert report.unjoined_shed_by_cause == {"missing": 1}
    assert report.unjoined_by_cause == plain.unjoined_by_cause == {"missing": 2}
    assert plain.unjoined_shed_by_cause == {}


def test_codes_of_causes_and_accessors_keep_their_meaning() -> None:
    causes = "missing minor stage2 mmio exit minor-host major-host write-protect window"
    assert " ".join(CAUSES) == causes
    assert " ".join(ACCESSORS) == "vcpu vmm kernel"
