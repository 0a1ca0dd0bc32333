"""Distributions and cost tables: means and quantiles as theory has them, provenance kept, broken files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultreplay.analysis.calibrate.calibrate import distribution_of
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.costs import Cost, CostTable, Distribution, load_costs, save_costs
from faultreplay.replay.language.names import COST_NAMES, RENAMED, FormerName

SHAPES = [
    Distribution.constant(1_234),
    Distribution.lognormal(30_000, 0.3),
    Distribution.lognormal(2_000, 0.9),
    Distribution.from_quantiles([(0, 100), (0.5, 2_000), (0.99, 9_000), (1, 80_000)]),
    distribution_of(np.random.default_rng(1).gamma(2, 5_000, 4_000).astype(np.int64)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.kind)
def test_samples_have_the_mean_variance_and_quantiles_they_claim(shape: Distribution) -> None:
    drawn = shape.sample(400_000, seed=3)
    assert drawn.dtype == np.int64
    assert drawn.mean() == pytest.approx(shape.mean, rel=0.01)
    assert drawn.std() == pytest.approx(shape.var**0.5, rel=0.05, abs=1)
    for p in (0.01, 0.25, 0.5, 0.9, 0.99, 0.999):
        assert np.quantile(drawn, p) == pytest.approx(shape.quantile(p), rel=0.04, abs=2)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**9)), min_size=1, max_size=8, unique_by=lambda k: k[0]))
def test_a_table_rises_and_stays_within_its_quantiles(points: list[tuple[float, int]]) -> None:
    values = sorted(ns for _, ns in points)
    shape = Distribution.from_quantiles(list(zip(sorted(p for p, _ in points), values, strict=True)))
    table = shape.table_ns()
    assert (np.diff(table) >= 0).all()
    assert values[0] - 1 <= table.min() <= table.max() <= values[-1] + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Distribution.constant(-1),
        lambda: Distribution.constant(float("nan")),
        lambda: Distribution.lognormal(-5, 1),
        lambda: Distribution.lognormal(5, -1),
        lambda: Distribution.from_quantiles([]),
        lambda: Distribution.from_quantiles([(0.1, 5), (0.2, 4)]),
        lambda: Distribution.from_quantiles([(1.1, 5)]),
    ],
)
def test_what_is_no_distribution_is_refused(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # type: ignore[operator]


def test_the_shipped_table_says_where_every_figure_comes_from() -> None:
    table = load_costs()
    for name, cost in table.items():
        assert cost.source, name
        if cost.provenance == "measured-host":
            assert "kernel 6.18" in cost.source, name
    assert set(table) <= set(COST_NAMES)
    missing = set(COST_NAMES) - set(table)
    assert not missing


def test_costs_are_written_and_read_back(tmp_path: Path) -> None:
    table = CostTable(
        {
            name: Cost(shape, "measured-trace", 'a "quoted" source', 7)
            for name, shape in zip(("fault_entry", "fetch", "wake", "resolve", "lock"), SHAPES, strict=True)
        }
    )
    table = table.merge({"wake": Cost(Distribution.constant(3_000), "assumed", "a guess", low=1_500, high=9_000.5)})
    path = tmp_path / "c.toml"
    save_costs(table, path, title="t", host="h", date="2026-11-22")
    back = load_costs(path)
    assert dict(back) == dict(table)
    merged = load_costs().merge(back)
    assert merged["fetch"].provenance == "measured-trace"
    assert merged["kick"].provenance == "assumed"


BROKEN = {
    "[costs.trip]\nvalue = 1": "unknown name",
    "[costs.fault_entry]\nvalue = 1\nprovenance = 'guess'\nsource = 'x'": "provenance must be one of",
    "[costs.fault_entry]\nvalue = 1\nprovenance = 'assumed'": "source must say",
    "[costs.fault_entry]\nvalue = 1\nmedian = 2\nprovenance = 'assumed'\nsource = 'x'": "exactly one of value",
    "[costs.fault_entry]\nprovenance = 'assumed'\nsource = 'x'": "exactly one of value",
    "[costs.fault_entry]\nvalue = 1\ncolour = 2\nprovenance = 'assumed'\nsource = 'x'": "unknown key 'colour'",
    "[costs.fault_entry]\nvalue = -1\nprovenance = 'assumed'\nsource = 'x'": "finite time of 0 ns or more",
    "[costs.fault_entry]\nvalue = 5\nlow = 2\nprovenance = 'assumed'\nsource = 'x'": "low and high go together",
    "[costs.fault_entry]\nvalue = 5\nlow = 8\nhigh = 6\nprovenance = 'assumed'\nsource = 'x'": "high neither below it",
    "[costs.fault_entry]\nvalue = 5\nlow = 6\nhigh = 8\nprovenance = 'assumed'\nsource = 'x'": "not between low and",
    "[costs]\nfault_entry = 3": "must be a table",
    "colour = 3": "unknown key 'colour'",
    "= 3": "not TOML",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_cost_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=BROKEN[text]) as caught:
        load_costs(path)
    assert str(caught.value).startswith(str(path))


def test_a_former_cost_name_is_read_with_a_note_and_once_only(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    entry = 'value = "3us"\nprovenance = "assumed"\nsource = "x"\n'
    for former, today in RENAMED.items():
        path.write_text(f"[costs.{former}]\n{entry}")
        with pytest.warns(FormerName, match=rf"{path}:1: .*the cost '{former}' is now called '{today}'"):
            assert set(load_costs(path)) == {today}
    path.write_text(f"[costs.trap]\n{entry}[costs.fault_entry]\n{entry}")
    with pytest.warns(FormerName), pytest.raises(UsageError, match="'fault_entry' is given twice"):
        load_costs(path)


def test_low_high_derived_and_the_accessors_of_the_fit_are_written_and_read_back(tmp_path: Path) -> None:
    cost = Cost(Distribution.constant(700), "derived", "a difference of two rows", low=500.0, high=900.0)
    table = CostTable({"resolve": cost, "fault_entry": Cost(Distribution.constant(5), "assumed", "x")})
    path = tmp_path / "c.toml"
    save_costs(table, path, title="t", fitted_to=64)
    read = load_costs(path)
    assert (read["resolve"].low, read["resolve"].high, read["resolve"].provenance) == (500, 900, "derived")
    assert read["fault_entry"].high == 0
    assert read.fitted_to == 64
    assert load_costs().merge(read).fitted_to == 64


def test_a_cost_without_a_part_of_it_is_shorter_by_that_part() -> None:
    assert Distribution.constant(700.0).less(200) == Distribution.constant(500.0)
    assert Distribution.constant(700.0).less(900) == Distribution.constant(0.0)
    for whole in (Distribution.lognormal(2_000.0, 0.4), Distribution.from_quantiles([(0.0, 100.0), (1.0, 900.0)])):
        assert whole.less(0) == whole
        assert whole.less(50).quantile(0.5) == pytest.approx(whole.quantile(0.5) - 50, rel=0.01)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="cannot be taken off"):
            Distribution.constant(1.0).less(bad)


def test_draws_lie_between_their_knots_of_the_table() -> None:
    """Between two levels of the table a draw is in between: never below the lower, never above the upper."""
    drawn = Distribution.from_quantiles([(0.0, 1_000.0), (1.0, 257_000.0)]).sample(20_000, seed=3)
    assert drawn.min() >= 1_000
    assert drawn.max() <= 257_000
    assert abs(drawn.mean() - 129_000) < 5 * 256_000 / 12**0.5 / 20_000**0.5
    assert abs(np.quantile(drawn, 0.25) - 65_000) < 2_500
    steep = Distribution.from_quantiles([(0.0, 0.0), (0.5, 0.0), (0.5001, 1e6), (1.0, 1e6)]).sample(20_000, seed=3)
    assert steep.min() >= 0 and steep.max() <= 1_000_000
