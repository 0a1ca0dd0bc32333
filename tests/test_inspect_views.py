"""`inspect --exits` and `--zaps`, and the words under the table: on traces whose every number is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from faultreplay.analysis.compare.exits import exit_statistics
from faultreplay.analysis.compare.known import why_no_faults
from faultreplay.cli.main import main
from faultreplay.collect.importers import import_file
from faultreplay.faulttrace.meta import Meta, Probe, Target
from faultreplay.faulttrace.store import Trace, open_trace

HERE = Path(__file__).parent
CASES = HERE / "cases"
SAMPLES = HERE.parent / "sample-traces"


def imported(tmp_path: Path, name: str, kind: str = "trace-cmd") -> Path:
    import_file(kind, CASES / name, tmp_path / "x.trace")
    return tmp_path / "x.trace"


def made(tmp_path: Path, *lines: tuple[int, str]) -> Trace:
    """A trace of trace-cmd's lines: (microsecond, ``COMM-TID: EVENT: TEXT``)."""
    text = [f" {who} [001] 100.{us:06d}: {what}" for us, line in lines for who, _, what in [line.partition(": ")]]
    (tmp_path / "in.txt").write_text("\n".join(text) + "\n")
    import_file("trace-cmd", tmp_path / "in.txt", tmp_path / "made.trace")
    return open_trace(tmp_path / "made.trace")


def said(*words: str | Path) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, words)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())  # wrapped lines are one


def refused(*words: str | Path) -> tuple[int, str]:
    """Exit code and message of the real program."""
    command = [sys.executable, "-m", "faultreplay", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def records(*words: str | Path) -> list[dict[str, Any]]:
    data = json.loads(CliRunner().invoke(main, ["inspect", *map(str, words), "--format", "json"]).output)
    found: list[dict[str, Any]] = data["records"]
    return found


def test_exits_of_33_are_what_perf_kvm_stat_counts(tmp_path: Path) -> None:
    found = records(imported(tmp_path, "33-perf-kvm-stat-record-script.txt", "perf-script"), "--exits")
    assert [(r["vcpu"], r["reason"], r["exits"], r["total_ns"], r["max_ns"]) for r in found] == [
        ("all", "EPT_VIOLATION", 2, 3_370_650, 3_364_650),
        ("all", "HLT", 1, 1_000_000, 1_000_000),
    ]
    assert sum(r["share_percent"] for r in found) == pytest.approx(100)


def test_time_in_userspace_of_14(tmp_path: Path) -> None:
    trace = imported(tmp_path, "14-mmio-kvm-only-ftrace.txt")
    (group,) = records(trace, "--exits")
    assert (group["exits"], group["to_userspace"]) == (2, 1)
    assert (group["kernel_ns"], group["userspace_ns"]) == (22_000, 8_008_000)
    assert "holds the way back in" in said(trace, "--exits")


def test_with_system_calls_the_way_back_in_is_the_kernels(tmp_path: Path) -> None:
    trace = imported(tmp_path, "23b-tracecmd-syscalls.txt")
    (group,) = records(trace, "--exits")
    # 1021 us out of the guest at first, of these 1015 from kvm_userspace_exit to the next KVM_RUN; then 3 us.
    assert (group["total_ns"], group["userspace_ns"], group["kernel_ns"]) == (1_024_000, 1_015_000, 9_000)
    assert "holds the way back in" not in said(trace, "--exits")


def test_exits_by_vcpu(tmp_path: Path) -> None:
    lines = []
    for vcpu, each in ((0, 2), (1, 3)):
        for n in range(4):
            at = 1000 * n + 100 * vcpu
            lines.append((at, f"CPU {vcpu}/KVM-{7 + vcpu}: kvm_exit: reason EXIT_MSR rip 0x{n:x} info 0 0"))
            lines.append((at + each, f"CPU {vcpu}/KVM-{7 + vcpu}: kvm_entry: vcpu {vcpu}, rip 0x{n:x}"))
        hlt = 9000 + vcpu
        lines.append((hlt, f"CPU {vcpu}/KVM-{7 + vcpu}: kvm_exit: reason EXIT_HLT rip 0x99 info 0 0"))
    found = exit_statistics(made(tmp_path, *sorted(lines))).groups
    assert [(g.vcpu, g.reason, g.exits, g.time.total_ns, g.unended) for g in found] == [
        ("all", "msr", 8, 20_000, 0), ("all", "hlt", 2, 0, 2),
        ("vcpu 0", "msr", 4, 8_000, 0), ("vcpu 0", "hlt", 1, 0, 1),
        ("vcpu 1", "msr", 4, 12_000, 0), ("vcpu 1", "hlt", 1, 0, 1),
    ]  # fmt: skip
    assert [g.share for g in found] == [1.0, 0.0] * 3


def test_exits_of_the_sample_agree_with_its_events() -> None:
    found = {r["reason"]: r for r in records(SAMPLES / "kernel-6.1-svm.trace", "--exits")}
    # 1009 pages of data and one of code; one exit at the end that halts.
    assert {reason: r["exits"] for reason, r in found.items()} == {"npf": 1010, "interrupt": 32, "hlt": 1}
    assert found["hlt"]["total_ns"] is None
    assert found["hlt"]["unended"] == 1


def test_arm64_exits_are_named(tmp_path: Path) -> None:
    found = records(imported(tmp_path, "12-arm64-ftrace.txt"), "--exits")
    assert {(r["reason"], r["exits"]) for r in found} == {("IABT_LOW", 1), ("DABT_LOW", 1), ("IRQ", 1)}


def test_a_trace_without_exits_says_what_to_record(tmp_path: Path) -> None:
    trace = imported(tmp_path, "36-mprotect-trace-cmd.txt")
    code, words = refused("inspect", trace, "--exits")
    assert code == 4
    assert "no kvm_exit in it: record kvm:kvm_exit" in words


def test_zaps_of_26(tmp_path: Path) -> None:
    trace = imported(tmp_path, "26-unmap-hva-range-tracecmd.txt")
    (group,) = records(trace, "--zaps")
    assert (group["zaps"], group["size_bytes"], group["tids"]) == (3, 16384, "11795")
    assert (group["sizes"], group["ranges"], group["most_often"]) == ("4.00 KiB x2, 8.00 KiB x1", 2, 2)
    assert "firecracker 11795" in said(trace)


def test_numa_balancing_is_named(tmp_path: Path) -> None:
    lines = []
    for n in range(3):
        first, start = 10 * n, f"0x7fbe6401{n}000 -- 0x7fbe6401{n + 1}000"
        lines += [
            (first, "CPU 0/KVM-7: mm_migrate_pages_start: mode=MIGRATE_ASYNC reason=numa_misplaced"),
            (first + 1, f"CPU 0/KVM-7: kvm_unmap_hva_range: mmu notifier unmap range: {start}"),
            (first + 2, "CPU 0/KVM-7: mm_migrate_pages: nr_succeeded=1 nr_failed=0 reason=numa_misplaced"),
        ]
    made(tmp_path, *lines)
    words = said(tmp_path / "made.trace", "--zaps")
    assert "migration numa_misplaced CPU 0/KVM 7 3" in words
    assert "the page moved: compaction, NUMA, move_pages" in words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("24-ept-livelock-intel-tracecmd.txt",
         "vcpu 1, rip 0xffffffffc0771aa2, page 0x2594000: 5 faults in 12.0 us, end not seen"),
        ("21b-osdev-without-empty.txt", "3 guest faults whose end was not recorded (no kvm_entry in the source)"),
        ("14-mmio-kvm-only-ftrace.txt", "1 guest exits for emulated devices: 8.02 ms in them, in no stall"),
        ("23c-exit-kvm-only.txt", "service and re-entry cannot be told apart"),
        ("36-mprotect-trace-cmd.txt", "whether anything faulted is not known"),
    ],
)  # fmt: skip
def test_words_under_the_table(tmp_path: Path, name: str, words: str) -> None:
    text = said(imported(tmp_path, name))
    assert words in text
    assert "mapped nothing" not in text and "nothing faulted" not in text


def test_the_hint_of_33(tmp_path: Path) -> None:
    text = said(imported(tmp_path, "33-perf-kvm-stat-record-script.txt", "perf-script"))
    assert "2 of 2 guest faults are exits without a kvm_page_fault, 2 of them on an unknown page" in text
    assert "record kvm:kvm_page_fault too" in text


def test_compare_does_not_replay_a_livelock(tmp_path: Path) -> None:
    trace = imported(tmp_path, "24-ept-livelock-intel-tracecmd.txt")
    code, words = refused("compare", trace)
    assert code == 4
    assert "no progress: vcpu 1 faulted 5 times at rip 0xffffffffc0771aa2" in words


def test_compare_says_first_that_an_access_never_got_past(tmp_path: Path) -> None:
    """Beside faults that can be replayed, too, and not behind `-v`."""
    lines = [(100, "CPU-11: kvm_exit: reason EPT_VIOLATION rip 0x771aa0 info 683 0"),
             (101, "CPU-11: kvm_page_fault: vcpu 1 rip 0x771aa0 address 0x2590fe0 error_code 0x683"),
             (106, "CPU-11: kvm_entry: vcpu 1, rip 0x771aa0")]  # fmt: skip
    for n in range(4):
        lines += [(10_400 + 3 * n, "CPU-11: kvm_exit: reason EPT_VIOLATION rip 0x771aa2 info 683 0"),
                  (10_401 + 3 * n, "CPU-11: kvm_page_fault: vcpu 1 rip 0x771aa2 address 0x2594fe0 error_code 0x683"),
                  (10_402 + 3 * n, "CPU-11: kvm_entry: vcpu 1, rip 0x771aa2")]  # fmt: skip
    made(tmp_path, *lines)
    result = CliRunner().invoke(main, ["compare", "-m", "host-lazy", str(tmp_path / "made.trace")])
    words = " ".join(result.output.split())
    assert "no progress: vcpu 1 faulted 4 times at rip 0x771aa2 on page 0x2594000" in words


def test_one_view_at_a_time(tmp_path: Path) -> None:
    trace = imported(tmp_path, "14-mmio-kvm-only-ftrace.txt")
    code, words = refused("inspect", trace, "--exits", "--zaps")
    assert code == 2
    assert "one view at a time: give --exits or --zaps" in words


@pytest.mark.parametrize(
    ("probes", "vm", "words"),
    [
        ([], False, "whether anything faulted is not known"),
        (["exceptions:page_fault_user"], False, "nothing faulted"),
        (["exceptions:page_fault_user"], True, "whether the guest faulted is not known"),
        (["kvm:kvm_exit"], True, "nothing faulted"),
    ],
)
def test_nothing_faulted_is_said_only_where_it_is_known(probes: list[str], vm: bool, words: str) -> None:
    meta = Meta(probes=[Probe(name, "kvm", "attached") for name in probes])
    meta.targets = [Target(1, "qemu", role="vm" if vm else "process")]
    assert why_no_faults(meta).startswith(words)
