"""How far the difference between two mechanisms spreads over many traces, and which traces are outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

QUANTILES: Final[Mapping[str, float]] = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "most": 1.0}
_FENCE: Final = 1.5
"""Beyond so many times the distance of the quartiles outside of them a value is an outlier (Tukey's fences)."""
_MOST_FENCED: Final = 5
"""Of fewer values quartiles say nothing."""


@dataclass(frozen=True)
class Spread:
    """One mechanism against another over traces.

    Attributes:
        mechanism: its name.
        traces: how many have both.
        percent: `QUANTILES` of the difference, percent of the other one.
        against: traces in which the difference has the other sign than the median.
        outliers: traces beyond Tukey's fences; none where there are too few to say.
    """

    mechanism: str
    traces: int
    percent: Mapping[str, float]
    against: tuple[str, ...]
    outliers: tuple[str, ...]


def spread(mechanism: str, found: Sequence[tuple[str, float]]) -> Spread | None:
    """Of (trace, difference in percent), any number a trace; None where there is none. Nothing is weighed."""
    if not found:
        return None
    values = sorted(value for _, value in found)
    middle = _quantile(values, 0.5)
    low, high = _quantile(values, 0.25), _quantile(values, 0.75)
    reach = _FENCE * (high - low)
    outliers = {label for label, value in found if not low - reach <= value <= high + reach}
    return Spread(
        mechanism,
        len({label for label, _ in found}),
        {name: _quantile(values, share) for name, share in QUANTILES.items()},
        tuple(sorted({label for label, value in found if value * middle < 0})),
        tuple(sorted(outliers)) if len(values) >= _MOST_FENCED else (),
    )


def _quantile(values: list[float], share: float) -> float:
    """Of sorted values, the one at `share`, or between two."""
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])
