"""A sweep in sentences: on numbers whose answer is known, and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as some

from faultreplay.analysis.explore.axes import Axis, grid, parse_axis
from faultreplay.analysis.explore.crossover import Values, excess
from faultreplay.analysis.explore.stretches import courses
from faultreplay.cli.main import _exit_code, main
from faultreplay.cli.sweep_words import sentences, turns_between
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

SAMPLES = Path(__file__).parent.parent / "sample-traces"
FETCH = parse_axis("fetch=10us,100us,1ms", [])


def said(axes: list[Axis], values: Values) -> list[str]:
    return sentences(list(courses("t", axes, values)), axes)


def along(axis: Axis, **lines: list[float]) -> Values:
    names = {name.replace("_", "-"): line for name, line in lines.items()}
    return {((axis.key, x),): {m: v[i] for m, v in names.items()} for i, x in enumerate(axis.values)}


def test_better_below_and_no_matter_above() -> None:
    # excess 58.7 %, 20 %, 0: on a line over log x it is 10 % halfway between the last two points
    values = along(FETCH, kvm_exit=[63.0, 100.0, 1000.0], uffd_missing=[100.0, 120.0, 1000.0])
    assert said([FETCH], values) == [
        "Below 316 us of fetch kvm-exit is better, by up to 37 %; above that it does not matter which."
    ]


def test_one_is_better_everywhere() -> None:
    values = along(FETCH, a=[50.0, 60.0, 100.0], b=[100.0, 100.0, 200.0], ideal=[0.0, 0.0, 0.0])
    assert said([FETCH], values) == ["With fetch from 10.0 us to 1.00 ms a is better, by 40 to 50 %."]


def test_three_mechanisms_and_one_that_passes_behind_the_best() -> None:
    values = along(FETCH, a=[10.0, 10.0, 10.0], b=[20.0, 20.0, 40.0], c=[40.0, 40.0, 20.0])
    assert said([FETCH], values) == [
        "With fetch from 10.0 us to 1.00 ms a is best, 50 % less than the next, up to 75 % less than the worst. "
        "Behind it c passes b at 316 us."
    ]


def test_a_count_has_no_turning_point_between_two_values() -> None:
    axis = parse_axis("uffd-missing.handlers=1,2,4,8", ["uffd-missing"])
    values = along(axis, uffd_missing=[400.0, 300.0, 150.0, 100.0], kvm_exit=[200.0, 200.0, 200.0, 200.0])
    assert said([axis], values) == [
        "With uffd-missing.handlers up to 2 kvm-exit is better, by up to 50 %; "
        "from 4 on uffd-missing is better, by up to 50 %."
    ]


def test_the_same_answer_for_several_values_of_another_axis_is_one_sentence() -> None:
    other = parse_axis("kvm-exit.fallback.handlers=1,2,4", ["kvm-exit"])
    values = {}
    for point in grid([other, FETCH]):
        here = dict(point)
        values[point] = {"a": 1.0, "b": 3.0 if here["kvm-exit.fallback.handlers"] == 4 else 2.0}
    found = said([other, FETCH], values)
    assert (
        "At kvm-exit.fallback.handlers=1 or kvm-exit.fallback.handlers=2: "
        "with fetch from 10.0 us to 1.00 ms a is better, by 50 %." in found
    )
    assert len(found) == 3


def test_without_axes_there_is_one_answer() -> None:
    assert said([], {(): {"a": 2.0, "b": 4.0}}) == ["a is better, by 50 %."]
    assert said([], {(): {"a": 2.0, "b": 2.1}}) == ["it does not matter which."]
    assert said([], {(): {"a": 2.0, "ideal": 1.0}}) == []
    assert said([], {}) == []


@given(
    some.lists(some.tuples(*[some.integers(1, 1000)] * 3), min_size=1, max_size=8),
    some.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_stretches_hold_every_point_once_and_agree_with_it(rows: list[tuple[int, int, int]], tolerance: float) -> None:
    axis = Axis("", "fetch", "ns", tuple(float(10**k) for k in range(len(rows))))
    values = along(axis, **{name: [float(row[i]) for row in rows] for i, name in enumerate("abc")})
    (course,) = courses("t", [axis], values, tolerance=tolerance)
    for x in axis.values:
        (stretch,) = [s for s in course.stretches if s.low <= x <= s.high]
        at = values[(("fetch", x),)]
        over = excess(at)
        assert over is not None
        assert stretch.best == (min(at, key=lambda m: (at[m], m)) if over > tolerance else "")
        first, second, worst = sorted(at.values())
        assert stretch.least_lead <= 1 - first / second <= stretch.most_lead
        assert 1 - first / worst <= stretch.most_over_worst
    for one, following in zip(course.stretches, course.stretches[1:], strict=False):
        assert one.ends == following.begins
        assert one.ends is not None and one.high <= one.ends <= following.low
        assert one.best != following.best


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sweep") / "small.trace"
    write_synthetic(SynthSpec("demand-paging", 4, 50, Think(20_000, True)), path)
    return str(path)


def run(*words: str) -> str:
    done = CliRunner().invoke(main, ["sweep", *words, "-j", "1"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_command_says_it_and_json_holds_it(trace: str) -> None:
    arguments = [trace, "-m", "uffd-missing,kvm-exit", "--vary", "fetch=1us..1ms:3"]
    table = run(*arguments)
    assert "differ" not in table.replace("make a difference", "")
    assert "With fetch from 1.00 us to 1.00 ms kvm-exit is better, by" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    document = json.loads(run(*arguments, "--format", "json"))
    (course,) = document["courses"]
    (stretch,) = course["stretches"]
    totals = {(r["mechanism"], r["fetch"]): r["total_stall_ns"] for r in document["records"]}
    leads = [100 * (1 - totals["kvm-exit", x] / totals["uffd-missing", x]) for x in (1e3, 31623.0, 1e6)]
    assert (stretch["best"], stretch["first_point"], stretch["last_point"]) == ("kvm-exit", 1e3, 1e6)
    assert (stretch["least_lead_percent"], stretch["most_lead_percent"]) == pytest.approx((min(leads), max(leads)))


def test_own_mechanism_is_varied_by_its_stem(trace: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(Path(load_mechanism("uffd-missing").file).read_text())
    table = run(trace, "-m", f"{mine},kvm-exit", "--vary", "mine.handlers=1,2")
    assert "mine.handlers" in " ".join(table.split())
    by_path = parse_axis(f"{mine}.handlers=1,2", [str(mine)])
    assert by_path == parse_axis("mine.handlers=1,2", [str(mine)])
    assert by_path.key == "mine.handlers"
    assert by_path.touches(str(mine)) and not by_path.touches("kvm-exit")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_trace_that_cannot_be_replayed_has_the_exit_code_of_its_reason(
    jobs: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sweep", str(SAMPLES / "qemu-postcopy.trace"), "-m", "kvm-exit", "--vcpu-threads", "nobody", "-j", jobs]
    assert _exit_code(asked) == 2
    err = capsys.readouterr().err
    assert "1 of 1 cells failed: --vcpu-threads nobody: no thread of this trace" in err
    assert "two tries" not in err


def test_a_trace_without_faults_is_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from made_traces import write_trace

    path = str(write_trace(tmp_path / "e.trace", []))
    assert (
        _exit_code(["compare", path, "-m", "kvm-exit"]) == _exit_code(["sweep", path, "-m", "kvm-exit", "-j", "1"]) == 4
    )


def test_plot_draws_a_curve_and_a_map(trace: str, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    both = [trace, "-m", "uffd-missing,kvm-exit", "--vary", "fetch=1us,1ms"]
    run(*both, "--plot", str(tmp_path / "curve.svg"))
    picture = (tmp_path / "curve.svg").read_text()
    assert "uffd-missing" in picture and "kvm-exit" in picture and "Total stall along fetch" in picture
    run(*both, "--vary", "resolve=x1,x2", "--plot", str(tmp_path / "map.png"))
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--plot", "x.pdf", "--vary", "fetch=1us,2us"], "must end in .svg or .png"),
        (["--plot", "x.svg"], "one or two --vary"),
        (["--plot", "x.svg", "--vary", "fetch=1us"], "of several values"),
        (["--plot", "nowhere/x.svg", "--vary", "fetch=1us,2us"], "no folder nowhere"),
    ],
)
def test_plot_refuses_before_it_runs(
    trace: str, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(["sweep", trace, "-m", "uffd-missing,kvm-exit", *words]) == 2
    assert says in capsys.readouterr().err


def test_one_value_of_a_count_is_named_alone_and_has_one_share() -> None:
    axis = parse_axis("uffd-missing.handlers=1,2,4", ["uffd-missing"])
    values = along(axis, uffd_missing=[400.0, 200.0, 200.0], kvm_exit=[200.0, 200.0, 200.0])
    (course,) = courses("t", [axis], values)
    assert sentences([course], [axis]) == [
        "With uffd-missing.handlers 1 kvm-exit is better, by 50 %; from 2 on it does not matter which."
    ]
    assert not turns_between(course, [axis])
    (between,) = courses("t", [FETCH], along(FETCH, a=[10.0, 20.0, 30.0], b=[20.0, 20.0, 10.0]))
    assert turns_between(between, [FETCH])
