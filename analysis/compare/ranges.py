"""How far each cost may be from its figure: one relative spread a cost, and draws from it.

A spread is the standard deviation of the logarithm. A cost file states a range (`low`, `high`) that contains the figure
with 90 %; without one the defaults below apply, and the notes say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.sources import CostSource, Origin
from faultreplay.analysis.judge.bootstrap import mean_sd
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.distributions import Distribution

Floats = npt.NDArray[np.float64]

LEVEL: Final = 0.9
_Z: Final = NormalDist().inv_cdf(0.5 + LEVEL / 2)
ENVIRONMENT: Final = frozenset({"fetch", "swap_in", "storage_read"})
"""Costs of where content comes from, not of the host's kernel: the same whatever the mechanism."""
FOREIGN_FACTOR: Final = 3.5
"""A foreign cost without a range may be smaller or larger by this factor: `reenter` of two PVM hosts is 17.8 and 61.6
us."""
RUN_PERCENT: Final = 13.0
"""Standard deviation of all own costs together from one run to another: a host is faster or slower as a whole."""
OWN_PERCENT: Final = 12.0
"""The same of each own cost by itself, in another run of the mechanism that showed it."""
ELSEWHERE_PERCENT: Final = 17.0
"""The same of each own cost in a run of another mechanism. All three by method of moments over 48 runs of 4 mechanisms,
of which the intervals are not judged (docs/validation.md)."""
OWN_ENVIRONMENT_PERCENT: Final = 3.0
"""The same of a fetch: a timer or a network makes it,"""
FETCH_WORK_NS: Final = 1200.0
"""and the work of a handler around it, which differs between mechanisms by so much,"""
FETCH_WORK_PERCENT: Final = 35.0
"""or by so much where the fetch is nothing else."""
_INT32: Final = np.iinfo(np.int32).max
_COMMON: Final = 0.5
"""Share of the variance of foreign costs that they have in common: another machine is slower in all of them."""


@dataclass(frozen=True)
class CostSpread:
    """Relative standard deviations of one cost, in logarithms."""

    own: float
    """of a cost of this host by itself: from its samples, its stated range, from run to run"""
    foreign: float
    """of a cost of other hardware"""
    stated: bool
    """`low` and `high` are given in the cost's file"""
    run: float = 0.0
    """of all costs of this host together, from run to run"""


class FitSamples:
    """What costs were fitted on, until it is asked how sure their means are: then only that is kept."""

    def __init__(self) -> None:
        self._samples: dict[str, npt.NDArray[np.integer[Any]]] = {}
        self._sd: dict[str, float] = {}

    def take(self, samples: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Samples of each cost in order of time, ns, in place of those before."""
        narrow = {
            name: values.max(initial=0) <= _INT32 and values.min(initial=0) >= 0 for name, values in samples.items()
        }
        self._samples = {n: v.astype(np.int32) if narrow[n] else v for n, v in samples.items()}
        self._sd = {}

    def mean_sd(self, name: str) -> float:
        """Relative standard deviation of that cost's mean: the trace is finite. 0 where it was not fitted."""
        samples = self._samples.pop(name, None)
        if samples is not None:
            mean = float(samples.mean()) if len(samples) > 1 else 0.0
            self._sd[name] = mean_sd(samples) / mean if mean > 0 else 0.0
        return self._sd.get(name, 0.0)


def spread_of(
    name: str,
    cost: Cost,
    source: CostSource,
    samples: FitSamples | None = None,
    *,
    elsewhere: bool = False,
) -> CostSpread:
    """How far one cost may be off.

    Args:
        name: of the cost.
        cost: its figure, and its range if it states one.
        source: whose figure it is.
        samples: what it was fitted on, if this trace showed it.
        elsewhere: the replay is one of another mechanism than the trace's, or the cost is of other runs.
    """
    width = stated_width(cost)
    if source.foreign:
        return CostSpread(0.0, math.log(FOREIGN_FACTOR) / _Z if width is None else width, width is not None)
    if source.origin is Origin.FILE:
        return CostSpread(width or 0.0, 0.0, width is not None)
    fit = samples.mean_sd(name) if samples is not None else 0.0
    if name in ENVIRONMENT:
        work = min(FETCH_WORK_NS / max(cost.distribution.mean, 1.0), FETCH_WORK_PERCENT / 100)
        usual = math.hypot(OWN_ENVIRONMENT_PERCENT / 100, work if elsewhere else 0.0)
        return CostSpread(math.hypot(usual, fit, width or 0.0), 0.0, width is not None)
    usual = (ELSEWHERE_PERCENT if elsewhere else OWN_PERCENT) / 100
    return CostSpread(math.hypot(usual, fit, width or 0.0), 0.0, width is not None, RUN_PERCENT / 100)


def placements(costs: Mapping[str, Cost]) -> tuple[dict[str, float], dict[str, float]]:
    """Factors of the costs of woken threads if all CPUs that they wake up on were busy, and if all were idle.

    A cost's mean is the mixture of the runs that showed it; threads of another mechanism are placed otherwise, which
    only a replay with host CPUs knows. Costs that no run showed both ways are left out.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name, cost in costs.items():
        means = [part.mean for part in (cost.on_idle_cpu, cost.on_busy_cpu) if part is not None and part.mean > 0]
        mean = cost.distribution.mean
        if len(means) == 2 and mean > 0:
            low[name], high[name] = min(*means, mean) / mean, max(*means, mean) / mean
    return low, high


def stated_width(cost: Cost) -> float | None:
    """Standard deviation of the logarithm by the file's own range; None where it states none."""
    return math.log(cost.high / cost.low) / (2 * _Z) if cost.low and cost.high else None


def factors(spreads: Mapping[str, CostSpread], draws: int, seed: int) -> dict[str, tuple[Floats, Floats]]:
    """Cost -> factors (own, foreign), `draws` of each, stratified so that few draws fill the range (Latin hypercube).

    The same seed gives a cost the same factors whichever other costs are drawn: rows that share it move together.
    """
    common, run = (_normal(draws, seed, name) for name in ("", ":run"))
    found = {}
    for name, spread in spreads.items():
        mine = _normal(draws, seed, name)
        foreign = math.sqrt(_COMMON) * common + math.sqrt(1 - _COMMON) * mine
        found[name] = np.exp(spread.own * mine + spread.run * run), np.exp(spread.foreign * foreign)
    return found


def scaled(cost: Cost, factor: float) -> Cost:
    """The same cost, `factor` times as long, whatever the CPU."""

    def longer(shape: Distribution | None) -> Distribution | None:
        return None if shape is None else shape.stretched(factor)

    return replace(
        cost,
        distribution=cost.distribution.stretched(factor),
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
