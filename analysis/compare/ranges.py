"""How far each cost may be from its figure: one relative spread a cost, and draws from it.

A spread is the standard deviation of the logarithm. A cost file states a range (`low`, `high`) that holds the figure
nine times in ten; where it states none, the defaults below stand, and the notes say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.sources import CostSource, Origin
from faultreplay.analysis.judge.bootstrap import mean_sd
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.distributions import Distribution

Floats = npt.NDArray[np.float64]

LEVEL: Final = 0.9
_Z: Final = NormalDist().inv_cdf(0.5 + LEVEL / 2)
ENVIRONMENT: Final = frozenset({"fetch", "swap_in"})
"""Costs of where content comes from, not of the host's kernel: the same whatever the mechanism."""
FOREIGN_FACTOR: Final = 3.5
"""A foreign cost without a range may be so many times less or more: `reenter` of two PVM hosts is 17.8 and 61.6 us."""
OWN_PERCENT: Final = 10.0
"""Standard deviation of an own cost from run to run and from mechanism to mechanism: docs/validation.md, fetch 0."""
OWN_ENVIRONMENT_PERCENT: Final = 1.0
"""The same of a fetch, which no scheduler makes."""
_COMMON: Final = 0.5
"""Share of the variance of foreign costs that they have in common: another machine is slower in all of them."""


@dataclass(frozen=True)
class CostSpread:
    """Relative standard deviations of one cost, in logarithms."""

    own: float
    """of a cost of this host: from its samples and from run to run"""
    foreign: float
    """of a cost of other hardware"""
    stated: bool
    """`low` and `high` stand in the cost's file"""


def spread_of(name: str, cost: Cost, source: CostSource, samples: npt.NDArray[np.int64] | None = None) -> CostSpread:
    """How far one cost may be off.

    Args:
        name: of the cost.
        cost: its figure, and its range if it states one.
        source: whose figure it is.
        samples: what it was fitted on, in order of time, if this trace showed it.
    """
    width = stated_width(cost)
    if source.foreign:
        return CostSpread(0.0, math.log(FOREIGN_FACTOR) / _Z if width is None else width, width is not None)
    if source.origin is Origin.FILE:
        return CostSpread(width or 0.0, 0.0, width is not None)
    usual = (OWN_ENVIRONMENT_PERCENT if name in ENVIRONMENT else OWN_PERCENT) / 100
    fit = 0.0
    if samples is not None and len(samples) > 1:
        mean = float(samples.mean())
        fit = mean_sd(samples) / mean if mean > 0 else 0.0
    return CostSpread(math.hypot(usual, fit, width or 0.0), 0.0, width is not None)


def stated_width(cost: Cost) -> float | None:
    """Standard deviation of the logarithm by the file's own range; None where it states none."""
    return math.log(cost.high / cost.low) / (2 * _Z) if cost.low and cost.high else None


def factors(spreads: Mapping[str, CostSpread], draws: int, seed: int) -> dict[str, tuple[Floats, Floats]]:
    """Cost -> factors (own, foreign), `draws` of each, stratified so that few draws fill the range (Latin hypercube).

    The same seed gives a cost the same factors whichever other costs are drawn: rows that share it move together.
    """
    common = _normal(draws, seed, "")
    found = {}
    for name, spread in spreads.items():
        mine = _normal(draws, seed, name)
        foreign = math.sqrt(_COMMON) * common + math.sqrt(1 - _COMMON) * mine
        found[name] = np.exp(spread.own * mine), np.exp(spread.foreign * foreign)
    return found


def scaled(cost: Cost, factor: float) -> Cost:
    """The same cost, `factor` times as long, whatever the CPU."""

    def longer(shape: Distribution | None) -> Distribution | None:
        return None if shape is None else shape.scaled(factor)

    return replace(
        cost,
        distribution=cost.distribution.scaled(factor),
        on_idle_cpu=longer(cost.on_idle_cpu),
        on_busy_cpu=longer(cost.on_busy_cpu),
        low=cost.low * factor,
        high=cost.high * factor,
    )


def drawn(costs: CostTable, by: Mapping[str, float]) -> CostTable:
    """`costs` with some of them longer by a factor."""
    return costs.merge({name: scaled(costs[name], factor) for name, factor in by.items() if factor != 1})


def _normal(draws: int, seed: int, name: str) -> Floats:
    rng = np.random.default_rng([seed, *name.encode()])
    levels = (rng.permutation(draws) + 0.5) / draws
    quantile = NormalDist().inv_cdf
    return np.array([quantile(float(level)) for level in levels])
