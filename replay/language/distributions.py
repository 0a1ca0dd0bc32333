"""How long a cost takes: a constant, a lognormal or a table of quantiles, sampled as integers.

The engine never draws from a generator with state. It turns 16 bits of a hash of (seed, fault, stage) into ns through a
table that `Distribution.table_ns` makes once: knots of the inverse distribution function joined by straight lines, a
256th apart up to 15/16 and a 4096th above, so that tails keep their shape. The same seed gives the same integers on
every machine and in any order of events.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS

FINE_FROM = 61440  # of 65536: 15/16
FINE_BASE = 241  # index of the first fine knot
TABLE_SIZE = FINE_BASE + 257
MOST_SIGMA = 5
"""Of a lognormal cost: its p99 is then 100,000 times its median."""
_NORMAL = NormalDist()
_LEVELS = 1 << 16


@dataclass(frozen=True)
class Distribution:
    """A non-negative time in ns. Make one with `constant`, `lognormal` or `from_quantiles`."""

    kind: str
    """``constant``, ``lognormal`` or ``quantiles``"""
    knots: tuple[tuple[float, float], ...]
    """constant: ((0, ns),); lognormal: ((median_ns, sigma),); quantiles: ((p, ns), ...) with p rising from 0 to 1"""

    @classmethod
    def constant(cls, ns: float) -> Distribution:
        """Always `ns`."""
        _in_bounds(ns, "a constant")
        return cls("constant", ((0.0, float(ns)),))

    @classmethod
    def lognormal(cls, median_ns: float, sigma: float) -> Distribution:
        """Logarithm is normal around log(`median_ns`) with standard deviation `sigma`."""
        _in_bounds(median_ns, "the median")
        if not 0 <= sigma <= MOST_SIGMA:
            raise UsageError(f"sigma is {sigma:g}: of a lognormal cost it lies between 0 and {MOST_SIGMA}")
        if not sigma or not median_ns:
            return cls.constant(median_ns)
        made = cls("lognormal", ((float(median_ns), float(sigma)),))
        _in_bounds(made._top(), "the longest draw")
        return made

    @classmethod
    def from_quantiles(cls, points: dict[float, float] | list[tuple[float, float]]) -> Distribution:
        """Straight lines between (p, ns); missing ends p=0 and p=1 take the nearest given value."""
        knots = sorted((float(p), float(ns)) for p, ns in (points.items() if isinstance(points, dict) else points))
        if not knots:
            raise UsageError("a quantile table needs at least one point")
        for p, ns in knots:
            _in_bounds(ns, f"the quantile at {p:g}")
            if not 0 <= p <= 1:
                raise UsageError(f"a quantile lies between 0 and 1, not at {p:g}")
        for (p, ns), (q, after) in itertools.pairwise(knots):
            if p == q or after < ns:
                raise UsageError(f"quantiles must rise: {ns:g} ns at {p:g}, then {after:g} ns at {q:g}")
        if knots[0][0] > 0:
            knots.insert(0, (0.0, knots[0][1]))
        if knots[-1][0] < 1:
            knots.append((1.0, knots[-1][1]))
        return cls.constant(knots[0][1]) if knots[0][1] == knots[-1][1] else cls("quantiles", tuple(knots))

    @property
    def is_constant(self) -> bool:
        """True when every draw is the same."""
        return self.kind == "constant"

    @property
    def mean(self) -> float:
        """Mean, ns."""
        if self.kind == "constant":
            return self.knots[0][1]
        if self.kind == "lognormal":
            median, sigma = self.knots[0]
            return median * math.exp(sigma * sigma / 2)
        return sum((q - p) * (a + b) / 2 for (p, a), (q, b) in zip(self.knots, self.knots[1:], strict=False))

    @property
    def var(self) -> float:
        """Variance, ns^2."""
        if self.kind == "constant":
            return 0.0
        if self.kind == "lognormal":
            sigma = self.knots[0][1]
            return (math.exp(sigma * sigma) - 1) * self.mean**2
        square = sum(
            (q - p) * (a * a + a * b + b * b) / 3 for (p, a), (q, b) in zip(self.knots, self.knots[1:], strict=False)
        )
        return square - self.mean**2

    def quantile(self, p: float) -> float:
        """The value that a share `p` of draws does not exceed, ns."""
        if self.kind == "constant":
            return self.knots[0][1]
        if self.kind == "lognormal":
            median, sigma = self.knots[0]
            return median * math.exp(sigma * _NORMAL.inv_cdf(min(max(p, 1e-12), 1 - 1e-12)))
        return float(np.interp(p, [k[0] for k in self.knots], [k[1] for k in self.knots]))

    def scaled(self, factor: float) -> Distribution:
        """The same shape, `factor` times as long."""
        if not 0 <= factor < math.inf:
            raise UsageError(f"a factor is {factor:g}: a cost is stretched by a finite number of 0 or more")
        if self.kind == "lognormal":
            return Distribution.lognormal(self.knots[0][0] * factor, self.knots[0][1])
        if self.kind == "constant":
            return Distribution.constant(self.knots[0][1] * factor)
        return Distribution.from_quantiles([(p, ns * factor) for p, ns in self.knots])

    def stretched(self, factor: float) -> Distribution:
        """As `scaled`, but nowhere longer than a cost may be: for intervals, whose ends may lie anywhere."""
        longest = max(float(self.table_ns()[-1]), 1.0)
        return self.scaled(min(factor, LONGEST_NS / longest * (1 - 1e-6)) if factor > 1 else factor)

    def less(self, ns: float) -> Distribution:
        """The same times, each shorter by `ns`, none below 0."""
        if not 0 <= ns < math.inf:
            raise UsageError(f"{ns:g} ns cannot be taken off a cost")
        if ns == 0:
            return self
        if self.kind == "constant":
            return Distribution.constant(max(self.knots[0][1] - ns, 0.0))
        points = self.knots
        if self.kind == "lognormal":
            points = (*((k / 64, self.quantile(k / 64)) for k in range(64)), (1.0, self._top()))
        return Distribution.from_quantiles([(p, max(value - ns, 0.0)) for p, value in points])

    def sample(self, n: int, seed: int = 0) -> npt.NDArray[np.int64]:
        """`n` draws through the engine's own table, ns."""
        bits = np.random.Generator(np.random.PCG64(seed)).integers(0, _LEVELS, n)
        table = self.table_ns()
        fine = bits >= FINE_FROM
        shift = np.where(fine, 4, 8)
        bits = bits - FINE_FROM * fine
        index = (bits >> shift) + FINE_BASE * fine
        rest = bits & ((1 << shift) - 1)
        drawn: npt.NDArray[np.int64] = table[index] + (
            ((table[index + 1] - table[index]) * (2 * rest + 1)) >> (shift + 1)
        )
        return drawn

    def _top(self) -> float:
        """The last knot: where it stands, the mean above p=4095/4096 comes out right."""
        if self.kind != "lognormal":
            return self.quantile(1.0)
        edge = 4095 / 4096
        sigma = self.knots[0][1]
        above = self.mean * _NORMAL.cdf(sigma - _NORMAL.inv_cdf(edge)) / (1 - edge)
        return max(2 * above - self.quantile(edge), self.quantile(edge))

    def table_ns(self) -> npt.NDArray[np.int64]:
        """The integers the engine samples from: knots at 0, 1/256 ... 15/16, then at 15/16, 15/16 + 1/4096 ... 1."""
        return _table_ns(self)


@functools.lru_cache(maxsize=256)
def _table_ns(distribution: Distribution) -> npt.NDArray[np.int64]:
    levels = np.concatenate([np.arange(FINE_BASE) / 256, 15 / 16 + np.arange(257) / 4096])
    if distribution.kind == "quantiles":
        values = np.interp(levels, *np.array(distribution.knots).T).tolist()
    else:
        levels[0] = 0.5 / _LEVELS if distribution.kind == "lognormal" else 0.0
        values = [distribution.quantile(float(p)) for p in levels[:-1]] + [distribution._top()]
    # nine digits: an ulp of difference between two machines' exp() must not reach the integer
    table = np.array([round(float(f"{value:.9g}")) for value in values], dtype=np.int64)
    table.flags.writeable = False
    return table


def _in_bounds(ns: float, what: str) -> None:
    if not ns >= 0 or math.isinf(ns):
        raise UsageError(f"{what} is {ns:g}: a cost is a finite time of 0 ns or more")
    if ns > LONGEST_NS:
        raise UsageError(f"{what} is {ns:g} ns: a cost is at most {LONGEST_NS:g} ns (11 days)")
