"""Real traces that people posted (tests/cases) and the right answer for each: how lines are read, what is not taken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from faultreplay.cli.commands.compare import command as compare
from faultreplay.cli.commands.inspect import command as inspect
from faultreplay.collect.importers import import_file
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace, open_trace

CASES = Path(__file__).parent / "cases"


def imported(name: str, kind: str, folder: Path, text: str | None = None) -> Trace:
    """The case, or `text` in its place, as a trace."""
    path = CASES / name
    if text is not None:
        path = folder / name
        path.write_text(text)
    out = folder / f"{name}.trace"
    import_file(kind, path, out, force=True)
    return open_trace(out)


def kinds(trace: Trace) -> Counter[str]:
    return Counter(Kind(kind).name for kind in trace.events()["kind"])


def not_taken(trace: Trace) -> dict[str, tuple[int, int]]:
    """Event -> how many and the first line."""
    return {row["event"]: (row["count"], row["first_line"]) for row in trace.meta.extra["import"]["not_taken"]}


@pytest.mark.parametrize(
    ("name", "kind", "right"),
    [
        ("01-spurious-ept-ftrace.txt", "trace-cmd", {"KVM_EXIT": 3, "KVM_ENTRY": 4, "KVM_PAGE_FAULT": 3}),
        ("02-dirty-ring-5.4-tracecmd.txt", "trace-cmd",
         {"KVM_EXIT": 5, "KVM_ENTRY": 6, "KVM_PAGE_FAULT": 5, "KVM_DIRTY_RING_PUSH": 2, "KVM_DIRTY_RING_EXIT": 1,
          "KVM_USERSPACE_EXIT": 1}),
        ("05-svm-cpu-name-space-ftrace.txt", "trace-cmd",
         {"KVM_EXIT": 2, "KVM_ENTRY": 2, "KVM_PAGE_FAULT": 2, "KVM_USERSPACE_EXIT": 1}),
        ("06-upm-thp-no-exit-ftrace.txt", "trace-cmd", {"KVM_PAGE_FAULT": 1, "KVM_MMU_SET_SPTE": 1}),
        ("09-firecracker-perf-default.txt", "perf-script", {"KVM_EXIT": 2, "KVM_ENTRY": 3, "KVM_PAGE_FAULT": 1}),
        ("11-ept-misconfig-walk-tracecmd.txt", "trace-cmd",
         {"KVM_EXIT": 1, "KVM_ENTRY": 1, "KVM_MMU_WALK": 1, "KVM_USERSPACE_EXIT": 1}),
        ("15-svm-nested-plugin-tracecmd.txt", "trace-cmd", {"KVM_EXIT": 2, "KVM_ENTRY": 3, "KVM_PAGE_FAULT": 1}),
        ("17-oops-dump.txt", "trace-cmd", {"PAGE_FAULT_USER": 1}),
        ("18-trace-pipe-5.3-pagefault.txt", "trace-cmd", {"PAGE_FAULT_USER": 3}),
        ("20-perf-callstacks.txt", "perf-script", {"KVM_EXIT": 1, "KVM_ENTRY": 1, "KVM_PAGE_FAULT": 1}),
        ("20b-perf-callstacks-no-zero.txt", "perf-script", {"KVM_EXIT": 1, "KVM_ENTRY": 1, "KVM_PAGE_FAULT": 1}),
        ("20c-perf-callstacks-F-ip-sym.txt", "perf-script", {"KVM_EXIT": 1, "KVM_ENTRY": 1, "KVM_PAGE_FAULT": 1}),
        ("21-osdev-tracecmd-empty-cpus.txt", "trace-cmd", {"KVM_PAGE_FAULT": 3}),
        ("21b-osdev-without-empty.txt", "trace-cmd", {"KVM_PAGE_FAULT": 3}),
        ("24-ept-livelock-intel-tracecmd.txt", "trace-cmd", {"KVM_EXIT": 5, "KVM_ENTRY": 5, "KVM_PAGE_FAULT": 5}),
        ("27-ftrace-overrun-header.txt", "trace-cmd", {"KVM_EXIT": 1, "KVM_ENTRY": 2, "KVM_PAGE_FAULT": 1}),
        ("28-tracecmd-raw-R.txt", "trace-cmd", {"KVM_EXIT": 1, "KVM_ENTRY": 1, "KVM_PAGE_FAULT": 1}),
        ("33-perf-kvm-stat-record-script.txt", "perf-script", {"KVM_EXIT": 3, "KVM_ENTRY": 4}),
        ("36-mprotect-trace-cmd.txt", "trace-cmd", {"MPROTECT": 1, "MADVISE": 1}),
    ],
)  # fmt: skip
def test_every_event_is_a_row_or_counted(name: str, kind: str, right: dict[str, int], tmp_path: Path) -> None:
    trace = imported(name, kind, tmp_path)
    seen = kinds(trace)
    assert {key: seen[key] for key in right} == right
    # What the file has, by its own words: nothing but what is a row or counted.
    lines = (CASES / name).read_text().splitlines()
    events = Counter(
        found[1].rpartition(":")[2]
        for line in lines
        if not line.startswith("#") and (found := re.search(r"\d\S* ?:\s+(?:1 )?((?:kvm:)?\w+):", line))
    )
    taken = Counter[str]()
    for event, count in seen.items():
        taken[event] += count
    total = sum(events.values()) - sum(
        1 for event in events if event.startswith("sys_enter_m") for _ in range(events[event])
    )
    assert sum(seen.values()) + sum(count for count, _ in not_taken(trace).values()) == total
    for event, (count, first_line) in not_taken(trace).items():
        bare = event.rpartition(":")[2]
        assert events[bare] == count and f"{bare}:" in lines[first_line - 1]


def test_the_vcpu_and_page_of_raw_fields(tmp_path: Path) -> None:
    frame = imported("28-tracecmd-raw-R.txt", "trace-cmd", tmp_path).events()
    assert frame["vcpu"].to_list() == [5, 5, 5]
    assert frame["code"].to_list() == [48, 0x182, 0]
    assert frame["addr"].to_list() == [0x182, 0x113674000, 0]


def test_lacking_columns_of_perf_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        IncompleteData, match=r":1: the columns comm, pid and tid are missing.*-F comm,pid,tid,cpu,time"
    ):
        imported("08-perf-cpu-time-only.txt", "perf-script", tmp_path)


EVENT = "kvm:kvm_entry: vcpu 0, rip 0x1"


@pytest.mark.parametrize(
    ("line", "lacking"),
    [
        (f"  {EVENT}\n", "comm, pid and tid, time"),
        (f"  qemu [001]  5.123456: {EVENT}\n", "pid and tid"),
        (f"  qemu 12/13 [001]  {EVENT}\n", "time"),
        (f"  qemu 12/13  {EVENT}\n", "time"),
        ("  qemu 12/13 [001]  5.123456: kvm:kvm_entry:\n", "trace"),
        ("  qemu 12/13 [001]  5.123456: vcpu 0, rip 0x1\n", "event"),
    ],
)
def test_each_lacking_column(line: str, lacking: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=rf"columns? {lacking} (is|are) missing"):
        imported("x.txt", "perf-script", tmp_path, line)


@pytest.mark.parametrize("who", ["  qemu 12/13", "  12/13 [001]", "  12/13", "  CPU 0/KVM 12/13 [001]"])
def test_columns_that_may_lack(who: str, tmp_path: Path) -> None:
    frame = imported("x.txt", "perf-script", tmp_path, f"{who}  5.123456789: {EVENT}\n").events()
    assert frame.select("ts_ns", "tgid", "tid", "cpu").row(0) == (5123456789, 12, 13, 1 if "[" in who else -1)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("16-perf-prof.txt", "perf-script", "a wall-clock time before the columns"),
        ("19-function-graph.txt", "trace-cmd", r":5: the function_graph tracer's output.*current_tracer"),
        ("30-bpftrace-hist.txt", "trace-cmd", "bpftrace's own output"),
        ("30b-bpftrace-hist.json", "bpftrace", "maps and histograms only"),
        ("33-perf-kvm-stat-record-script.txt", "trace-cmd", "a line of perf script: --from perf-script"),
        ("05-svm-cpu-name-space-ftrace.txt", "perf-script", "a line of trace-cmd or ftrace: --from trace-cmd"),
        ("13c-qmp-10.1-dest-full.json", "trace-cmd", "JSON: --from perf-json"),
        ("13d-hmp-10.1-info-migrate.txt", "trace-cmd", "QEMU's monitor"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_what_they_are(name: str, kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=words) as error:
        imported(name, kind, tmp_path)
    assert "expected" in str(error.value) or kind == "bpftrace"
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_raw_system_calls_equal_those_of_trace_cmd(tmp_path: Path) -> None:
    raw = imported("23-ftrace-syscalls.txt", "trace-cmd", tmp_path)
    assert kinds(raw)["KVM_RUN_ENTER"] == 2 and kinds(raw)["KVM_RUN_EXIT"] == 1
    assert raw.events().equals(imported("23b-tracecmd-syscalls.txt", "trace-cmd", tmp_path).events())


def test_an_overrun_ring_is_a_loss(tmp_path: Path) -> None:
    name = "27-ftrace-overrun-header.txt"
    trace = imported(name, "trace-cmd", tmp_path)
    assert trace.meta.losses.total == 119956607 - 205022
    assert trace.losses()["ts_ns"].to_list() == [trace.meta.clock.end_ns]
    refused = CliRunner().invoke(compare, [str(tmp_path / f"{name}.trace")])
    assert isinstance(refused.exception, IncompleteData) and "events lost" in str(refused.exception)
    shown = CliRunner().invoke(inspect, [str(tmp_path / f"{name}.trace")])
    assert "losses: 119,751,585 events" in shown.output and "at times it does not say" in " ".join(shown.output.split())


def test_events_not_taken_are_shown(tmp_path: Path) -> None:
    imported("24-ept-livelock-intel-tracecmd.txt", "trace-cmd", tmp_path)
    shown = CliRunner().invoke(inspect, [str(tmp_path / "24-ept-livelock-intel-tracecmd.txt.trace")])
    assert "not taken: 4 kvm_inj_virq (the first: line 5): nothing here is made of it" in shown.output


HEAD = "       CPU 0/KVM-4145  [002]    86.58258"
EXIT = (
    "kvm_exit: vcpu 5 reason EPT_VIOLATION rip 0xffffffff81040f72 info1 0x0000000000000182 info2 0x0000000000000000 "
    "intr_info 0x00000000 error_code 0x00000000"
)
FAULT = (
    f"{HEAD}0: {EXIT}\n{HEAD}1: kvm_page_fault: address 113674000 error_code 182\n{HEAD}9: kvm_entry: vcpu 5, rip 0x1\n"
)


@pytest.mark.parametrize(
    "more",
    [
        "CPU 3 is empty\n", "version = 7\n", "#              | |         |   |||||     |         |\n", "\n   \n",
        " => do_page_fault\n => async_page_fault (ffffffff8180121e)\n", "##### CPU 2 buffer started ####\n",
        f"{HEAD}1: kernel_stack:         <stack trace >\n=> kvm_mmu_page_fault (ffffffffc0a3c111)\n",
        f"{HEAD}1: <stack trace>\n => kvm_mmu_page_fault+0x12/0x300 [kvm]\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, 2])
def test_lines_that_are_no_events_are_passed_over(more: str, at: int, tmp_path: Path) -> None:
    lines = FAULT.splitlines(keepends=True)
    trace = imported("x.txt", "trace-cmd", tmp_path, "".join([*lines[:at], more, *lines[at:]]))
    assert trace.faults()["stall_ns"].to_list() == [9000]


@pytest.mark.parametrize(
    ("head", "who"),
    [
        ("  CPU 0/KVM-4145  [002]    86.582580", (0, 4145, 2)),
        ("  CPU 0/KVM-4145  [002] d..1.    86.582580", (0, 4145, 2)),
        ("  CPU 0/KVM-4145  [002] dN.h    86.582580", (0, 4145, 2)),
        ("  CPU 0/KVM-4145  (   4136) [002] d....    86.582580", (4136, 4145, 2)),
        ("  <...>-4145  (-------) [119] ....1    86.582580", (0, 4145, 119)),
        ("  a [001] 2-3 b-4145  [002]    86.582580", (0, 4145, 2)),
        ("  kworker/u8: 1-4145  [002]    86.582580", (0, 4145, 2)),
        ("  12-4145  [002]    86.582580", (0, 4145, 2)),
        ("  trailing- -4145  [002]    86.582580", (0, 4145, 2)),
        ("  CPU 0/K-4145     2d..1.    86.582580", (0, 4145, 2)),
        ("  CPU 0/K-4145    12d..1.    86582580us ", (0, 4145, 12)),
        ("  CPU 0/K-4145    12d..1.    86582580us+", (0, 4145, 12)),
        ("[ 3602.100000]   CPU 0/K-4145    12d..1.    86582580us ", (0, 4145, 12)),
        ("Nov 25 02:12:11 h kernel: [   12.345678][ T1] CPU 0/K-4145  2d... 86582580us ", (0, 4145, 2)),
    ],
)  # fmt: skip
def test_heads_of_ftrace_lines(head: str, who: tuple[int, int, int], tmp_path: Path) -> None:
    frame = imported("x.txt", "trace-cmd", tmp_path, f"{head}: kvm_entry: vcpu 5, rip 0x1\n").events()
    tgid, tid, cpu = who
    assert frame.select("ts_ns", "tgid", "tid", "cpu").row(0) == (86582580000, tgid or tid, tid, cpu)


def test_counts_of_a_cycle_clock_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=r"the time is a count.*trace-cmd record -C mono"):
        imported("x.txt", "trace-cmd", tmp_path, "  a-1  [000] d... 6288896762001: kvm_entry: vcpu 5, rip 0x1\n")


def test_an_ftrace_dump_in_a_kernel_log(tmp_path: Path) -> None:
    log = "[    1.000000] BUG: kernel NULL pointer\n[    1.000001] Dumping ftrace buffer:\n" + "".join(
        f"[    1.000002] {line}" for line in FAULT.splitlines(keepends=True)
    ) + "[    1.000009] ---------------------------------\n[    1.100000] Kernel panic - not syncing\n"  # fmt: skip
    trace = imported("x.txt", "trace-cmd", tmp_path, log)
    assert trace.faults()["stall_ns"].to_list() == [9000]
    assert any(note.startswith("2 other lines of the kernel log") for note in trace.meta.extra["import"]["notes"])


@pytest.mark.parametrize(
    ("kind", "line", "lost"),
    [
        ("trace-cmd", "CPU:1 [LOST 12 EVENTS]", 12), ("trace-cmd", "CPU:1 [EVENTS DROPPED]", 1),
        ("trace-cmd", "# entries-in-buffer/entries-written: 100/123   #P:4", 23), ("trace-cmd", "overrun: 7", 7),
        ("trace-cmd", "dropped events: 3", 3), ("trace-cmd", "overrun: 0", 0),
        ("perf-script", "  q 12/13 [001] 10.100000: PERF_RECORD_LOST lost 41", 41),
        ("perf-script", "  q 12/13 [001] 10.100000: PERF_RECORD_LOST_SAMPLES lost 3", 3),
        ("perf-script", "Processed 12345 events and lost 5 chunks!", 5),
    ],
)  # fmt: skip
def test_lost_events(kind: str, line: str, lost: int, tmp_path: Path) -> None:
    event = (
        "  q-1 [000] 1.000000001: kvm_entry: vcpu 0, rip 0x1" if kind == "trace-cmd" else f"  q 1/1 [000] 1.5: {EVENT}"
    )
    trace = imported("x.txt", kind, tmp_path, f"{line}\n{event}\n")
    assert trace.meta.losses.total == lost


def test_what_is_not_needed_kills_nothing_and_is_named(tmp_path: Path) -> None:
    text = FAULT + f"{HEAD}9: kvm_dirty_ring_push: ring 1: something else\n{HEAD}9: kvm_msr: msr_write 6e0\n"
    trace = imported("x.txt", "trace-cmd", tmp_path, text)
    assert not_taken(trace) == {"kvm:kvm_dirty_ring_push": (1, 4), "kvm_msr": (1, 5)}
    probes = {probe.name: probe for probe in trace.meta.probes}
    assert probes["kvm:kvm_dirty_ring_push"].status == "missing"
    assert "could not be read" in probes["kvm:kvm_dirty_ring_push"].reason


def test_damaged_bytes_are_marked_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(FAULT.replace("0/KVM", "0/K\N{SNOWMAN}").encode().replace(b"\x98", b""))
    import_file("trace-cmd", path, tmp_path / "x.trace")
    notes = open_trace(tmp_path / "x.trace").meta.extra["import"]["notes"]
    assert "3 lines with bytes that are not UTF-8 (the first: line 1)" in notes
    path.write_bytes(FAULT.encode() + b"\0" * 4096 + FAULT.encode())
    with pytest.raises(IncompleteData, match=r"x\.txt:4: NUL bytes in the line"):
        import_file("trace-cmd", path, tmp_path / "y.trace")
    import_file("trace-cmd", path, tmp_path / "y.trace", max_errors=1)
    assert open_trace(tmp_path / "y.trace").meta.extra["import"]["bad_lines"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"  q  12 [00{n}] 1.00000{n}: kvm:kvm_entry: vcpu {n}, rip 0x1\n" for n in range(3)),
        "".join(f"  CPU {n}/KVM  12 [000] 1.{n}: kvm:kvm_page_fault: address 1 error_code 2\n" for n in range(2)),
        "  q  12 [001] 1.000001: sched:sched_switch: prev_comm=q prev_pid=13 prev_prio=1 prev_state=S ==> next_comm=p "
        "next_pid=7 next_prio=1\n",
    ],
)
def test_a_process_in_place_of_the_thread_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match="the column tid is missing"):
        imported("x.txt", "perf-script", tmp_path, text)


@pytest.mark.parametrize(
    "event",
    [
        "kvm_exit: vcpu 5 reason EPT_VIO",
        "kvm_exit: vcpu 5 reason EPT_VIOLATION rip 0xffff info1 0x0000000000000182 info2 0x00000",
        "kvm_page_fault: address 113674000 error",
        "kvm_pa",
    ],
)
def test_a_cut_line_is_refused_with_its_number(event: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=r"x\.txt:4: (.*form|not a line of)"):
        imported("x.txt", "trace-cmd", tmp_path, f"{FAULT}{HEAD}9: {event}\n")


def test_a_file_that_ends_without_a_newline_is_marked(tmp_path: Path) -> None:
    trace = imported("x.txt", "trace-cmd", tmp_path, FAULT[:-4])
    assert any("may be cut" in note for note in trace.meta.extra["import"]["notes"])


def test_an_error_keeps_the_trace_that_was_there(tmp_path: Path) -> None:
    imported("x.txt", "trace-cmd", tmp_path, FAULT)
    with pytest.raises(FaultreplayError):
        imported("x.txt", "trace-cmd", tmp_path, "rubbish\n")
    assert open_trace(tmp_path / "x.txt.trace").event_rows == 3


def test_differences_in_place_of_times_are_refused(tmp_path: Path) -> None:
    text = "".join(f"  q 12/13 [001] 0.0000{(7 * n) % 50:02}: {EVENT}\n" for n in range(200))
    with pytest.raises(IncompleteData, match=r"times go backwards.*--deltatime"):
        imported("x.txt", "perf-script", tmp_path, text)


@pytest.mark.parametrize(
    ("comm", "vcpu"),
    [("CPU 3/KVM", 3), ("fc_vcpu 1", 1), ("vcpu2", 2), ("crosvm_vcpu0", 0), ("VCPU-7", 7), ("qemu", -1)],
)
def test_vcpus_by_name_where_the_events_have_no_number(comm: str, vcpu: int, tmp_path: Path) -> None:
    trace = imported(
        "x.txt", "trace-cmd", tmp_path, f"  {comm}-12 [000] 1.5: kvm_page_fault: address 1000 error_code 2\n"
    )
    assert [(t.role, t.vcpu) for target in trace.meta.targets for t in target.threads] == [("vcpu", vcpu)]


@pytest.mark.parametrize(
    "more",
    [
        "  q 12/13 [001] 0.0: PERF_RECORD_MMAP -1/0: [0xffffffff81000000(0x120bb08) @ 0x0]: x [kernel.kallsyms]\n",
        "  q 12/13 [001] 0.000000: PERF_RECORD_FORK(1:1):(0:0)\n  q 12/13 [001] 0.1: PERF_RECORD_COMM: q:1/1\n",
        "# hostname : h\n# os release : 6.1.0\n# event : name = kvm:kvm_exit, , id = { 155, 156 }, type = 2\n",
        "'trace' not valid for hardware events. Ignoring.\n", "[ perf record: Woken up 1 times to write data ]\n",
    ],
)  # fmt: skip
def test_lines_of_perf_that_are_no_events(more: str, tmp_path: Path) -> None:
    trace = imported("x.txt", "perf-script", tmp_path, f"{more}  q 12/13 [001] 5.123456: {EVENT}\n")
    assert trace.event_rows == 1


@pytest.mark.parametrize(
    "frames",
    [
        "\tffffffff821facd8 __schedule+0x618 ([kernel.kallsyms])\n[kernel.kallsyms][ffffffff821facd8]\n",
        "\t           ee137 sched_setaffinity@@GLIBC_2.3.4+0x7 (/usr/lib/libc.so.6)\n  sched.c:12\nlibc.so.6[ee137]\n",
        "\tvmx_vcpu_run\n\t[unknown]\n", "\tffffffff821facd8\n\t0\n", "\tvmx_vcpu_run+0x4a5 ([kvm_intel])\n",
        "\t7f3c1 std::vector<int, std::allocator<int> >::push_back(int const&)+0x1 (/usr/bin/a b)\n",
    ],
)  # fmt: skip
def test_frames_of_perf(frames: str, tmp_path: Path) -> None:
    trace = imported("x.txt", "perf-script", tmp_path, f"q 12/13 [001] 5.123456: {EVENT}\n{frames}\n" * 3)
    assert trace.event_rows == 3


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        ("perf-script", "     0.000 ( 0.012 ms): qemu/4145 ioctl(fd: 12, cmd: KVM_RUN) = 0", "perf trace's output"),
        (
            "perf-script",
            "[12:34:56.123456789] (+?.?????????) h kvm_x86_exit: { cpu_id = 1 }, { exit_reason = 48 }",
            "LTTng",
        ),
        ("perf-script", "Analyze events for all VMs, all VCPUs:", "a table that perf made"),
        ("trace-cmd", "  trace-guest.dat:  CPU 0/KVM-12 [000] 1.5: kvm_entry: vcpu 0", "several files at once"),
        ("trace-cmd", "#!/bin/sh", "no event that faultreplay knows"),
    ],
)
def test_more_files_that_are_something_else(kind: str, line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=words):
        imported("x.txt", kind, tmp_path, f"{line}\n")


def test_a_pipe(tmp_path: Path) -> None:
    code = "import sys; from faultreplay.cli.main import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, "import", "--from", "trace-cmd", "-", "-o", str(tmp_path / "x.trace")]
    done = subprocess.run(command, input=FAULT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert open_trace(tmp_path / "x.trace").event_rows == 3


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(pack(FAULT.encode()))
    import_file("trace-cmd", path, tmp_path / "x.trace")
    assert open_trace(tmp_path / "x.trace").event_rows == 3
    path.write_bytes(pack(FAULT.encode() * 100)[:-30])
    with pytest.raises(IncompleteData, match="damaged packed file"):
        import_file("trace-cmd", path, tmp_path / "y.trace")


def test_a_thread_that_perf_no_longer_knows(tmp_path: Path) -> None:
    gone = "  :-1    -1/-1    [001]  5.1: sched:sched_process_exit: comm=q pid=12 prio=120\n"
    trace = imported("x.txt", "perf-script", tmp_path, f"{gone}  q 12/13 [001] 5.123456: {EVENT}\n")
    assert [thread.tid for target in trace.meta.targets for thread in target.threads] == [13]
    assert not_taken(trace) == {"sched:sched_process_exit": (1, 1)}


@pytest.mark.parametrize("tail", ["next_prio=1", "next_prio=1 more"])  # by columns, and line by line
def test_a_thread_may_be_called_like_a_field(tail: str, tmp_path: Path) -> None:
    switch = "sched_switch: prev_comm=a prev_pid=9 prev_pid=12 prev_prio=1 prev_state=S ==> next_comm=b next_pid=7"
    frame = imported("x.txt", "trace-cmd", tmp_path, f"  a prev_pid=9-12 [001] 5.1: {switch} {tail}\n").events()
    assert frame["tid"].to_list() == [12, 7]
