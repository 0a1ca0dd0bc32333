"""Validation finds what is there: no error where the model is right, the error's size where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.analysis.compare.plot import Panel, quantile_plot
from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.compare.sources import TRACE
from faultreplay.analysis.judge.cells import summarize, together
from faultreplay.analysis.judge.judge import error_intervals, errors, relative_percent
from faultreplay.analysis.judge.matrix import find, plan, validate_matrix
from faultreplay.analysis.judge.sides import as_missing, measured_side
from faultreplay.analysis.judge.validate import halves, open_for, pair
from faultreplay.cli import render, validate_view
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData
from faultreplay.faulttrace.meta import MapEntry, Meta, WindowSpan
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import update_meta

PNG = b"\x89PNG\r\n\x1a\n"


def made(
    path: Path, seed: int, *, handlers: int = 1, vcpus: int = 2, mechanism: str = "uffd-missing", each: int = 300
) -> Path:
    """A lab trace of a cell of a matrix."""
    rows = uffd_faults(vcpus=vcpus, each=each, handlers=handlers, seed=seed)
    write_trace(path, rows, mechanism=mechanism, params={"handlers": handlers})
    meta = Meta.read(path / "meta.json")
    spec = {"mechanism": mechanism, "vcpus": vcpus, "handlers": handlers, "fetch": "200us", "seed": seed}
    meta.lab = {"spec": spec | {"order": "seq", "access": "w", "think": "exp:20us"}, "problem": ""}
    update_meta(path, meta)
    return path


@pytest.fixture(scope="module")
def matrix_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("matrix")
    for seed in (1, 2):
        for handlers in (1, 2):
            made(out / f"h{handlers}.s{seed}.trace", seed, handlers=handlers)
    return out


def test_errors_by_hand() -> None:
    measured = np.array([100, 200, 300, 400], dtype=np.int64)
    got = errors(measured * 2, measured, run_time_ns=(1100, 1000))
    assert (got.total, got.mean, got.p50, got.p99) == (100, 100, 100, 100)
    assert got.wasserstein == pytest.approx(100)
    assert got.run_time == pytest.approx(10)
    nothing = errors(measured, np.zeros(3, dtype=np.int64))
    assert (nothing.total, nothing.wasserstein, nothing.run_time) == (None, None, None)
    assert relative_percent(90, 100) == -10
    assert errors(measured, measured).as_record("x_")["x_wasserstein_percent_of_mean"] == 0


def test_intervals_of_nothing_are_none() -> None:
    assert error_intervals([np.zeros(0, dtype=np.int64)], [np.ones(3, dtype=np.int64)], paired=False) == {}


def test_a_trace_predicts_its_second_half(tmp_path: Path) -> None:
    cell = halves(open_for(open_trace(made(tmp_path / "a.trace", 1)), Setup()))
    assert cell.errors.total == pytest.approx(0, abs=5)
    assert cell.floor is not None
    assert cell.measured.faults == cell.predicted.faults == 300
    assert cell.intervals["total"].low <= cell.errors.total <= cell.intervals["total"].high  # type: ignore[operator]
    assert cell.costs["fetch"] == TRACE


def test_one_trace_predicts_other_handlers_of_another_seed(tmp_path: Path) -> None:
    setup = Setup()
    one = open_for(open_trace(made(tmp_path / "one.trace", 1, handlers=1)), setup)
    two = open_for(open_trace(made(tmp_path / "two.trace", 2, handlers=2)), setup)
    again = open_for(open_trace(made(tmp_path / "again.trace", 3, handlers=2)), setup)
    cell = pair(one, two, again=again)
    assert cell.errors.total == pytest.approx(0, abs=5)
    assert cell.errors.run_time == pytest.approx(0, abs=8)
    assert cell.floor is not None
    assert cell.floor.total == pytest.approx(0, abs=5)
    assert cell.simulated_percent == 100
    # The same without the model: what one handler measured is far from what two would.
    assert abs(relative_percent(cell.measured.total, int(one.workload.recorded_stall_ns.sum())) or 0) > 25


def test_a_wrong_model_is_found_out(tmp_path: Path) -> None:
    wrong = Setup(settings={"uffd-missing": {"handlers": "1"}})
    one = open_for(open_trace(made(tmp_path / "one.trace", 1)), wrong)
    two = open_for(open_trace(made(tmp_path / "two.trace", 2, handlers=2)), Setup())
    cell = pair(one, two)
    assert cell.errors.total is not None
    assert cell.errors.total > 25
    assert cell.intervals["total"].low > 15
    assert not cell.within(10)
    assert cell.within(1000)


def test_within_a_factor_of_the_floor(tmp_path: Path) -> None:
    setup = Setup()
    one, two, other = (open_for(open_trace(made(tmp_path / f"{s}.trace", s)), setup) for s in (1, 2, 3))
    cell = pair(one, two, again=other)
    assert not cell.within(0)
    assert cell.within(0, floor_factor=1e9)


def test_first_touches_under_the_kernel_count_as_missing(tmp_path: Path) -> None:
    rows = uffd_faults(each=40)
    for row in rows:
        row |= {"cause": "stage2", "resolution": "kernel", "handler_tid": 0, "queue_ns": None, "service_ns": None}
    rows[50]["page"] = rows[0]["page"]
    case = open_for(open_trace(write_trace(tmp_path / "x.trace", rows, mechanism="host-lazy", params={})), Setup())
    seen = as_missing(case.workload, case.used)
    missing = seen.cause == 0
    assert missing.sum() == 79
    later = np.flatnonzero(~missing)
    assert seen.recorded_start_ns[later[0]] == int(str(rows[50]["start_ns"])) - 1_000_000_000


def test_matrix_pairs_sides_and_never_judges_on_what_was_fitted(matrix_dir: Path) -> None:
    found, skipped = find(matrix_dir)
    assert len(found) == 4
    assert not skipped
    steps = list(plan(found))
    assert len(steps) == 4
    assert all(s.seed == 1 and t.seed == 2 for s, t, _ in steps)
    assert all(a and (a.handlers, a.seed) == (t.handlers, 1) for _, t, a in steps)
    whole = validate_matrix(matrix_dir, Setup())
    assert len(whole.cells) == 4
    every = whole.summaries()[0]
    assert every.worst < 6
    assert every.floor_worst is not None
    text = render.to_table(validate_view.matrix(whole, shown="cells"), 80)[0]
    assert "uffd-missing" in text
    assert max(map(len, text.splitlines())) <= 80
    pairs = render.to_table(validate_view.matrix(whole, shown="pairs"), 80)[0]
    assert "median" in pairs
    parts = validate_view.matrix(whole, shown="parts")
    assert [(r["what"], r["cells"]) for r in parts.rows] == [("all", 4), ("same mechanism", 4)]
    assert parts.rows[0]["reached_percent"] == 100
    assert max(map(len, render.to_table(parts, 80)[0].splitlines())) <= 80


def test_the_last_first_touch_is_judged_with_its_floor(tmp_path: Path) -> None:
    """A page that is touched again later does not count; a start-up before the guest ran does."""
    rows = uffd_faults(vcpus=1, each=50)
    again = {**rows[3], "start_ns": 10**10, "end_ns": 10**10 + 9, "stall_ns": 9, "cause": "stage2"}
    case = open_for(open_trace(write_trace(tmp_path / "x.trace", [*rows, again], params={"handlers": 1})), Setup())
    last = max(int(str(row["end_ns"])) for row in rows) - min(int(str(row["start_ns"])) for row in rows)
    assert measured_side(case).last_touch == last
    assert measured_side(case).left == 50
    path = made(tmp_path / "y.trace", 1)
    meta = Meta.read(path / "meta.json")
    late = measured_side(open_for(open_trace(path), Setup())).last_touch
    meta.lab["startup_ns"] = 7_000_000
    update_meta(path, meta)
    side = measured_side(open_for(open_trace(path), Setup()))
    assert (side.last_touch, side.startup) == (late + 7_000_000, 7_000_000)
    one, two, three = (open_for(open_trace(made(tmp_path / f"{s}.trace", s)), Setup()) for s in (1, 2, 3))
    cell = pair(one, two, again=three)
    assert cell.errors.last_touch == pytest.approx(0, abs=8)
    assert cell.floor is not None
    assert cell.floor.last_touch is not None
    summary = summarize([cell], "x")
    assert summary is not None
    assert summary.last_median == abs(cell.errors.last_touch or 0)
    assert summary.floor_last_median == abs(cell.floor.last_touch)


def test_repeats_of_a_cell_are_one_by_their_medians(tmp_path: Path) -> None:
    for seed in range(6):
        made(tmp_path / f"s{seed}.trace", seed)
    found, _ = find(tmp_path)
    assert [(s.seed, t.seed) for s, t, _ in plan(found)] == [(0, 1), (2, 3), (4, 5)]
    (cell,) = validate_matrix(tmp_path, Setup()).cells
    each = []
    for a, b in ((0, 1), (2, 3), (4, 5)):
        source, target = (open_for(open_trace(tmp_path / f"s{s}.trace"), Setup()) for s in (a, b))
        each.append(pair(source, target, again=source))
    assert cell.runs == 3
    assert cell.measured.total == np.median([c.measured.total for c in each])
    assert cell.again is not None
    assert cell.again.total == np.median([c.again.total for c in each if c.again])
    assert cell.errors.total == pytest.approx(relative_percent(cell.predicted.total, cell.measured.total))
    assert cell.floor is not None
    assert cell.floor.total == pytest.approx(relative_percent(cell.again.total, cell.measured.total))
    assert together(each[:1]) is each[0]


def test_a_seed_without_a_partner_is_judged_from_the_first_side(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        made(tmp_path / f"s{seed}.trace", seed)
    assert [(s.seed, t.seed) for s, t, _ in plan(find(tmp_path)[0])] == [(1, 2), (1, 3)]


def test_between_its_bounds_a_prediction_is_not_off(tmp_path: Path) -> None:
    one, two = (open_for(open_trace(made(tmp_path / f"{s}.trace", s)), Setup()) for s in (1, 2))
    cell = pair(one, two)
    assert cell.beyond_percent == cell.errors.total
    low, high = (replace(cell.predicted, total=round(cell.measured.total * part)) for part in (0.5, 2.0))
    assert replace(cell, bounds=(low, high)).beyond_percent == 0
    assert replace(cell, bounds=(low, low)).beyond_percent == pytest.approx(-50, abs=0.1)
    assert replace(cell, bounds=(high, high)).beyond_percent == pytest.approx(100, abs=0.1)
    assert replace(cell, bounds=(low, high)).within(1)


def test_a_read_that_the_kernel_resolves_may_fault_again_when_written(tmp_path: Path) -> None:
    reads = write_trace(tmp_path / "a.trace", uffd_faults(seed=1, access="r"))
    rows = uffd_faults(seed=2, access="r")
    for row in rows:
        row |= {"cause": "stage2", "resolution": "kernel", "handler_tid": 0, "queue_ns": None, "service_ns": None}
    lazy = write_trace(tmp_path / "b.trace", rows, mechanism="host-lazy", params={})
    cell = pair(*(open_for(open_trace(path), Setup()) for path in (reads, lazy)))
    assert cell.bounds is not None
    lower, upper = cell.bounds
    assert (lower.refaults, upper.refaults) == (0, len(rows))
    # the two vCPUs meet more often where pages fault twice: contention is on top
    assert lower.total + upper.refault <= upper.total < 1.1 * (lower.total + upper.refault)
    assert upper.refault > 0


def test_the_labs_threads_have_the_cpus_they_were_pinned_to(tmp_path: Path) -> None:
    path = made(tmp_path / "a.trace", 1)
    assert open_for(open_trace(path), Setup()).setup.cpus is None
    meta = Meta.read(path / "meta.json")
    meta.lab["pinned"] = True
    update_meta(path, meta)
    setup = open_for(open_trace(path), Setup()).setup
    assert (setup.cpus, setup.pinned) == (meta.host.cpus, True)
    assert open_for(open_trace(path), Setup(cpus=7)).setup == replace(setup, cpus=7, pinned=False)
    other = open_for(open_trace(made(tmp_path / "b.trace", 2)), Setup())
    assert pair(other, open_for(open_trace(path), Setup())).cpus == meta.host.cpus
    assert pair(open_for(open_trace(path), Setup()), other).cpus is None


def test_matrix_tells_what_it_left_out(tmp_path: Path) -> None:
    with pytest.raises(IncompleteData, match="no lab traces"):
        validate_matrix(tmp_path, Setup())
    made(tmp_path / "a.trace", 1)
    with pytest.raises(IncompleteData, match="different seeds"):
        validate_matrix(tmp_path, Setup())
    made(tmp_path / "b.trace", 2)
    made(tmp_path / "c.trace", 2, mechanism="of-nobody")
    write_trace(tmp_path / "d.trace", uffd_faults(each=10))
    whole = validate_matrix(tmp_path, Setup())
    assert len(whole.cells) == 1
    words = "\n".join(whole.left_out())
    assert "of-nobody" in words
    assert "not recorded by the lab: d.trace" in words
    assert summarize([], "none") is None


def test_plot_is_a_picture(tmp_path: Path) -> None:
    stalls = np.random.default_rng(1).lognormal(12, 0.3, 500).astype(np.int64)
    out = tmp_path / "x.png"
    quantile_plot([Panel("a", stalls, stalls + 1000, stalls)] * 5, out)
    assert out.read_bytes().startswith(PNG)
    assert out.stat().st_size > 20_000
    with pytest.raises(FaultreplayError, match="nothing to plot"):
        quantile_plot([Panel("a", stalls[:0], stalls)], out)


def test_the_command_in_all_three_forms(matrix_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, b2 = (str(matrix_dir / f"h{h}.s{s}.trace") for h, s in ((1, 1), (2, 2), (2, 1)))
    assert _exit_code(["validate", a]) == 0
    out = capsys.readouterr().out
    assert "second half" in out
    assert "distance / mean" in out
    png, data = tmp_path / "p.png", tmp_path / "d.json"
    arguments = ["validate", "--from", a, "--to", b, "--again", b2, "--plot", str(png), "-o", str(data)]
    assert _exit_code(arguments) == 0
    assert png.read_bytes().startswith(PNG)
    record = json.loads(data.read_text())["records"][0]
    assert record["floor_total_error_percent"] is not None
    assert record["predicted_total_ns"] > 0
    assert _exit_code(["validate", "--matrix", str(matrix_dir), "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_commands_codes(matrix_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(matrix_dir / f"h1.s{s}.trace") for s in (1, 2))
    assert _exit_code(["validate", a, "--max-error", "0"]) == 3
    seen = capsys.readouterr()
    assert "second half" in seen.out  # the table comes out all the same
    assert "1 of 1 predictions past --max-error 0" in seen.err
    assert _exit_code(["validate", a, "--max-error", "50"]) == 0
    for wrong in (
        [],
        [a, "--matrix", b],
        ["--from", a],
        [a, "--again", b],
        ["--from", a, "--to", b, "--window", "0+1ms:freeze"],
    ):
        assert _exit_code(["validate", *wrong]) == 2, wrong
    assert _exit_code(["validate", "--matrix", str(matrix_dir / "nothing")]) == 4


def paused(rows: list[dict[str, object]], at_ns: int, length_ns: int) -> list[dict[str, object]]:
    """The same faults with everything standing still for a while."""
    done = []
    for row in rows:
        start, end = int(str(row["start_ns"])), int(str(row["end_ns"]))
        start, end = (t + length_ns if t >= at_ns else t for t in (start, end))
        done.append(row | {"start_ns": start, "end_ns": end, "stall_ns": end - start})
    return done


def test_a_pause_is_predicted_by_one_that_was_never_paused(tmp_path: Path) -> None:
    rows = uffd_faults(seed=2)
    middle = rows[300]
    length_ns = 20_000_000
    at_ns = int(str(middle["start_ns"])) + 1_000  # one vCPU's fault has just begun; the other's is being served
    assert sum(int(str(r["start_ns"])) < at_ns < int(str(r["end_ns"])) for r in rows) == 2
    window = WindowSpan("pause", at_ns, at_ns + length_ns)
    target = write_trace(tmp_path / "b.trace", paused(rows, at_ns, length_ns), windows=[window])
    plain = open_for(open_trace(made(tmp_path / "a.trace", 1)), Setup())
    cell = pair(plain, open_for(open_trace(target), Setup()))
    assert cell.measured.held == 2 * length_ns
    assert cell.predicted.held == pytest.approx(2 * length_ns, rel=0.05)
    assert cell.bounds is not None
    assert cell.predicted.held_accessors == cell.measured.held_accessors == 2
    assert cell.errors.total == pytest.approx(0, abs=5)
    assert cell.errors.p99 == pytest.approx(0, abs=15)  # the window is in no quantile
    text = render.to_table(validate_view.one(cell), 80)[0]
    assert "held in windows" in text


def test_a_pause_is_measured_by_the_time_the_lab_held_each_vcpu(tmp_path: Path) -> None:
    rows = uffd_faults(seed=2)
    window = WindowSpan("pause", int(str(rows[300]["start_ns"])), int(str(rows[300]["start_ns"])) + 1_000)
    case = open_for(open_trace(write_trace(tmp_path / "b.trace", rows, windows=[window])), Setup())
    case.trace.meta.lab = {
        "waiters": [{"kind": "pause", "accesses": 0}],
        "accessors": [{"parked_ns": 700}, {"parked_ns": 900}],
    }
    assert measured_side(case).held == 1600


def test_a_window_is_as_long_as_its_work_where_the_lab_tells(tmp_path: Path) -> None:
    rows = uffd_faults(seed=2)
    at_ns, making_ns, work_ns = int(str(rows[300]["start_ns"])), 3_000_000, 5_000_000
    window = WindowSpan("pause", at_ns, at_ns + making_ns + work_ns)
    plain = open_for(open_trace(made(tmp_path / "a.trace", 1)), Setup())
    path = write_trace(tmp_path / "b.trace", rows, windows=[window])
    whole = pair(plain, open_for(open_trace(path), Setup())).predicted.held
    meta = Meta.read(path / "meta.json")
    span = {"begin_from_ns": at_ns, "begin_ns": at_ns + making_ns, "end_from_ns": window.end_ns, "end_ns": 0}
    meta.lab = {"windows": [span]}
    update_meta(path, meta)
    target = open_for(open_trace(path), Setup())
    assert whole - pair(plain, target).predicted.held == pytest.approx(2 * making_ns, rel=0.02)


def test_refaults_on_memory_outside_the_map_are_told_and_not_counted(tmp_path: Path) -> None:
    """The lab's guest touches its lists and logs again too, in a slot that nobody replays."""
    rows = uffd_faults(seed=2)
    for row in rows[-30:]:
        row |= {"cause": "stage2", "resolution": "kernel"}
    for row in rows[-10:]:
        row["page"] = 0x100000
    at_ns = int(str(rows[300]["start_ns"]))
    path = write_trace(tmp_path / "b.trace", rows, windows=[WindowSpan("pause", at_ns, at_ns + 1_000)])
    target = open_for(open_trace(path), Setup())
    plain = open_for(open_trace(made(tmp_path / "a.trace", 1)), Setup())
    assert measured_side(target).refaults == 30  # no map: nothing is known to lie outside it

    target.trace.meta.memory_map = [MapEntry(0, 100, 1 << 30, (1 << 30) + (600 << 12))]
    side = measured_side(target)
    assert side.refaults == 20
    assert len(side.stalls) == len(rows) - 10
    assert [note for note in pair(plain, target).notes if note.startswith("b: 10 refaults")]
    assert not [note for note in pair(target, plain).notes if note.startswith("a: ")]

    target.trace.meta.memory_map = [MapEntry(0, 100, 1 << 20, 2 << 20)]
    assert measured_side(target).refaults == 30  # a map that holds next to nothing says nothing
