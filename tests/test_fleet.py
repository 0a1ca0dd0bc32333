"""Many traces in one comparison: names, patterns, workers, those that fail, how far the differences spread."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultreplay.analysis.explore import fleet
from faultreplay.analysis.explore.spread import QUANTILES, spread
from faultreplay.analysis.explore.workers import Outcome
from faultreplay.cli.fleet_view import brief, together
from faultreplay.cli.main import _exit_code
from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

MECHANISMS = ["-m", "uffd-missing,kvm-exit"]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    for n in range(3):
        spec = SynthSpec("zipf", 2, 60, Think(10_000 + 5_000 * n, True), seed=n)
        write_synthetic(spec, tmp_path / f"host{n}.trace")
    return tmp_path


def run(arguments: list[str]) -> int:
    return _exit_code(["compare", *arguments])


def records(text: str) -> list[dict[str, object]]:
    return list(json.loads(text)["records"])


def test_a_pattern_stands_for_its_traces_also_as_a_url(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(traces / "host*.trace")
    assert run([here, *MECHANISMS, "--format", "json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert set(named["traces"]) == {"host0", "host1", "host2"}
    assert [one["mechanism"] for one in named["over_traces"]] == ["kvm-exit"]
    assert named["over_traces"][0]["traces"] == 3
    pytest.importorskip("fsspec")
    assert run([f"file://{here}", *MECHANISMS, "--format", "json"]) == 0
    far = json.loads(capsys.readouterr().out)
    assert far["records"] == named["records"]


def test_two_processes_say_what_one_says(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(traces / "host*.trace")
    assert run([here, *MECHANISMS, "--format", "json"]) == 0
    alone = records(capsys.readouterr().out)
    assert run([here, *MECHANISMS, "--format", "json", "-j", "2"]) == 0
    assert records(capsys.readouterr().out) == alone


def test_a_damaged_trace_fails_alone_and_is_named(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (traces / "host1.trace" / "meta.json").write_text("{")
    assert run([str(traces / "host*.trace"), *MECHANISMS]) == 4
    said = capsys.readouterr()
    assert "1 of 3 traces failed" in said.err
    assert "host1" in said.err
    assert "failed: host1" in said.out
    assert "over all traces: total stall against uffd-missing" in said.out


def test_a_wrong_mechanism_is_said_once_and_first(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(traces / "host*.trace"), "-m", "uffd-mising"]) == 2
    assert capsys.readouterr().err.count("uffd-mising") == 1


def test_a_dask_worker_that_is_killed_changes_nothing(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    from faultreplay.analysis.explore import workers

    here = str(traces / "host*.trace")
    assert run([here, *MECHANISMS, "--format", "json"]) == 0
    alone = records(capsys.readouterr().out)
    original = workers.on_dask
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        victims = [worker.process.pid for worker in cluster.workers.values()][:1]

        def killing(*given: object, **named: object) -> Iterator[Outcome[object]]:
            for outcome in original(*given, **named):  # type: ignore[arg-type, misc]
                while victims:
                    os.kill(victims.pop(), signal.SIGKILL)
                yield outcome

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "on_dask", killing)
            code = run([here, *MECHANISMS, "--format", "json", "--dask", cluster.scheduler_address])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert records(said.out) == alone
    assert not victims


def test_a_worker_with_another_version_refuses() -> None:
    (task,) = fleet.tasks_of(["a.trace"], {}, "one")
    fleet.check_key(task, "one")
    with pytest.raises(UsageError, match="install the same everywhere"):
        fleet.check_key(task, "two")


def test_traces_of_one_name_are_told_apart() -> None:
    tasks = fleet.tasks_of(["/a/x.trace", "/b/x.trace", "/b/y.trace"], {}, "")
    assert [task.label for task in tasks] == ["/a/x.trace", "/b/x.trace", "y"]


def test_outcomes_come_in_the_order_of_the_traces() -> None:
    tasks = fleet.tasks_of([f"{n}.trace" for n in range(5)], {}, "")
    said: list[tuple[int, int]] = []
    outcomes = fleet.run_all(
        lambda some: (Outcome(task, task.label) for task in reversed(some)), tasks, lambda *done: said.append(done)
    )
    assert [outcome.value for outcome in outcomes] == ["0", "1", "2", "3", "4"]
    assert said[-1] == (5, 5)


@given(st.lists(st.floats(-90, 900), min_size=1, max_size=40))
def test_quantiles_are_numpys(values: list[float]) -> None:
    one = spread("x", [(f"t{n}", value) for n, value in enumerate(values)])
    assert one is not None
    for name, share in QUANTILES.items():
        assert one.percent[name] == pytest.approx(float(np.quantile(values, share)))
    middle = float(np.quantile(values, 0.5))
    assert set(one.against) == {f"t{n}" for n, value in enumerate(values) if value * middle < 0}


def test_outliers_are_named() -> None:
    values = [(f"t{n}", 10.0 + n / 10) for n in range(20)]
    one = spread("x", [*values, ("odd", 80.0), ("other way", -3.0)])
    assert one is not None
    assert one.outliers == ("odd", "other way")
    assert one.against == ("other way",)
    few = spread("x", values[:2])
    assert few is not None
    assert few.outliers == ()
    assert spread("x", []) is None


def test_of_very_many_traces_only_the_spread_is_shown() -> None:
    def table(n: int) -> Report:
        rows = [
            {"mechanism": name, "row": "predicted", "total_stall_ns": 100 + n * by}
            for name, by in (("uffd-missing", 1), ("kvm-exit", 2))
        ]
        return Report(rows, [Column("mechanism", "mechanism")], title=f"t{n}", extra={"trust": "reproduced"})

    whole = together([(f"t{n}", table(n)) for n in range(30)], [("bad", "damaged")])
    shown = brief(whole, 30)
    assert len(whole.records) == 60
    assert [record["mechanism"] for record in shown.records] == ["kvm-exit"]
    assert "failed: bad: damaged" in shown.notes
    assert shown.lead == ["the recorded mechanism is reproduced in 30"]
    assert brief(whole, 3) is whole
