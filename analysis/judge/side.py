"""What is compared, of a prediction and of a measurement alike: the stalls and the numbers of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.analysis.judge.judge import Errors, errors, relative_percent

_COUNTS: Final = ("faults", "held_accessors", "refaults", "left", "brought", "unused")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A prediction or a measurement; times in ns."""

    stalls: Ints
    """int64[F], outside windows, in time order within each accessor"""
    owner: npt.NDArray[np.integer[Any]]
    """int[F]: whose stall it is, an index"""
    faults: int
    total: int
    mean: int
    p50: int
    p90: int
    p99: int
    run_time: int
    held: int = 0
    """part of `total`: stood still inside windows"""
    held_accessors: int = 0
    """vCPUs that stood still inside windows"""
    refaults: int = 0
    """faults of the kernel alone from the first window on: on memory that was there"""
    refault: int = 0
    """their stall; part of `total`"""
    last_touch: int = 0
    """until the last first touch of a page was over, from the beginning of a restore: its start-up is part of it"""
    startup: int = 0
    """what a restore did before the guest ran"""
    left: int = 0
    """faults on pages that somebody had to bring, or was just bringing"""
    brought: int = 0
    """pages that a prefetch brought, or found there"""
    unused: int = 0
    """of these, pages that the guest did not touch"""

    @property
    def waste(self) -> float | None:
        """Share of what a prefetch brought that the guest did not touch; None: there was none."""
        return self.unused / self.brought if self.brought else None

    @classmethod
    def of(
        cls,
        stalls: Ints,
        owner: npt.NDArray[np.integer[Any]],
        run_time_ns: int,
        *,
        held_ns: int = 0,
        unrecorded_ns: int = 0,
    ) -> Side:
        """The numbers of `stalls`; `held_ns` and `unrecorded_ns` (faults without a row) are added to the total."""
        ranked = np.sort(stalls)
        p50, p90, p99 = (quantile(ranked, q) for q in (0.5, 0.9, 0.99))
        return cls(
            stalls=stalls,
            owner=owner,
            faults=len(stalls),
            total=int(stalls.sum()) + held_ns + unrecorded_ns,
            mean=round(float(stalls.mean())) if len(stalls) else 0,
            p50=p50,
            p90=p90,
            p99=p99,
            run_time=run_time_ns,
            held=held_ns,
        )

    def as_record(self, prefix: str) -> dict[str, int]:
        """Flat, for output; counts as they are, times with their unit."""
        return {prefix + k + ("" if k in _COUNTS else "_ns"): getattr(self, k) for k in NUMBERS}


NUMBERS: Final = (
    "faults",
    "total",
    "mean",
    "p50",
    "p90",
    "p99",
    "run_time",
    "held",
    "held_accessors",
    "refaults",
    "refault",
    "last_touch",
    "startup",
    "left",
    "brought",
    "unused",
)
"""Fields of `Side` that are one number."""


def median_of(several: list[Side]) -> Side:
    """Each number the median of the sides', the stalls of all of them."""
    numbers = {name: round(float(np.median([getattr(side, name) for side in several]))) for name in NUMBERS}
    return replace(
        several[0],
        stalls=np.concatenate([side.stalls for side in several]),
        owner=np.concatenate([side.owner for side in several]),
        **numbers,
    )


def errors_of(predicted: Side, measured: Side) -> Errors:
    """Errors of the stalls outside windows; the total has what was held inside too."""
    found = errors(predicted.stalls, measured.stalls, run_time_ns=(predicted.run_time, measured.run_time))
    return replace(
        found,
        total=relative_percent(predicted.total, measured.total),
        last_touch=relative_percent(predicted.last_touch, measured.last_touch),
    )
