"""Costs of contention, fitted to saturated runs with 1, 2, 4 ... accessors: figures in, costs with ranges out.

The time of one accessor alone is no contention: each series of runs is first matched with its own run of one accessor,
so that only the growth is left to explain. Costs that the runs cannot separate are not fitted, but named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.calibrate.saturated import NOISE, Row, saturated_rate
from faultreplay.replay.language.costs import Cost, CostTable, load_costs
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.names import CONTENTION

ALONE: Final = ("lock", "mm_serial")
"""Held by one accessor alone, too: it is part of everything else that it takes and cannot be separated."""
FITTED: Final = tuple(name for name in CONTENTION if name not in ALONE)
REPEATS_PERCENT: Final = 25.0
"""Two repeats of a run that differ by more: nothing is fitted to it."""
_TOLD: Final = 0.5
"""A cost is told by the rows if the half of its 90 % range is at most this share of it, or half as much of what it
is elsewhere (a cost that is next to nothing is told, too)."""
_Z: Final = NormalDist().inv_cdf(0.95)
_FLOOR_NS: Final = 1.0
_MOST: Final = 50.0
"""times what a cost is elsewhere"""
_NARROWEST: Final = 0.02
_ROUNDS: Final = 12
_SETTLED: Final = 0.003
_MOVES: Final = 0.005
"""A row depends on a cost if all of it changes the row's rate by more than this share."""
_ALIKE: Final = 1e4
"""Condition of the scaled slopes from which on costs move the rows alike."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ContentionFit:
    """What growing runs show of the costs of contention."""

    costs: CostTable
    """only the fitted ones; its `fitted_to` holds for each of them"""
    not_told: Mapping[str, str]
    """cost -> why these rows do not tell it"""
    refused: Mapping[str, str]
    """row or series -> why nothing was fitted to it"""
    alone: Mapping[str, tuple[float, float]]
    """series -> (ns a fault of one accessor, measured; the same by the uncontended costs)"""
    worst_percent: float = 0.0
    """the largest error of a row that was fitted to"""


def fit_contention(
    rows: Sequence[Row], costs: CostTable, *, source: str, names: Sequence[str] = FITTED, name: str = ""
) -> ContentionFit:
    """The costs of contention that `rows` tell; every other cost is as in `costs`.

    Args:
        rows: with one of 1 accessor in each series.
        costs: uncontended costs of the same host; those of contention are where the fit begins.
        source: of the figures, for the provenance.
        names: the costs to fit.
        name: of the table that comes out.
    """
    kept, refused = _usable(rows)
    alone, grown = _grown(kept, costs)
    problem = _Problem(grown, costs, names)
    values = dict(problem.start)
    active = [n for n in names if grown and problem.reach(values, n)]
    not_told = {n: "one accessor alone takes it, too: it is in its costs already" for n in ALONE}
    not_told |= {n: f"changes no run by more than {100 * _MOVES:g} %" for n in names if n not in active}
    while active:
        # What cannot be determined keeps its value; the rest is fitted again.
        worst = problem.least_told(values, active, fitted=False)
        if worst is None:
            values = problem.solve(active)
            worst = problem.least_told(values, active)
        if worst is None:
            break
        name_of, percent = worst
        not_told[name_of] = (
            f"these runs leave it open by {percent:.0f} %" if percent < 1e3 else "cannot be told from others"
        )
        active.remove(name_of)
        values = dict(problem.start)
    spread = problem.spread(values, active, others=True) if active else {}
    found = {n: _cost(values[n], spread[n], source, len(grown)) for n in active}
    table = CostTable(found, name, fitted_to=min((problem.reach(values, n) for n in active), default=0))
    errors = np.abs(np.expm1(problem.residuals(values))) if active else np.zeros(1)
    return ContentionFit(table, not_told, refused, alone, 100 * float(errors.max()))


def descend(
    loss: Callable[[Mapping[str, float]], float], start: Mapping[str, float], rounds: int, step: float = 1.25
) -> dict[str, float]:
    """Values with a small `loss`: coordinate descent by factors of `step`, which shrinks to its root each round.

    For losses of any shape: one cost affects few rows, and a simulation has no gradient.
    """
    values = dict(start)
    best = loss(values)
    for _ in range(rounds):
        for name in values:
            best = _line(loss, values, name, step, best)
        step = math.sqrt(step)
    return values


def _line(
    loss: Callable[[Mapping[str, float]], float], values: dict[str, float], name: str, step: float, best: float
) -> float:
    """Move one value by factors of `step` as long as that helps."""
    for factor in (step, 1 / step):
        moved = False
        while True:
            tried = {**values, name: values[name] * factor}
            here = loss(tried)
            if here >= best:
                break
            values[name], best, moved = tried[name], here, True
        if moved:
            break
    return best


@dataclass(frozen=True)
class _Grown:
    """A row of more than one accessor, with the costs that meet the run of one accessor in its series."""

    row: Row
    costs: CostTable
    outside_ns: int
    noise: float

    def residual(self, values: Mapping[str, float]) -> float:
        """Logarithm of simulated over measured."""
        table = self.costs.with_constants(**values)
        return math.log(saturated_rate(self.row, table, self.outside_ns) / self.row.rate)


def _usable(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    refused, steady = {}, []
    for row in rows:
        if row.differ_percent > REPEATS_PERCENT:
            refused[f"{row.series}, {row.accessors}"] = f"its repeats differ by {row.differ_percent:.0f} %"
        else:
            steady.append(row)
    kept = []
    for series in dict.fromkeys(row.series for row in rows):
        mine = [row for row in steady if row.series == series]
        counts = {row.accessors for row in mine}
        if 1 not in counts:
            refused[series] = "no steady run with one accessor to start from"
        elif counts == {1}:
            refused[series] = "no steady run with more than one accessor"
        else:
            kept += mine
    return kept, refused


def _grown(rows: Sequence[Row], costs: CostTable) -> tuple[dict[str, tuple[float, float]], list[_Grown]]:
    """Each series made to meet its run with one accessor.

    What that takes longer than the costs say passes outside of faults (no tracepoint shows a world switch, and a replay
    keeps it in the think times); where it takes less, the uncontended costs are scaled down.
    """
    alone: dict[str, tuple[float, float]] = {}
    grown = []
    for one in (row for row in rows if row.accessors == 1):
        measured_ns, model_ns = 1e9 / one.rate, 1e9 / saturated_rate(one, costs)
        alone[one.series] = (measured_ns, model_ns)
        table, outside_ns = costs, max(round(measured_ns - model_ns), 0)
        if measured_ns < model_ns:
            uncontended_ns = 1e9 / saturated_rate(one, costs.without_contention())
            held_ns = model_ns - uncontended_ns
            factor = max(measured_ns - held_ns, 0.01 * measured_ns) / uncontended_ns
            others = [name for name in costs if name not in CONTENTION]
            table = costs.with_distributions({name: costs[name].distribution.scaled(factor) for name in others})
        grown += [
            _Grown(row, table, outside_ns, _noise(row, one))
            for row in rows
            if row.series == one.series and row.accessors > 1
        ]
    return alone, grown


def _noise(row: Row, one: Row) -> float:
    """Standard deviation of the logarithm of how much `row` is above `one`: repeats are made in turn, so in pairs."""
    if len(row.faults_per_s) != len(one.faults_per_s) or len(row.faults_per_s) < 2:
        return math.hypot(row.noise, one.noise)
    growth = [many / single for many, single in zip(row.faults_per_s, one.faults_per_s, strict=True)]
    return max(math.log(max(growth) / min(growth)) / 2, math.hypot(NOISE, NOISE))


class _Problem:
    """Least squares of logarithms of rates, each over its noise. Results of simulations are cached: most are needed
    again."""

    def __init__(self, grown: Sequence[_Grown], costs: CostTable, names: Sequence[str]) -> None:
        self._grown = grown
        self._noise = np.array([one.noise for one in grown])
        self._seen: dict[tuple[float, ...], Floats] = {}
        self._columns: dict[tuple[str, tuple[float, ...]], Floats] = {}
        self.start = {n: costs[n].distribution.mean for n in names}
        shipped = load_costs()
        self._scale = {n: max(self.start[n], shipped[n].distribution.mean, _FLOOR_NS) for n in names}
        """what a cost is elsewhere: a host's tables may start from 0"""
        self._deviation = {n: (costs[n].high - costs[n].low) / (2 * _Z) or self.start[n] for n in names}
        """of the costs as they are before the fit, by the range they state"""

    def residuals(self, values: Mapping[str, float]) -> Floats:
        """Logarithms of simulated over measured: float64[rows]."""
        key = tuple(values.values())
        if key not in self._seen:
            self._seen[key] = np.array([one.residual(values) for one in self._grown])
        return self._seen[key]

    def slopes(self, values: Mapping[str, float], active: Sequence[str]) -> Floats:
        """d residual / d cost (1/ns) over its noise: float64[rows, active]. Wide steps: a simulation is not smooth."""
        return np.stack([self._column(values, name) for name in active], axis=1)

    def _column(self, values: Mapping[str, float], name: str) -> Floats:
        key = (name, tuple(values.values()))
        if key not in self._columns:
            step = max(0.1 * values[name], 0.05 * self._scale[name])
            low, high = max(values[name] - step, _FLOOR_NS), values[name] + step
            apart = self.residuals({**values, name: high}) - self.residuals({**values, name: low})
            self._columns[key] = apart / (high - low) / self._noise
        return self._columns[key]

    def reach(self, values: Mapping[str, float], name: str) -> int:
        """The largest number of accessors of a row that depends on a cost; 0: none does."""
        moved = np.abs(self._column(values, name)) * self._noise * max(values[name], self._scale[name] / 2)
        return max((one.row.accessors for one, m in zip(self._grown, moved, strict=True) if m > _MOVES), default=0)

    def solve(self, active: Sequence[str]) -> dict[str, float]:
        """Damped Gauss-Newton steps, within 1 ns and `_MOST` times the start."""
        values, damping = dict(self.start), 0.1
        for _ in range(_ROUNDS):
            residuals = self.residuals(values) / self._noise
            slopes = self.slopes(values, active)
            normal, downhill = slopes.T @ slopes, slopes.T @ residuals
            for _ in range(6):
                shift = np.linalg.lstsq(normal + damping * np.diag(np.diag(normal)), downhill, rcond=None)[0]
                moved = {n: values[n] - float(s) for n, s in zip(active, shift, strict=True)}
                tried = values | {n: min(max(ns, _FLOOR_NS), _MOST * self._scale[n]) for n, ns in moved.items()}
                there = self.residuals(tried) / self._noise
                if float(there @ there) < float(residuals @ residuals):
                    break
                damping *= 4
            else:
                return values
            step = max(abs(tried[n] - values[n]) / max(values[n], 0.1 * self._scale[n]) for n in active)
            values, damping = tried, damping / 4
            if step < _SETTLED:
                break
        return values

    def spread(
        self, values: Mapping[str, float], active: Sequence[str], *, fitted: bool = True, others: bool = False
    ) -> dict[str, float]:
        """Half of each cost's 90 % range, ns.

        Args:
            values: where the slopes are taken.
            active: the costs that are free.
            fitted: `values` are a fit's: rows that it does not meet within their noise make ranges wider.
            others: with what the costs that are not free may be worth, by the ranges they state.
        """
        slopes = self.slopes(values, active)
        freedom = len(self._grown) - len(active)
        size = np.linalg.norm(slopes, axis=0)
        if freedom < 0 or not size.all() or np.linalg.cond(slopes / size) > _ALIKE:
            return dict.fromkeys(active, math.inf)
        missed = float(((self.residuals(values) / self._noise) ** 2).sum())
        factor = max(1.0, missed / freedom) if fitted and freedom else 1.0
        inverse = np.linalg.inv(slopes.T @ slopes)
        variance = np.diag(inverse) * factor
        held = [n for n in self.start if n not in active]
        if others and held:
            pulled = inverse @ slopes.T @ self.slopes(values, held)
            variance = variance + (pulled * np.array([self._deviation[n] for n in held])) ** 2 @ np.ones(len(held))
        return {name: _Z * math.sqrt(v) for name, v in zip(active, variance, strict=True)}

    def least_told(
        self, values: Mapping[str, float], active: Sequence[str], *, fitted: bool = True
    ) -> tuple[str, float] | None:
        """Of the costs that the rows leave open the one that moves them least, and by how many percent it is open."""
        spread = self.spread(values, active, fitted=fitted)
        scale = {n: max(values[n], self._scale[n] / 2) for n in active}
        blurred = [n for n in active if spread[n] > _TOLD * scale[n]]
        if not blurred:
            return None
        size = np.linalg.norm(self.slopes(values, active), axis=0)
        weight = {n: float(s) * scale[n] for n, s in zip(active, size, strict=True)}
        least = min(blurred, key=weight.__getitem__)
        return least, 100 * spread[least] / scale[least]


def _cost(value: float, half_ns: float, source: str, rows: int) -> Cost:
    half_ns = max(half_ns, _NARROWEST * value)
    mean = round(value, 1)
    cost = Cost(Distribution.constant(mean), "measured-host", source, rows)
    return replace(cost, low=max(round(mean - half_ns, 1), min(_FLOOR_NS, mean)), high=round(mean + half_ns, 1))
