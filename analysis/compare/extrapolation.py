"""More accessors than the costs of contention were fitted with: a note, and wider intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from faultreplay.replay.engine.engine import Result
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.names import CONTENTION

SD_PER_DOUBLING: Final = 0.15
"""Of the logarithm of a total, for each doubling of the accessors beyond the fit: assumed. Where blocks of published
tables are predicted from other blocks (docs/scaling.md), errors at 64 vCPUs are of this size."""


def beyond(costs: Mapping[str, Cost], result: Result) -> tuple[int, int] | None:
    """(accessors of the fit, accessors that fault here), if these are more and contention is charged; else None."""
    fitted = costs.fitted_to if isinstance(costs, CostTable) else 0
    here = int((result.accessor_faults > 0).sum())
    charged = any(name in CONTENTION and costs[name].distribution.mean > 0 for name in result.costs_used)
    return (fitted, here) if 0 < fitted < here and charged else None


def beyond_sd(costs: Mapping[str, Cost], result: Result) -> float:
    """What that adds to the standard deviation of a total's logarithm."""
    found = beyond(costs, result)
    return SD_PER_DOUBLING * math.log2(found[1] / found[0]) if found else 0.0


def beyond_note(costs: Mapping[str, Cost], results: list[Result]) -> list[str]:
    """The line under a table, if there is anything to say."""
    found = [pair for pair in (beyond(costs, result) for result in results) if pair]
    if not found:
        return []
    fitted, here = found[0][0], max(pair[1] for pair in found)
    return [
        f"extrapolated from {fitted} to {here} accessors: contention costs were fitted with {fitted} at once; each "
        f"doubling beyond is taken to add {100 * SD_PER_DOUBLING:.0f} % (one standard deviation, assumed)"
    ]
