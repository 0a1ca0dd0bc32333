"""Sweeps: the same rows from one process, a pool and a dask cluster; resumed, retried, and failing cell by cell."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from faultreplay.analysis.compare.predict import Setup
from faultreplay.analysis.explore import workers
from faultreplay.analysis.explore.axes import parse_axis
from faultreplay.analysis.explore.sweep import Common, Plan, Sweep, Task, plan, run_cell, sweep
from faultreplay.cli.main import main
from faultreplay.cli.sweep_view import over_hosts
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, MissingFeature, UsageError
from faultreplay.faulttrace.remote import expand, identity, name_of, open_address
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

MECHANISMS = ["uffd-missing", "kvm-exit"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "small.trace"
    write_synthetic(SynthSpec("demand-paging", 4, 50, Think(20_000, True)), path)
    return path


def make_plan(*traces: Path | str, vary: tuple[str, ...] = ("fetch=1us..1ms:3",), **setup: Any) -> Plan:
    axes = tuple(parse_axis(text, MECHANISMS) for text in vary)
    return plan([str(t) for t in traces], MECHANISMS, Common(Setup(**setup), axes))


def one_process(made: Plan, directory: Path, **options: Any) -> Sweep:
    return sweep(made, partial(workers.here, run_cell, jobs=1), directory, **options)


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def cells(directory: Path) -> list[dict[str, Any]]:
    """All rows of a data set, all digits of them: how they lie in files depends on the time they took."""
    return pl.read_parquet(str(directory / "cells-*.parquet")).sort("key").to_dicts()


def run_cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sweep", *arguments])


def test_cells_are_named_once_and_only_for_what_touches_them(trace: Path) -> None:
    made = make_plan(trace, vary=("uffd-missing.handlers=1,2,4", "fetch=1us,1ms"))
    assert len(made.points) == 6
    assert sorted(c.mechanism for c in made.cells) == ["kvm-exit"] * 2 + ["uffd-missing"] * 6
    assert len({c.key for c in made.cells}) == 8


def test_a_pool_gives_the_same_rows_as_one_process(trace: Path, tmp_path: Path) -> None:
    made = make_plan(trace)
    one = one_process(made, tmp_path / "one")
    two = sweep(made, partial(workers.here, run_cell, jobs=2), tmp_path / "two")
    assert one.computed == two.computed == 6
    assert cells(tmp_path / "one") == cells(tmp_path / "two")
    assert one.crossings == two.crossings


def test_resuming_runs_only_what_is_missing(trace: Path, tmp_path: Path) -> None:
    one_process(make_plan(trace, vary=("fetch=1us,1ms",)), tmp_path / "d")
    before = files(tmp_path / "d")
    done = one_process(make_plan(trace, vary=("fetch=1us,10us,1ms",)), tmp_path / "d")
    assert done.computed == 2
    assert len(done.rows) == 6
    assert before.items() <= files(tmp_path / "d").items()
    broken = next((tmp_path / "d").rglob("*.parquet"))
    broken.write_bytes(b"half a fi")
    assert len(files(tmp_path / "d")) == 1 + 2  # a file a run, not a cell
    assert one_process(make_plan(trace, vary=("fetch=1us,10us,1ms",)), tmp_path / "d").computed in (2, 4)
    assert one_process(make_plan(trace, vary=("fetch=1us,10us,1ms",)), tmp_path / "d", again=True).computed == 6
    whole = pl.read_parquet(str(tmp_path / "d" / "cells-*.parquet"))
    assert whole["key"].n_unique() == whole.height == 6  # none is there twice


@pytest.mark.parametrize("change", [{"seed": 1}, {"seeds": 2}, {"settings": {"kvm-exit": {"granule": "8K"}}}])
def test_what_decides_the_numbers_decides_the_key(trace: Path, change: dict[str, Any]) -> None:
    plain, other = make_plan(trace), make_plan(trace, **change)
    assert not {c.key for c in plain.cells} & {c.key for c in other.cells}


def test_a_mechanism_with_parameters_of_its_own_has_cells_of_its_own(trace: Path, tmp_path: Path) -> None:
    names = ("uffd-missing", "uffd-missing:handlers=4")
    made = plan([str(trace)], names, Common(Setup(), (parse_axis("fetch=100us", names),)))
    assert len({cell.key for cell in made.cells}) == 2
    one, four = (run_cell(cell) for cell in made.cells)
    assert four["total_stall_ns"] < one["total_stall_ns"]
    one_process(made, tmp_path / "d")
    assert len({row["key"] for row in cells(tmp_path / "d")}) == 2


def test_text_of_the_file_that_a_mechanism_extends_decides_its_key(trace: Path, tmp_path: Path) -> None:
    base, mine = tmp_path / "base.toml", tmp_path / "mine.toml"
    text = Path(load_mechanism("uffd-missing").file).read_text()
    base.write_text(text)
    mine.write_text(f'extends = "{base}"\ntitle = "t"\nstands_for = "s"\nsource = "s"\nlimits = "l"\n')

    def keys() -> list[str]:
        return [cell.key for cell in plan([str(trace)], [str(mine)], Common(Setup(), ())).cells]

    before = keys()
    assert keys() == before
    base.write_text(text + "\n# another text\n")
    assert keys() != before


def test_key_depends_on_what_a_trace_holds_not_on_its_place(trace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.trace"
    copy.mkdir()
    for name in ("meta.json", "faults.parquet", "losses.parquet"):
        (copy / name).write_bytes((trace / name).read_bytes())
    assert identity(str(copy)) == identity(str(trace)) == identity(f"file://{copy}")
    write_synthetic(SynthSpec("demand-paging", 4, 50, Think(20_000, True), seed=1), copy, force=True)
    assert identity(str(copy)) != identity(str(trace))
    with pytest.raises(UsageError, match="is the same trace as"):
        plan([str(trace), f"file://{trace}"], MECHANISMS, Common(Setup(), ()))


def test_a_url_and_a_bare_file_give_the_numbers_of_the_trace(trace: Path, tmp_path: Path) -> None:
    def totals(address: str, directory: str) -> list[int]:
        done = one_process(make_plan(address), tmp_path / directory)
        return sorted(int(row["total_stall_ns"]) for row in done.rows.values())

    here = totals(str(trace), "a")
    assert totals(f"file://{trace}", "b") == here
    bare = open_address(str(trace / "faults.parquet"))
    assert bare.faults().height == 200
    assert bare.meta.origin == "imported"
    with pytest.raises(IncompleteData, match="copy the trace here"):
        open_address(f"file://{trace}").events()


def test_addresses_with_nothing_behind_them(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such trace"):
        open_address(f"file://{tmp_path}/none.trace")
    with pytest.raises(MissingFeature, match="carrier-pigeon"):
        open_address("carrier-pigeon://x.trace")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(IncompleteData, match="not a whole Parquet file"):
        open_address(str(tmp_path / "bad.parquet"))
    unstitched = tmp_path / "u.trace"
    unstitched.mkdir()
    (unstitched / "meta.json").write_bytes((trace / "meta.json").read_bytes())
    with pytest.raises(IncompleteData, match=r"no faults\.parquet there"):
        open_address(f"file://{unstitched}")


def test_patterns_name_many_traces_here_and_behind_urls(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_synthetic(
            SynthSpec("demand-paging", 4, 50, Think(20_000, True), seed=number), tmp_path / f"h{number}.trace"
        )
    wild = [str(tmp_path / "h*.trace"), f"file://{tmp_path}/h[12].trace", str(tmp_path / "h1.trace")]
    names = [name_of(address) for address in expand(wild)]
    assert names == ["h1", "h2", "h3", "h1", "h2"]
    with pytest.raises(UsageError, match="matches nothing"):
        expand([str(tmp_path / "x*.trace")])
    made = plan(expand(wild[:1]), MECHANISMS, Common(Setup(), ()))
    done = one_process(made, tmp_path / "d")
    (row,) = over_hosts(done).records
    shares = [
        100
        * (
            done.rows[label, MECHANISMS[1], ()]["total_stall_ns"]
            / done.rows[label, MECHANISMS[0], ()]["total_stall_ns"]
            - 1
        )
        for label in made.traces
    ]
    assert row["traces"] == 3
    assert (row["least"], row["median"], row["most"]) == pytest.approx(tuple(sorted(shares)))


def kvm_exit_fails(cell: Task) -> dict[str, Any]:
    if cell.mechanism == "kvm-exit":
        raise FaultreplayError("never")
    return run_cell(cell)


def test_a_cell_that_fails_is_named_and_the_rest_stands(trace: Path, tmp_path: Path) -> None:
    done = sweep(make_plan(trace), partial(workers.here, kvm_exit_fails, jobs=1), tmp_path / "d")
    assert {c.mechanism for c in done.failed} == {"kvm-exit"}
    assert set(done.failed.values()) == {workers.Failure("never")}
    assert len(done.rows) == 3
    assert one_process(make_plan(trace), tmp_path / "d").computed == 3  # a failed cell is run the next time


def test_a_worker_with_other_files_refuses(trace: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(Path(load_mechanism("ideal").file).read_text())
    made = plan([str(trace)], [str(mine)], Common(Setup(), ()))
    mine.write_text(mine.read_text() + "# another version\n")
    with pytest.raises(UsageError, match="another version"):
        run_cell(made.cells[0])
    (cell,) = make_plan(trace, vary=()).cells[:1]
    with pytest.raises(UsageError, match="other cost tables"):
        run_cell(replace(cell, case_key="x", shared_key="of another host"))


def test_command_names_failed_cells(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faultreplay.analysis.explore.sweep.run_cell", kvm_exit_fails)
    ended = run_cli(str(trace), "-m", "uffd-missing,kvm-exit", "--vary", "fetch=1us,2us", "-j", "1")
    assert "failed: small kvm-exit fetch=2.00 us: never" in ended.stdout.replace("\n  ", " ")
    assert str(ended.exception) == "2 of 4 cells failed, each after two tries"


def test_command_prints_tables_and_resumes(trace: Path, tmp_path: Path) -> None:
    arguments = [str(trace), "-m", "uffd-missing,kvm-exit", "--vary", "fetch=1us..1ms:3", "-j", "1"]
    first = run_cli(*arguments, "-o", str(tmp_path / "d"))
    assert first.exit_code == 0, first.output
    assert "small (synthetic): total stall" in first.stdout
    assert "6 cells: 6 computed" in first.stdout
    again = run_cli(*arguments, "-o", str(tmp_path / "d"), "--format", "json")
    document = json.loads(again.stdout)
    assert len(document["records"]) == 6
    assert "6 taken from the data set" in document["notes"][0]
    frame = pl.read_parquet(str(tmp_path / "d" / "**" / "*.parquet"), hive_partitioning=True)
    assert frame.height == 6
    assert set(frame["mechanism"]) == set(MECHANISMS)
    assert set(frame["trace"]) == {"small"}
    assert frame["total_stall_ns"].min() > 0


def test_command_refuses(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    where = run_cli(str(trace), "-m", "kvm-exit", "-o", str(tmp_path / "mine"), "-j", "1")
    assert isinstance(where.exception, UsageError) and "not a sweep's data set" in str(where.exception)
    for arguments, says in (
        ([str(trace)], "-m"),
        ([str(tmp_path / "no.trace"), "-m", "ideal"], "no such trace"),
        ([str(trace), "-m", "no-such"], "no mechanism"),
        ([str(trace), "-m", "ideal", "--vary", "fetch=1us", "--vary", "fetch=2us"], "twice"),
    ):
        refused = run_cli(*arguments)
        assert isinstance(refused.exception, UsageError) and says in str(refused.exception)


def test_dask_is_asked_for_by_name_when_it_is_not_there(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused = run_cli(str(trace), "-m", "kvm-exit", "--dask", "tcp://127.0.0.1:1")
    assert isinstance(refused.exception, MissingFeature)
    assert refused.exception.exit_code == 5 and "faultreplay[dask]" in str(refused.exception)


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as made:
        yield made


@pytest.mark.live  # the dask extra is in the lock: where live tests must run, this one must
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same_rows_even_when_a_worker_is_killed(cluster: Any, tmp_path: Path) -> None:
    traces = []
    for number, kind in enumerate(("demand-paging", "zipf", "phases")):
        traces.append(tmp_path / f"{kind}.trace")
        write_synthetic(SynthSpec(kind, 8, 400, Think(20_000, True), seed=number), traces[-1])
    mechanisms = ["uffd-missing", "kvm-exit", "freeze", "ideal", "as-recorded", "uffd-minor"]
    mechanisms = [m for m in mechanisms if m in list_mechanisms()]
    axes = (parse_axis("fetch=1us..1ms:5", mechanisms), parse_axis("resolve=x0.5..x4:4", mechanisms))
    made = plan([str(t) for t in traces], mechanisms, Common(Setup(), axes))
    assert len(made.points) == 20
    assert len(made.cells) == 3 * len(mechanisms) * 20
    sweep(made, partial(workers.here, run_cell, jobs=2), tmp_path / "pool")

    address = cluster.scheduler_address
    sweep(made, partial(workers.on_dask, run_cell, address=address), tmp_path / "dask")
    assert cells(tmp_path / "pool") == cells(tmp_path / "dask")

    victims = [worker.process.pid for worker in cluster.workers.values()]
    killed = threading.Event()

    def progress(done: int, total: int) -> None:
        if done > total // 4 and not killed.is_set():
            killed.set()
            os.kill(victims[0], signal.SIGKILL)

    done = sweep(made, partial(workers.on_dask, run_cell, address=address), tmp_path / "killed", progress=progress)
    assert killed.is_set() and not done.failed
    assert cells(tmp_path / "killed") == cells(tmp_path / "pool")
    for _ in range(50):  # the nanny starts another one
        if victims[0] not in [worker.process.pid for worker in cluster.workers.values() if worker.process]:
            break
        time.sleep(0.2)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_no_scheduler_no_traceback(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, **more: real(address, **(more | {"timeout": "1s"})))
    refused = run_cli(str(trace), "-m", "kvm-exit", "--dask", "tcp://127.0.0.1:1")
    assert isinstance(refused.exception, FaultreplayError)
    assert "no scheduler answers" in str(refused.exception)
