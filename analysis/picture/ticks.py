"""Round values for a logarithmic axis."""

from __future__ import annotations

import math


def round_values(low: float, high: float) -> list[float]:
    """Round values within (low, high): powers of ten, or more of them where those are too few to read from."""
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, len(ticks) // 5 + (len(ticks) % 5 > 0))] if len(ticks) > 5 else ticks
