"""Importers on golden samples (tests/golden/README.md says how each was made) and on damaged ones."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from faultreplay.cli.commands.import_ import command
from faultreplay.collect.importers import import_file, import_qemu
from faultreplay.collect.importers.printed import parse_fields
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, MissingFeature, UsageError
from faultreplay.faulttrace.exits import UNNAMED_EXIT
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace

GOLDEN = Path(__file__).parent / "golden"
PERF, JSON_612, JSON_61 = (GOLDEN / f"pvm.perf-{n}.gz" for n in ("script.txt", "6.12.json", "6.1.json"))
TRACE_CMD, BPFTRACE = GOLDEN / "svm.trace-cmd.txt.gz", GOLDEN / "svm-lossy.bpftrace.json.gz"
PAGES = 23


def events(path: Path) -> pl.DataFrame:
    return open_trace(path, allow_incomplete=False).events()


def kinds(frame: pl.DataFrame) -> Counter[str]:
    return Counter(Kind(kind).name for kind in frame["kind"])


def test_perf_script(tmp_path: Path) -> None:
    summary = import_file("perf-script", PERF, tmp_path / "x.trace")
    seen = kinds(events(tmp_path / "x.trace"))
    assert summary.bad_lines == summary.lost == 0
    assert seen["UFFD_COPY"] == PAGES
    assert seen["KVM_RUN_ENTER"] == seen["KVM_RUN_EXIT"] == seen["KVM_USERSPACE_EXIT"] == 1
    assert seen["KVM_SET_MEMSLOT"] == 2
    assert seen["SCHED_OUT"] == 52
    meta = open_trace(tmp_path / "x.trace").meta
    assert meta.origin == "imported"
    assert meta.clock.end_ns > meta.clock.start_ns > 0
    probes = {probe.name: probe for probe in meta.probes}
    assert probes["syscalls:sys_exit_read"].status == "missing"
    assert "not the message" in probes["syscalls:sys_exit_read"].reason
    assert probes["kvm:kvm_exit"].status == "missing" and probes["sched:sched_switch"].status == "attached"
    assert [(t.role, sum(th.role == "vcpu" for th in t.threads)) for t in meta.targets if t.role == "vm"] == [("vm", 1)]


def test_perf_json_says_what_perf_script_says(tmp_path: Path) -> None:
    import_file("perf-script", PERF, tmp_path / "a.trace")
    import_file("perf-json", JSON_612, tmp_path / "b.trace")
    # A kernel address is a symbol in the text, so instruction pointers of kernel-mode faults are only in the JSON.
    text, binary = (
        events(tmp_path / name).with_columns(pl.when(pl.col("kind") != Kind.PAGE_FAULT_KERNEL).then(pl.col("ip")))
        for name in ("a.trace", "b.trace")
    )
    assert text.equals(binary)
    meta = open_trace(tmp_path / "b.trace").meta
    assert meta.clock.name == "CLOCK_MONOTONIC"
    assert meta.host.kernel == "6.18.44-fc-v657" and meta.host.cpus == 2
    assert meta.command[:2] == ["/usr/bin/perf", "record"]


def test_perf_json_without_fields_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match=r"perf 6\.1\.192.*perf 6\.2 or newer"):
        import_file("perf-json", JSON_61, tmp_path / "x.trace")
    assert not (tmp_path / "x.trace").exists()


def test_trace_cmd_under_svm_stitches_to_the_page(tmp_path: Path) -> None:
    import_file("trace-cmd", TRACE_CMD, tmp_path / "x.trace")
    frame = events(tmp_path / "x.trace")
    seen = kinds(frame)
    assert seen["KVM_EXIT"] == seen["KVM_ENTRY"] == 27
    assert seen["KVM_PAGE_FAULT"] == PAGES + 1  # and the page of code
    npf = frame.filter(pl.col("kind") == Kind.KVM_EXIT, pl.col("code") == 0x400)
    assert npf.height == PAGES + 1
    assert set(npf["vcpu"]) == {-1}  # the text of kvm_exit has no vCPU, that of kvm_entry has
    assert set(frame.filter(pl.col("kind") == Kind.KVM_ENTRY)["vcpu"]) == {0}
    assert open_trace(tmp_path / "x.trace").meta.host.kvm_flavour == "svm"
    faults = open_trace(tmp_path / "x.trace").faults().filter(pl.col("join") == "exit/entry")
    assert faults.height == PAGES + 1
    assert faults.filter(pl.col("stall_ns") > 0).height == PAGES + 1


def test_asynchronous_faults(tmp_path: Path) -> None:
    import_file("trace-cmd", GOLDEN / "svm-apf.trace-cmd.txt.gz", tmp_path / "x.trace")
    frame = events(tmp_path / "x.trace")
    data = pl.Series([0x10000000 + 4096 * page for page in range(PAGES)], dtype=pl.UInt64)
    for kind in (Kind.KVM_ASYNC_PF_NOT_PRESENT, Kind.KVM_ASYNC_PF_COMPLETED, Kind.KVM_ASYNC_PF_READY):
        mine = frame.filter(pl.col("kind") == kind)
        assert mine["addr"].to_list() == data.to_list(), kind
        in_worker = kind == Kind.KVM_ASYNC_PF_COMPLETED
        assert set(mine["tgid"]) == {127}  # also of what a kernel worker completed: the process it did it for
        assert (set(mine["tid"]) == {127}) is not in_worker
    not_present = frame.filter(pl.col("kind") == Kind.KVM_ASYNC_PF_NOT_PRESENT)
    assert not_present["code"].n_unique() == PAGES  # tokens
    assert not_present["code"].to_list() == frame.filter(pl.col("kind") == Kind.KVM_ASYNC_PF_READY)["code"].to_list()
    # The vCPU is halted meanwhile, so its stall holds the wait.
    faults = open_trace(tmp_path / "x.trace").faults()
    assert faults.filter(pl.col("join") == "exit/entry").height == PAGES + 1


def test_dirty_ring(tmp_path: Path) -> None:
    import_file("trace-cmd", GOLDEN / "svm-ring.trace-cmd.txt.gz", tmp_path / "x.trace")
    frame = events(tmp_path / "x.trace")
    pushed = frame.filter(pl.col("kind") == Kind.KVM_DIRTY_RING_PUSH)
    # 256 entries less 64 in reserve: at 192 KVM exits, before the write to page 191 is done
    assert pushed["addr"].to_list() == [*range(192), *range(191, 211)]
    assert set(pushed["code"]) == {1}  # the slot
    (full,) = frame.filter(pl.col("kind") == Kind.KVM_DIRTY_RING_EXIT)["ts_ns"]
    assert pushed.filter(pl.col("ts_ns") < full).height == 192


def test_bpftrace_under_svm_stitches_to_the_page(tmp_path: Path) -> None:
    summary = import_file("bpftrace", GOLDEN / "svm.bpftrace.json.gz", tmp_path / "x.trace")
    assert (summary.events, summary.lost) == (75, 0)
    seen = kinds(events(tmp_path / "x.trace"))
    assert seen == {"KVM_EXIT": PAGES + 2, "KVM_ENTRY": PAGES + 2, "KVM_PAGE_FAULT": PAGES + 1, "KVM_USERSPACE_EXIT": 1}
    faults = open_trace(tmp_path / "x.trace").faults()
    assert faults["join"].to_list() == ["exit/entry"] * (PAGES + 1)


def test_bpftrace_losses_become_losses(tmp_path: Path) -> None:
    summary = import_file("bpftrace", BPFTRACE, tmp_path / "x.trace")
    lines = gzip.decompress(BPFTRACE.read_bytes()).decode().splitlines()
    records = [json.loads(line) for line in lines if line.startswith('{"type"')]
    told = sum(record["data"]["events"] for record in records if record["type"] == "lost_events")
    trace = open_trace(tmp_path / "x.trace")
    assert summary.lost == trace.meta.losses.total == trace.losses()["lost"].sum() == told > 0
    printed = sum(record["type"] == "printf" for record in records)
    assert kinds(trace.events())["KVM_EXIT"] == sum("kvm:kvm_exit " in line for line in lines)
    assert summary.events <= printed
    assert trace.meta.clock.name == "CLOCK_MONOTONIC"


def test_qemu_figures_new_and_into_a_trace(tmp_path: Path) -> None:
    answers = [GOLDEN / "qemu-7.2.source.json", GOLDEN / "qemu-7.2.destination.json"]
    import_qemu(answers, tmp_path / "q.trace")
    alone = open_trace(tmp_path / "q.trace").meta
    assert alone.extra["qemu"]["destination"]["postcopy-vcpu-blocktime"]
    assert alone.extra["qemu"]["source"]["ram"]["postcopy-requests"] > 0
    assert {probe.status for probe in alone.probes} == {"missing"}
    import_file("perf-script", PERF, tmp_path / "x.trace")
    import_qemu(answers, tmp_path / "x.trace", into=True)
    both = open_trace(tmp_path / "x.trace")
    assert alone.extra["qemu"].items() <= both.meta.extra["qemu"].items()
    assert [vcpu["index"] for vcpu in both.meta.extra["qemu"]["vcpus"]] == [0]
    assert both.event_rows > 0 and both.meta.extra["import"]["from"] == "perf-script"


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("kvm_exit", "reason EXIT_NPF rip 0x1000 info 100000014 1000",
         {"exit_reason": 0x400, "guest_rip": 0x1000, "info1": 0x100000014, "info2": 0x1000}),
        ("kvm_exit", "vcpu 3 reason EPT_VIOLATION rip 0xabc info1 0x0000000000000781 info2 0x0000000000000000 intr",
         {"exit_reason": 48, "guest_rip": 0xABC, "info1": 0x781, "info2": 0, "vcpu_id": 3}),
        ("kvm_exit", "vcpu 0 reason hlt rip 0x1 info1 0x0 info2 0x0", None),
        ("kvm_exit", "reason SOMETHING_NEW rip 0x1 info 0 0",
         {"exit_reason": UNNAMED_EXIT, "guest_rip": 1, "info1": 0, "info2": 0}),
        ("kvm_entry", "vcpu 1, rip 0x1234", {"rip": 0x1234, "vcpu_id": 1}),
        ("kvm_userspace_exit", "reason KVM_EXIT_HLT (5)", {"reason": 5, "errno": 0}),
        ("kvm_userspace_exit", "reason restart (4)", {"reason": 0, "errno": -4}),
        ("kvm_mmio", "mmio write len 4 gpa 0xfee00000 val 0x1", {"type": 2, "len": 4, "gpa": 0xFEE00000}),
        ("kvm_mmu_set_spte", "gfn 101 spte 80000001234 (rw-u) level 1 at 7f00",
         {"gfn": 0x101, "spte": 0x80000001234, "r": 1, "x": 0, "level": 1}),
        ("sched_switch", "prev_comm=a b prev_pid=1 prev_prio=120 prev_state=D|K ==> next_comm=c next_pid=2 next_prio=1",
         {"prev_pid": 1, "prev_state": 2, "next_pid": 2}),
        ("sched_switch", "a:b:7 [120] R+ ==> swapper/1:0 [120]", {"prev_pid": 7, "prev_state": 0, "next_pid": 0}),
        ("sys_exit_ioctl", "0xfffffffffffffff2", {"ret": -14}),
        ("sys_enter_ioctl", "fd: 0x00000004, cmd: 0x0000ae80, arg: 0x00000000", {"fd": 4, "cmd": 0xAE80, "arg": 0}),
        ("mmap_lock_released", "mm=0xff memcg_path=/ write=true", {"write": 1}),
    ],
)  # fmt: skip
def test_printed_forms(name: str, text: str, fields: dict[str, int] | None) -> None:
    got = parse_fields(name, text)
    if fields is None:
        assert got["exit_reason"] == 0x78
    else:
        assert got == fields


GOOD = "  guest 7/8 [001]  10.000000001: kvm:kvm_entry: vcpu 0, rip 0x1\n"


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("perf-script", GOOD + "rubbish\n", ":2: not a line of perf script: expected 'COMM PID/TID"),
        ("perf-script", GOOD + "  guest 7/8 [001]  10.1: kvm:kvm_page_fault: no numbers\n", ":2: not in the form"),
        ("perf-script", "", "no event that faultreplay knows"),
        ("perf-script", "  guest 7/8 [001]  10.1: irq:softirq_entry: vec=1\n", "it has irq:softirq_entry"),
        ("trace-cmd", "cpus=2\nwhat is this\n", ":2: not a line of trace-cmd report"),
        ("bpftrace", '{"type": "printf", "data": "hello"}\n', "printed text is not"),
        ("bpftrace", '{"type": "printf", "da', "not whole JSON"),
        ("perf-json", '{"headers": {}, "samples": [', "truncated"),
        ("perf-json", "[1, 2]", "truncated"),
    ],
)
def test_damaged_input_is_one_line_and_leaves_nothing(kind: str, text: str, words: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "x.trace"
    source.write_text(text)
    with pytest.raises(IncompleteData) as error:
        import_file(kind, source, out)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not out.exists()


def test_error_budget(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("one\n" + GOOD * 5 + "two\n\n# a comment\n")
    with pytest.raises(IncompleteData, match="more than --max-errors 1"):
        import_file("perf-script", source, tmp_path / "x.trace", max_errors=1)
    summary = import_file("perf-script", source, tmp_path / "x.trace", max_errors=2)
    assert (summary.events, summary.bad_lines) == (5, 2)
    assert summary.first_bad.startswith("line 1: ")
    assert open_trace(tmp_path / "x.trace").meta.extra["import"]["bad_lines"] == 2


@pytest.mark.parametrize("content", [b"PERFILE2\0\0\0\0rest", b"\x1f\x8b damaged gzip"])
def test_a_data_file_in_place_of_a_report(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "perf.data"
    source.write_bytes(content)
    words = r"incompatible file format|not installed|damaged packed file"
    with pytest.raises((IncompleteData, MissingFeature), match=words):
        import_file("perf-script", source, tmp_path / "x.trace")


def test_coarse_clock_and_other_events_are_noted(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("  g 8 [000] 1.000001: kvm:kvm_entry: vcpu 0, rip 0x1\n  g 8 [000] 2.000000: irq:x: y=1\n")
    summary = import_file("perf-script", source, tmp_path / "x.trace")
    assert any("microseconds" in note for note in summary.notes)
    assert summary.skipped == {"irq:x": 1}
    assert events(tmp_path / "x.trace")["ts_ns"].to_list() == [1_000_001_000]


def test_lost_lines_of_perf_and_trace_cmd(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text(GOOD + "  guest 7/8 [001] 10.1: PERF_RECORD_LOST lost 41\n")
    assert import_file("perf-script", source, tmp_path / "a.trace").lost == 41
    source.write_text("  g-8 [000] 1.000000001: kvm_entry: vcpu 0, rip 0x1\nCPU:1 [LOST 12 EVENTS]\n")
    assert import_file("trace-cmd", source, tmp_path / "b.trace").lost == 12
    assert open_trace(tmp_path / "b.trace").losses()["cpu"].to_list() == [1]


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "x.trace"
    done = CliRunner().invoke(command, ["--from", "perf-script", str(PERF), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.output and "imported 325 events" in done.output
    again = CliRunner().invoke(command, ["--from", "perf-script", str(PERF), "-o", str(out)])
    assert isinstance(again.exception, UsageError) and "--force" in str(again.exception)
    for arguments, words in (
        (["--from", "perf-script", str(PERF)], "-o NAME.trace"),
        (["--from", "perf-script", str(PERF), "--into", str(out)], "qemu-migrate"),
        (["--from", "trace-cmd", str(PERF), str(PERF), "-o", str(tmp_path / "y.trace")], "takes one file"),
        (["--from", "perf-script", str(tmp_path / "none"), "-o", str(tmp_path / "y.trace")], "no such file"),
        (["--from", "qemu-migrate", str(PERF), "-o", str(tmp_path / "y.trace")], "not JSON"),
    ):
        failed = CliRunner().invoke(command, arguments)
        assert isinstance(failed.exception, FaultreplayError) and words in str(failed.exception)
