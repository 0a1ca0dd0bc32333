"""How well the recorded mechanism is reproduced: in sample, held out, and from one half of a recording to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.metrics import Ints, Metrics
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import (
    Setup,
    Used,
    for_host,
    load_with,
    mean_metrics,
    measured_metrics,
    metrics_of,
    replications,
    simulated_rows,
)
from faultreplay.analysis.compare.second_half import predict_second_half
from faultreplay.analysis.judge.bootstrap import Interval, sum_sd, wasserstein
from faultreplay.analysis.judge.judge import Errors, by_accessor, errors, relative_percent
from faultreplay.replay.language.mechanism import Mechanism

FEWEST_TO_JUDGE: Final = 60
PARTS: Final = 10
REPRODUCED_PERCENT: Final = 10.0
"""Of total stall; and what was wanted of predictions from the start."""
ROUGHLY_PERCENT: Final = 25.0
DISTANCE_PERCENT: Final = 25.0
"""Of the distributions of stalls, of the measured mean; twice as much is still rough."""
_Z95: Final = 1.96

ERROR_FIELDS: Final = (
    "total_stall_ns",
    "stall_per_vcpu_mean_ns",
    "stall_per_vcpu_min_ns",
    "stall_per_vcpu_max_ns",
    "p50_ns",
    "p90_ns",
    "p99_ns",
    "p99_9_ns",
    "max_ns",
    "all_stalled_ns",
    "run_time_ns",
)
"""Numbers for which the error of a predicted row against the measured row is reported."""


class Trust(Enum):
    """What the rows of a table are worth, by how the recorded mechanism is reproduced."""

    REPRODUCED = "reproduced"
    ROUGHLY = "roughly reproduced"
    NOT = "not reproduced"
    UNJUDGED = "not judged"


@dataclass(frozen=True)
class HeldOut:
    """Faults predicted with costs that were fitted on others."""

    errors: Errors
    faults: int
    predicted_total_ns: int
    measured_total_ns: int
    total: Interval
    """of the error of total stall, percent, 95 %: the trace is finite"""

    def as_record(self, prefix: str) -> dict[str, Any]:
        """Flat, for output."""
        return self.errors.as_record(prefix) | {
            f"{prefix}faults": self.faults,
            f"{prefix}predicted_total_ns": self.predicted_total_ns,
            f"{prefix}measured_total_ns": self.measured_total_ns,
            f"{prefix}total_error_low_percent": self.total.low,
            f"{prefix}total_error_high_percent": self.total.high,
        }


@dataclass(frozen=True)
class Judged:
    """The recorded mechanism's prediction, with the recording's own settings, against the recording."""

    used: Used
    rows: int
    """faults whose stall the mechanism makes; the others are replayed as recorded"""
    in_sample: Errors
    """costs from all faults; errors of the numbers of the whole run, as the table shows them"""
    held_out: HeldOut | None
    """costs from every other tenth of the recording, judged on the tenths between, both ways"""
    over_time: HeldOut | None
    """costs from the first half, judged on the second; it includes changes of the costs during the recording"""
    why_not: str = ""

    @property
    def trust(self) -> Trust:
        """How far to trust the other rows."""
        if self.held_out is None:
            return Trust.UNJUDGED
        total = max(abs(self.held_out.errors.total or 0), abs(self.in_sample.total or 0))
        distance = max(self.held_out.errors.wasserstein or 0, self.in_sample.wasserstein or 0)
        drift = abs(self.over_time.errors.total or 0) if self.over_time else 0.0
        if total > ROUGHLY_PERCENT or distance > 2 * DISTANCE_PERCENT:
            return Trust.NOT
        if total > REPRODUCED_PERCENT or distance > DISTANCE_PERCENT or drift > ROUGHLY_PERCENT:
            return Trust.ROUGHLY
        return Trust.REPRODUCED

    @property
    def model_sd(self) -> float:
        """What the model misses, in logarithms: the held-out error beyond what the finite trace explains."""
        return _beyond_noise(self.held_out)

    @property
    def drift_sd(self) -> float:
        """How far costs of one part of the recording are from another's: what another run may meet too."""
        return _beyond_noise(self.over_time)


def _beyond_noise(found: HeldOut | None) -> float:
    if found is None or found.errors.total is None or found.errors.total <= -100:
        return 0.0
    noise = (found.total.high - found.total.low) / (2 * _Z95 * 100)
    return math.sqrt(max(math.log1p(found.errors.total / 100) ** 2 - noise**2, 0.0))


def judge(case: Case, *, hold_out: bool = True) -> Judged | None:
    """Judge the recorded mechanism as it was recorded; None: it is not known, or made none of the faults.

    `hold_out`: False leaves the costs' share out (in sample only).
    """
    used = case.used
    if used is None or used.name not in case.known or not case.workload.measured:
        return None
    case = as_it_was(case)
    workload = case.workload
    mechanism = load_with(used.name, case.setup, used)
    results = replications(workload, mechanism, case.costs(), case.setup, case.windows_of(mechanism.name))
    mine = simulated_rows(workload, mechanism) & (workload.recorded_stall_ns >= 0) & (results[0].stall_ns >= 0)
    count = int(mine.sum())
    if not count:
        return None
    predicted = mean_metrics([metrics_of(result, workload) for result in results])
    distances = [_distance(r.stall_ns[mine], workload.recorded_stall_ns[mine]) for r in results]
    del results  # a row a fault each, while the others are made
    in_sample = errors_of_run(predicted, measured_metrics(workload), float(np.mean(distances)))
    if count < FEWEST_TO_JUDGE:
        return Judged(
            used,
            count,
            in_sample,
            None,
            None,
            f"{count} fault{' is' if count == 1 else 's are'} too few to hold any of them out",
        )
    if not hold_out:
        return Judged(used, count, in_sample, None, None, "not asked for")
    return Judged(used, count, in_sample, in_turn(case, mechanism, mine), second_half(case, used))


def as_it_was(case: Case) -> Case:
    """The case with the recording's own settings: nothing that the user asked about it is in."""
    plain = _plain_setup(case)
    known = case.setup.cpus is None  # else costs were fitted without the waits for a CPU
    if known and case.reading == "recorded" and case.windows_from != "as asked for":
        return replace(case, setup=plain)
    return open_case(case.trace, plain, fit=case.fit, max_loss_percent=100)


def _plain_setup(case: Case) -> Setup:
    plain = replace(
        case.setup,
        settings={},
        loop="closed",
        retouch="recorded",
        reading="recorded",
        fetch_ns=None,
        link_bytes_per_s=0,
        cpus=None,
        pinned=False,
        bounds=frozenset(),
    )
    return for_host(plain, case.trace.meta.host.kvm_flavour)


def differences(case: Case, mechanism: Mechanism) -> tuple[str, ...]:
    """In what a row of the recorded mechanism is not the recording: with any, it answers a what-if."""
    used, setup = case.used, case.setup
    if used is None or used.name not in case.known:
        return ()
    recorded = load_with(used.name, _plain_setup(case), used)
    found = [
        f"{name} {_plain(value)} (recorded {_plain(recorded.values.get(name))})"
        for name, value in mechanism.values.items()
        if recorded.values.get(name) != value
    ]
    found += case.what_if
    if setup.cpus is not None:
        found.append(f"{setup.cpus} host CPUs")
    if setup.loop == "open":
        found.append("open loop")
    if setup.retouch != "recorded":
        found.append(f"retouch {setup.retouch}")
    knows = setup.known is not None and setup.known.working_set is not None
    if any(stream.set == "working-set" for stream in mechanism.streams) and not knows:
        found.append("prefetch of this run's own set")
    if case.windows_from == "as asked for":
        found.append("windows as asked for")
    return tuple(found)


def errors_of_run(predicted: Metrics, measured: Metrics, distance: float | None) -> Errors:
    """Errors of the numbers of a run, as they are printed."""
    of = run_errors(predicted, measured)
    means = [m.total_stall_ns / m.faults if m.faults else 0.0 for m in (predicted, measured)]
    return Errors(
        total=of["total_stall_ns"],
        mean=relative_percent(*means),
        p50=of["p50_ns"],
        p90=of["p90_ns"],
        p99=of["p99_ns"],
        wasserstein=distance,
        run_time=of["run_time_ns"],
    )


def run_errors(predicted: Metrics, measured: Metrics) -> dict[str, float | None]:
    """Number -> its error in percent of the measured one, of `ERROR_FIELDS`."""
    return {name: relative_percent(getattr(predicted, name), getattr(measured, name)) for name in ERROR_FIELDS}


def in_turn(case: Case, mechanism: Mechanism, mine: npt.NDArray[np.bool_]) -> HeldOut:
    """Every fault predicted with costs of other tenths of the recording than its own."""
    workload, start = case.workload, case.workload.recorded_start_ns
    borders = np.quantile(start[mine], np.arange(1, PARTS) / PARTS)
    odd = np.searchsorted(borders, start, side="right") % 2 == 1

    def in_tenths(which: int) -> Callable[[pl.DataFrame], pl.Series]:
        return lambda faults: pl.Series(
            np.searchsorted(borders, (faults["start_ns"] - workload.clock_start_ns).to_numpy(), side="right") % 2
            == which
        )

    several: list[Ints] = []
    for judged, others in ((odd, 0), (~odd, 1)):
        costs = case.costs(case.fitted_on(in_tenths(others), f"other tenths of {case.trace.name}"))
        results = replications(workload, mechanism, costs, case.setup, case.windows_of(mechanism.name))
        stalls = [result.stall_ns for result in results]
        del results
        for seed, found in enumerate(stalls):
            if others == 0:
                several.append(found)
            else:
                several[seed][judged] = found[judged]
    several = [found[mine] for found in several]
    owner = workload.accessor_of_row()[mine]
    return _held_out(several, workload.recorded_stall_ns[mine], owner, workload.accessors)


def second_half(case: Case, used: Used) -> HeldOut | None:
    """The second half of the recording, with costs of the first; None: none of its faults are the mechanism's."""
    half = predict_second_half(case, used)
    predicted, measured = half.predicted, half.measured
    if not measured.total:
        return None
    accessors = int(measured.owner.max()) + 1
    return _held_out([predicted.stalls, *half.more_ns], measured.stalls, measured.owner, accessors)


def _held_out(several: Sequence[Ints], measured: Ints, owner: npt.NDArray[np.integer[Any]], accessors: int) -> HeldOut:
    each = [errors(predicted, measured) for predicted in several]
    total = float(measured.sum())
    predicted = float(np.mean([p.sum() for p in several]))
    error = 100 * (predicted / total - 1)
    # Of the ratio of two sums, the stalls of one fault drawn together: to first order, by their shares.
    first = several[0].astype(np.float64)
    shares = first / max(first.sum(), 1.0) - measured / total
    sd = 100 * predicted / total * sum_sd(by_accessor(shares, owner, accessors))
    return HeldOut(
        errors=_mean_errors(each),
        faults=len(measured),
        predicted_total_ns=round(predicted),
        measured_total_ns=round(total),
        total=Interval(error - _Z95 * sd, error + _Z95 * sd),
    )


def _mean_errors(each: Sequence[Errors]) -> Errors:
    def mean(name: str) -> float | None:
        values = [v for one in each if (v := getattr(one, name)) is not None]
        return float(np.mean(values)) if values else None

    names = ("total", "mean", "p50", "p90", "p99", "wasserstein", "run_time")
    found: Mapping[str, float | None] = {name: mean(name) for name in names}
    return Errors(**found)


def _distance(predicted: Ints, measured: Ints) -> float:
    mean = float(measured.mean()) if len(measured) else 0.0
    return 100 * wasserstein(predicted, measured) / mean if mean else 0.0


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
