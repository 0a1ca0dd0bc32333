"""Every way to join, each on a sequence of events made by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from faultreplay.faulttrace.meta import Host, MapEntry, Memslot, Meta, Target
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES, EVENTS, FAULTS, RESOLUTIONS, Kind
from faultreplay.faulttrace.stitch import Stitched, stitch_events

VM, HANDLER, FAULTER, OTHER = 100, 101, 102, 103
FD, PAGE = 7, 0x7F00_0000_1000
PF = 0x12
ASLEEP, PREEMPTED = 1, 0
WRITE = 1


PARTS = {
    "think_asleep_ns": "think_ns", "think_preempted_ns": "think_ns", "read_run_ns": "queue_ns",
    "read_preempted_ns": "queue_ns", "resolve_ns": "service_ns", "service_preempted_ns": "service_ns",
    "wake_run_ns": "wake_ns", "preempted_ns": "offcpu_ns", "offcpu_ns": "stall_ns",
}  # fmt: skip
"""Column -> the one that it is a part of."""


def frame(*events: dict[str, Any]) -> pl.DataFrame:
    """Events with the columns that matter; the others are as an event without them has them."""
    blank = {name: 0 for name in EVENTS.names} | {"tgid": VM, "fd": -1, "vcpu": -1}
    table = pa.Table.from_pylist([blank | event for event in events], EVENTS)
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result.sort("ts_ns", maintain_order=True)


def at(ts_ns: int, kind: Kind, tid: int, **columns: int) -> dict[str, Any]:
    return {"ts_ns": ts_ns, "kind": int(kind), "tid": tid, **columns}


def message(
    ts_ns: int, page: int = PAGE, *, tid: int = FAULTER, handler: int = HANDLER, flags: int = 0
) -> dict[str, Any]:
    return at(ts_ns, Kind.UFFD_MSG, handler, fd=FD, addr=page, code=flags, value=tid, ip=PF, size=1)


def placed(
    ts_ns: int, dur_ns: int, page: int = PAGE, *, kind: Kind = Kind.UFFD_COPY, pages: int = 1, **columns: int
) -> dict[str, Any]:
    size = 4096 * pages
    whole = {"tid": HANDLER, "fd": FD, "addr": page, "size": size, "dur_ns": dur_ns, "value": size} | columns
    return at(ts_ns, kind, whole.pop("tid"), **whole)


def sleep(out_ns: int, in_ns: int, tid: int = FAULTER, *, woken_ns: int = 0, by: int = HANDLER) -> list[dict[str, Any]]:
    events = [at(out_ns, Kind.SCHED_OUT, tid, code=ASLEEP), at(in_ns, Kind.SCHED_IN, tid)]
    if woken_ns:
        events.insert(1, at(woken_ns, Kind.SCHED_WAKING, tid, value=by))
    return events


def userfault(
    start_ns: int, page: int = PAGE, tid: int = FAULTER, *, named: bool = True, flags: int = 0
) -> list[dict[str, Any]]:
    """A process fault that takes 100: asleep at 10, read at 30, placed 60-80 with the wake at 70, running at 90."""
    return [
        at(start_ns, Kind.PAGE_FAULT_USER, tid, addr=page + 8, code=2),
        *sleep(start_ns + 10, start_ns + 90, tid, woken_ns=start_ns + 70),
        message(start_ns + 30, page, tid=tid if named else 0, flags=flags),
        placed(start_ns + 80, 20, page),
        at(start_ns + 100, Kind.MMAP_LOCK_RELEASED, tid),
    ]


def only(result: Stitched) -> dict[str, Any]:
    assert len(result.faults) == 1, result.faults
    return result.faults.row(0, named=True)


def split(fault: dict[str, Any]) -> tuple[int, int, int]:
    return fault["queue_ns"], fault["service_ns"], fault["wake_ns"]


def check(result: Stitched) -> None:
    """What holds for every stitch."""
    faults = result.faults
    assert faults.columns == FAULTS.names
    faults.to_arrow().cast(FAULTS)
    assert set(faults["cause"]) <= set(CAUSES)
    assert set(faults["resolution"]) <= set(RESOLUTIONS)
    whole = faults.filter(pl.all_horizontal(pl.col("queue_ns", "service_ns", "wake_ns", "stall_ns").is_not_null()))
    assert (whole["queue_ns"] + whole["service_ns"] + whole["wake_ns"] == whole["stall_ns"]).all()
    assert ((faults["end_ns"].is_null()) == (faults["join"] == "none")).all()
    for part, whole_ns in PARTS.items():
        assert faults[part].fill_null(0).is_between(0, faults[whole_ns].fill_null(0)).all(), (part, whole_ns)
    asleep_and_not = faults["think_asleep_ns"] + faults["think_preempted_ns"]
    assert (asleep_and_not.fill_null(0) <= faults["think_ns"].fill_null(0)).all()
    for run, after in (("read_run_ns", "read_after_tid"), ("wake_run_ns", "wake_after_tid")):
        assert (faults[run].is_null() == faults[after].is_null()).all()
    report = result.report
    assert report.messages == report.messages_joined + sum(report.messages_unjoined.values())
    assert sum(report.faults_by_cause.values()) == len(faults)
    assert sum(report.unjoined_by_cause.values()) == faults["end_ns"].null_count()


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


# guests


def run_enter(ts_ns: int, tid: int = FAULTER) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_RUN_ENTER, tid, fd=12)


def run_exit(ts_ns: int, dur_ns: int, tid: int = FAULTER, value: int = 0) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_RUN_EXIT, tid, fd=12, dur_ns=dur_ns, value=value)


GPA = 0x1_0000_1000
META = Meta(
    host=Host(kvm_flavour="pvm"),
    targets=[Target(VM, role="vm", memslots=[Memslot(0, 1, GPA - 0x1000, PAGE - 0x1000, 64 * 4096)])],
)


def guest_userfault(
    start_ns: int, page: int = PAGE, *, tid: int = FAULTER, vcpu: int = FAULTER
) -> list[dict[str, Any]]:
    """A guest's fault under shadow paging that takes 110."""
    return [
        run_enter(start_ns - 50, vcpu),
        at(start_ns, Kind.KVM_MMU_WALK, vcpu, addr=0xDEAD000),
        *sleep(start_ns + 10, start_ns + 90, vcpu, woken_ns=start_ns + 70),
        message(start_ns + 30, page, tid=tid),
        placed(start_ns + 80, 20, page),
        at(start_ns + 100, Kind.MMAP_LOCK_RELEASED, vcpu),
        at(start_ns + 110, Kind.KVM_MMU_SET_SPTE, vcpu, addr=GPA + page - PAGE, size=1),
        run_exit(start_ns + 400, 450, vcpu),
    ]


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


# processes without a message


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
