"""`faultreplay inspect`: what a trace holds, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_events import GPA, PAGE, VM, at, frame, guest_userfault, message, userfault

from faultreplay.analysis.compare.inspection import histogram, inspect_trace, spread
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.meta import (
    Clock,
    Host,
    Losses,
    MechanismUsed,
    Memslot,
    Meta,
    Probe,
    RecorderCost,
    Target,
    Thread,
    WindowSpan,
)
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "guest.trace"
    meta = Meta(
        origin="lab",
        host=Host("6.18.1", "x86_64", "A CPU", 2, 8 << 30, "Debian 12", "pvm"),
        clock=Clock(start_ns=0, end_ns=2_000_000, start_realtime="2026-11-22T14:00:00+00:00"),
        command=["lab", "run"],
        mechanism=MechanismUsed("uffd-missing", {"handlers": 1}),
        targets=[
            Target(VM, "vmm", role="vm", threads=[Thread(102, role="vcpu", vcpu=3), Thread(101, role="handler")]),
        ],
        probes=[
            Probe("sched:sched_switch", "sched"),
            Probe("kvm:kvm_exit", "kvm", "missing", "no such tracepoint"),
            Probe("kvm:kvm_entry", "kvm", "missing", "no such tracepoint"),
        ],
        recorder=RecorderCost("bcc", 1_000_000, 300 << 20, 64 << 20),
        windows=[WindowSpan("freeze", 500_000, 700_000)],
    )
    meta.targets[0].memslots = [Memslot(0, 1, GPA - 0x1000, PAGE - 0x1000, 64 * 4096)]
    events = [event for n in range(20) for event in guest_userfault(10_000 + 1000 * n, PAGE + 4096 * n)]
    events += [*userfault(100_000, PAGE + 50 * 4096, 150), message(150_000, PAGE + 51 * 4096, tid=0)]
    events += [at(200_000, Kind.MADVISE, 150)]
    with TraceWriter(path, meta) as writer:
        writer.append_events(frame(*events).to_arrow())
        writer.append_losses([{"ts_ns": 5, "cpu": 0, "probe": "sched:sched_waking", "lost": 3}])
    return path


def test_inspection_counts(trace: Path) -> None:
    inspection = inspect_trace(open_trace(trace))
    groups = {(g.cause, g.accessor): (g.faults, g.joined) for g in inspection.groups}
    assert groups == {("missing", "vcpu"): (20, 20), ("missing", "vmm"): (2, 1)} or groups[("missing", "vcpu")] == (
        20,
        20,
    )
    assert inspection.faults == 22
    assert inspection.kinds["UFFD_MSG"] == 22
    assert sum(inspection.kinds.values()) == inspection.events
    vcpu = next(g for g in inspection.groups if g.accessor == "vcpu")
    assert (vcpu.stall.p50_ns, vcpu.stall.total_ns) == (110, 2200)
    assert {name: s.p50_ns for name, s in vcpu.stages.items()} == {
        "queue": 30,
        "service": 40,
        "resolve": 10,
        "wake": 40,
    }


def test_the_table_names_what_matters(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(trace.parent)  # a path may be longer than a line
    assert _exit_code(["inspect", trace.name, "--events"]) == 0
    out = capsys.readouterr().out
    for words in (
        "missing, copy",
        "of it the ioctl",
        "kernel 6.18.1",
        "KVM: pvm",
        "uffd-missing (handlers=1)",
        "probes: 1 attached",
        "missing, no such tracepoint: kvm:kvm_exit",
        "losses: 3 events (sched:sched_waking 3)",
        "recorder: bcc",
        "freeze at 500 us for 200 us",
        "messages: 22 read, 21 joined",
        "waiting thread not found: 1",
        "walk/spte 20",
        "UFFD_COPY",
        "1 vcpu",
    ):
        assert words in out, words
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_it_all(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["inspect", str(trace), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["stitch"]["messages_joined"] == 21
    assert data["losses"]["by_probe"] == {"sched:sched_waking": 3}
    assert sum(bucket["faults"] for bucket in data["histogram"]) == 21
    assert {r["cause"] for r in data["records"]} == {"missing"}
    assert data["host"]["kvm_flavour"] == "pvm"
    unjoined = [r for r in data["records"] if not r["joined"]]
    assert all(r["stall_p50_ns"] is None for r in unjoined)


def test_csv_md_and_parquet(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["inspect", str(trace), "--format", "csv"]) == 0
    frame_ = pl.read_csv(capsys.readouterr().out.encode())
    assert frame_["faults"].sum() == 22
    assert _exit_code(["inspect", str(trace), "--format", "md"]) == 0
    assert "| missing | copy | vcpu | 20 |" in capsys.readouterr().out
    assert _exit_code(["inspect", str(trace), "-o", str(tmp_path / "x.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "x.parquet")["faults"].sum() == 22
    assert _exit_code(["inspect", str(trace), "-o", str(tmp_path / "x.parquet")]) == 2
    assert "--force" in capsys.readouterr().err


def test_errors_are_one_line(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["inspect", str(tmp_path / "none.trace")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert _exit_code(["inspect", str(trace), "--truth"]) == 2
    assert "no truth.parquet" in capsys.readouterr().err


def test_an_empty_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TraceWriter(tmp_path / "e.trace", Meta(losses=Losses())) as writer:
        writer.flush()
    assert _exit_code(["inspect", str(tmp_path / "e.trace")]) == 0
    assert "0 faults, 0 events" in capsys.readouterr().out.replace("\n", " ")


def test_histogram_buckets_hold_every_stall_once() -> None:
    stalls = np.array([0, 999, 1000, 1999, 2000, 4000, 250_000, 256_000], np.int64)
    buckets = histogram(stalls)
    for bucket in buckets:
        assert bucket.faults == ((stalls >= bucket.from_ns) & (stalls < bucket.until_ns)).sum()
    assert sum(bucket.faults for bucket in buckets) == len(stalls)
    assert histogram(stalls[:0]) == []


def test_spread_is_nearest_rank() -> None:
    s = spread(np.arange(1, 101, dtype=np.int64))
    assert (s.n, s.total_ns, s.p50_ns, s.p90_ns, s.p99_ns, s.max_ns) == (100, 5050, 50, 90, 99, 100)
    assert spread(np.empty(0, np.int64)).n == 0


def test_a_synthetic_trace_shows_its_faults(tmp_path: Path) -> None:
    write_synthetic(SynthSpec("demand-paging", 2, 60, Think(20_000)), tmp_path / "s.trace")
    seen = inspect_trace(open_trace(tmp_path / "s.trace"))
    assert [(g.cause, g.faults, g.stall.n) for g in seen.groups] == [("missing", 120, 0)]
    assert not seen.histogram


def test_wakes_that_nothing_explains_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a real post-copy: threads that a placing ioctl woke, and whose fault was not seen."""
    path = Path(__file__).parent.parent / "sample-traces" / "qemu-postcopy.trace"
    count = open_trace(path).stitch_facts().report.wakes_unexplained
    assert count
    assert _exit_code(["inspect", str(path)]) == 0
    assert f"{count} threads woken by a placing ioctl, not seen to fault" in capsys.readouterr().out
