"""Costs fitted on the faults of a trace, in the intervals that `replay.names.COST_NAMES` defines.

A cost is fitted only where its interval lies between two events of the trace and only on enough samples. What is fitted
on one part of a trace is to be judged on another: `part`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from faulttrace.errors import IncompleteData
from replay.costs import Cost, CostTable
from replay.distributions import Distribution

if TYPE_CHECKING:
    import polars as pl

    from faulttrace.meta import Meta

Samples = npt.NDArray[np.int64]

MIN_SAMPLES: Final = 30
USERFAULTS: Final = ("missing", "minor", "write-protect")
PLACED: Final = ("copy", "zeropage", "continue", "move", "unprotect")
_UNKNOWN: Final = -1
_IDLE_NS: Final = 1000
"""A handler that ended its last fault this long before is taken to be back in read()."""


@dataclass(frozen=True)
class Fit:
    """What could be fitted, and what could not and why (cost name -> reason)."""

    costs: CostTable
    refused: Mapping[str, str]
    samples: Mapping[str, Samples] = field(default_factory=dict)


def costs_from_faults(
    faults: pl.DataFrame,
    meta: Meta,
    *,
    source: str,
    min_samples: int = MIN_SAMPLES,
    part: tuple[float, float] = (0.0, 1.0),
) -> CostTable:
    """The costs that `faults` show.

    Args:
        faults: columns of `FAULTS`.
        meta: of the trace they come from.
        source: the trace's name, for the provenance.
        min_samples: a cost with fewer samples is left out.
        part: only the faults between these shares of all, in order of time.

    Raises:
        IncompleteData: not one cost has enough samples.
    """
    fit = fit_costs(faults, meta, source=source, min_samples=min_samples, part=part)
    if not len(fit.costs):
        reasons = "; ".join(f"{name}: {why}" for name, why in fit.refused.items()) or "it has no joined faults"
        raise IncompleteData(f"{source}: nothing to fit costs on ({reasons}): record longer")
    return fit.costs


def fit_costs(
    faults: pl.DataFrame,
    meta: Meta,
    *,
    source: str,
    min_samples: int = MIN_SAMPLES,
    part: tuple[float, float] = (0.0, 1.0),
) -> Fit:
    """As `costs_from_faults`, with what was refused and the samples themselves."""
    ordered = faults.sort("start_ns", "tid")
    first, last = (round(share * len(ordered)) for share in part)
    samples = samples_of(ordered[first:last], meta)
    return fit_samples(samples, source=source, min_samples=min_samples)


def fit_samples(samples: Mapping[str, Samples], *, source: str, min_samples: int = MIN_SAMPLES) -> Fit:
    """Distributions of samples that belong to costs."""
    costs: dict[str, Cost] = {}
    refused: dict[str, str] = {}
    for name, values in samples.items():
        if len(values) < min_samples:
            if len(values):
                refused[name] = f"{len(values)} samples, {min_samples} needed"
            continue
        distribution = distribution_of(np.maximum(values, 0))
        costs[name] = Cost(distribution, "measured-trace", f"measured in this trace: {source}", len(values))
    return Fit(CostTable(costs, source), refused, dict(samples))


def distribution_of(samples: Samples) -> Distribution:
    """The quantile table of `samples` with their exact mean.

    Straight lines between quantiles lie above a convex tail, and a total is all means. So the tail above p90 is
    drawn in by the little that makes the means agree; every quantile below stays as it was.
    """
    levels = np.union1d(np.arange(257) / 256, 1 - np.arange(1, 16) / 4096)
    quantiles = np.quantile(samples.astype(np.float64), levels)
    knee = float(np.quantile(samples, 0.9))
    above = quantiles > knee
    tail = np.where(above, quantiles - knee, 0.0)
    excess = float(np.trapezoid(quantiles, levels) - samples.mean())
    in_tail = float(np.trapezoid(tail, levels))
    factor = min(max(1 - excess / in_tail, 0.0), 2.0) if in_tail else 1.0
    values = np.where(above, knee + tail * factor, quantiles)
    return Distribution.from_quantiles([(float(p), round(float(v), 1)) for p, v in zip(levels, values, strict=True)])


def samples_of(faults: pl.DataFrame, meta: Meta) -> dict[str, Samples]:
    """Cost name -> its samples in `faults` (sorted by start)."""
    joined = faults.filter(faults["end_ns"].is_not_null())
    mechanism = meta.mechanism.name if meta.mechanism else ""
    samples = _userfault_samples(_Columns(joined.filter(_is_userfault(joined))))
    exits = _Columns(joined.filter((joined["cause"] == "exit") & joined["resolve_ns"].is_not_null()))
    by_kernel = joined.filter(joined["resolution"] == "kernel")
    stage2 = by_kernel.filter(by_kernel["cause"] == "stage2")["stall_ns"].to_numpy()
    host = by_kernel.filter(by_kernel["cause"].is_in(["minor-host", "major-host"]))["stall_ns"].to_numpy()
    # Under host-lazy the same exit also makes the page; under all others the host has it by then.
    lazy = mechanism in {"host-lazy", "host_lazy"}
    more: dict[str, Samples] = {
        "exit_userspace": exits.queue_ns[exits.queue_ns >= 0],
        "reenter": exits.wake_ns[exits.wake_ns >= 0],
        "stage2_fault": stage2[:0] if lazy else stage2,
        "host_fault": np.concatenate([host, stage2]) if lazy else host,
        "mmio_exit": joined.filter(joined["cause"] == "mmio")["stall_ns"].to_numpy(),
    }
    if len(exits.queue_ns):
        more["resolve"] = np.concatenate([samples["resolve"], exits.resolve_ns])
        more["fetch"] = np.concatenate([samples["fetch"], (exits.service_ns - exits.resolve_ns)])
    return samples | more


class _Columns:
    """Numbers of faults; `_UNKNOWN` for null."""

    def __init__(self, faults: pl.DataFrame) -> None:
        def column(name: str) -> Samples:
            return faults[name].fill_null(_UNKNOWN).to_numpy().astype(np.int64)

        self.vm, self.handler = column("vm"), column("handler_tid")
        self.start_ns, self.end_ns = column("start_ns"), column("end_ns")
        self.queue_ns, self.service_ns = column("queue_ns"), column("service_ns")
        self.resolve_ns, self.wake_ns = column("resolve_ns"), column("wake_ns")

    @property
    def read_ns(self) -> Samples:
        return self.start_ns + self.queue_ns

    @property
    def placed_ns(self) -> Samples:
        return self.read_ns + self.service_ns


def _is_userfault(faults: pl.DataFrame) -> pl.Series:
    served = faults["service_ns"].is_not_null() & faults["queue_ns"].is_not_null() & faults["wake_ns"].is_not_null()
    return served & faults["cause"].is_in(USERFAULTS) & faults["resolution"].is_in(PLACED)


def _userfault_samples(faults: _Columns) -> dict[str, Samples]:
    order = np.lexsort((faults.read_ns, faults.handler))
    handler, read_ns, placed_ns = faults.handler[order], faults.read_ns[order], faults.placed_ns[order]
    start_ns, queue_ns = faults.start_ns[order], faults.queue_ns[order]
    follows = np.zeros(len(order), bool)
    follows[1:] = handler[1:] == handler[:-1]
    before_ns = np.concatenate(([0], placed_ns[:-1]))[: len(order)]
    idle = ~follows | (start_ns - before_ns >= _IDLE_NS)
    # The message lay ready when the handler came back: what passed was the handler's own way round its loop.
    waiting = follows & (start_ns + np.median(queue_ns[idle]) < before_ns if idle.any() else follows)
    taken = queue_ns[idle]
    walk_ns, others = _wake_walk(faults)
    samples = {
        # No event tells when the message was ready, and only the sum of the two counts for an idle handler.
        "trap": taken // 2,
        "message": taken - taken // 2,
        "fetch": faults.service_ns - faults.resolve_ns,
        "resolve": np.maximum(faults.resolve_ns - walk_ns * others, 0),
        "wake": faults.wake_ns,
        "handler_loop": (read_ns - before_ns)[waiting],
    }
    if walk_ns:
        samples["wake_per_waiter"] = np.full(len(others), walk_ns, np.int64)
    return samples


def _wake_walk(faults: _Columns) -> tuple[int, Samples]:
    """(ns for each other sleeper, other sleepers at each placing): the slope of the placing ioctl over the sleepers.

    0 where the number of sleepers does not vary or the slope is not beyond three of its standard errors.
    """
    others = _sleepers(faults)
    if len(others) < MIN_SAMPLES or others.max(initial=0) - others.min(initial=0) < 4:
        return 0, others
    # A preempted handler makes outliers of milliseconds: medians by number of sleepers are the points of the line.
    counts, inverse, weight = np.unique(others, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(faults.resolve_ns[order], np.cumsum(weight)[:-1])
    enough = weight >= 5
    if enough.sum() < 4:
        return 0, others
    x, w = counts[enough].astype(float), weight[enough].astype(float)
    y = np.array([np.median(g) for g, keep in zip(groups, enough, strict=True) if keep])
    mean_x = np.average(x, weights=w)
    spread = np.average((x - mean_x) ** 2, weights=w) * w.sum()
    slope = float((w * (x - mean_x) * (y - np.average(y, weights=w))).sum() / spread)
    rest = y - np.average(y, weights=w) - slope * (x - mean_x)
    error = float(np.sqrt((w * rest**2).sum() / max(len(x) - 2, 1) / spread))
    return (round(slope), others) if slope > 3 * error and slope >= 1 else (0, others)


def _sleepers(faults: _Columns) -> Samples:
    """How many other faults of the same memory were waiting when each was placed."""
    others = np.zeros(len(faults.vm), np.int64)
    for vm in np.unique(faults.vm):
        mine = np.flatnonzero(faults.vm == vm)
        placed = faults.placed_ns[mine]
        begun = np.searchsorted(np.sort(faults.start_ns[mine]), placed, side="right")
        over = np.searchsorted(np.sort(placed), placed, side="right")
        others[mine] = np.maximum(begun - over, 0)
    return others
