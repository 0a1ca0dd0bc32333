"""The shipped mechanisms and costs reproduce the published vCPU tables (docs/scaling.md is made of the same code)."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from faultreplay.replay.language.costs import load_costs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def law() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_law", BENCHMARKS / "scaling_law.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_law"] = module
    spec.loader.exec_module(module)
    return module


def test_all_published_figures_are_within_a_quarter_and_in_order(law: ModuleType) -> None:
    costs = load_costs()
    there = law.figures()
    assert len(there) == 42
    here = {key: law.rate(law.setup(key[0], key[1], key[2]), key[2], costs) for key in there}
    errors = {key: here[key] / there[key] - 1 for key in there}
    assert max(errors.values()) < 0.25, errors
    assert min(errors.values()) > -0.25, errors
    for block, rows in law.BLOCKS.items():
        for vcpus in law.VCPUS:
            names = [row for row in law.ROWS if row in rows]
            published = sorted(names, key=lambda row: there[block, row, vcpus])
            model = sorted(names, key=lambda row: here[block, row, vcpus])
            for first, second in itertools.pairwise(published):
                apart = there[block, second, vcpus] / there[block, first, vcpus]
                if apart > 1.15:  # figures closer than that are in no order between runs
                    assert model.index(first) < model.index(second), (block, vcpus, first, second)


def test_a_fit_finds_the_costs_that_made_the_figures(law: ModuleType) -> None:
    """Generated figures of known costs, up to 64 accessors: the costs of contention come out."""
    costs = load_costs()
    known = {"lock_contended": 900.0, "mm_share": 220.0, "mm_serial_contended": 1100.0}
    truth = law.with_values(costs, known)
    keys = [key for key in law.figures() if key[0] != "anon-one-uffd"]
    made = {key: law.rate(law.setup(*key), key[2], truth) for key in keys}
    found = law.fit(costs, made, tuple(known), rounds=7)
    for name, value in known.items():
        assert found[name].distribution.mean == pytest.approx(value, rel=0.1), name


def test_the_costs_say_how_far_they_were_fitted_and_every_one_has_a_range() -> None:
    costs = load_costs()
    assert costs.fitted_to == 64
    for name, cost in costs.items():
        assert 0 < cost.low <= cost.distribution.mean <= cost.high, name
        assert cost.source
