"""Costs of contention are found again from generated runs; what runs cannot tell is not fitted, and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from faultreplay.analysis.calibrate.contention import descend, fit_contention
from faultreplay.analysis.calibrate.saturated import Row, saturated_rate
from faultreplay.replay.language.costs import CostTable, load_costs
from faultreplay.replay.language.names import CONTENTION

KNOWN = {"lock_contended": 900.0, "mm_share": 220.0, "mm_serial_contended": 1000.0, "mm_once": 800.0, "wake_cold": 60.0}


def generated(truth: CostTable, counts: tuple[int, ...], noise: float = 0.0, seed: int = 1) -> list[Row]:
    """Two repeats of each run of the lab's series, made by the engine."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in counts:
        for series, mechanism, params in (
            ("plain faults", "host-lazy", {}),
            ("KVM exits", "kvm-exit", {}),
            ("one reader", "uffd-missing", {"handlers": 1}),
            ("a reader each", "uffd-missing", {"handlers": n}),
            ("a userfaultfd each", "uffd-sharded", {"shards": n, "handlers": 1}),
        ):
            row = Row(series, mechanism, n, (1.0,), params)
            rate = saturated_rate(row, truth)
            rows.append(replace(row, faults_per_s=tuple(rate * np.exp(noise * rng.standard_normal(2)))))
    return rows


def test_the_costs_of_generated_runs_up_to_64_accessors_are_found_again() -> None:
    shipped = load_costs()
    got = fit_contention(generated(shipped.with_constants(**KNOWN), (1, 2, 8, 64), noise=0.02), shipped, source="made")
    assert set(got.costs) == set(KNOWN)
    assert got.costs.fitted_to == 64
    for name, ns in KNOWN.items():
        cost = got.costs[name]
        assert cost.distribution.mean == pytest.approx(ns, rel=0.1), name
        assert cost.low < ns < cost.high, name
        assert cost.provenance == "measured-host"
    assert set(got.not_told) == {"lock", "mm_serial", "herd_per_reader"}
    assert got.worst_percent < 10


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_uncontended_costs_that_are_wrong_do_not_become_contention(factor: float) -> None:
    """The host is faster or slower in all that one accessor does; how much contention adds comes out all the same."""
    shipped = load_costs()
    known = {"mm_share": 220.0, "mm_once": 800.0}
    others = [name for name in shipped if name not in CONTENTION]
    host = shipped.with_distributions({n: shipped[n].distribution.scaled(factor) for n in others})
    rows = [
        row
        for row in generated(host.with_constants(**known), (1, 2, 4, 16))
        if row.series in ("plain faults", "KVM exits")
    ]
    got = fit_contention(rows, shipped, source="made")
    assert got.alone["plain faults"][0] == pytest.approx(factor * got.alone["plain faults"][1], rel=0.02)
    assert set(got.costs) == set(known)
    for name, ns in known.items():
        assert got.costs[name].distribution.mean == pytest.approx(ns, rel=0.2), name


def test_two_accessors_tell_that_somebody_else_is_there_and_not_how_many() -> None:
    shipped = load_costs()
    rows = [
        row for row in generated(shipped.with_constants(**KNOWN), (1, 2)) if row.series in ("plain faults", "KVM exits")
    ]
    got = fit_contention(rows, shipped, source="made")
    assert set(got.costs) == {"mm_once"}
    once = got.costs["mm_once"]
    assert once.low < 800 < once.high, "its range holds what the shipped mm_share may be worth here"
    assert got.costs.fitted_to == 2
    assert set(got.not_told) == set(CONTENTION) - {"mm_once"}
    assert "leave it open" in got.not_told["mm_share"]


def test_a_host_without_contention_is_told_too() -> None:
    shipped = load_costs()
    rows = [
        row
        for row in generated(shipped.without_contention(), (1, 2, 4, 8))
        if row.series in ("plain faults", "KVM exits")
    ]
    got = fit_contention(rows, shipped.with_constants(mm_once=0), source="made")
    assert got.costs["mm_share"].high < 30
    assert got.costs["mm_once"].high < 100


def test_runs_whose_repeats_differ_are_refused_and_so_is_a_series_without_its_start() -> None:
    shipped = load_costs()
    rows = [row for row in generated(shipped, (1, 2, 4)) if row.series in ("plain faults", "KVM exits")]
    spoiled = {("plain faults", 4), ("KVM exits", 1)}
    rows = [
        replace(row, faults_per_s=(row.rate, 1.3 * row.rate)) if (row.series, row.accessors) in spoiled else row
        for row in rows
    ]
    got = fit_contention(rows, shipped, source="made")
    assert got.refused["plain faults, 4"] == "its repeats differ by 30 %"
    assert "no steady run with one accessor" in got.refused["KVM exits"]
    assert list(got.alone) == ["plain faults"]
    assert got.costs.fitted_to == 2


def test_no_runs_tell_nothing() -> None:
    got = fit_contention([], load_costs(), source="made")
    assert not len(got.costs)
    assert got.costs.fitted_to == 0
    assert set(got.not_told) == set(CONTENTION)


def test_descent_finds_the_lowest_point() -> None:
    got = descend(lambda v: np.log(v["a"] / 30) ** 2 + np.log(v["b"] / 7) ** 6, {"a": 10.0, "b": 10.0}, rounds=7)
    assert got["a"] == pytest.approx(30, rel=0.02)
    assert got["b"] == pytest.approx(7, rel=0.1)
