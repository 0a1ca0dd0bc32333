"""Saturated runs: what one is, measured, and the same simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from faultreplay.replay.engine.engine import Result, simulate
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

FAULTS: Final = {1: 2000, 2: 1500, 8: 600, 64: 150}
NOISE: Final = 0.02
"""Of the logarithm of a rate, at least: two repeats may agree by chance."""


@dataclass(frozen=True)
class Row:
    """A saturated run: accessors that touch page after page of their own, without think time and without a fetch."""

    series: str
    """runs that differ in nothing but the number of accessors, and what goes with it"""
    mechanism: str
    accessors: int
    faults_per_s: tuple[float, ...]
    """of all accessors together, one for each repeat"""
    params: Mapping[str, float] = field(default_factory=dict)
    memory_class: str = "missing"

    @property
    def rate(self) -> float:
        """Faults/s: the geometric mean of the repeats."""
        return math.exp(sum(math.log(rate) for rate in self.faults_per_s) / len(self.faults_per_s))

    @property
    def differ_percent(self) -> float:
        """By how much the repeats differ."""
        return 100 * (max(self.faults_per_s) / min(self.faults_per_s) - 1)

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm of `rate`, by how the repeats differ."""
        return max(math.log(max(self.faults_per_s) / min(self.faults_per_s)) / 2, NOISE)


def faults_of(accessors: int) -> int:
    """How many faults each accessor makes in a simulated run: the rate settles after some tens."""
    return FAULTS.get(accessors, max(100, 6000 // accessors))


def saturated(row: Row, costs: CostTable, outside_ns: int = 0) -> Result:
    """The run of `row` simulated, with `outside_ns` between two faults of an accessor."""
    work = saturated_workload(row.accessors, row.memory_class, outside_ns)
    mechanism = load_mechanism(row.mechanism).with_params(row.params)
    return simulate(work, mechanism, costs.with_constants(fetch=0))


def saturated_rate(row: Row, costs: CostTable, outside_ns: int = 0) -> float:
    """Faults/s of all accessors together."""
    faults = row.accessors * faults_of(row.accessors)
    return faults / max(saturated(row, costs, outside_ns).run_time_ns, 1) * 1e9


@cache
def saturated_workload(accessors: int, memory_class: str, outside_ns: int = 0) -> Workload:
    """Accessors that touch page after page of their own, with `outside_ns` between two faults."""
    faults = faults_of(accessors)
    return make_workload([{"think_ns": [outside_ns] * faults, "cause": memory_class} for _ in range(accessors)])
