"""Stitching what this kernel really does: a prime number of faults, a guest's own clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from busy_host import judged_in_time
from recording_host import LACKING

from faultreplay.analysis.calibrate.calibrate import fit_costs
from faultreplay.analysis.judge.accuracy import Accuracy, Agreement, accuracy_of
from faultreplay.collect.backends.backends import kept_attached
from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.stitch import stitch_trace
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec

FAULTS = 1009

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(LACKING), reason=LACKING)]


@pytest.fixture(scope="module", autouse=True)
def attached_once() -> Iterator[None]:
    with kept_attached():
        yield


def _lab(path: Path, **settings: object) -> Trace:
    if settings.get("target") != "process" and not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm")
    result = run(LabSpec(**settings), path)  # type: ignore[arg-type]
    assert result.problem == ""
    return open_trace(path)


def test_1009_userfaults_are_1009_joined_faults(tmp_path: Path, userfaults: str) -> None:
    record(RecordSpec(command=(userfaults, str(FAULTS))), tmp_path / "a.trace", lambda: False)
    stitched = stitch_trace(open_trace(tmp_path / "a.trace"))
    missing = stitched.faults.filter(cause="missing")
    assert (len(missing), missing["end_ns"].null_count()) == (FAULTS, 0)
    assert missing["page"].n_unique() == FAULTS
    assert (stitched.report.messages, stitched.report.messages_joined) == (FAULTS, FAULTS)
    assert stitched.report.unjoined == 0
    whole = missing.filter(pl.col("wake_ns").is_not_null() & pl.col("service_ns").is_not_null())
    assert len(whole) >= 0.99 * FAULTS
    assert (whole["queue_ns"] + whole["service_ns"] + whole["wake_ns"] == whole["stall_ns"]).all()
    assert (missing["stall_ns"] > 0).all()


@pytest.mark.parametrize("mechanism", ["uffd-missing", "uffd-minor"])
def test_a_process_agrees_with_its_own_clock(tmp_path: Path, mechanism: str) -> None:
    numbers = itertools.count()

    def attempt() -> Agreement:
        path = tmp_path / f"p{next(numbers)}.trace"
        trace = _lab(path, mechanism=mechanism, target="process", pages=400, fetch="100us")
        accuracy = accuracy_of(trace)
        (row,) = [row for row in accuracy.rows if row.n > 10]
        assert row.join == "page-fault/mmap-lock"
        # Its own stack is touched outside all accesses: faults of the kernel alone, with an end of their own.
        truth = trace.truth()
        assert truth is not None
        own = trace.faults().filter(pl.col("tid").is_in(truth["tid"].unique().to_list()), cause="minor-host")
        assert (row.n, accuracy.other_page) == (400, 0)
        assert accuracy.unmatched_faults + accuracy.second_faults == own["end_ns"].is_not_null().sum()
        # The first event comes after the fault and the last one before its end.
        assert row.start_bias_ns > 0 > row.end_bias_ns
        return row

    def judge(row: Agreement) -> None:
        assert -10_000 < row.bias_ns < 0
        assert row.stretch_p95_ns < 10_000  # docs/accuracy.md has the figures

    judged_in_time(attempt, judge)


@pytest.mark.parametrize(
    ("mechanism", "cause", "resolution"),
    [
        ("uffd-missing", "missing", "copy"),
        ("uffd-minor", "minor", "continue"),
        ("kvm-exit", "exit", "copy"),
        ("host-lazy", "stage2", "kernel"),
        ("mmio-exit", "mmio", "userspace"),
    ],
)
def test_a_guest_agrees_with_its_own_clock(tmp_path: Path, mechanism: str, cause: str, resolution: str) -> None:
    numbers = itertools.count()

    def attempt() -> Accuracy:
        trace = _lab(tmp_path / f"g{next(numbers)}.trace", mechanism=mechanism, pages=300, fetch="100us")
        ours = trace.faults().filter(cause=cause, accessor="vcpu")
        assert set(ours["resolution"]) == {resolution}
        assert ours["end_ns"].null_count() == 0
        accuracy = accuracy_of(trace)
        assert sum(row.n for row in accuracy.rows if row.cause == cause) == 300
        assert accuracy.other_page == 0
        return accuracy

    def judge(accuracy: Accuracy) -> None:
        assert accuracy.silent_stalls <= 3  # a vCPU that lost its CPU between two accesses is one, too
        for row in accuracy.rows:
            if row.n > 10:
                assert row.bias_ns < 0
                assert row.stretch_p95_ns < 100_000  # of a typical stretch

    judged_in_time(attempt, judge)


def test_two_vcpus_on_the_same_pages_are_all_accounted_for(tmp_path: Path) -> None:
    trace = _lab(tmp_path / "c.trace", vcpus=2, shared=True, order="coalesce", pages=200, fetch="100us")
    stitched = stitch_trace(trace)
    report = stitched.report
    assert (report.messages, report.placements) == (200, 200)
    assert report.messages_joined == 200
    missing = stitched.faults.filter(cause="missing")
    assert len(missing) == 200 + report.waiters_without_message
    assert report.waiters_without_message > 50
    accuracy = accuracy_of(trace)
    assert accuracy.other_page == 0


def test_a_freeze_is_found_with_the_writer_it_stopped(tmp_path: Path) -> None:
    trace = _lab(tmp_path / "f.trace", mechanism="freeze", pages=500, access="w")
    stitched = stitch_trace(trace)
    (told,), (seen,) = trace.meta.windows, stitched.windows
    assert seen.kind == "uffd-wp"
    assert told.start_ns <= seen.start_ns < seen.end_ns <= told.end_ns
    stopped = stitched.faults.filter(cause="window")
    assert len(stopped) == 1
    assert stopped["resolution"].to_list() == ["unprotect"]
    assert stopped["stall_ns"][0] > 5_000_000  # of a window of 10 ms that it ran into at once


def test_costs_fitted_on_a_real_trace(tmp_path: Path) -> None:
    trace = _lab(tmp_path / "k.trace", pages=300, fetch="100us")
    fit = fit_costs(trace.faults(), trace.meta, source=trace.name)
    assert {"fault_entry", "reader_wakeup", "fetch", "resolve", "wake"} <= set(fit.costs)
    fetch = fit.costs["fetch"].distribution
    assert 95_000 < fetch.quantile(0.5) < 160_000
    # What was fitted adds up to what was measured.
    parts = sum(
        fit.costs[name].distribution.mean for name in ("fault_entry", "reader_wakeup", "fetch", "resolve", "wake")
    )
    measured = trace.faults().filter(cause="missing")["stall_ns"].to_numpy().mean()
    assert abs(parts / measured - 1) < 0.02
