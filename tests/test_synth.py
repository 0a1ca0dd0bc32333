"""Synthetic traces: what is in them, that they are never taken for recordings, and that size costs no Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from faultreplay.cli.main import main
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.faults import workload_from_faults
from faultreplay.replay.workload.synth import SynthSpec, Think, synthesize, write_synthetic
from faultreplay.replay.workload.workload import Workload


def reread(path: Path) -> Workload:
    trace = open_trace(path)
    return workload_from_faults(trace.faults(), meta=trace.meta)


@pytest.mark.parametrize("kind", ["demand-paging", "zipf", "phases"])
def test_the_trace_holds_the_workload(tmp_path: Path, kind: str) -> None:
    spec = SynthSpec(kind, 3, 200, Think.parse("exp:20us"), seed=5)
    made = synthesize(spec)
    path = tmp_path / "x.trace"
    assert write_synthetic(spec, path) == made.faults
    read = reread(path)
    assert read.origin == "synthetic"
    np.testing.assert_array_equal(read.accessor_start, made.accessor_start)
    np.testing.assert_array_equal(read.think_ns, made.think_ns)
    np.testing.assert_array_equal(read.page - read.page.min(), made.page - made.page.min())
    assert (read.recorded_stall_ns == -1).all()
    assert not read.tail_ns.any()
    assert not read.notes
    mechanism, costs = load_mechanism("uffd-missing"), load_costs()
    np.testing.assert_array_equal(simulate(read, mechanism, costs).stall_ns, simulate(made, mechanism, costs).stall_ns)


def test_faults_of_a_synthetic_trace_are_never_stitched_away(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    write_synthetic(SynthSpec("demand-paging", 2, 10, Think(1000)), path)
    assert open_trace(path).faults(rebuild=True).height == 20
    (path / "faults.parquet").unlink()
    with pytest.raises(IncompleteData, match="synthetic trace has nothing else"):
        open_trace(path).faults()


def test_demand_paging_touches_each_page_once_in_order() -> None:
    work = synthesize(SynthSpec("demand-paging", 4, 50, Think(7)))
    np.testing.assert_array_equal(work.page, np.arange(200))
    assert (work.think_ns == 7).all()


def test_zipf_pages_are_shared_and_skewed() -> None:
    work = synthesize(SynthSpec("zipf", 4, 20_000, Think(100), seed=1, skew=1.0))
    owner = work.accessor_of_row()
    pairs = owner.astype(np.int64) << 32 | work.page
    assert np.unique(pairs).size == work.faults  # one vCPU's second touch is no fault
    by_page = np.bincount(work.page)
    assert (by_page == 4).sum() > 100  # the popular ones are everybody's
    assert work.faults < 4 * 20_000
    # sum of think times is that of the accesses: a repeated touch still takes its think time
    last = work.accessor_start[1:] - 1
    total = np.add.reduceat(work.think_ns, work.accessor_start[:-1])
    assert (total <= 20_000 * 100).all() and (total > 19_000 * 100).all() and last.size == 4
    uniform = synthesize(SynthSpec("zipf", 4, 20_000, Think(100), seed=1, skew=0))
    assert uniform.faults > work.faults


def test_phases_pause_between_bursts() -> None:
    work = synthesize(SynthSpec("phases", 2, 100, Think(1000), phases=5, quiet_ns=1_000_000))
    pauses = np.flatnonzero(work.think_ns > 1000)
    np.testing.assert_array_equal(pauses, [20, 40, 60, 80, 120, 140, 160, 180])


def test_no_pause_before_the_first_burst_and_the_ends_of_the_bounds() -> None:
    """Fewer pages than phases: the first bursts are empty, and nobody pauses before it began."""
    work = synthesize(SynthSpec("phases", 1, 2, Think(1000), phases=4, quiet_ns=1_000_000))
    assert work.think_ns[0] == 1000
    for skew in (0.0, 10.0):
        assert synthesize(SynthSpec("zipf", 1, 20, Think(1000), skew=skew)).faults >= 1
    with pytest.raises(UsageError, match="not between 0"):
        SynthSpec("zipf", 1, 20, Think(1000), skew=10.1)


def test_seed_decides() -> None:
    def think(seed: int) -> list[int]:
        return synthesize(SynthSpec("demand-paging", 2, 20, Think(1000, True), seed)).think_ns.tolist()

    assert think(1) == think(1) != think(2)
    many = Think(20_000, True).draw(100_000, np.random.default_rng(0))
    assert abs(many.mean() - 20_000) < 5 * 20_000 / 100_000**0.5
    assert abs(many.std() - 20_000) < 500  # as wide as long: exponential


@pytest.mark.parametrize("bad", ["20", "lognormal:20us", "exp:", "exp:20"])
def test_think_is_checked(bad: str) -> None:
    with pytest.raises(UsageError):
        Think.parse(bad)


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "x.trace"
    arguments = ["synth", "zipf", "--vcpus", "2", "--pages", "50", "--seed", "3", "-o", str(path)]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "synthetic faults of 2 vCPUs" in first.output
    assert open_trace(path).meta.command[:3] == ["faultreplay", "synth", "zipf"]
    again = CliRunner().invoke(main, arguments)
    assert isinstance(again.exception, UsageError) and "--force" in str(again.exception)


@pytest.mark.slow
def test_ten_million_faults(tmp_path: Path) -> None:
    spec = SynthSpec("demand-paging", 64, 156_250, Think(20_000, True))
    assert write_synthetic(spec, tmp_path / "big.trace") == 10_000_000
    assert reread(tmp_path / "big.trace").faults == 10_000_000
