"""Costs fitted on the faults of a trace, in the intervals that `faultreplay.replay.language.names.COST_NAMES` defines.

A cost is fitted only where its interval lies between two events of the trace and only on enough samples. What is fitted
on one part of a trace is to be judged on another: `part`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.calibrate.kernel import UNCHARGED
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.schema import Kind
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.distributions import Distribution

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace

from faultreplay.analysis.calibrate.samples import (
    MIN_SAMPLES,
    PLACED,
    USERFAULTS,
    Observed,
    Samples,
    observe,
    wake_walk_ns,
)

__all__ = [
    "MIN_SAMPLES",
    "PLACED",
    "USERFAULTS",
    "Fit",
    "Floats",
    "Observed",
    "Samples",
    "calibrate",
    "distribution_of",
    "fit",
    "fit_costs",
    "observe",
    "part_of",
    "wake_walk_ns",
]

Floats = npt.NDArray[np.float64]
WHOLE: Final = (0.0, 1.0)
_DIRTY_LOG: Final = (Kind.KVM_GET_DIRTY_LOG, Kind.KVM_CLEAR_DIRTY_LOG, Kind.KVM_RESET_DIRTY_RINGS)


@dataclass(frozen=True)
class Fit:
    """What could be fitted, and what could not and why (cost name -> reason)."""

    costs: CostTable
    refused: Mapping[str, str]
    samples: Mapping[str, Samples] = field(default_factory=dict)
    at_most_ns: Mapping[str, int] = field(default_factory=dict)
    """as of `Observed`"""

    def within(self, shipped: CostTable) -> CostTable:
        """The costs, and those of `shipped` that the faults show to be too long, cut down to what they show."""
        source = "no more than this, or handlers would not have been back in time"
        cut = {
            name: Cost(Distribution.constant(most_ns), "measured-trace", source)
            for name, most_ns in self.at_most_ns.items()
            if name not in self.costs and name in shipped and shipped[name].distribution.mean > most_ns
        }
        return self.costs.merge(cut)

    def some(self) -> CostTable:
        """The costs, of which there is at least one.

        Raises:
            IncompleteData: not one cost had enough samples.
        """
        if not len(self.costs):
            reasons = "; ".join(f"{name}: {why}" for name, why in self.refused.items()) or "no joined faults"
            raise IncompleteData(f"nothing to fit costs on ({reasons}): record longer")
        return self.costs


def fit_costs(
    faults: pl.DataFrame | Iterable[pl.DataFrame],
    meta: Meta,
    *,
    source: str,
    min_samples: int = MIN_SAMPLES,
    part: tuple[float, float] = WHOLE,
    waits: bool = True,
) -> Fit:
    """The costs that `faults` show.

    Args:
        faults: `samples.COLUMNS` of them; pieces (in order of time) are read one at a time.
        meta: of the trace they come from.
        source: the trace's name, for the provenance.
        min_samples: a cost with fewer samples is refused.
        part: only the faults between these shares of all, in order of time; of a whole frame.
        waits: as of `observe`.
    """
    if isinstance(faults, pl.DataFrame):
        faults = part_of(faults, part)
    elif part != WHOLE:
        raise UsageError("a part is taken of all faults at once, not of pieces")
    observed = observe(faults, meta, waits=waits)
    return fit(observed, source=f"measured in this trace: {source}", name=source, min_samples=min_samples)


def calibrate(
    traces: Sequence[Trace],
    *,
    first_share: float = 1.0,
    with_truth: bool = False,
    min_samples: int = MIN_SAMPLES,
    left_out: Collection[str] = (),
    contended: Sequence[Trace] = (),
) -> Fit:
    """Costs from several traces of one host: their faults and, for windows, their ioctls.

    They are for other traces and other loads: faults in which a thread was preempted are left out.

    Args:
        traces: opened traces.
        first_share: use only this first share of each trace's faults.
        with_truth: take starts and ends of lab faults from the accessors' own clock.
        min_samples: refuse a cost with fewer.
        left_out: costs that these traces say nothing about, as the fetch of a lab that only waits.
        contended: traces of runs that waited for CPUs, which tell only what follows once a thread has one.

    Raises:
        UsageError: `with_truth`, and a trace has none; or the traces come from different kinds of KVM.
    """
    from faultreplay.analysis.calibrate.windows import window_samples
    from faultreplay.analysis.judge.accuracy import truthful

    flavours = {trace.meta.host.kvm_flavour for trace in (*traces, *contended)} - {"none", "unknown"}
    if len(flavours) > 1:
        raise UsageError(f"traces of different kinds of KVM ({', '.join(sorted(flavours))}): calibrate each for itself")

    def observed(trace: Trace) -> Observed:
        faults = part_of(truthful(trace) if with_truth else trace.faults(), (0.0, first_share))
        logged_from_ns = trace.events(kinds=_DIRTY_LOG, columns=[])["ts_ns"].min()
        since = None if logged_from_ns is None else int(str(logged_from_ns))
        return observe(faults, trace.meta, exits_alone=True, waits=False, logged_from_ns=since)

    empty = np.empty(0, np.int64)
    together = Observed.together(
        [
            *(observed(trace) for trace in traces),
            *(observed(trace).by_cpu_alone() for trace in contended),
            Observed(window_samples(traces), empty, empty),
        ]
    )
    names = ", ".join(dict.fromkeys(trace.name for trace in (*traces, *contended)))
    cpu = traces[0].meta.host.cpu_model or "an unknown CPU"
    how = "by events and the accessors' own clock" if with_truth else "by events"
    share = f", first {first_share:.0%} of the faults" if first_share < 1 else ""
    unpreempted = f", without {together.preempted} faults with a preempted thread" if together.preempted else ""
    source = f"measured on {cpu} {how}, in {names}{share}{unpreempted}"
    return fit(together.without(left_out), source=source, provenance="measured-host", min_samples=min_samples)


def part_of(faults: pl.DataFrame, part: tuple[float, float]) -> pl.DataFrame:
    """The faults between two shares of all, in order of time."""
    ordered = faults.sort("start_ns", "tid")
    first, last = (round(share * len(ordered)) for share in part)
    return ordered[first:last]


def fit(
    observed: Observed,
    *,
    source: str,
    name: str = "",
    provenance: str = "measured-trace",
    min_samples: int = MIN_SAMPLES,
) -> Fit:
    """Distributions of what was observed; costs with too few samples are refused, with the reason."""
    samples = dict(observed.samples)
    walk_ns = wake_walk_ns(observed)
    samples["resolve"] = np.concatenate(
        [
            np.maximum(observed.placing_ns - walk_ns * observed.sleepers, 0),
            samples.get("resolve", np.empty(0, np.int64)),
        ]
    )
    if walk_ns:
        samples["wake_per_waiter"] = np.full(len(observed.sleepers), walk_ns, np.int64)
    costs: dict[str, Cost] = {}
    refused = {what: f"{count} {UNCHARGED[what]}" for what, count in observed.uncharged.items()}
    for cost, values in samples.items():
        if len(values) < min_samples:
            if len(values):
                refused[cost] = f"{len(values)} samples, {min_samples} needed"
            continue
        parts = {
            key: distribution_of(np.maximum(found[cost], 0))
            for key, found in (("on_idle_cpu", observed.on_idle_cpu), ("on_busy_cpu", observed.on_busy_cpu))
            if len(found.get(cost, ())) >= min_samples
        }
        whole = distribution_of(np.maximum(values, 0))
        idle, busy = parts.get("on_idle_cpu"), parts.get("on_busy_cpu")
        costs[cost] = Cost(whole, provenance, source, len(values), idle, busy)
    return Fit(CostTable(costs, name), refused, samples, observed.at_most_ns)


def distribution_of(samples: Samples) -> Distribution:
    """The quantile table of `samples` with their exact mean.

    Straight lines between quantiles lie above a convex tail, and a total is all means. So the tail above p90 is
    drawn in (or out) by the little that makes the means agree; every quantile below stays as it was. Where few samples
    jump below p90, that is not enough: then the tail begins further down.
    """
    ordered = np.sort(samples).astype(np.float64)  # once: each quantile of what has no order sorts anew
    levels = np.union1d(np.arange(257) / 256, 1 - np.arange(1, 16) / 4096)
    levels, quantiles = _fewer_knots(levels, np.quantile(ordered, levels))
    excess = float(np.trapezoid(quantiles, levels) - samples.mean())
    values = quantiles
    for share in (0.9, 0.75, 0.5, 0.0):
        knee = float(np.quantile(ordered, share))
        above = quantiles > knee
        in_tail = float(np.trapezoid(np.where(above, quantiles - knee, 0.0), levels))
        factor = 1 - excess / in_tail if in_tail else 0.0
        if 0 < factor < 2:
            values = np.where(above, knee + (quantiles - knee) * factor, quantiles)
            break
    return Distribution.from_quantiles([(float(p), round(float(v), 1)) for p, v in zip(levels, values, strict=True)])


def _fewer_knots(levels: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The same line with fewer knots: none is off by more than 0.2 % or 1 ns. People read cost files."""
    kept = [0]
    p, v = levels.tolist(), values.tolist()
    least, most = -math.inf, math.inf  # slopes from the last knot that pass all points since close enough
    for i in range(2, len(p)):
        first, slack = kept[-1], max(0.002 * v[i - 1], 1.0)
        run, rise = p[i - 1] - p[first], v[i - 1] - v[first]
        least, most = max(least, (rise - slack) / run), min(most, (rise + slack) / run)
        if not least <= (v[i] - v[first]) / (p[i] - p[first]) <= most:
            kept.append(i - 1)
            least, most = -math.inf, math.inf
    kept.append(len(levels) - 1)
    return levels[kept], values[kept]
