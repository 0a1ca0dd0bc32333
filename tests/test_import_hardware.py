"""Hardware KVM's events and causes of zaps from other tools' text, on posted traces and made lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from faultreplay.analysis.compare.exits import exit_statistics
from faultreplay.collect.importers import import_file
from faultreplay.collect.importers.printed import parse_fields
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events, stitch_trace
from faultreplay.faulttrace.stitch.zap_groups import zap_groups
from faultreplay.faulttrace.store import Trace, open_trace

CASES = Path(__file__).parent / "cases"
GOLDEN = Path(__file__).parent / "golden"
PAGES, CODE_PAGE, WRITES = 211, 1, 23  # what `guest 211 devices` and `guest 211 exit` do (scripts/kernels/guest.c)
US, MS = 1_000, 1_000_000


def read(tmp_path: Path, name: str, kind: str = "trace-cmd") -> Trace:
    import_file(kind, CASES / name, tmp_path / "x.trace")
    return open_trace(tmp_path / "x.trace")


def made(tmp_path: Path, *lines: str) -> Trace:
    """A trace of trace-cmd's lines, each ``COMM-TID: EVENT: TEXT`` and a microsecond after the one before."""
    text = []
    for n, line in enumerate(lines):
        who, _, what = line.partition(": ")
        text.append(f" {who} [001] 100.{n:06d}: {what}")
    (tmp_path / "in.txt").write_text("\n".join(text) + "\n")
    import_file("trace-cmd", tmp_path / "in.txt", tmp_path / "made.trace")
    return open_trace(tmp_path / "made.trace")


def faults(trace: Trace, *columns: str) -> list[tuple[Any, ...]]:
    return trace.faults().select(columns).rows()


def test_spurious_faults_of_01(tmp_path: Path) -> None:
    trace = read(tmp_path, "01-spurious-ept-ftrace.txt")
    assert trace.meta.extra["import"]["not_taken"] == []
    assert faults(trace, "vcpu", "rounds", "access", "end_ns") == [(4, 2, "x", None), (7, 1, "x", None)]
    report = stitch_trace(trace).report
    (worst,) = report.worst_repeats
    assert (worst.vcpu, worst.ip, worst.gpa, worst.rounds) == (4, 0xFFFFFFFF820FE612, 0x20FE000, 2)
    assert report.guest_faults_spurious == 3


def test_rounds_and_the_full_dirty_ring_of_02(tmp_path: Path) -> None:
    trace = read(tmp_path, "02-dirty-ring-5.4-tracecmd.txt")
    assert faults(trace, "page", "rounds", "stall_ns", "join") == [
        (0x7FC036D000, 2, 4 * US, "exit/entry"),
        (0x7FC036E000, 2, 6 * US, "exit/userspace"),
        (0x7FC036F000, 1, 13 * US, "exit/entry"),
    ]


def test_arm64_of_12(tmp_path: Path) -> None:
    trace = read(tmp_path, "12-arm64-ftrace.txt")
    assert trace.meta.host.kvm_flavour == "arm64"
    assert faults(trace, "page", "access", "stall_ns", "join") == [
        (0x401000, "x", 45 * US, "exit/entry"),
        (0x7F000000, "w", 19 * US, "exit/entry"),
    ]
    assert [t.role for t in trace.meta.targets] == ["vm"]
    assert {p.name for p in trace.meta.probes if p.status == "attached"} >= {"kvm:kvm_guest_fault", "kvm:kvm_exit"}


def test_the_device_of_14(tmp_path: Path) -> None:
    trace = read(tmp_path, "14-mmio-kvm-only-ftrace.txt")
    assert faults(trace, "cause", "resolution", "page", "stall_ns") == [("stage2", "kernel", 0x113674000, 10 * US)]
    report = stitch_trace(trace).report
    assert (report.device_exits, report.device_ns) == (1, 8_020 * US)


def test_no_ends_in_21b(tmp_path: Path) -> None:
    trace = read(tmp_path, "21b-osdev-without-empty.txt")
    assert faults(trace, "vcpu", "access", "end_ns") == [(3, "r", None), (3, "r", None), (3, "w", None)]
    assert stitch_trace(trace).report.guest_faults_unended == {"no kvm_entry in the source": 3}


def test_the_exit_without_system_calls_of_23c_is_that_of_23b(tmp_path: Path) -> None:
    trace = read(tmp_path, "23c-exit-kvm-only.txt")
    columns = ("cause", "resolution", "page", "access", "start_ns", "stall_ns")
    alone = faults(trace, *columns)
    assert faults(trace, "queue_ns", "service_ns", "wake_ns") == [(5 * US, None, None)]
    assert stitch_trace(trace).report.exits_untimed == 1
    import_file("trace-cmd", CASES / "23b-tracecmd-syscalls.txt", tmp_path / "calls.trace")
    assert faults(open_trace(tmp_path / "calls.trace"), *columns) == alone


def test_the_livelock_of_24(tmp_path: Path) -> None:
    trace = read(tmp_path, "24-ept-livelock-intel-tracecmd.txt")
    assert faults(trace, "vcpu", "page", "rounds", "end_ns") == [(1, 0x2594000, 5, None)]
    (worst,) = stitch_trace(trace).report.worst_repeats
    assert (worst.ip, worst.duration_ns, worst.ended) == (0xFFFFFFFFC0771AA2, 12 * US, False)


def test_zaps_of_26(tmp_path: Path) -> None:
    trace = read(tmp_path, "26-unmap-hva-range-tracecmd.txt")
    zaps = trace.events([Kind.KVM_UNMAP_HVA_RANGE])
    assert zaps["size"].to_list() == [4096, 8192, 4096]
    assert set(zaps["tid"]) == {11795}
    (group,) = zap_groups(trace)
    assert (group.zaps, group.size_bytes, group.by) == (3, 16384, "firecracker 11795")
    assert {p.name for p in trace.meta.probes if p.status == "attached"} >= {"kvm:kvm_unmap_hva_range"}


def test_exits_alone_of_33(tmp_path: Path) -> None:
    trace = read(tmp_path, "33-perf-kvm-stat-record-script.txt", "perf-script")
    assert faults(trace, "cause", "stall_ns", "granule") == [("stage2", 6_000, 0), ("stage2", 3_364_650, 0)]
    assert stitch_trace(trace).report.guest_faults_page_unknown == 2


def test_system_calls_of_36(tmp_path: Path) -> None:
    events = read(tmp_path, "36-mprotect-trace-cmd.txt").events([Kind.MPROTECT, Kind.MADVISE])
    assert events.select("kind", "addr", "size", "code").rows() == [
        (Kind.MPROTECT, 0x7F8A12200000, 0x200000, 1),
        (Kind.MADVISE, 0x7F8A12200000, 0x200000, 4),
    ]


UNMAP = "kvm_unmap_hva_range: mmu notifier unmap range: 0x007fbe64017000 -- 0x007fbe64018000"


@pytest.mark.parametrize(
    ("who", "told", "wanted"),
    [
        (
            "CPU 0/KVM-7",
            ["mm_migrate_pages_start: mode=MIGRATE_ASYNC reason=numa_misplaced", UNMAP,
             "mm_migrate_pages: nr_succeeded=1 nr_failed=0 nr_thp_succeeded=0 nr_thp_failed=0 nr_thp_split=0 "
             "nr_split=0 mode=MIGRATE_ASYNC reason=numa_misplaced"],
            ("migration", "numa_misplaced", "CPU 0/KVM 7"),
        ),
        (
            "kcompactd0-50",
            ["mm_migrate_pages_start: mode=MIGRATE_SYNC_LIGHT reason=compaction", UNMAP,
             "set_migration_pte: addr=7fbe64017000, pte=7c0012345 order=0"],
            ("migration", "compaction", "kcompactd0"),
        ),
        ("old-51", [UNMAP, "mm_migrate_pages: nr_succeeded=1 nr_failed=0 mode=MIGRATE_ASYNC reason=cma"],
         ("migration", "contig_range", "old 51")),
        ("ksmd-52", [UNMAP, "ksm_merge_one_page: ksm pfn 4660 rmap_item 00000000abc mm 00000000def error 0"],
         ("ksm", "", "ksmd")),
        ("kswapd0-53", [UNMAP, "mm_vmscan_lru_shrink_inactive: nid=0 nr_scanned=32 nr_reclaimed=31 nr_dirty=0 "
                        "nr_writeback=0 nr_congested=0 priority=12 flags=RECLAIM_WB_ANON|RECLAIM_WB_ASYNC"],
         ("reclaim", "", "kswapd0")),
        ("khugepaged-54", [UNMAP, "mm_collapse_huge_page: mm=00000000c0ffee, isolated=1, status=succeeded"],
         ("thp-collapse", "", "khugepaged")),
        ("khugepaged-54", [UNMAP], ("thp-collapse", "", "khugepaged")),  # the thread alone tells it
        ("qemu-55", [UNMAP], ("unknown", "", "qemu 55")),
    ],
)  # fmt: skip
def test_who_takes_memory_away_and_why(tmp_path: Path, who: str, told: list[str], wanted: tuple[str, str, str]) -> None:
    trace = made(tmp_path, *(f"{who}: {line}" for line in told))
    (group,) = zap_groups(trace)
    assert (group.cause, group.detail, group.by) == wanted
    assert group.zaps == 1


def test_causes_of_other_memory_are_counted_as_not_taken(tmp_path: Path) -> None:
    trace = made(
        tmp_path,
        f"qemu-7: {UNMAP}",
        "ksmd-52: ksm_merge_one_page: ksm pfn 4660 rmap_item 00000000abc mm 00000000def error 0",
        "kswapd0-53: mm_vmscan_lru_shrink_inactive: nid=0 nr_scanned=32 nr_reclaimed=31",
    )
    left = {row["event"]: row["why"] for row in trace.meta.extra["import"]["not_taken"]}
    assert set(left) == {"ksm:ksm_merge_one_page", "vmscan:mm_vmscan_lru_shrink_inactive"}
    assert set(left.values()) == {"its thread had not just zapped guest memory"}
    attached = {probe.name for probe in trace.meta.probes if probe.status == "attached"}
    assert attached == {"kvm:kvm_unmap_hva_range"}


def test_mprotect_is_the_cause_of_its_zaps(tmp_path: Path) -> None:
    trace = made(
        tmp_path,
        "qemu-7: sys_enter_mprotect: start: 0x7fbe64017000, len: 0x00001000, prot: 0x00000001",
        f"qemu-7: {UNMAP}",
        "qemu-7: sys_exit_mprotect: 0x0",
    )
    (group,) = zap_groups(trace)
    assert group.cause == "protect"


def test_ports_and_fast_mmio(tmp_path: Path) -> None:
    trace = made(
        tmp_path,
        "CPU 0/KVM-7: kvm_exit: reason EXIT_IOIO rip 0x10 info 800010 12",
        "CPU 0/KVM-7: kvm_pio: pio_write at 0x80 size 1 count 1 val 0x0 ",
        "CPU 0/KVM-7: kvm_userspace_exit: reason KVM_EXIT_IO (2)",
        "CPU 0/KVM-7: kvm_entry: vcpu 0, rip 0x12",
        "CPU 0/KVM-7: kvm_exit: reason EXIT_NPF rip 0x20 info 10000000f fe003000",
        "CPU 0/KVM-7: kvm_fast_mmio: fast mmio at gpa 0xfe003000",
        "CPU 0/KVM-7: kvm_entry: vcpu 0, rip 0x22",
    )
    (pio,) = trace.events([Kind.KVM_PIO]).select("addr", "size", "code", "value").rows()
    assert pio == (0x80, 1, 1, 1)
    report = stitch_trace(trace).report
    assert (report.device_exits, report.device_ns) == (2, 5 * US)
    assert trace.faults().is_empty()


def test_a_fixed_entry_is_a_new_mapping_and_a_raced_one_is_not() -> None:
    text = "vcpu 4 gva 20fe612 error_code P|W|U sptep 00000000fd98c937 old 0x61 new 63 spurious 0 fixed {}"
    fixed, raced = (parse_fields("fast_page_fault", text.format(flag)) for flag in (1, 0))
    assert (fixed["old_spte"], fixed["new_spte"], fixed["error_code"]) == (0x61, 0x63, 7)
    assert raced["old_spte"] == raced["new_spte"]


def test_riscv_and_s390_are_named(tmp_path: Path) -> None:
    lines = {
        "riscv": "kvm-1 [000] 1.000001: kvm_exit: SEPC:0x80000000, SCAUSE:0x17, STVAL:0x0, HTVAL:0x0, HTINST:0x0",
        "s390": "kvm-1 [000] 1.000001: kvm_s390_intercept_instruction: 00[0404c00180000000-00000]: PTFF",
    }
    for machine, line in lines.items():
        (tmp_path / "in.txt").write_text(line + "\n")
        with pytest.raises(IncompleteData, match=f"KVM events of {machine}: not supported"):
            import_file("trace-cmd", tmp_path / "in.txt", tmp_path / "x.trace")


def test_svm_exits_of_the_kernel_and_of_the_plugin_are_one(tmp_path: Path) -> None:
    for n, reason in enumerate(("npf", "EXIT_NPF")):
        (tmp_path / f"{n}").mkdir()
        trace = made(
            tmp_path / f"{n}",
            f"CPU 0/KVM-7: kvm_exit: vcpu 0 reason {reason} rip 0x20 info1 0x0000000100000006 info2 0x0000000000017000 "
            "intr_info 0x00000000 error_code 0x00000000",
            "CPU 0/KVM-7: kvm_entry: vcpu 0, rip 0x20",
        )
        assert faults(trace, "page", "access", "stall_ns") == [(0x17000, "w", US)]
    assert pl.DataFrame(trace.events([Kind.KVM_EXIT]))["code"].to_list() == [0x400]


def test_devices_under_a_real_kernel_are_in_no_fault(tmp_path: Path) -> None:
    """6.1 with nested SVM, kvm and kvmmmu only: every number was known before the guest ran."""
    import_file("trace-cmd", GOLDEN / "svm-devices.ftrace.txt.gz", tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    assert faults(trace, "cause", "rounds", "join") == [("stage2", 1, "exit/entry")] * (PAGES + CODE_PAGE)
    pages = trace.faults()["page"]
    assert sorted(pages.to_list()) == [0x1000, *(0x10000000 + 4096 * n for n in range(PAGES))]
    report = stitch_trace(trace).report
    assert (report.guest_faults, report.guest_faults_of_devices) == (PAGES + CODE_PAGE + WRITES, WRITES)
    assert (report.device_exits, report.device_unended) == (WRITES + 1, 1)  # and the port write that ends the run
    assert (report.repeated, report.guest_faults_untold) == (0, 0)
    by_reason = {group.reason: group for group in exit_statistics(trace).groups}
    assert (by_reason["npf"].exits, by_reason["npf"].to_userspace) == (PAGES + CODE_PAGE + WRITES, WRITES)
    assert (by_reason["io"].exits, by_reason["io"].to_userspace, by_reason["io"].unended) == (1, 1, 1)


def test_faults_handed_to_the_vmm_under_a_real_kernel(tmp_path: Path) -> None:
    import_file("trace-cmd", GOLDEN / "svm-exit.ftrace.txt.gz", tmp_path / "x.trace")
    trace = open_trace(tmp_path / "x.trace")
    found = trace.faults()
    handed = found.filter(found["cause"] == "exit")
    assert handed.select("resolution", "rounds", "join").rows() == [("userspace", 2, "exit/entry")] * PAGES
    assert handed["page"].to_list() == [0x10000000 + 4096 * n for n in range(PAGES)]
    assert handed["service_ns"].null_count() == handed["wake_ns"].null_count() == PAGES
    assert (handed["queue_ns"] > 0).all() and (handed["queue_ns"] < handed["stall_ns"]).all()
    assert found.filter(found["cause"] == "stage2")["page"].to_list() == [0x1000]
    report = stitch_trace(trace).report
    assert (report.exits, report.exits_untimed, report.exits_unjoined, report.repeated) == (PAGES, PAGES, 0, 0)
    (npf,) = (group for group in exit_statistics(trace).groups if group.reason == "npf")
    assert (npf.exits, npf.to_userspace) == (2 * PAGES + CODE_PAGE, PAGES)
    # A lost line is no lost fault: without every third kvm_page_fault the pages come from the exits.
    events = trace.events()
    told = events.filter(pl.col("kind") == Kind.KVM_PAGE_FAULT)["ts_ns"].gather_every(3)
    fewer = events.filter((pl.col("kind") != Kind.KVM_PAGE_FAULT) | ~pl.col("ts_ns").is_in(told.implode()))
    again = stitch_events(fewer, trace.meta)
    assert again.faults["page", "stall_ns", "cause", "rounds"].equals(found["page", "stall_ns", "cause", "rounds"])
    assert again.report.guest_faults_untold == len(told)
