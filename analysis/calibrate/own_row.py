"""Costs from one row of a table: so many accessors that do nothing but fault made so many pages a second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from faultreplay.analysis.calibrate.saturated import saturated_workload
from faultreplay.analysis.compare.ranges import ENVIRONMENT
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import CONTENTION

PREDICTED: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LEAST, _MOST = 1 / 64, 64.0
_STEPS: Final = 40
_WITHIN: Final = 0.01


@dataclass(frozen=True)
class OwnRow:
    """One row of a table."""

    mechanism: Mechanism
    accessors: int
    pages_per_s: float
    """of all accessors together"""

    def run(self, costs: CostTable, accessors: int) -> Result:
        """The row simulated with another number of accessors; the content is there at once."""
        return simulate(saturated_workload(accessors, "missing"), self.mechanism, costs.with_constants(fetch=0))

    def rate(self, costs: CostTable, accessors: int) -> float:
        """Pages/s of all accessors."""
        result = self.run(costs, accessors)
        return float(result.accessor_faults.sum()) / result.run_time_ns * 1e9

    def fit(self, costs: CostTable) -> tuple[CostTable, float]:
        """(the costs that the row sets, the factor by which they differ from `costs`).

        One number cannot tell the costs of a path apart: all that the mechanism charges, but those of contention and of
        the environment, get the same factor, and so do their ranges.

        Raises:
            UsageError: no factor from 1/64 to 64 gives that rate.
        """
        charged = [n for n in self.run(costs, 1).costs_used if n in costs and n not in {*CONTENTION, *ENVIRONMENT}]
        low, high = _LEAST, _MOST
        slowest, fastest = (self.rate(scaled(costs, charged, factor), self.accessors) for factor in (high, low))
        if not slowest <= self.pages_per_s <= fastest:
            raise UsageError(
                f"{self.mechanism.name} with {self.accessors} accessors makes {slowest:,.0f} to {fastest:,.0f} "
                f"pages/s, however fast the host, not {self.pages_per_s:,.0f}: is that the rate of all together?"
            )
        for _ in range(_STEPS):
            factor = (low * high) ** 0.5
            if self.rate(scaled(costs, charged, factor), self.accessors) > self.pages_per_s:
                low = factor
            else:
                high = factor
        factor = (low * high) ** 0.5
        found = scaled(costs, charged, factor)
        if abs(self.rate(found, self.accessors) / self.pages_per_s - 1) > _WITHIN:
            raise UsageError(f"{self.mechanism.name}: the rate jumps over {self.pages_per_s:,.0f} pages/s")
        source = (
            f"x {factor:.3g}, so that {self.mechanism.name} with {self.accessors} accessors makes "
            f"{self.pages_per_s:,.0f} pages/s; before: "
        )
        kept: dict[str, Cost] = {
            name: replace(found[name], provenance="derived", source=source + costs[name].source) for name in charged
        }
        return CostTable(kept, fitted_to=costs.fitted_to), factor


def scaled(costs: CostTable, names: list[str], factor: float) -> CostTable:
    """`costs` with some of them, and their ranges, `factor` times as long."""
    changed = {
        name: replace(
            costs[name],
            distribution=costs[name].distribution.scaled(factor),
            on_idle_cpu=None,
            on_busy_cpu=None,
            low=costs[name].low * factor,
            high=costs[name].high * factor,
        )
        for name in names
    }
    return costs.merge(changed)
