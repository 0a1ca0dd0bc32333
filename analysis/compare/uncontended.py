"""Costs that a trace shows were paid with all its accessors at it: what contention added to them is charged once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from faultreplay.analysis.compare.ranges import ENVIRONMENT, scaled
from faultreplay.replay.language.costs import CostTable

TOLD_FROM: Final = 0.005
"""Share of the stall from which what is charged twice is taken off."""
_LEAST: Final = 0.1
_ROUNDS: Final = 4
_CLOSE: Final = 0.001

Total = Callable[[CostTable], int]
"""costs -> total stall of the recorded mechanism's replay, ns"""


def share_uncontended(shipped: CostTable, fitted: CostTable, total: Total) -> float:
    """What is left of each fitted cost without the contention that it holds: 1 where there is next to none.

    A replay of the recorded mechanism with the fitted costs and no costs of contention has the stall that was measured.
    With them it must have the same, so the fitted ones are shortened, all by the same share: a trace does not show how
    much each of them contains.

    Args:
        shipped: all other costs, those of contention among them.
        fitted: costs that the trace shows.
        total: replays the recorded mechanism as it was recorded.
    """
    if not any(name not in ENVIRONMENT for name in fitted):
        return 1.0
    table = shipped.merge(fitted)
    wanted = total(table.without_contention())
    with_both = total(table)
    if not wanted or with_both - wanted < TOLD_FROM * wanted:
        return 1.0
    # Secant: total stall grows with the share, faster where threads queue.
    (left, above), (right, below) = (1.0, with_both - wanted), (0.5, _missed(shipped, fitted, total, wanted, 0.5))
    for _ in range(_ROUNDS):
        if abs(below) < _CLOSE * wanted or above == below:
            break
        tried = min(max(right - below * (left - right) / (above - below), _LEAST), 1.0)
        left, above, right = right, below, tried
        below = _missed(shipped, fitted, total, wanted, tried)
    return right


def uncontended(fitted: CostTable, share: float) -> CostTable:
    """`fitted` with each cost but the environment's that much shorter."""
    if share == 1.0:
        return fitted
    return fitted.merge({name: scaled(cost, share) for name, cost in fitted.items() if name not in ENVIRONMENT})


def _missed(shipped: CostTable, fitted: CostTable, total: Total, wanted: int, share: float) -> int:
    return total(shipped.merge(uncontended(fitted, share))) - wanted
