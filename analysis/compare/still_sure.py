"""The interval of a blackout's longest stand-still over its costs and seeds, for one given window."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.ranges import LEVEL, drawn, factors, spread_of
from faultreplay.analysis.compare.sources import CostSource, Origin
from faultreplay.analysis.compare.uncertainty import DRAWS, MODEL_PERCENT, hull, width
from faultreplay.analysis.judge.bootstrap import Interval
from faultreplay.replay.language.costs import CostTable

Longest = Callable[[CostTable, int], int]
"""(costs, seed) -> longest stand-still, ns"""


def standstill_interval(
    case: Case, costs: CostTable, sources: Mapping[str, CostSource], longest: Sequence[Longest]
) -> Interval | None:
    """A 90 % interval that reaches over both bounds of what is touched again.

    It is one window at one moment: that the same window at another moment meets other faults is not in it.

    Args:
        case: whose costs the replay used.
        costs: with which `longest` was made.
        sources: of the costs that matter.
        longest: how to replay each bound of what is touched again.
    """
    samples = case.fitted_samples()
    spreads = {
        name: spread_of(name, costs[name], source, samples, elsewhere=source.origin is not Origin.TRACE)
        for name, source in sources.items()
    }
    by = factors(spreads, DRAWS, case.setup.seed)
    tables = [drawn(costs, {n: float(own[k] * foreign[k]) for n, (own, foreign) in by.items()}) for k in range(DRAWS)]
    lows, highs = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for replay in longest:
            here = replay(costs, 0)
            if not here:
                return None
            several = np.log(np.maximum(list(pool.map(replay, tables, range(DRAWS))), 1))
            wide = width({"costs and seeds": float(several.std(ddof=1)), "model": MODEL_PERCENT / 100})
            low, high = hull(float(several.mean()) - math.log(here), wide)
            lows.append(here * math.exp(low))
            highs.append(here * math.exp(high))
    return Interval(min(lows), max(highs), LEVEL)
