"""The matrix: axes, sides, order, and going on where it stopped."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import Meta
from faultreplay.lab import matrix as module
from faultreplay.lab.matrix import run_matrix
from faultreplay.lab.matrix_spec import MatrixRun, MatrixSpec
from faultreplay.replay.language.costs import load_costs

SMALL = MatrixSpec(
    mechanisms=("uffd-missing", "host-lazy", "freeze"), vcpus=(1, 2), fetch=("50us",), workloads=("random/w/20us",),
    run_ns=20_000_000,
)  # fmt: skip


def test_each_cell_has_two_sides_with_other_seeds_and_the_same_size() -> None:
    runs = list(MatrixSpec(repeats=2).runs())
    assert len(runs) == len({run.name for run in runs}) == 8 * 3 * 4 * 2 * 2 * 2
    cells: dict[tuple[object, ...], list[MatrixRun]] = {}
    for run in runs:
        cells.setdefault((run.vcpus, run.handlers, run.fetch, run.workload), []).append(run)
    for cell in cells.values():
        assert {run.seed for run in cell if run.side == "A"}.isdisjoint(run.seed for run in cell if run.side == "B")
        assert len({(run.spec.pages, run.spec.accesses) for run in cell}) == 1


def test_the_order_of_mechanisms_turns_round() -> None:
    runs = [run.mechanism for run in SMALL.runs() if run.vcpus == 1]
    assert runs == ["uffd-missing", "host-lazy", "freeze", "freeze", "host-lazy", "uffd-missing"]


def test_handlers_are_an_axis_only_where_there_are_any() -> None:
    runs = list(MatrixSpec(mechanisms=("uffd-missing", "kvm-exit"), handlers=(1, 2), vcpus=(1,), fetch=("0",)).runs())
    assert sum(run.mechanism == "uffd-missing" for run in runs) == 2 * sum(run.mechanism == "kvm-exit" for run in runs)


def test_bad_axes_are_named_before_the_first_run() -> None:
    with pytest.raises(UsageError, match="magic"):
        MatrixSpec(mechanisms=("magic",))
    with pytest.raises(UsageError, match="ORDER/ACCESS/THINK"):
        MatrixSpec(workloads=("random",))
    with pytest.raises(UsageError, match="fast"):
        MatrixSpec(fetch=("fast",))


@pytest.mark.lab
def test_a_matrix_runs_goes_on_and_leaves_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m"
    real_run, calls = module.run, []

    def interrupted(*args, **options):  # type: ignore[no-untyped-def]
        calls.append(args[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real_run(*args, **options)

    monkeypatch.setattr(module, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(SMALL, out, record=False)
    assert pl.read_parquet(out / "results.parquet").height == 3
    done = run_matrix(SMALL, out, record=False)
    assert (done.runs, done.done, done.skipped, done.problems) == (12, 9, 3, [])
    results = pl.read_parquet(out / "results.parquet")
    assert results.height == 12
    assert set(results["side"]) == {"A", "B"}
    assert (results["accesses"] == results["resolved"]).sum() == 8  # all but host-lazy
    assert (results.filter(pl.col("mechanism") == "freeze")["window_writes"] == 0).all()
    assert (results["stall_p50_ns"] > 0).all()
    with pytest.raises(UsageError, match="other fetch"):
        run_matrix(MatrixSpec(**{**vars(SMALL), "fetch": ("1us",)}), out, record=False)


@pytest.mark.lab
def test_a_spent_budget_starts_no_run(tmp_path: Path) -> None:
    done = run_matrix(SMALL, tmp_path / "m", record=False, budget_ns=0)
    assert (done.done, done.runs) == (0, 12)


def test_a_strangers_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        run_matrix(SMALL, tmp_path, record=False)


@pytest.mark.lab
def test_the_command_leaves_costs_and_the_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m"
    axes = ["-m", "uffd-missing,kvm-exit", "--vcpus", "1", "--fetch", "50us", "--workload", "random/w/20us"]
    assert _exit_code(["lab", "matrix", "-o", str(out), *axes, "--run-time", "150ms"]) == 0
    written = capsys.readouterr().err
    for name in ("results.parquet", "costs.toml", "validation.parquet", "validation.md"):
        assert f"wrote {out / name}" in written
    assert {"resolve", "wake", "exit_userspace", "reenter"} <= set(load_costs(out / "costs.toml"))
    cells = pl.read_parquet(out / "validation.parquet")
    assert cells.height == 4  # two mechanisms predict two
    assert set(cells["runs"]) == {1}
    assert "cross" in (out / "validation.md").read_text()
    assert all(Meta.read(path / "meta.json").lab["pinned"] for path in out.glob("*.trace"))
    assert _exit_code(["lab", "matrix", "-o", str(out), *axes, "--run-time", "150ms", "--no-validate"]) == 0
    assert "validation" not in capsys.readouterr().err
