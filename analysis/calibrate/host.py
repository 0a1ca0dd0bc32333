"""Costs of this host from the lab's short runs, made twice and with and without a sleep through the fetch.

What differs between the two times, and between the two ways, is how sure the costs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from faultreplay.analysis.calibrate.calibrate import Fit, calibrate
from faultreplay.analysis.calibrate.contention import ContentionFit, fit_contention
from faultreplay.analysis.calibrate.growth import Growth, growing_runs
from faultreplay.analysis.calibrate.microruns import MicroTraces, micro_traces
from faultreplay.analysis.calibrate.quiet import Conditions, Watch, worst
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.replay.language.costs import Cost, CostTable, load_costs, shipped_for

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace

PASSES: Final = 2
UNSTEADY_PERCENT: Final = 25.0
"""A cost whose means of two passes differ by more is marked as unsteady."""
BUSY_FACTOR: Final = 2.0
"""Costs of a busy host may be too long by this factor: seen after calibrating under load."""
_NARROWEST_PERCENT: Final = 2.0
_Z: Final = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class HostFit:
    """Costs of this host with their range, and what they are worth."""

    fit: Fit
    conditions: tuple[Conditions, ...]
    """of each pass"""
    unsteady: Mapping[str, float]
    """cost -> by how many percent its means of the passes differ"""
    meta: Meta
    """of one of the runs: which host it was"""
    contention: ContentionFit
    """what growing runs show; its costs are already in `fit`"""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the measurement was spoiled; empty on a quiet host."""
        return worst(self.conditions).problems


def calibrate_host(
    say: Callable[[str], None],
    *,
    extra: Sequence[Trace] = (),
    with_truth: bool = False,
    min_samples: int = 30,
    left_out: Collection[str] = (),
    first_share: float = 1.0,
    allow_busy: bool = False,
) -> HostFit:
    """Make the runs, all of them, then all of them again, and fit costs on both.

    Args:
        say: called with a word on each run.
        extra: further traces of this host, in the fit but not in the comparison of the passes.
        with_truth, min_samples, left_out, first_share: as of `calibrate`.
        allow_busy: fit all the same where the host was busy, and widen every range.

    Raises:
        IncompleteData: the host was busy, or a hypervisor took its CPUs away.
        MissingFeature, NoPermission: not even one run can be made here.
    """
    with ExitStack() as stack:
        made: list[MicroTraces] = []
        grown: list[Growth] = []
        conditions: list[Conditions] = []
        for number in range(PASSES):
            say(f"pass {number + 1} of {PASSES}")
            with Watch() as watch:
                traces = stack.enter_context(micro_traces(say))
                grown.append(growing_runs(say))
            assert watch.conditions is not None
            conditions.append(replace(watch.conditions, preempted_percent=_preempted_percent(traces.quiet)))
            made.append(traces)
            problems = conditions[-1].problems
            if problems and not allow_busy:
                raise IncompleteData(
                    f"the host was not quiet ({'; '.join(problems)}): costs measured now would be wrong by a factor. "
                    "Calibrate when it is, or take them with wider ranges: --allow-busy"
                )

        def fitted(passes: Sequence[MicroTraces], more: Sequence[Trace], fewest: int) -> Fit:
            return calibrate(
                [*more, *(trace for one in passes for trace in one.quiet)],
                first_share=first_share,
                with_truth=with_truth,
                min_samples=fewest,
                left_out=left_out,
                contended=[trace for one in passes for trace in one.contended],
            )

        whole = fitted(made, extra, min_samples)
        apart = [fitted([one], (), max(min_samples // PASSES, 2)).costs for one in made]
        ways = [
            fitted([MicroTraces([*chain(*runs)], [])], (), max(min_samples // PASSES, 2)).costs
            for runs in zip(*(one.by_fetch() for one in made), strict=True)
            if any(runs)
        ]
        meta = made[0].quiet[0].meta
    spoiled = worst(conditions).problems
    costs = {
        name: _with_range(cost, [p[name] for p in apart if name in p], spoiled, [w[name] for w in ways if name in w])
        for name, cost in whole.costs.items()
    }
    unsteady = {
        name: difference
        for name in whole.costs
        if (difference := _difference_percent([p[name] for p in apart if name in p])) > UNSTEADY_PERCENT
    }
    contention = _contention(Growth.together(grown), costs, meta.host.kvm_flavour, spoiled)
    table = CostTable(costs | dict(contention.costs), whole.costs.name, fitted_to=contention.costs.fitted_to)
    return HostFit(replace(whole, costs=table), tuple(conditions), unsteady, meta, contention)


def _contention(growth: Growth, own: Mapping[str, Cost], kvm_flavour: str, spoiled: Sequence[str]) -> ContentionFit:
    """Contention beside this host's other costs, and those of its kind where it shows none."""
    base = load_costs().merge(*shipped_for(kvm_flavour), own)
    most = max((row.accessors for row in growth.rows), default=0)
    found = fit_contention(growth.rows, base, source=f"fitted to saturated lab runs with 1 to {most} accessors")
    if spoiled:
        busy = {name: _no_narrower(_with_range(cost, (), spoiled), cost) for name, cost in found.costs.items()}
        found = replace(found, costs=CostTable(busy, fitted_to=found.costs.fitted_to))
    return replace(found, refused=growth.left_out | dict(found.refused))


def _with_range(cost: Cost, passes: Sequence[Cost], spoiled: Sequence[str], ways: Sequence[Cost] = ()) -> Cost:
    """The cost with `low` and `high`: its means of the passes are two draws of what it is worth another time.

    `ways`: fitted to the runs that slept through the fetch, and to those with an immediate fetch: the range covers
    both.
    """
    mean = cost.distribution.mean
    if mean <= 0:
        return cost
    logs = [math.log(max(p.distribution.mean, 1.0)) for p in passes]
    apart = abs(logs[0] - logs[-1]) / math.sqrt(2) if len(logs) > 1 else math.log(BUSY_FACTOR) / _Z
    factor = math.exp(_Z * max(apart, _NARROWEST_PERCENT / 100))
    source = cost.source
    if spoiled:
        factor = max(factor, BUSY_FACTOR)
        source = f"{source}; on a busy host: {'; '.join(spoiled)}"
    means = [mean, *(way.distribution.mean for way in ways if way.distribution.mean > 0)]
    return replace(cost, low=round(min(means) / factor, 1), high=round(max(means) * factor, 1), source=source)


def _no_narrower(cost: Cost, before: Cost) -> Cost:
    return replace(cost, low=min(cost.low, before.low), high=max(cost.high, before.high))


def _difference_percent(passes: Sequence[Cost]) -> float:
    means = [p.distribution.mean for p in passes]
    return 100 * (max(means) - min(means)) / max(min(means), 1.0) if len(means) > 1 else 0.0


def _preempted_percent(traces: Sequence[Trace]) -> float:
    shares = []
    for trace in traces:
        faults = trace.faults()
        held = (faults["preempted_ns"].fill_null(0) > 0) | (faults["service_preempted_ns"].fill_null(0) > 0)
        shares.append(100 * int(held.sum()) / max(len(faults), 1))
    return float(np.mean(shares)) if shares else 0.0
