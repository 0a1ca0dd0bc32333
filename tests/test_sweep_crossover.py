"""Where the ranking changes, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest

from faultreplay.analysis.explore.axes import Axis, grid, parse_axis, part_of
from faultreplay.analysis.explore.crossover import Values, crossings, excess
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.costs import load_costs

FETCH = Axis("", "fetch", "ns", (10.0, 100.0, 1000.0))


def along(axis: Axis, **lines: list[float]) -> Values:
    return {((axis.key, x),): {m: v[i] for m, v in lines.items()} for i, x in enumerate(axis.values)}


def test_two_lines_cross_where_their_difference_is_zero() -> None:
    values = along(FETCH, a=[1.0, 2.0, 9.0], b=[2.0, 3.0, 6.0])
    (found,) = [c for c in crossings("t", [FETCH], values, tolerance=100) if c.what == "order"]
    assert (found.first, found.second) == ("a", "b")  # a is better below
    assert (found.low, found.high) == (100.0, 1000.0)
    # a - b: -1 at 100, +3 at 1000: a quarter of the way in log x
    assert found.at == pytest.approx(10 ** (2 + 0.25))


def test_fetch_latency_above_which_the_mechanism_no_longer_matters() -> None:
    # fixed costs 4 and 2 on top of the fetch: (x + 4) / (x + 2) - 1 = 10 % at x = 18
    axis = parse_axis("fetch=1ns..10000ns:200", [])
    values = along(axis, slow=[x + 4 for x in axis.values], quick=[x + 2 for x in axis.values])
    (found,) = crossings("t", [axis], values, tolerance=0.10)
    assert found.what == "alike"
    assert found.at == pytest.approx(18, rel=0.03)
    assert found.low <= found.at <= found.high


def test_a_tie_at_a_point_is_part_of_one_change() -> None:
    values = along(FETCH, a=[1.0, 2.0, 3.0], b=[2.0, 2.0, 2.0])
    found = crossings("t", [FETCH], values, tolerance=100)
    assert [(c.low, c.high) for c in found] == [(10.0, 1000.0)]
    touching = along(FETCH, a=[1.0, 2.0, 1.0], b=[2.0, 2.0, 2.0])
    assert crossings("t", [FETCH], touching, tolerance=100) == []


def test_rails_and_single_mechanisms_have_no_rank() -> None:
    values = along(FETCH, a=[1.0, 2.0, 3.0], ideal=[2.0, 0.0, 4.0])
    assert crossings("t", [FETCH], values) == []
    assert excess({"a": 1.0, "ideal": 0.0}) is None
    assert excess({"a": 0.0, "b": 1.0}) == math.inf
    assert excess({"a": 2.0, "b": 3.0}) == pytest.approx(0.5)


def test_each_value_of_another_axis_is_a_line_of_its_own() -> None:
    other = Axis("a", "handlers", "number", (1.0, 2.0))
    values: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}
    for point in grid([other, FETCH]):
        here = dict(point)
        values[point] = {"a": 10.0 / here["a.handlers"], "b": here["fetch"] / 20}
    found = [c for c in crossings("t", [other, FETCH], values, tolerance=1e6) if c.axis == "fetch"]
    assert [c.others for c in found] == [(("a.handlers", 1.0),), (("a.handlers", 2.0),)]
    assert all(c.low == 100 if c.others[0][1] == 1 else c.low == 10 for c in found)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fetch=10us,1ms", (10_000.0, 1_000_000.0)),
        ("fetch=1us..100us:3", (1_000.0, 10_000.0, 100_000.0)),
        ("fetch=x0.5,x2", (0.5, 2.0)),
        ("fetch=x1..x4:3", (1.0, 2.0, 4.0)),
        ("uffd-missing.handlers=1..8:4", (1.0, 2.0, 4.0, 8.0)),
        ("uffd-missing.handlers=1,1,2", (1.0, 2.0)),
        ("uffd-missing.granule=4K,2M", (4096.0, 2097152.0)),
        ("kvm-exit.fallback.handlers=1,2", (1.0, 2.0)),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[float, ...]) -> None:
    axis = parse_axis(text, ["uffd-missing", "kvm-exit"])
    assert axis.values == values
    assert axis.key == text.partition("=")[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fetch", "write NAME=VALUES"),
        ("fetch=10", "not a duration"),
        ("fetch=1ms..1us", "goes up"),
        ("fetch=1us..1ms:1", "2 to 1000 points"),
        ("fech=1us", "no cost"),
        ("freeze.granule=4K", "not in this sweep"),
        ("uffd-missing.readers=1", "no parameter 'readers': did you mean 'handlers'"),
        ("uffd-missing.handlers=0,1", "out of bounds"),
        ("uffd-missing.handlers=two", "not a number"),
    ],
)
def test_axes_that_mean_nothing_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_axis(text, ["uffd-missing"])


def test_a_point_is_cut_to_what_touches_a_mechanism() -> None:
    axes = [parse_axis(t, ["uffd-missing", "kvm-exit"]) for t in ("uffd-missing.handlers=1,2", "fetch=1us,2us")]
    point = grid(axes)[3]
    assert part_of(point, axes, "uffd-missing") == point
    assert part_of(point, axes, "kvm-exit") == (("fetch", 2000.0),)
    assert "fetch" in load_costs()
