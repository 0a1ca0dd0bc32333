"""The intervals hold what they promise, where promises are hard: on autocorrelated series."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from faultreplay.analysis.judge import bootstrap
from faultreplay.analysis.judge.bootstrap import block_length, intervals, mean_sd, wasserstein

VALUES = st.lists(st.integers(0, 1000), min_size=1, max_size=40)


def ar1(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    noise = rng.standard_normal(n)
    series = np.empty(n)
    series[0] = noise[0] / np.sqrt(1 - phi**2)
    for i in range(1, n):
        series[i] = phi * series[i - 1] + noise[i]
    return series


def mean_of_all(groups: list[np.ndarray]) -> np.ndarray:
    return np.array([groups[0].mean()])


@given(VALUES, VALUES)
def test_wasserstein_is_scipys(one: list[int], other: list[int]) -> None:
    assert wasserstein(one, other) == pytest.approx(stats.wasserstein_distance(one, other))


def test_wasserstein_of_nothing_is_no_number() -> None:
    assert np.isnan(wasserstein([], [1]))


def test_interval_of_the_mean_covers_on_ar1_where_single_draws_do_not() -> None:
    rng = np.random.default_rng(11)
    trials, n, phi = 200, 500, 0.6
    covered = {"blocks": 0, "singles": 0}
    for trial in range(trials):
        series = ar1(rng, n, phi)
        (got,) = intervals([[series]], mean_of_all, seed=trial, replicates=200)
        covered["blocks"] += got.low <= 0 <= got.high
        singles = rng.choice(series, (200, n)).mean(axis=1)
        low, high = np.quantile(singles, [0.025, 0.975])
        covered["singles"] += low <= 0 <= high
    assert covered["blocks"] / trials > 0.87  # nominal 0.95; finite blocks cost some points
    assert covered["singles"] / trials < 0.80


def test_a_long_series_is_gone_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    series = ar1(np.random.default_rng(2), 5000, 0.8) + 10
    other = np.random.default_rng(3).exponential(7, 4000)
    whole = (block_length(series), mean_sd(series), wasserstein(series, other))
    monkeypatch.setattr(bootstrap, "_WHOLE", 256)
    assert block_length(series) == whole[0]
    assert (mean_sd(series), wasserstein(series, other)) == pytest.approx(whole[1:], rel=1e-9)


def test_block_length_grows_with_the_memory_of_the_series() -> None:
    rng = np.random.default_rng(5)
    lengths = [np.mean([block_length(ar1(rng, 2000, phi)) for _ in range(10)]) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < 4
    assert lengths[0] < lengths[1] < lengths[2]
    assert 6 < lengths[1] < 25  # theory for phi = 0.5, n = 2000: (1.5 * (4/3)^2 * 2000)^(1/3) = 17.5
    assert block_length(np.ones(100)) == 1
    assert block_length([1, 2, 3]) == 1


def test_columns_of_one_series_stay_together_and_seeds_repeat() -> None:
    rng = np.random.default_rng(1)
    measured = rng.exponential(100.0, 400)
    pairs = np.column_stack((measured * 1.1, measured))

    def error(groups: list[np.ndarray]) -> np.ndarray:
        return np.array([groups[0][:, 0].sum() / groups[0][:, 1].sum() - 1])

    (got,) = intervals([[pairs]], error, replicates=50)
    assert got.low == pytest.approx(0.1)
    assert got.high == pytest.approx(0.1)

    def apart(groups: list[np.ndarray]) -> np.ndarray:
        return np.array([groups[0].sum() / groups[1].sum() - 1])

    (wide,) = intervals([[pairs[:, 0]], [pairs[:, 1]]], apart, replicates=200)
    assert wide.low < 0.05
    assert wide.high > 0.15
    assert intervals([[measured]], mean_of_all, seed=3) == intervals([[measured]], mean_of_all, seed=3)
    assert intervals([[measured]], mean_of_all, seed=3) != intervals([[measured]], mean_of_all, seed=4)


def test_an_accessor_without_faults_does_no_harm() -> None:
    (got,) = intervals([[np.zeros(0), np.arange(50.0)]], mean_of_all, replicates=20)
    assert 0 < got.low < got.high < 49
