"""What is said while recording and after: late stalls, what was lost why, what rotation deleted, what slowed down."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from recording_host import LACKING

from faultreplay.cli.commands.record import _LOSS_ADVICE, _report
from faultreplay.cli.header_view import facts_of
from faultreplay.cli.main import _exit_code
from faultreplay.collect.recorder.keep import Lengths
from faultreplay.collect.recorder.spec import RecordSummary
from faultreplay.collect.recorder.telling import loss_causes
from faultreplay.faulttrace.meta import Meta, Probe, RecorderCost
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.slowed import slowed_words
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_late_stalls_are_told_to_an_eighth_of_a_doubling(share: float) -> None:
    lengths, drawn = Lengths(), np.random.default_rng(1).lognormal(10, 2, 100_000).astype(np.int64) + 1
    assert lengths.quantile_ns(0.99) is None
    for batch in np.array_split(drawn, 7):
        lengths.add(batch)
    found, exact = lengths.quantile_ns(share), np.quantile(drawn, share)
    assert found is not None
    assert exact * 0.99 <= found <= exact * 2 ** (1 / 8) * 1.01


def test_late_stalls_are_forgotten() -> None:
    lengths = Lengths()
    lengths.add(np.full(1000, 1 << 30))
    for _ in range(30):
        lengths.quantile_ns(0.99)
    lengths.add(np.full(1000, 1 << 10))
    assert (lengths.quantile_ns(0.99) or 0) < 1 << 11
    for _ in range(60):
        lengths.quantile_ns(0.99)
    assert lengths.quantile_ns(0.99) is None


def test_losses_are_told_by_what_helps() -> None:
    meta = Meta(probes=[Probe("a", "sched"), Probe("b", "kvm")])
    meta.extra["shed"] = [{"group": "sched", "start_ns": 100, "end_ns": 200}]
    rows = [
        {"ts_ns": 150, "cpu": 0, "probe": "a", "lost": 1},
        {"ts_ns": 150, "cpu": 0, "probe": "b", "lost": 20},
        {"ts_ns": 10**12, "cpu": 0, "probe": "a", "lost": 300},
        {"ts_ns": 10**12, "cpu": -1, "probe": "a", "lost": 4000},
        {"ts_ns": 10**12, "cpu": -1, "probe": "bpftrace", "lost": 50_000},
    ]
    causes = loss_causes(rows, meta)
    assert causes == {"shed": 1, "ring": 320, "nested": 4000, "printing": 50_000}
    assert set(causes) == set(_LOSS_ADVICE)


def test_a_ring_is_not_advised_against_shedding(capsys: pytest.CaptureFixture[str]) -> None:
    made = RecordSummary(Path("x"), 1, {"p": 5}, {}, 1, "request", 1, 1, 1, "bcc", 1, loss_causes={"shed": 5})
    _report(made)
    said = capsys.readouterr().err
    assert "LOST 5 events" in said
    assert "--max-rate" in said
    assert "--ring-size" not in said


def test_what_rotation_deleted_is_in_the_trace(tmp_path: Path) -> None:
    rows = np.zeros(100, [(field.name, field.type.to_pandas_dtype()) for field in EVENTS])
    meta = Meta()
    with TraceWriter(tmp_path / "a.trace", meta, part_rows=100) as writer:
        for second in range(5):
            rows["ts_ns"] = second * 1000 + np.arange(100)
            writer.append_events(rows)
        writer.append_losses([{"ts_ns": 10, "cpu": 0, "probe": "p", "lost": 7}])
        writer.drop_parts_before(2000)
        assert writer.dropped_rows == 200
        writer.drop_parts_before(3000)
    trace = open_trace(tmp_path / "a.trace")
    assert trace.meta.extra["dropped"] == {"parts": 3, "events": 300, "losses": 7}
    assert trace.event_rows == 200
    assert "rotation deleted 3 older parts with 300 events and 7 losses" in facts_of(trace.meta, 0)


def test_a_slowed_recording_says_so() -> None:
    assert slowed_words(Meta(recorder=RecorderCost(backend="bcc"))) == ""
    assert "was not measured" in slowed_words(Meta(recorder=RecorderCost(backend="bpftrace")))
    meta = Meta(recorder=RecorderCost(backend="bpftrace"))
    meta.extra["slowed"] = {"program_ns": 4_000_000, "runs": 1000, "target_cpu_ns": 10_000_000}
    assert "4,000 ns each time), at most 40% of the targets' CPU time" in slowed_words(meta)


@pytest.mark.live
@pytest.mark.skipif(bool(LACKING) or not shutil.which("bpftrace"), reason=LACKING or "needs bpftrace")
def test_bpftrace_marks_the_trace(tmp_path: Path, userfaults: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.trace"
    words = ["record", "--backend", "bpftrace", "--probes", "faults,sched", "-o", str(out), "--", userfaults, "499"]
    assert _exit_code(words) == 0
    said = capsys.readouterr().err
    assert "starting bpftrace" in said
    told = open_trace(out).meta.extra["slowed"]
    assert told["runs"] >= 499 * 3
    assert 100 < told["program_ns"] / told["runs"] < 1_000_000
    assert "its programs took" in said


@pytest.mark.live
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_steps_before_it_starts_are_said(tmp_path: Path, userfaults: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.trace"
    assert _exit_code(["record", "--backend", "bcc", "-o", str(out), "--", userfaults, "99"]) == 0
    said = capsys.readouterr().err
    order = [said.index(words) for words in ("compiling the programs with BCC", "recording: Ctrl-C")]
    assert order == sorted(order)
