"""Fits of several traces as a cost file, the command that writes it, and the runs that it makes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest
from made_events import (
    FAULTER,
    HANDLER,
    PAGE,
    PREEMPTED,
    at,
    frame,
    write,
)
from test_calibrate import STRANGER, idle_faults, means, scheduled

from faultreplay.analysis.calibrate.calibrate import (
    MIN_SAMPLES,
    calibrate,
    fit_costs,
)
from faultreplay.analysis.calibrate.microruns import _few_cores, contended_specs, micro_specs
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import Host, Meta
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_events
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.costs import Cost, CostTable, load_costs, save_costs
from faultreplay.replay.language.distributions import Distribution


def test_several_traces_are_fitted_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.trace", idle_faults(20)) for n in range(2)]
    fitted = calibrate([open_trace(path) for path in paths])
    assert fitted.costs["wake"].n == 40
    assert fitted.costs["wake"].provenance == "measured-host"
    assert "A CPU" in fitted.costs["wake"].source
    assert "in 0, 1" in fitted.costs["wake"].source


def test_a_cost_file_is_fitted_without_preempted_faults_and_keeps_its_parts_by_cpu(tmp_path: Path) -> None:
    events = [e for n in range(80) for e in scheduled(10_000 * (n + 1), PAGE + 4096 * n, FAULTER, 0)]
    # An accessor that loses its CPU before it sleeps.
    for n in range(30):
        start = 10_000 * (n + 1)
        events += [
            at(start + 2, Kind.SCHED_OUT, FAULTER, code=PREEMPTED, value=STRANGER),
            at(start + 4, Kind.SCHED_IN, FAULTER, value=STRANGER),
        ]
    fitted = calibrate([open_trace(write(tmp_path / "a.trace", events))])
    assert fitted.costs["wake"].n == 50
    assert "without 30 faults with a preempted thread" in fitted.costs["wake"].source
    on_busy, on_idle = fitted.costs["reader_wakeup"].on_busy_cpu, fitted.costs["wake"].on_idle_cpu
    assert on_busy is not None
    assert on_idle is not None
    assert (on_busy.mean, on_idle.mean) == (8, 30)


def test_contended_runs_tell_only_the_parts_by_cpu(tmp_path: Path) -> None:
    quiet = open_trace(write(tmp_path / "quiet.trace", idle_faults()))
    slow = [e for n in range(40) for e in scheduled(10_000 * (n + 1), PAGE + 4096 * n, FAULTER, HANDLER)]
    contended = open_trace(write(tmp_path / "contended.trace", slow))
    costs = calibrate([quiet], contended=[contended]).costs
    assert {cost.n for cost in costs.values()} == {40}
    on_busy = costs["wake"].on_busy_cpu
    assert on_busy is not None
    assert on_busy.mean == 10
    assert calibrate([quiet]).costs["wake"].on_busy_cpu is None
    with pytest.raises(UsageError, match="different kinds of KVM"):
        other = write(tmp_path / "svm.trace", slow, Meta(host=Host(kvm_flavour="svm")))
        calibrate([quiet], contended=[open_trace(other)])


def test_a_cost_file_keeps_the_parts_by_cpu(tmp_path: Path) -> None:
    wake = Cost(
        Distribution.from_quantiles([(0.0, 10.0), (1.0, 40.0)]), "assumed", "a test", 3,
        on_idle_cpu=Distribution.from_quantiles([(0.0, 5.0), (0.5, 6.5), (1.0, 9.0)]),
        on_busy_cpu=Distribution.from_quantiles([(0.0, 1.0), (1.0, 2.0)]),
    )  # fmt: skip
    save_costs(CostTable({"wake": wake}), tmp_path / "c.toml", title="t")
    assert load_costs(tmp_path / "c.toml")["wake"] == wake


@pytest.mark.parametrize(
    "bad", ["5", "[]", "[1, 2]", '"3us"', "[[0.0, 5], [1.0, 2]]", '[[0.0, "x"]]', "[[0.0, -5], [1.0, 2]]"]
)
@pytest.mark.parametrize("key", ["on_idle_cpu", "on_busy_cpu"])
def test_malformed_parts_by_cpu_are_refused_in_one_line(tmp_path: Path, key: str, bad: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'title = "t"\n[costs.wake]\nvalue = 5\n{key} = {bad}\nprovenance = "assumed"\nsource = "x"\n')
    with pytest.raises(UsageError) as refusal:
        load_costs(file)
    assert str(refusal.value).startswith(f"{file}:2: costs.wake: ")
    assert "\n" not in str(refusal.value)


def test_traces_of_different_kvm_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.trace", idle_faults(), Meta(host=Host(kvm_flavour=k))) for k in ("pvm", "svm")]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="different kinds of KVM"):
        calibrate([open_trace(path) for path in paths])


def test_the_command_writes_a_file_that_replay_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write(tmp_path / "a.trace", idle_faults())
    file = tmp_path / "costs.toml"
    assert _exit_code(["calibrate", str(trace), "-o", str(file)]) == 0
    captured = capsys.readouterr()
    assert "wrote" in captured.err
    assert max(map(len, captured.out.splitlines())) <= 80
    costs = load_costs(file)
    assert means(costs) == {"fault_entry": 10, "reader_wakeup": 20, "fetch": 30, "resolve": 10, "wake": 30}
    assert costs["wake"].n == 40
    assert _exit_code(["calibrate", str(trace), "-o", str(file)]) == 2
    assert _exit_code(["calibrate", str(trace), "-o", str(file), "--force", "--split", "0.75"]) == 0
    assert load_costs(file)["wake"].n == 30
    assert "first 75%" in load_costs(file)["wake"].source


def test_the_command_refuses_what_it_cannot_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write(tmp_path / "few.trace", idle_faults(5))
    assert _exit_code(["calibrate", str(few)]) == 4
    assert "wake: 5 samples, 30 needed" in capsys.readouterr().err
    enough = write(tmp_path / "enough.trace", idle_faults())
    assert _exit_code(["calibrate", str(enough), "--require", "wake,kick"]) == 4
    assert "not fitted: kick (no samples)" in capsys.readouterr().err
    assert _exit_code(["calibrate", str(enough), "--require", "nonsense"]) == 2
    assert _exit_code(["calibrate"]) == 2
    assert "--lab" in capsys.readouterr().err
    assert _exit_code(["calibrate", str(enough), "--truth"]) == 2
    assert "no truth.parquet" in capsys.readouterr().err


def test_the_command_tells_the_parts_by_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [e for n in range(40) for e in scheduled(10_000 * (n + 1), PAGE + 4096 * n, 0, HANDLER)]
    trace = write(tmp_path / "a.trace", events)
    assert _exit_code(["calibrate", str(trace), "--format", "json"]) == 0
    records = {record["cost"]: record for record in json.loads(capsys.readouterr().out)["records"]}
    assert records["reader_wakeup"]["on_idle_cpu_mean_ns"] == 20
    assert records["wake"]["on_busy_cpu_mean_ns"] == 10
    assert "on_busy_cpu_mean_ns" not in records["reader_wakeup"]


def test_the_lab_makes_quiet_runs_and_contended_ones() -> None:
    quiet, contended = micro_specs(), contended_specs()
    assert not set(quiet) & set(contended)
    assert all(len(spec.windows) <= 16 for spec in quiet.values())  # the most that the lab's host program takes
    for kind in ("freeze", "memslot-destroy", "pause"):
        assert sum(len(spec.windows) for spec in quiet.values() if spec.mechanism == kind) >= 2 * MIN_SAMPLES
    assert all(spec.vcpus + spec.real_handlers > 2 for spec in contended.values())
    blurring = {"uffd-minor", "guest-memfd", "dirty-log"}
    assert not blurring & {spec.real_mechanism for spec in (quiet | contended).values()}


def test_contended_runs_get_two_cores_and_the_others_back() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), _few_cores():
        assert len(os.sched_getaffinity(0)) == min(2, len(before))
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_no_faults_at_all_is_one_line() -> None:
    empty = stitch_events(frame()).faults
    with pytest.raises(IncompleteData, match="no joined faults"):
        fit_costs(empty, Meta(), source="t").some()
    assert isinstance(empty, pl.DataFrame)
