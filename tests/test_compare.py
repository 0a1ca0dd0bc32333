"""A comparison says what is so: on traces whose every cost is known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_traces import BEGIN_NS, uffd_faults, write_trace
from pyarrow import parquet

from faultreplay.analysis.compare.compare import Comparison, compare
from faultreplay.analysis.compare.judged import Trust
from faultreplay.analysis.compare.metrics import Metrics
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import Setup, replications, run
from faultreplay.analysis.compare.records import as_records
from faultreplay.analysis.compare.sources import TRACE, CostSource, Origin
from faultreplay.cli import compare_view, render
from faultreplay.cli.main import _exit_code, main
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.meta import WindowSpan
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic
from faultreplay.replay.workload.workload import make_workload


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("t") / "made.trace", uffd_faults())


@pytest.fixture(scope="module")
def comparison(trace: Path) -> Comparison:
    return compare(open_case(open_trace(trace), Setup()))


def metrics(comparison: Comparison, mechanism: str) -> Metrics:
    return next(row.metrics for row in comparison.rows if row.mechanism == mechanism)


def test_measured_numbers_are_the_rows_own(trace: Path, comparison: Comparison) -> None:
    stalls = np.sort([r["stall_ns"] for r in uffd_faults()])
    assert comparison.measured.total_stall_ns == stalls.sum()
    assert comparison.measured.max_ns == stalls[-1]
    assert comparison.measured.p50_ns == stalls[299]
    assert comparison.measured.faults == 600
    assert comparison.measured.vcpus == 2


def test_as_recorded_is_what_was_measured(comparison: Comparison) -> None:
    got, want = metrics(comparison, "as-recorded"), comparison.measured
    for name in ("total_stall_ns", "p50_ns", "p99_ns", "max_ns", "all_stalled_ns", "run_time_ns", "blocked_ns"):
        assert getattr(got, name) == getattr(want, name), name


def test_ideal_is_the_lower_rail(comparison: Comparison) -> None:
    ideal = metrics(comparison, "ideal")
    assert (ideal.total_stall_ns, ideal.all_stalled_ns) == (0, 0)
    assert ideal.slowdown == pytest.approx(1, abs=1e-3)
    assert all(ideal.run_time_ns <= row.metrics.run_time_ns for row in comparison.rows)


def test_the_recorded_mechanism_is_predicted_and_judged(comparison: Comparison) -> None:
    judged = comparison.judged
    assert judged is not None
    assert judged.used.name == "uffd-missing"
    assert judged.in_sample.total == pytest.approx(0, abs=2)
    assert judged.held_out is not None
    assert judged.held_out.faults == judged.rows == 600
    assert judged.held_out.errors.total == pytest.approx(0, abs=5)
    assert judged.held_out.total.low <= judged.held_out.errors.total <= judged.held_out.total.high  # type: ignore[operator]
    assert judged.over_time is not None
    assert judged.over_time.faults == 300
    assert judged.over_time.errors.total == pytest.approx(0, abs=5)
    assert judged.trust is Trust.REPRODUCED


def test_costs_of_the_trace_win_and_the_rest_is_named(comparison: Comparison) -> None:
    rows = {row.mechanism: row for row in comparison.rows}
    assert rows["uffd-missing"].costs["fetch"] == TRACE
    assert rows["kvm-exit"].costs["exit_userspace"].origin is Origin.DERIVED
    assert rows["kvm-exit"].marked
    assert not rows["uffd-missing"].marked
    assert any("costs measured in this trace" in note and "fetch" in note for note in comparison.notes)
    assert any("foreign" in note and "exit_userspace" in note for note in comparison.notes)
    assert not rows["ideal"].costs


def test_without_fitting_nothing_is_measured_in_this_trace(trace: Path) -> None:
    bare = compare(open_case(open_trace(trace), Setup(), fit=False), ["uffd-missing"])
    assert bare.rows[0].costs["fetch"] != TRACE
    assert bare.rows[0].marked


def test_more_handlers_mean_less_queueing(trace: Path) -> None:
    setup = Setup(settings={"uffd-missing": {"handlers": "2"}})
    two = compare(open_case(open_trace(trace), setup), ["uffd-missing"]).rows[0]
    one = compare(open_case(open_trace(trace), Setup()), ["uffd-missing"]).rows[0]
    assert two.params["handlers"] == 2
    assert two.metrics.total_stall_ns < 0.75 * one.metrics.total_stall_ns
    assert two.metrics.bottleneck == "handler"


def test_seeds_give_a_mean(trace: Path) -> None:
    rows = [compare(open_case(open_trace(trace), Setup(seed=k)), ["uffd-missing"]).rows[0].metrics for k in range(3)]
    got = compare(open_case(open_trace(trace), Setup(seeds=3)), ["uffd-missing"]).rows[0]
    assert got.metrics.total_stall_ns == pytest.approx(sum(m.total_stall_ns for m in rows) / 3, abs=1)
    again = compare(open_case(open_trace(trace), Setup(seeds=3)), ["uffd-missing"]).rows[0]
    assert again.metrics == got.metrics
    assert again.uncertainty == got.uncertainty


def test_losses_are_refused_unless_allowed(tmp_path: Path) -> None:
    lossy = write_trace(tmp_path / "lossy.trace", uffd_faults(each=50), lost=11)
    with pytest.raises(IncompleteData, match=r"11 events lost \(10 %\).*--max-loss"):
        open_case(open_trace(lossy), Setup())
    got = compare(open_case(open_trace(lossy), Setup(), max_loss_percent=10), ["uffd-missing"])
    assert got.loss_percent == pytest.approx(10)
    assert any("losses: 11 of 110 events (made 11)" in note for note in got.notes)


def test_faults_without_an_end_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = uffd_faults(each=40)
    for row in rows[-3:]:
        row |= {"end_ns": None, "stall_ns": None, "wake_ns": None, "join": "none"}
    got = compare(open_case(open_trace(write_trace(tmp_path / "x.trace", rows)), Setup()), ["as-recorded"])
    assert got.faults == 77
    assert any("3 faults left out" in note for note in got.notes)


def test_few_faults_are_not_split(tmp_path: Path) -> None:
    got = compare(
        open_case(open_trace(write_trace(tmp_path / "x.trace", uffd_faults(each=20))), Setup()), ["uffd-missing"]
    )
    assert got.judged is not None
    assert got.judged.held_out is None
    assert "too few" in got.judged.why_not


def test_the_mechanism_is_inferred_where_the_trace_is_silent(tmp_path: Path) -> None:
    silent = write_trace(tmp_path / "x.trace", uffd_faults(handlers=2, vcpus=4, each=60), mechanism=None)
    got = compare(open_case(open_trace(silent), Setup()), ["uffd-missing"])
    assert got.judged is not None
    assert got.judged.used.inferred
    assert got.rows[0].params["handlers"] == 2
    assert any("inferred" in note for note in got.notes)


def test_an_unknown_mechanism_leaves_nothing_to_judge(tmp_path: Path) -> None:
    odd = write_trace(tmp_path / "x.trace", uffd_faults(each=40), mechanism="mine")
    got = compare(open_case(open_trace(odd), Setup()), ["as-recorded", "ideal"])
    assert got.judged is None
    text = render.to_table(compare_view.report(got), 200)[0]
    assert "measured" in text


def test_a_synthetic_trace_has_no_measured_row(tmp_path: Path) -> None:
    write_synthetic(SynthSpec("demand-paging", 2, 60, Think(20_000)), tmp_path / "s.trace")
    got = compare(open_case(open_trace(tmp_path / "s.trace"), Setup()))
    assert "as-recorded" not in [row.mechanism for row in got.rows]
    assert {r["row"] for r in as_records(got)} == {"predicted"}
    text = render.to_table(compare_view.report(got), 200)[0]
    assert "nothing was measured" in text
    assert not [line for line in text.splitlines() if line.strip().startswith("measured")]


def test_windows_default_recorded_asked(tmp_path: Path, trace: Path) -> None:
    span = compare(open_case(open_trace(trace), Setup()), ["freeze"])
    assert len(span.windows) == 1
    assert span.windows_from.startswith("by default")
    assert not span.rows
    assert [still.mechanism for still in span.blackouts] == ["freeze"]
    rows = uffd_faults(each=60)
    known = [WindowSpan("freeze", BEGIN_NS + 5_000_000, BEGIN_NS + 9_000_000)]
    recorded = open_case(open_trace(write_trace(tmp_path / "w.trace", rows, windows=known)), Setup())
    assert [(w.start_ns, w.length_ns) for w in recorded.windows] == [(5_000_000, 4_000_000)]
    asked = open_case(open_trace(trace), Setup(), windows=[(1_000_000, 7_000_000, "freeze")])
    frozen = compare(asked, ["freeze", "as-recorded"])
    still, plain = frozen.blackouts[0].metrics, frozen.rows[0].metrics
    assert still.total_stall_ns > plain.total_stall_ns + 2 * 5_000_000
    assert still.all_stalled_ns > plain.all_stalled_ns


def test_every_format_says_the_same(trace: Path, comparison: Comparison, tmp_path: Path) -> None:
    report = compare_view.report(comparison)
    whole = json.loads(render.to_json(report))
    by_json = {(r["mechanism"], r["row"]): r["total_stall_ns"] for r in whole["records"]}
    rows = list(csv.DictReader(io.StringIO(render.to_csv(report))))
    by_csv = {(r["mechanism"], r["row"]): int(r["total_stall_ns"]) for r in rows}
    render.emit(report, "parquet", tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    by_parquet = {(r["mechanism"], r["row"]): r["total_stall_ns"] for r in table}
    assert by_json == by_csv == by_parquet
    assert by_json["uffd-missing", "measured"] == comparison.measured.total_stall_ns
    assert len(as_records(comparison)) == len(comparison.rows) + 1
    predicted = next(r for r in whole["records"] if (r["mechanism"], r["row"]) == ("uffd-missing", "predicted"))
    assert predicted["held_out_total_error_percent"] == comparison.judged.held_out.errors.total  # type: ignore[union-attr]


def test_the_table_fits_a_plain_terminal(comparison: Comparison) -> None:
    text, left_out = render.to_table(compare_view.report(comparison), 80)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("total", "p50", "p99", "max", "against", "measured", "error on 600", "Verdict"):
        assert word in text
    assert "max" not in left_out


def test_the_command_prints_the_table(trace: Path) -> None:
    done = CliRunner().invoke(main, ["compare", str(trace), "-m", "uffd-missing,ideal"])
    assert done.exit_code == 0, done.output
    assert "error on 600" in done.stdout
    assert "costs measured in this trace" in done.stdout


def test_the_command_writes_files_and_codes(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.json"
    assert _exit_code(["compare", str(trace), "-m", "ideal", "-o", str(out)]) == 0
    assert json.loads(out.read_text())["faults"] == 600
    assert _exit_code(["compare", str(trace), "-m", "ideal", "-o", str(out)]) == 2
    assert _exit_code(["compare", str(trace), "-m", "nonsense"]) == 2
    assert "no mechanism 'nonsense'" in capsys.readouterr().err
    assert _exit_code(["compare", str(trace), "-m", "ideal", "--costs", "no.toml"]) == 2
    assert _exit_code(["compare", str(trace), "-m", "uffd-missing", "--set", "uffd-missing.handlers=0"]) == 2
    lossy = write_trace(tmp_path / "lossy.trace", uffd_faults(each=20), lost=50)
    assert _exit_code(["compare", str(lossy)]) == 4


def test_own_cost_file_is_named(tmp_path: Path, trace: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('title = "t"\n[costs.exit_userspace]\nvalue = "100us"\nprovenance = "assumed"\nsource = "s"\n')
    slow = compare(open_case(open_trace(trace), Setup(cost_files=[str(mine)])), ["kvm-exit"]).rows[0]
    fast = compare(open_case(open_trace(trace), Setup()), ["kvm-exit"]).rows[0]
    assert slow.costs["exit_userspace"] == CostSource(Origin.FILE, str(mine))
    assert slow.metrics.p50_ns > fast.metrics.p50_ns + 90_000
    with pytest.raises(UsageError):
        open_case(open_trace(trace), Setup(cost_files=["nowhere.toml"]))


def test_one_shard_is_one_userfaultfd(trace: Path) -> None:
    setup = Setup(settings={"uffd-sharded": {"shards": "1", "handlers": "1"}})
    one, plain = compare(open_case(open_trace(trace), setup), ["uffd-sharded", "uffd-missing"]).rows
    assert one.metrics.total_stall_ns == pytest.approx(plain.metrics.total_stall_ns, rel=0.02)


def test_faults_held_up_by_a_window_do_not_make_costs(tmp_path: Path) -> None:
    rows = uffd_faults(each=100)
    held = rows[100]
    late = 20_000_000
    end = int(str(held["end_ns"])) + late
    held |= {
        "end_ns": end,
        "stall_ns": int(str(held["stall_ns"])) + late,
        "service_ns": int(str(held["service_ns"])) + late,
    }
    start = int(str(held["start_ns"]))
    plain = open_case(open_trace(write_trace(tmp_path / "a.trace", rows)), Setup()).fitted()
    windows = [WindowSpan("freeze", start + 1_000, end - 1_000)]
    told = open_case(open_trace(write_trace(tmp_path / "b.trace", rows, windows=windows)), Setup()).fitted()
    assert plain["fetch"].distribution.quantile(1) > late
    assert told["fetch"].distribution.quantile(1) < 1_000_000


def test_a_handler_that_reads_on_counts_as_several(tmp_path: Path) -> None:
    rows = uffd_faults(vcpus=3, handlers=3, each=100)
    for row in rows:
        row["handler_tid"] = 300
    case = open_case(open_trace(write_trace(tmp_path / "x.trace", rows, params={"handlers": 1})), Setup())
    assert case.used is not None
    assert case.used.asynchronous
    got = compare(case, ["uffd-missing"])
    assert got.rows[0].params["handlers"] == 3
    assert got.judged is not None
    assert got.judged.in_sample.total == pytest.approx(0, abs=5)
    assert any("up to 3 faults at once" in note for note in got.notes)


def test_a_window_that_was_recorded_stays_in_the_rail(tmp_path: Path) -> None:
    rows = uffd_faults(each=60)
    rows[60] |= {"cause": "window", "resolution": "unprotect"}
    at = int(str(rows[60]["start_ns"]))
    path = write_trace(tmp_path / "x.trace", rows, windows=[WindowSpan("freeze", at - 1000, at + 100_000)])
    got = compare(open_case(open_trace(path), Setup()), ["as-recorded"])
    assert got.rows[0].metrics.total_stall_ns == got.measured.total_stall_ns


def test_replications_are_the_same_runs_whatever_thread_ran_them() -> None:
    work = make_workload([{"think_ns": np.full(300, 20_000), "access": "w"} for _ in range(3)])
    setup, costs, mechanism = Setup(seed=5, seeds=7), load_costs(), load_mechanism("uffd-missing")
    together = replications(work, mechanism, costs, setup)
    alone = [run(work, mechanism, costs, setup, seed=k) for k in range(7)]
    assert [r.total_stall_ns for r in together] == [r.total_stall_ns for r in alone]
    assert len({r.total_stall_ns for r in together}) == 7


def test_a_foreign_cost_that_the_trace_contradicts_is_cut_down(tmp_path: Path) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text('title = "t"\n[costs.handler_loop]\nvalue = "1ms"\nprovenance = "assumed"\nsource = "s"\n')
    path = write_trace(tmp_path / "x.trace", uffd_faults(vcpus=1, each=400))
    case = open_case(open_trace(path), Setup(cost_files=[str(slow)]))
    assert case.fitted()["handler_loop"].distribution.mean < 60_000, "the handler was back in time for all of them"
    got = compare(case, ["uffd-missing"])
    assert got.rows[0].metrics.total_stall_ns == pytest.approx(got.measured.total_stall_ns, rel=0.05)
    quick = open_case(open_trace(path), Setup())
    assert "handler_loop" not in quick.fitted(), "a shipped cost that fits is left alone"
