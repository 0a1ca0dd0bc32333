"""Stitched faults against truth: what is matched with what, and the figures that come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from made_events import PAGE, VM, frame, userfault

from faultreplay.analysis.judge.accuracy import accuracy_of, compare_with_truth, truthful
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import TRUTH
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.writer import TraceWriter, write_truth


def access(start_ns: int, end_ns: int, *, tid: int, page: int = PAGE, seq: int = 0) -> dict[str, Any]:
    row = {"accessor": "vmm", "tid": tid, "vcpu": -1, "seq": seq, "page": page, "access": "w"}
    return row | {"start_ns": start_ns, "end_ns": end_ns}


def truth_frame(*rows: dict[str, Any]) -> pl.DataFrame:
    result = pl.from_arrow(pa.Table.from_pylist(list(rows), TRUTH))
    assert isinstance(result, pl.DataFrame)
    return result


def make_trace(path: Path, count: int = 40) -> Trace:
    """`count` faults of 100 that start 3 late and end 5 early, but every tenth ends another 20 early."""
    events, rows = [], []
    for n in range(count):
        start = 10_000 + 1000 * n
        page = PAGE + 4096 * n
        events += userfault(start, page)
        late = 20 if n % 10 == 9 else 0
        rows.append(access(start - 3, start + 105 + late, tid=102, page=page, seq=n))
    with TraceWriter(path, Meta(lab={"clock_error_ns": 7})) as writer:
        writer.append_events(frame(*events).to_arrow())
    write_truth(path, pa.Table.from_pylist(rows, TRUTH))
    return open_trace(path)


def test_bias_and_residual(tmp_path: Path) -> None:
    accuracy = accuracy_of(make_trace(tmp_path / "a.trace"))
    (row,) = accuracy.rows
    assert (row.cause, row.join, row.n) == ("missing", "page-fault/mmap-lock", 40)
    assert (row.bias_ns, row.start_bias_ns, row.end_bias_ns) == (-8, 3, -5)
    assert (row.residual_p50_ns, row.residual_p95_ns, row.residual_p99_ns) == (0, 20, 20)
    # Two faults a stretch, and every tenth fault is 20 off: four of the twenty stretches hold one.
    assert row.stretch_p95_ns == 0
    assert row.total_error == pytest.approx(-(8 * 40 + 20 * 4) / (108 * 40 + 20 * 4))
    assert row.unbiased_total_error == pytest.approx(-(20 * 4) / (108 * 40 + 20 * 4))
    assert (accuracy.faults, accuracy.unmatched_faults, accuracy.other_page, accuracy.silent_stalls) == (40, 0, 0, 0)
    assert accuracy.clock_error_ns == 7


def test_what_does_not_match_is_counted() -> None:
    faults = stitch_events(frame(*userfault(1000), *userfault(2000, PAGE + 4096), *userfault(3000, PAGE + 8192))).faults
    truth = truth_frame(
        access(995, 1110, tid=102),
        access(1990, 2110, tid=102, page=PAGE + 999 * 4096),
        access(5000, 5200, tid=102, page=PAGE + 4096 * 7),  # slow, and no fault was seen
        access(6000, 6001, tid=102, page=PAGE + 4096 * 8),  # a hit
    )
    accuracy = compare_with_truth(faults, truth)
    assert (accuracy.rows[0].n, accuracy.unmatched_faults, accuracy.other_page) == (2, 1, 1)
    assert (accuracy.silent_stalls, accuracy.accesses) == (1, 4)


def test_two_faults_in_one_access_the_longest_counts() -> None:
    first, second = userfault(1000), userfault(1200, PAGE + 4096)
    second[-1]["ts_ns"] = 1400
    accuracy = compare_with_truth(stitch_events(frame(*first, *second)).faults, truth_frame(access(990, 1500, tid=102)))
    assert accuracy.second_faults == 1
    assert [(row.n, row.start_bias_ns) for row in accuracy.rows] == [(1, 210)]


def test_faults_of_threads_without_truth_are_left_out() -> None:
    faults = stitch_events(frame(*userfault(1000), *userfault(1003, PAGE + 4096, 150))).faults
    assert compare_with_truth(faults, truth_frame(access(990, 1110, tid=102))).faults == 1


def test_truthful_moves_the_edges_and_keeps_the_middle(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", 10)
    before, after = trace.faults(), truthful(trace)
    assert (after["start_ns"] == before["start_ns"] - 3).all()
    assert (after["queue_ns"] == before["queue_ns"] + 3).all()
    assert (after["service_ns"] == before["service_ns"]).all()
    assert after["wake_ns"].to_list() == [35] * 9 + [55]
    assert (after["queue_ns"] + after["service_ns"] + after["wake_ns"] == after["stall_ns"]).all()
    assert (after["end_ns"] - after["start_ns"] == after["stall_ns"]).all()


def test_a_trace_without_truth_says_so(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        writer.append_events(frame(*userfault(1000)).to_arrow())
    with pytest.raises(UsageError, match=r"no truth\.parquet"):
        accuracy_of(open_trace(tmp_path / "a.trace"))


@pytest.mark.parametrize("fmt", ["table", "json", "csv", "md"])
def test_inspect_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fmt: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_trace(tmp_path / "a.trace")
    assert _exit_code(["inspect", str(tmp_path / "a.trace"), "--truth", "--format", fmt]) == 0
    out = capsys.readouterr().out
    assert "page-fault/mmap-lock" in out
    assert ("-8" in out) or ("-8 ns" in out)
    assert max(map(len, out.splitlines())) <= 80 or fmt != "table"


def test_the_memory_map_is_not_needed_to_match(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a.trace", 3)
    assert set(trace.faults()["vm"]) == {VM}
