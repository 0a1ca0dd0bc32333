"""The second half of a trace, predicted with costs that were fitted on the first alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.metrics import Ints
from faultreplay.analysis.compare.predict import (
    Used,
    load_with,
    measured_run_time_ns,
    replications,
    simulated_rows,
)
from faultreplay.analysis.judge.side import Side


@dataclass(frozen=True)
class SecondHalf:
    """The second half of a trace, predicted with costs from the first."""

    predicted: Side
    measured: Side
    more_ns: Sequence[Ints]
    """stalls predicted with further seeds"""
    first: Side
    """the first half as measured: how much the trace differs from itself"""
    costs: Mapping[str, str]
    fitted: frozenset[str]


def predict_second_half(case: Case, used: Used) -> SecondHalf:
    """Predict the second half of the faults with costs that were fitted on the first half alone."""
    workload, setup = case.workload, case.setup
    mechanism = load_with(used.name, setup, used)
    first, second = workload.split(0.5)
    border = second.clock_start_ns
    fitted = case.fitted_on(lambda faults: faults["end_ns"] < border, f"first half of {case.trace.name}")
    costs = case.costs(fitted)
    offset = border - workload.clock_start_ns
    later = [replace(w, start_ns=w.start_ns - offset) for w in case.windows_of(mechanism.name) if w.start_ns >= offset]
    result, *others = replications(second, mechanism, costs, setup, later)
    mine = simulated_rows(second, mechanism) & (second.recorded_stall_ns >= 0) & (result.stall_ns >= 0)
    early = simulated_rows(first, mechanism) & (first.recorded_stall_ns >= 0)
    owner = second.accessor_of_row()[mine]
    return SecondHalf(
        predicted=Side.of(result.stall_ns[mine], owner, result.run_time_ns),
        measured=Side.of(second.recorded_stall_ns[mine], owner, measured_run_time_ns(second)),
        more_ns=[other.stall_ns[mine] for other in others],
        first=Side.of(first.recorded_stall_ns[early], first.accessor_of_row()[early], measured_run_time_ns(first)),
        costs=dict(result.costs_used),
        fitted=frozenset(fitted),
    )
