"""A prediction compared with a measurement: errors, signed, in percent of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.analysis.judge.bootstrap import Floats, Interval, intervals, wasserstein

Series = Sequence[Ints]
"""Stalls of each accessor in the order in which it took the faults."""

T = TypeVar("T", bound=np.generic)

NAMES: Final = ("total", "mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Errors:
    """Signed errors in percent of the measured value; None where the measured value is 0 or unknown.

    `wasserstein` is the first Wasserstein distance over the measured mean (never negative).
    """

    total: float | None
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    wasserstein: float | None
    run_time: float | None
    last_touch: float | None = None
    """of the time until the last first touch of a page was over, from the beginning of a restore"""

    def as_record(self, prefix: str = "") -> dict[str, Any]:
        """`PREFIXtotal_error_percent` and so on."""
        names = {f.name: f"{prefix}{f.name}_error_percent" for f in fields(self)}
        names["wasserstein"] = f"{prefix}wasserstein_percent_of_mean"
        return {names[f.name]: getattr(self, f.name) for f in fields(self)}


def relative_percent(predicted: float, measured: float) -> float | None:
    """How far `predicted` is above `measured`, in percent of `measured`."""
    return 100 * (predicted - measured) / measured if measured else None


def errors(
    predicted: Ints,
    measured: Ints,
    *,
    run_time_ns: tuple[int, int] | None = None,
) -> Errors:
    """The errors of predicted against measured stalls (two sets; they need not be of the same faults).

    `run_time_ns` is (predicted, measured).
    """
    numbers = _numbers([predicted.astype(np.float64), measured.astype(np.float64)])
    mean = float(measured.mean()) if len(measured) else 0.0
    distance = wasserstein(predicted, measured)
    values = [None if np.isnan(x) else float(x) for x in numbers]
    return Errors(
        **dict(zip(NAMES, values, strict=True)),
        wasserstein=100 * distance / mean if mean and not np.isnan(distance) else None,
        run_time=relative_percent(*run_time_ns) if run_time_ns else None,
    )


def error_intervals(
    predicted: Series, measured: Series, *, paired: bool, seed: int = 0, replicates: int | None = None
) -> dict[str, Interval]:
    """Block-bootstrap intervals of the errors called `NAMES`.

    Args:
        predicted, measured: stalls per accessor in time order.
        paired: the n-th stall of an accessor is the same fault in both, so both are drawn together.
        seed: of the draws.
        replicates: how many.
    """
    if not sum(map(len, measured)) or not sum(map(len, predicted)):
        return {}
    if paired:
        both = [np.column_stack((p, m)) for p, m in zip(predicted, measured, strict=True)]
        got = intervals([both], lambda g: _numbers([g[0][:, 0], g[0][:, 1]]), seed=seed, replicates=replicates)
    else:
        got = intervals([predicted, measured], _numbers, seed=seed, replicates=replicates)
    return {name: i for name, i in zip(NAMES, got, strict=True) if not np.isnan(i.low)}


def by_accessor(values: npt.NDArray[T], accessor: npt.NDArray[np.integer[Any]], count: int) -> list[npt.NDArray[T]]:
    """The rows of each of `count` accessors, in their order."""
    if (accessor[1:] >= accessor[:-1]).all():  # as a replay's rows are: no copies
        return np.split(values, np.searchsorted(accessor, np.arange(1, count)))
    return [values[accessor == one] for one in range(count)]


def _numbers(groups: list[Floats]) -> Floats:
    predicted, measured = (np.sort(g) for g in groups)

    def relative(a: float, b: float) -> float:
        return 100 * (a - b) / b if b else float("nan")

    return np.array(
        [
            relative(float(predicted.sum()), float(measured.sum())),
            relative(_mean(predicted), _mean(measured)),
            *(relative(_rank(predicted, q), _rank(measured, q)) for q in (0.5, 0.9, 0.99)),
        ]
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rank(ranked: Floats, q: float) -> float:
    return float(quantile(ranked.astype(np.int64), q))
