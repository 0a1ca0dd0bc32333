"""Guests under hardware paging: what exits, faults, devices and entries mean, on sequences made by hand."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultreplay.faulttrace.meta import Host, Meta
from faultreplay.faulttrace.schema import EVENTS, Kind
from faultreplay.faulttrace.stitch import Stitched, stitch_events
from faultreplay.faulttrace.stitch.stage2 import access_of_abort

VCPU, OTHER = 102, 103
RIP, GPA = 0xFFFFFFFF81040F72, 0x113600000
EPT, NPF, HLT = 48, 0x400, 12
VMX, SVM, ARM = (Meta(host=Host(kvm_flavour=name)) for name in ("vmx", "svm", "arm64"))
US = 1000


def frame(events: list[dict[str, Any]]) -> pl.DataFrame:
    blank = {name: 0 for name in EVENTS.names} | {"fd": -1, "vcpu": -1}
    rows = [blank | {"tgid": event["tid"]} | event for event in events]
    result = pl.from_arrow(pa.Table.from_pylist(rows, EVENTS))
    assert isinstance(result, pl.DataFrame)
    return result.sort("ts_ns", maintain_order=True)


def at(ts_ns: int, kind: Kind, tid: int = VCPU, **columns: int) -> dict[str, Any]:
    return {"ts_ns": ts_ns, "kind": int(kind), "tid": tid, **columns}


def leave(ts_ns: int, code: int = EPT, **columns: int) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_EXIT, **({"ip": RIP, "addr": 0x182} | columns), code=code)


def fault(ts_ns: int, gpa: int = GPA, **columns: int) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_PAGE_FAULT, **({"ip": RIP, "code": 0x182} | columns), addr=gpa)


def enter(ts_ns: int, **columns: int) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_ENTRY, **({"ip": RIP} | columns))


def to_user(ts_ns: int, reason: int = 0, errno: int = 0) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_USERSPACE_EXIT, code=reason, value=errno)


def mapped(ts_ns: int, gpa: int = GPA) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_MMU_SET_SPTE, addr=gpa, size=1)


def spurious(ts_ns: int, gpa: int = GPA) -> dict[str, Any]:
    return at(ts_ns, Kind.KVM_MMU_FAST_PAGE_FAULT, addr=gpa, size=1)


def stitched(*events: dict[str, Any], meta: Meta = VMX) -> Stitched:
    return stitch_events(frame(list(events)), meta)


def faults(result: Stitched, *columns: str) -> list[tuple[Any, ...]]:
    return result.faults.select(columns).rows()


def test_a_device_is_no_fault_and_its_time_in_no_stall() -> None:
    device = 0xFD0000B0
    result = stitched(
        enter(100), leave(1000), fault(1001, device), at(1010, Kind.KVM_MMIO, addr=device, size=4, code=2),
        to_user(1012, 6), enter(9000, ip=RIP + 7), leave(9100), fault(9102), enter(9110),
    )  # fmt: skip
    assert faults(result, "cause", "page", "stall_ns", "join") == [("stage2", GPA, 10, "exit/entry")]
    report = result.report
    assert (report.device_exits, report.device_ns, report.guest_faults_of_devices) == (1, 8000, 1)
    assert result.faults["stall_ns"].sum() == 10


@pytest.mark.parametrize("kind", [Kind.KVM_MMIO, Kind.KVM_FAST_MMIO])
def test_a_device_that_the_kernel_emulates_is_no_fault_either(kind: Kind) -> None:
    apic = 0xFEE00300
    result = stitched(leave(1000), fault(1001, apic), at(1005, kind, addr=apic, code=2), enter(1020))
    assert result.faults.is_empty()
    assert (result.report.device_exits, result.report.device_ns) == (1, 20)


def test_a_device_access_elsewhere_hides_no_fault() -> None:
    """Its own exit and the entry before were lost: the page tells that the access was another one."""
    result = stitched(leave(1000), fault(1001), at(5005, Kind.KVM_MMIO, addr=0xFD0000B0, code=2), enter(5020))
    assert faults(result, "page", "cause") == [(GPA, "stage2")]


def test_a_lost_device_access_is_told_by_the_exit_to_userspace() -> None:
    result = stitched(leave(1000), fault(1001, 0xFD0000B0), to_user(1012, 6), enter(9000))
    assert result.faults.is_empty()


def test_ports_are_devices() -> None:
    port = at(1003, Kind.KVM_PIO, addr=0x80, size=1, code=1, value=1)
    result = stitched(leave(1000, 30), port, to_user(1004, 2), enter(1500), leave(1600), fault(1601), enter(1610))
    assert (result.report.device_exits, result.report.device_ns) == (1, 500)
    assert faults(result, "stall_ns") == [(10,)]


@pytest.mark.parametrize(("reason", "errno"), [(0, -14), (39, -14), (39, 0)])
def test_a_fault_handed_to_the_vmm_without_system_calls(reason: int, errno: int) -> None:
    result = stitched(
        enter(100), leave(1000), fault(1001), to_user(1005, reason, errno), enter(2000), leave(2001), fault(2002),
        enter(2005),
    )  # fmt: skip
    row = result.faults.row(0, named=True)
    assert len(result.faults) == 1
    assert (row["cause"], row["resolution"], row["handler_tid"], row["rounds"]) == ("exit", "userspace", VCPU, 2)
    assert (row["stall_ns"], row["queue_ns"], row["service_ns"], row["wake_ns"]) == (1005, 5, None, None)
    assert (result.report.exits, result.report.exits_untimed, result.report.exits_unjoined) == (1, 1, 0)
    assert result.report.repeated == 0  # the fault after the VMM's work is how such a fault ends


def test_a_fault_handed_to_the_vmm_may_not_fault_again() -> None:
    result = stitched(leave(1000), fault(1001), to_user(1005, 0, -14), enter(2000), leave(2500, HLT), enter(3000))
    assert faults(result, "cause", "stall_ns", "rounds", "join") == [("exit", 1000, 1, "exit/entry")]


def test_the_next_fault_of_another_page_ends_no_exit() -> None:
    """With system calls recorded, too: the access went on with the first entry."""
    result = stitched(
        at(900, Kind.KVM_RUN_ENTER, fd=9), leave(1000), fault(1001), to_user(1005, 0, -14),
        at(1007, Kind.KVM_RUN_EXIT, fd=9, value=-14, dur_ns=107), at(2000, Kind.KVM_RUN_ENTER, fd=9), enter(2001),
        leave(700_000), fault(700_001, GPA + 0x5000), enter(700_010),
    )  # fmt: skip
    assert faults(result, "cause", "page", "stall_ns") == [("exit", GPA, 1001), ("stage2", GPA + 0x5000, 10)]


def test_a_fault_the_vmm_never_came_back_from_has_no_end() -> None:
    result = stitched(leave(1000), fault(1001), to_user(1005, 0, -14), enter(100_000, tid=OTHER))
    assert faults(result, "cause", "resolution", "stall_ns", "queue_ns") == [("exit", "none", None, 5)]
    assert (result.report.exits_unjoined, result.report.exits_untimed) == (1, 1)


def test_a_guest_that_was_kept_from_running_still_faults_on_what_the_vmm_placed() -> None:
    late = 9_000_000
    result = stitched(
        leave(1000), fault(1001), to_user(1005, 0, -14), enter(2000), leave(late), fault(late + 1), enter(late + 5)
    )
    assert faults(result, "cause", "rounds", "stall_ns") == [("exit", 2, late + 5 - 1000)]


def test_an_interrupt_before_the_access_faults_on_what_the_vmm_placed() -> None:
    """As in a real 6.1: the guest ran no instruction between, however long the interrupt took."""
    late = 9_000_000
    handed = [leave(1000), fault(1001), to_user(1005, 0, -14), enter(2000)]
    again = [fault(late + 1), enter(late + 5)]
    result = stitched(*handed, leave(2500, 1), enter(2600), leave(late), *again)
    assert faults(result, "cause", "rounds", "stall_ns") == [("exit", 2, late + 5 - 1000)]
    ran = stitched(*handed, leave(2500, 1, ip=RIP + 4), enter(2600), leave(late), *again)
    assert faults(ran, "cause", "rounds", "stall_ns") == [("exit", 1, 1000), ("stage2", 1, 5)]


def test_a_fast_fix_is_of_a_small_page() -> None:
    """What the event says of the entry, changed or not, is no level of it."""
    gpa = GPA + 0x5000
    fixed = at(1002, Kind.KVM_MMU_FAST_PAGE_FAULT, addr=gpa, size=2)
    result = stitched(leave(1000), fault(1001, gpa), fixed, enter(1010))
    assert faults(result, "page", "granule") == [(gpa, 4096)]


def test_a_fault_handed_to_the_vmm_again_and_again() -> None:
    """The VMM comes back with the page still missing; at the end of the trace that is no progress."""
    tries = []
    for n in range(3):
        start = 1000 + 2000 * n
        tries += [leave(start), fault(start + 1), to_user(start + 5, 0, -14), enter(start + 1999)]
    past = [leave(7000), fault(7001), enter(7010), leave(9000, HLT, ip=RIP + 4)]
    got_past, stuck = stitched(*tries, *past), stitched(*tries)
    assert faults(got_past, "cause", "rounds", "stall_ns", "queue_ns") == [("exit", 4, 6010, 5)]
    assert got_past.report.retries == 2
    assert faults(stuck, "cause", "rounds", "stall_ns") == [("exit", 3, None)]
    assert stuck.report.guest_faults_unended == {"faulting again and again at the end": 1}


def test_time_in_userspace_for_another_reason_is_no_stall() -> None:
    """A full dirty ring: KVM is done with the fault, and userspace takes its time."""
    result = stitched(leave(1000), fault(1001), to_user(1004, 31), enter(121_000), leave(121_006), fault(121_007,
                      GPA + 4096), enter(121_019))  # fmt: skip
    assert faults(result, "stall_ns", "join") == [(4, "exit/userspace"), (13, "exit/entry")]


def test_stage2_exits_without_an_event_of_the_fault() -> None:
    result = stitched(
        enter(1), leave(10_000), enter(16_000), leave(20_000, ip=RIP + 4), enter(3_384_650), leave(3_390_000, HLT),
        enter(4_390_000),
    )  # fmt: skip
    assert faults(result, "cause", "stall_ns", "granule", "access") == [
        ("stage2", 6_000, 0, "w"), ("stage2", 3_364_650, 0, "w"),
    ]  # fmt: skip
    assert (result.report.guest_faults_untold, result.report.guest_faults_page_unknown) == (2, 2)
    assert result.report.repeated == 0  # with the page unknown nothing says that it was the same access


def test_svm_tells_the_page_in_the_exit() -> None:
    result = stitched(leave(1000, NPF, addr=0x100000006, size=GPA + 8), enter(1010), meta=SVM)
    assert faults(result, "page", "granule", "access", "stall_ns") == [(GPA, 4096, "w", 10)]
    assert (result.report.guest_faults_untold, result.report.guest_faults_page_unknown) == (1, 0)


def test_one_lost_event_of_a_fault_among_others_loses_no_fault() -> None:
    result = stitched(leave(1000), fault(1001), enter(1010), leave(2000, ip=RIP + 4), enter(2010))
    assert faults(result, "page", "stall_ns") == [(GPA, 10), (0, 10)]
    assert result.report.guest_faults_untold == 1


def again(times: range, step: int, **columns: int) -> list[dict[str, Any]]:
    """So many faults of one access, each `step` after the one before and `step // 2` in the kernel."""
    made = []
    for n in times:
        start = 1000 + n * step
        made += [leave(start, **columns), fault(start + 1, **columns), enter(start + step // 2, **columns)]
    return made


def test_an_access_that_faults_again_is_one_fault_with_rounds() -> None:
    past = [leave(9000, HLT, ip=RIP + 4), enter(9500)]
    result = stitched(*again(range(5), 100), *past)
    assert faults(result, "rounds", "stall_ns", "page", "ip") == [(5, 450, GPA, RIP)]
    (worst,) = result.report.worst_repeats
    assert (worst.rounds, worst.ip, worst.gpa, worst.duration_ns, worst.ended) == (5, RIP, GPA, 450, True)
    assert (result.report.repeated, result.report.retries) == (1, 4)


def test_a_livelock_at_the_end_has_no_end() -> None:
    """Cut inside the fault, and after an entry that is no progress either."""
    for cut in (again(range(5), 100)[:-1], again(range(5), 100)):
        result = stitched(*cut)
        assert faults(result, "rounds", "end_ns", "join") == [(5, None, "none")]
        assert result.report.guest_faults_unended == {"faulting again and again at the end": 1}
        assert not result.report.worst_repeats[0].ended


def test_what_was_mapped_between_makes_two_faults() -> None:
    first = [leave(1000), fault(1001), mapped(1005), enter(1010)]
    second = [leave(1020), fault(1021), mapped(1025), enter(1030), leave(1100, HLT), enter(1200)]
    assert faults(stitched(*first, *second), "rounds", "stall_ns") == [(1, 10), (1, 10)]


@pytest.mark.parametrize(
    "other",
    [
        {"ip": RIP + 4},  # another instruction
        {"gpa": GPA + 4096},  # another page
    ],
)
def test_another_access_is_another_fault(other: dict[str, int]) -> None:
    ip = {"ip": other.get("ip", RIP)}
    second = [leave(1020, **ip), fault(1021, other.get("gpa", GPA), **ip), enter(1030)]
    result = stitched(leave(1000), fault(1001), enter(1010), *second)
    assert faults(result, "rounds") == [(1,), (1,)]


def test_an_emulated_instruction_is_behind_the_guest() -> None:
    """Writes to a tracked page fault each time, map nothing, and get past."""
    writes = []
    for n in range(3):
        start = 1000 + 100 * n
        writes += [leave(start), fault(start + 1), enter(start + 50, ip=RIP + 3)]
    assert faults(stitched(*writes), "rounds") == [(1,), (1,), (1,)]


def test_a_retry_is_soon_after_the_entry_however_long_the_kernel_took() -> None:
    """Also of the trace's very first entry. The time limit is on the guest's running."""
    long = 3_000_000
    result = stitched(leave(1000), fault(1001), enter(long), leave(long + 50), fault(long + 51), enter(long + 60),
                      leave(long + 90, HLT, ip=RIP + 4))  # fmt: skip
    assert faults(result, "rounds", "stall_ns") == [(2, long + 60 - 1000)]


def test_a_guest_that_ran_long_came_back() -> None:
    result = stitched(leave(1000), fault(1001), enter(1010), leave(5_000_000), fault(5_000_001), enter(5_000_010))
    assert faults(result, "rounds", "stall_ns") == [(1, 10), (1, 10)]


def test_an_exit_elsewhere_between_is_progress_unless_mappings_are_told() -> None:
    elsewhere = [leave(1020, 32, ip=RIP + 0x999), enter(1030, ip=RIP + 0x99B)]
    pair = [leave(1000), fault(1001), enter(1010), *elsewhere, leave(1040), fault(1041), enter(1050)]
    assert faults(stitched(*pair, leave(2000, HLT)), "rounds") == [(1,), (1,)]
    told = [*pair, leave(1100, ip=RIP + 8), fault(1101, GPA + 4096, ip=RIP + 8), mapped(1102, GPA + 4096), enter(1110)]
    assert faults(stitched(*told), "rounds") == [(2,), (1,)]


def test_spurious_faults_map_nothing() -> None:
    tries = []
    for n in range(3):
        start = 1000 + 100 * n
        tries += [leave(start), fault(start + 1), spurious(start + 2), enter(start + 10)]
    past = [leave(9000, HLT, ip=RIP + 4), enter(9500)]
    result = stitched(*tries, *past)
    assert faults(result, "rounds", "join") == [(3, "exit/entry")]
    assert result.report.guest_faults_spurious == 3
    assert result.report.worst_repeats[0].spurious == 3
    fixed = [leave(1000), fault(1001), at(1002, Kind.KVM_MMU_FAST_PAGE_FAULT, addr=GPA, size=2), enter(1010)]
    assert faults(stitched(*fixed, *tries[4:], *past), "rounds") == [(1,), (2,)]


def test_a_single_spurious_fault_at_the_end_is_not_seen_to_end() -> None:
    result = stitched(leave(1000), fault(1001), spurious(1002), enter(1003))
    assert faults(result, "rounds", "end_ns") == [(1, None)]
    assert result.report.guest_faults_unended == {"KVM found nothing to do, and nothing follows": 1}


def test_faults_without_exits_and_entries() -> None:
    result = stitched(*(fault(1000 * n, GPA + 4096 * n, ip=RIP + n) for n in range(3)))
    assert faults(result, "stall_ns", "join") == [(None, "none")] * 3
    assert result.report.guest_faults_unended == {"no kvm_entry in the source": 3}


def test_a_lost_entry_and_a_lost_exit_are_told() -> None:
    lost_entry = stitched(leave(1000), fault(1001), leave(5000, HLT), enter(6000))
    assert faults(lost_entry, "stall_ns") == [(None,)]
    assert lost_entry.report.guest_faults_unended == {"its kvm_entry is not in the trace": 1}
    lost_exit = stitched(leave(10, HLT), enter(20), fault(1001), enter(1010))
    assert faults(lost_exit, "stall_ns", "join") == [(9, "fault/entry")]


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([*again(range(2), 100)], {"faulting again and again at the end": 1}),
        ([leave(1000), fault(1001), spurious(1002), enter(1003)], {"KVM found nothing to do, and nothing follows": 1}),
        ([leave(10, HLT), enter(20), leave(1000), fault(1001)], {"still out of the guest at the end": 1}),
        (
            [enter(20), leave(1000), fault(1001), leave(2000, HLT), enter(2100)],
            {"its kvm_entry is not in the trace": 1},
        ),
        ([leave(1000), fault(1001), leave(2000, HLT)], {"no kvm_entry in the source": 1}),
    ],
)
def test_each_fault_without_an_end_has_one_reason(events: list[dict[str, Any]], why: dict[str, int]) -> None:
    assert stitched(*events).report.guest_faults_unended == why


def test_order_counts_where_time_stamps_are_equal() -> None:
    """Text has whole microseconds: an entry, the next exit and its fault in one."""
    result = stitched(
        leave(1000), fault(1000), enter(2000, ip=RIP + 4), leave(2000, ip=RIP + 4), fault(2000, GPA + 4096, ip=RIP + 4),
        enter(5000, ip=RIP + 8),
    )  # fmt: skip
    assert faults(result, "page", "stall_ns") == [(GPA, 1000), (GPA + 4096, 3000)]


def test_doubled_lines_are_one_event() -> None:
    once = [leave(1000), fault(1001), enter(1010), leave(2000, ip=RIP + 4), fault(2001, GPA + 4096), enter(2010)]
    twice = [event for event in once for _ in range(2)]
    plain, doubled = stitched(*once), stitched(*twice)
    assert doubled.faults.equals(plain.faults)
    assert doubled.report.doubled == 6


@pytest.mark.parametrize(
    ("esr", "access"),
    [
        (0x82000006, "x"),  # instruction abort, translation fault of level 2
        (0x93800046, "w"),  # data abort, WnR
        (0x93800006, "r"),
        (0x92000086, "r"),  # S1PTW: the walk of the guest's own table reads,
        (0x9200008F, "w"),  # unless it lacks a permission: then it sets a bit
        (0x82000086, "r"),
    ],
)
def test_arm64_faults(esr: int, access: str) -> None:
    result = stitched(
        leave(1000, 0x24, addr=2, ip=0x401EC8), at(1001, Kind.KVM_GUEST_FAULT, addr=0x7F000000, ip=0x401EC8, code=esr),
        enter(1019, ip=0x401EC8), leave(1030, 0, addr=0, ip=0x401ECC), enter(1031, ip=0x401ECC), meta=ARM,
    )  # fmt: skip
    assert faults(result, "cause", "page", "stall_ns", "access") == [("stage2", 0x7F000000, 19, access)]
    assert "rwx"[access_of_abort(pl.Series([esr], dtype=pl.UInt64).to_numpy())[0]] == access


@pytest.mark.parametrize(
    ("meta", "code", "access"),
    [(VMX, 0x184, "x"), (VMX, 0x182, "w"), (VMX, 0x181, "r"), (SVM, 0x100000014, "x"), (SVM, 0x14, "x"),
     (Meta(), 0x184, "x"), (Meta(), 0x200000006, "w"), (Meta(), 0x4, "r"), (Meta(), 0x11, "x")],
)  # fmt: skip
def test_what_the_code_of_a_fault_says_of_the_access(meta: Meta, code: int, access: str) -> None:
    assert faults(stitched(fault(1000, code=code), meta=meta), "access") == [(access,)]


def test_an_exit_of_a_recorded_run_is_no_second_fault() -> None:
    result = stitched(
        at(900, Kind.KVM_RUN_ENTER, fd=9), leave(1000), fault(1001), to_user(1005, 0, -14),
        at(1007, Kind.KVM_RUN_EXIT, fd=9, value=-14, dur_ns=107),
    )  # fmt: skip
    assert faults(result, "cause", "end_ns") == [("exit", None)]


def test_a_userfault_still_waiting_is_no_second_fault() -> None:
    message = {"ip": 0x12, "value": VCPU, "size": 1, "fd": 7}
    result = stitched(
        at(900, Kind.KVM_RUN_ENTER, fd=9), leave(1000), fault(1001), at(1010, Kind.SCHED_OUT, code=1),
        at(1020, Kind.UFFD_MSG, OTHER, addr=0x7F0000001000, **message),
    )  # fmt: skip
    assert faults(result, "cause", "end_ns") == [("missing", None)]


# A guest's life as trips out of guest mode: what each is, and how the trace may be damaged.
TRIPS = st.lists(st.sampled_from(["fault", "hlt", "device", "handed", "ring"]), min_size=1, max_size=12)


def life(trips: list[str]) -> tuple[list[dict[str, Any]], list[int]]:
    """Events of these trips, each at an instruction and on a page of its own, and the faults' stalls."""
    events, stalls, now = [enter(1)], [], 1000
    for n, trip in enumerate(trips):
        ip, gpa = RIP + 16 * n, GPA + 4096 * n
        here = {"ip": ip}
        if trip == "hlt":
            events += [leave(now, HLT, **here), enter(now + 900, **here)]
        elif trip == "device":
            events += [leave(now, **here), fault(now + 1, gpa, **here), at(now + 4, Kind.KVM_MMIO, addr=gpa, code=2)]
            events += [to_user(now + 5, 6), enter(now + 900, **here)]
        elif trip == "handed":
            events += [leave(now, **here), fault(now + 1, gpa, **here), to_user(now + 5, 0, -14)]
            events += [enter(now + 900, **here), leave(now + 901, **here), fault(now + 902, gpa, **here)]
            events += [enter(now + 910, **here)]
            stalls.append(910)
        else:
            events += [leave(now, **here), fault(now + 1, gpa, **here), mapped(now + 3, gpa)]
            events += [to_user(now + 5, 31)] if trip == "ring" else []
            events += [enter(now + 20, **here)]
            stalls.append(3 if trip == "ring" else 20)
        now += 5000
    return events, stalls


@settings(max_examples=60, deadline=None)
@given(TRIPS)
def test_a_whole_trace_gives_every_fault_and_no_device(trips: list[str]) -> None:
    events, stalls = life(trips)
    result = stitched(*events)
    assert result.faults["stall_ns"].to_list() == stalls
    assert result.report.device_exits == trips.count("device")
    assert not result.report.guest_faults_unended


@settings(max_examples=120, deadline=None)
@given(TRIPS, st.data())
def test_a_lost_event_gives_no_longer_stall_without_a_mark(trips: list[str], data: st.DataObject) -> None:
    """Any one exit, entry or fault is lost: every stall is a true one, or a part of one and marked as such."""
    events, stalls = life(trips)
    lost = data.draw(st.integers(0, len(events) - 1))
    if events[lost]["kind"] not in (Kind.KVM_EXIT, Kind.KVM_ENTRY, Kind.KVM_PAGE_FAULT):
        return
    result = stitched(*(event for n, event in enumerate(events) if n != lost))
    for stall_ns, join in faults(result, "stall_ns", "join"):
        assert stall_ns is None or stall_ns in stalls or join.startswith("fault/") or join.endswith("/spte"), join
    assert (result.faults["stall_ns"].fill_null(0) <= max([0, *stalls])).all()
    whole = len(result.faults) - result.report.guest_faults_untold
    assert len(stalls) - 1 <= len(result.faults) and whole <= len(stalls) + 1


@settings(max_examples=60, deadline=None)
@given(TRIPS, st.data())
def test_a_cut_trace_gives_the_faults_before_and_a_mark_on_the_last(trips: list[str], data: st.DataObject) -> None:
    events, _ = life(trips)
    whole = stitched(*events).faults["start_ns", "stall_ns"].rows()
    cut = data.draw(st.integers(1, len(events)))
    result = stitched(*events[:cut])
    rows = result.faults["start_ns", "stall_ns"].rows()
    assert all(row in whole for row in rows[:-1])
    if rows and rows[-1] not in whole:
        # No end yet; or what was mapped last is the end, and said to be; or the VMM's work was all that was seen.
        cause, join = result.faults["cause"][-1], result.faults["join"][-1]
        assert rows[-1][1] is None or cause == "exit" or join.endswith("/spte")


@settings(max_examples=60, deadline=None)
@given(TRIPS, st.data())
def test_doubled_events_change_no_fault(trips: list[str], data: st.DataObject) -> None:
    events, _ = life(trips)
    twice = data.draw(st.sets(st.integers(0, len(events) - 1)))
    doubled = [event for n, event in enumerate(events) for _ in range(1 + (n in twice))]
    assert stitched(*doubled).faults.equals(stitched(*events).faults)
