"""By how much a row differs from a baseline, and how sure that is: 90 % intervals over all that is known to be unsure.

In them: the trace is finite (block bootstrap over the faults of row and baseline together), the seeds, the fit of own
costs and how they differ from run to run, foreign costs over their ranges, and what the model misses held out. Row and
baseline are replayed with the same draws, so what they share cancels. All of it is on a log scale, where totals are
sums of many positive times.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from faultreplay.analysis.compare.busy import WORSE
from faultreplay.analysis.compare.case import REFERENCES, Case
from faultreplay.analysis.compare.extrapolation import beyond_sd
from faultreplay.analysis.compare.judged import Judged
from faultreplay.analysis.compare.predict import counted, run, total_stall_ns
from faultreplay.analysis.compare.ranges import LEVEL, FitSamples, Floats, drawn, factors, placements, spread_of
from faultreplay.analysis.compare.sources import Origin
from faultreplay.analysis.judge.bootstrap import Interval, sum_sd
from faultreplay.analysis.judge.judge import by_accessor
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.mechanism import Mechanism

DRAWS: Final = 24
MANY_FAULTS: Final = 3_000_000
FEW_DRAWS: Final = 8
"""Of a trace of more than `MANY_FAULTS`: they last long, and what differs from draw to draw is the costs alone."""
MODEL_PERCENT: Final = 1.0
"""Standard deviation of what the model misses even where nothing else is unsure: docs/validation.md, fetch 1 ms."""
BOUNDS_FROM_PERCENT: Final = 2.0
"""Two bounds are named where they differ by so much."""
TOUCHED: Final = "what is touched again"
_T: Final = {DRAWS: 1.714, FEW_DRAWS: 1.895}  # Student's t, 95 %: the spread is itself from so many draws


@dataclass(frozen=True)
class Replayed:
    """One mechanism's replay, ready to be drawn again."""

    mechanism: Mechanism
    costs: CostTable
    windows: Sequence[Window]
    result: Result


@dataclass(frozen=True)
class Bound:
    """The same row under the other extreme of what a trace does not show."""

    what: str
    setting: str
    """as on the command line"""
    total_ns: int
    change_percent: float | None


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of a row. Intervals contain the true value in `LEVEL` of cases."""

    total_ns: Interval
    baseline: str
    change_percent: float | None
    """total stall against the baseline's; None: nothing to compare with"""
    change: Interval | None
    """of `change_percent`; None: it is not in doubt (a baseline itself, or no stall at all)"""
    foreign: Interval | None
    """by how many percent foreign costs alone may change total stall; None: the row has none"""
    bounds: tuple[Bound, ...] = ()
    parts_percent: Mapping[str, float] = field(default_factory=dict)
    """source of doubt -> its standard deviation in percent of total stall"""

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the difference contains 0: then no difference is shown."""
        return self.change is not None and self.change.low <= 0 <= self.change.high

    def as_record(self) -> dict[str, object]:
        """Flat, for output."""
        record: dict[str, object] = {
            "total_stall_low_ns": round(self.total_ns.low),
            "total_stall_high_ns": round(self.total_ns.high),
            "interval_level": self.total_ns.level,
            "baseline": self.baseline,
            "change_percent": self.change_percent,
            "change_low_percent": self.change.low if self.change else None,
            "change_high_percent": self.change.high if self.change else None,
            "within_noise": self.within_noise,
            "foreign_low_percent": self.foreign.low if self.foreign else None,
            "foreign_high_percent": self.foreign.high if self.foreign else None,
        }
        record["bounds"] = {b.setting: b.total_ns for b in self.bounds}
        record["doubt_percent"] = dict(self.parts_percent)
        return record


class Doubt:
    """What is unsure about the replays of one case, and one baseline that all rows are compared with."""

    def __init__(self, case: Case, judged: Judged | None = None) -> None:
        """`judged`: what the recorded mechanism's replay missed."""
        self.case = case
        self.draws = DRAWS if case.read.faults <= MANY_FAULTS else FEW_DRAWS
        self.model_sd = math.hypot(judged.model_sd if judged else 0.0, MODEL_PERCENT / 100)
        # Costs that change over time change for row and baseline alike: of a difference that is no doubt.
        self.drift_sd = judged.drift_sd if judged else 0.0
        # Waits for CPUs that other processes had may be gone another time, or be longer: no matter of a few percent.
        self.others = case.others_share
        self._baseline: tuple[str, Replayed, _Drawn] | None = None
        self._others: list[tuple[str, str, Case, Replayed | None]] = []

    def against(self, label: str, baseline: Replayed) -> None:
        """Compare the rows that follow with `baseline`."""
        self._baseline = (label, baseline, self._draw(baseline))
        self._others = [
            (what, setting, case, self._again(case, baseline)) for what, setting, case in _other_extremes(self.case)
        ]

    def of(self, row: Replayed) -> Uncertainty:
        """How sure a row is. `against` comes first."""
        assert self._baseline is not None
        label, base, base_drawn = self._baseline
        mine = base_drawn if _same(row, base) else self._draw(row)
        total = row.result.total_stall_ns
        reference = row.mechanism.name in REFERENCES
        parts = {
            **mine.parts,
            "model": 0.0 if reference else self.model_sd,
            "drift": 0.0 if reference else self.drift_sd,
        }
        parts["accessors beyond the costs' fit"] = 0.0 if reference else beyond_sd(row.costs, row.result)
        low, high = hull(mine.shift, width(parts, self.draws))
        change, interval = self._change(row, base, mine, base_drawn)
        bounds = self._bounds(row)
        totals = [*(total * math.exp(end) for end in mine.placed), *(b.total_ns for b in bounds)]
        return Uncertainty(
            total_ns=Interval(
                min(totals) * math.exp(low) * (1 - self.others),
                max(totals) * math.exp(high) * (1 + (WORSE - 1) * self.others),
                LEVEL,
            ),
            baseline=label,
            change_percent=change,
            change=_over(interval, change, bounds),
            foreign=mine.foreign,
            bounds=bounds,
            parts_percent={name: 100 * sd for name, sd in parts.items()},
        )

    def _change(
        self, row: Replayed, base: Replayed, mine: _Drawn, theirs: _Drawn
    ) -> tuple[float | None, Interval | None]:
        total, other = row.result.total_stall_ns, base.result.total_stall_ns
        if not other:
            return None, None
        change = 100 * (total - other) / other
        if not total or _same(row, base):
            return change, None
        ratio = mine.totals - theirs.totals
        parts = {
            "costs": float(ratio.std(ddof=1)),
            "trace": _paired_sd(self.case, row.result, base.result),
            "model": self.model_sd,
        }
        low, high = hull(float(ratio.mean()) - math.log(total / other), width(parts, self.draws))
        low, high = low + mine.placed[0], high + mine.placed[1]
        quiet = 1 - self.others
        return change, Interval(
            100 * (total / other * math.exp(low) * quiet - 1), 100 * (total / other * math.exp(high) / quiet - 1), LEVEL
        )

    def _bounds(self, row: Replayed) -> tuple[Bound, ...]:
        found = []
        for what, setting, case, base in self._others:
            if what == TOUCHED and not (row.result.windows or row.mechanism.write_after_read):
                continue
            again = self._again(case, row)
            if again is None or base is None:
                continue
            total = again.result.total_stall_ns
            if abs(total - row.result.total_stall_ns) * 100 < BOUNDS_FROM_PERCENT * max(row.result.total_stall_ns, 1):
                continue
            other = base.result.total_stall_ns
            found.append(Bound(what, setting, total, 100 * (total - other) / other if other else None))
        return tuple(found)

    @staticmethod
    def _again(case: Case, row: Replayed) -> Replayed | None:
        """The same row under another set-up, with the costs that belong to it."""
        if row.mechanism.name in REFERENCES:
            return None
        costs = case.costs()
        again = run(case.read, row.mechanism, costs, case.setup, row.windows)
        return replace(row, costs=costs, result=again.without_rows())

    def _recorded(self, row: Replayed) -> bool:
        used = self.case.used
        return used is not None and row.mechanism.name.split(":")[0] == used.name

    def _draw(self, row: Replayed) -> _Drawn:
        case, total = self.case, row.result.total_stall_ns
        sources = case.sources(row.result.costs_used)
        samples = case.fitted_samples()
        spreads = {
            name: spread_of(
                name,
                row.costs[name],
                source,
                samples,
                elsewhere=source.origin is not Origin.TRACE or not self._recorded(row),
            )
            for name, source in sources.items()
        }
        trace_sd = _trace_sd(case, row.result)
        if not total or not spreads:  # nothing of it is drawn: a reference
            return _Drawn(np.full(self.draws, math.log(max(total, 1))), 0.0, {"trace": trace_sd}, None)
        by, each = factors(spreads, self.draws, case.setup.seed), range(self.draws)
        everything = _log_totals(case, row, [{n: float(o[k] * f[k]) for n, (o, f) in by.items()} for k in each])
        parts = {"costs and seeds": float(everything.std(ddof=1)), "trace": trace_sd}
        foreign = None
        if any(spread.foreign for spread in spreads.values()):
            alone = _log_totals(case, row, [{n: float(f[k]) for n, (_, f) in by.items()} for k in each], one=True)
            alone -= math.log(total)
            low, high = hull(float(alone.mean()), 2 * _T[self.draws] * float(alone.std(ddof=1)))
            foreign = Interval(100 * (math.exp(low) - 1), 100 * (math.exp(high) - 1), LEVEL)
        placed = self._placed(row, {name: row.costs[name] for name in sources})
        return _Drawn(everything, float(everything.mean()) - math.log(total), parts, foreign, placed)

    def _placed(self, row: Replayed, used: Mapping[str, Cost]) -> tuple[float, float]:
        """How far the logarithm of the total goes down and up if woken threads find all CPUs busy, or all idle."""
        if self.case.setup.cpus is not None or self._recorded(row):
            return 0.0, 0.0
        ends = placements(used)
        if not ends[0]:
            return 0.0, 0.0
        low, high = _log_totals(self.case, row, ends, one=True) - math.log(row.result.total_stall_ns)
        return min(float(low), 0.0), max(float(high), 0.0)


@dataclass(frozen=True)
class _Drawn:
    totals: Floats
    """logarithms, one a draw"""
    shift: float
    """of their mean from the row's own"""
    parts: Mapping[str, float]
    foreign: Interval | None
    placed: tuple[float, float] = (0.0, 0.0)
    """of the logarithm: as of `Doubt._placed`"""


def _log_totals(case: Case, row: Replayed, by: Sequence[Mapping[str, float]], *, one: bool = False) -> Floats:
    """Total stall, in logarithms, with costs longer by each set of factors; a seed each, or `one` for all."""

    def total(k: int) -> int:
        costs = drawn(row.costs, by[k])
        return total_stall_ns(case.read, row.mechanism, costs, case.setup, row.windows, 0 if one else k)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.log(np.maximum(np.array(list(pool.map(total, range(len(by)))), dtype=np.float64), 1))


def _trace_sd(case: Case, result: Result) -> float:
    """Standard deviation of total stall, relative, for the trace is finite."""
    series = by_accessor(np.maximum(result.stall_ns, 0), result.accessor, case.read.accessors)
    total = sum(int(s.sum()) for s in series)
    return sum_sd(series) / total if total else 0.0


def _paired_sd(case: Case, row: Result, base: Result) -> float:
    """The same of the ratio of two totals, the stalls of one fault drawn together."""
    one, other = np.maximum(row.stall_ns, 0).astype(np.float64), np.maximum(base.stall_ns, 0).astype(np.float64)
    if not one.sum() or not other.sum():
        return 0.0
    return sum_sd(by_accessor(one / one.sum() - other / other.sum(), row.accessor, case.read.accessors))


def _same(row: Replayed, base: Replayed) -> bool:
    return row.mechanism.name == base.mechanism.name and dict(row.mechanism.values) == dict(base.mechanism.values)


def width(parts: Mapping[str, float], draws: int = DRAWS) -> float:
    """Of a 90 % interval, by the standard deviations of its independent parts."""
    return 2 * _T[draws] * math.sqrt(sum(sd * sd for sd in parts.values()))


def hull(shift: float, wide: float) -> tuple[float, float]:
    """An interval of `wide` about `shift` that holds the row's own figure, 0."""
    return min(shift - wide / 2, 0.0), max(shift + wide / 2, 0.0)


def _over(interval: Interval | None, change: float | None, bounds: Sequence[Bound]) -> Interval | None:
    """The interval carried over to both bounds."""
    if interval is None or change is None:
        return interval
    low, high = interval.low - change, interval.high - change
    ends = [change, *(b.change_percent for b in bounds if b.change_percent is not None)]
    return Interval(max(min(ends) + low, -100.0), max(ends) + high, interval.level)


def _other_extremes(case: Case) -> list[tuple[str, str, Case]]:
    """(what, the option that sets it, the case so set), of what neither the trace nor the user says."""
    setup, found = case.setup, []
    cpus = case.trace.meta.host.cpus
    if "cpus" in setup.bounds and cpus and int(counted(case.read).sum()) + 1 > cpus:
        other = replace(case, setup=replace(setup, cpus=cpus), _kept={}, _samples=FitSamples())
        found.append(("host CPUs", f"--cpus {cpus}", other))
    if "retouch" in setup.bounds:
        other = replace(case, setup=replace(setup, retouch="working-set"), _kept={}, _samples=FitSamples())
        found.append((TOUCHED, "--retouch working-set", other))
    return found
