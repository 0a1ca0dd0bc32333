"""How far a number may be off by chance: block bootstrap for autocorrelated stalls, and distances of distributions.

Consecutive stalls share a queue, so resampling single stalls would make every interval too narrow. Whole
blocks are drawn instead (circular block bootstrap), as long as the series' own autocorrelation asks for (Politis and
White 2004, as corrected by Patton, Politis and White 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[list[Floats]], Floats]

_WORK = 30_000_000  # values drawn per interval; more faults, fewer replicates
_FEWEST, _MOST = 100, 1000
_WHOLE = 1 << 22  # more values than that are gone through in pieces


@dataclass(frozen=True)
class Interval:
    """A confidence interval at `level`."""

    low: float
    high: float
    level: float = 0.95


def block_length(series: npt.ArrayLike) -> int:
    """The length of block at which the variance of this series' mean is estimated best; 1 for independent values."""
    x = np.asarray(series, dtype=np.float64)
    n = len(x)
    if n < 8:
        return 1
    x = x - x.mean()
    if not x.any():
        return 1
    lags_seen = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    most_lags = min(n - 1, int(np.ceil(np.sqrt(n))) + lags_seen)
    covariance = _autocovariance(x, most_lags)
    small = np.abs(covariance / covariance[0]) < 2 * np.sqrt(np.log10(n) / n)
    # the first lag after which nothing is left: `lags_seen` insignificant autocorrelations in a row
    runs = np.convolve(small[1:], np.ones(lags_seen), "valid") == lags_seen
    last = int(np.argmax(runs)) if runs.any() else most_lags - lags_seen
    bandwidth = min(max(2 * last, 1), most_lags)
    lag = np.arange(bandwidth + 1)
    taper = np.clip(2 * (1 - lag / bandwidth), 0, 1)  # flat top
    weight = np.where(lag == 0, 1, 2) * taper * covariance[: bandwidth + 1]
    spread = float(weight.sum()) ** 2 * 4 / 3
    slope = float((weight * lag).sum())
    if spread <= 0 or slope == 0:
        return 1
    best = (2 * slope**2 / spread) ** (1 / 3) * n ** (1 / 3)
    return int(np.clip(round(best), 1, np.ceil(min(3 * np.sqrt(n), n / 3))))


def _autocovariance(x: Floats, most_lags: int) -> Floats:
    """Of centred values at the lags 0 to `most_lags`, over their number."""
    n = len(x)
    if n <= _WHOLE:
        padded = 1 << int(np.ceil(np.log2(2 * n)))
        spectrum = np.fft.rfft(x, padded)
        whole: Floats = np.fft.irfft(spectrum * spectrum.conj(), padded)[: most_lags + 1] / n
        return whole
    # Piece by piece, each with what follows it: a transform of all takes 100 bytes a value.
    piece = _WHOLE // 4
    padded = 1 << int(np.ceil(np.log2(2 * piece + most_lags)))
    total = np.zeros(most_lags + 1)
    for first in range(0, n, piece):
        some = np.fft.rfft(x[first : first + piece], padded)
        more = np.fft.rfft(x[first : first + piece + most_lags], padded)
        total += np.fft.irfft(some.conj() * more, padded)[: most_lags + 1]
    return total / n


def intervals(
    groups: Sequence[Sequence[npt.ArrayLike]],
    statistic: Statistic,
    *,
    level: float = 0.95,
    seed: int = 0,
    replicates: int | None = None,
) -> list[Interval]:
    """Percentile intervals of every number that `statistic` returns.

    Args:
        groups: each is a list of series that are drawn apart from the others (one an accessor); a series may have
            columns (predicted and measured stall of the same fault), which then stay together.
        statistic: gets one array a group, its series joined, and returns the numbers.
        level: the share of intervals that hold the true value.
        seed: the same seed gives the same intervals.
        replicates: how often to draw; by default as often as a second or so allows.
    """
    held = [[np.asarray(s, dtype=np.float64) for s in group] for group in groups]
    lengths = [[block_length(s if s.ndim == 1 else s[:, -1]) for s in group] for group in held]
    total = sum(len(s) for group in held for s in group)
    if replicates is None:
        replicates = int(np.clip(_WORK // max(total, 1), _FEWEST, _MOST))
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistic(
                [
                    np.concatenate([_redraw(s, n, rng) for s, n in zip(group, blocks, strict=True)])
                    for group, blocks in zip(held, lengths, strict=True)
                ]
            )
            for _ in range(replicates)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    return [Interval(float(a), float(b), level) for a, b in zip(low, high, strict=True)]


def mean_sd(series: npt.ArrayLike) -> float:
    """Standard deviation of the mean of `series` over all redraws of its blocks: the circular block bootstrap's own, in
    one pass (each redraw is a sum of independent blocks).
    """
    x = np.asarray(series, dtype=np.float64)
    n = len(x)
    if n < 2:
        return 0.0
    block = block_length(x)
    around = np.empty(n + block)
    around[0], around[1 : n + 1], around[n + 1 :] = 0.0, x, x[: block - 1]
    around[1:] -= x.mean()
    np.cumsum(around[1:], out=around[1:])
    means = around[block:] - around[:-block]
    means /= block
    return float(means.std() / np.sqrt(n / block))


def sum_sd(series: Sequence[npt.ArrayLike]) -> float:
    """Standard deviation of the sum of all `series`, each drawn in blocks apart from the others."""
    return float(np.sqrt(sum((len(np.asarray(one)) * mean_sd(one)) ** 2 for one in series)))


def wasserstein(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """The first Wasserstein distance: how far, on average, the one set of values must be moved to become the other."""
    u, v = np.sort(np.asarray(one, dtype=np.float64)), np.sort(np.asarray(other, dtype=np.float64))
    if not len(u) or not len(v):
        return float("nan")
    every = np.concatenate((u, v))
    every.sort()
    found = []
    for first in range(0, len(every) - 1, _WHOLE):
        some = every[first : first + _WHOLE + 1]
        share_u = np.searchsorted(u, some[:-1], side="right") / len(u)
        share_v = np.searchsorted(v, some[:-1], side="right") / len(v)
        found.append(float(np.sum(np.abs(share_u - share_v) * np.diff(some))))
    return math.fsum(found)


def _redraw(series: Floats, block: int, rng: np.random.Generator) -> Floats:
    n = len(series)
    if n == 0:
        return series
    starts = rng.integers(0, n, -(-n // block))
    index = (starts[:, None] + np.arange(block)).ravel()[:n] % n
    drawn: Floats = series[index]
    return drawn
