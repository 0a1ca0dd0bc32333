"""The second half of a trace, predicted with costs that were fitted on the first alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.metrics import Ints
from faultreplay.analysis.compare.predict import (
    Used,
    load_with,
    measured_run_time_ns,
    replications,
    simulated_rows,
)
from faultreplay.analysis.judge.judge import Errors, errors


@dataclass(frozen=True)
class Half:
    """The second half of a trace, predicted with costs from the first."""

    errors: Errors
    rows: int
    run_time_ns: int
    """predicted"""
    predicted_ns: Ints
    measured_ns: Ints
    more_ns: Sequence[Ints]
    """predicted with further seeds"""
    owner: npt.NDArray[np.integer[Any]]
    """whose faults they are, an index"""
    first_ns: Ints
    """measured stalls of the first half: how much the trace differs from itself"""
    costs: Mapping[str, str]
    fitted: frozenset[str]


def held_out(case: Case, used: Used) -> Half:
    """Predict the second half of the faults with costs that were fitted on the first half alone."""
    workload, setup = case.workload, case.setup
    mechanism = load_with(used.name, setup, used)
    first, second = workload.split(0.5)
    border = second.clock_start_ns
    before = case.faults.filter(case.faults["end_ns"] < border)
    fitted = case.fitted_on(before, f"first half of {case.trace.name}")
    costs = case.costs(fitted)
    offset = border - workload.clock_start_ns
    later = [replace(w, start_ns=w.start_ns - offset) for w in case.windows_of(mechanism.name) if w.start_ns >= offset]
    result, *others = replications(second, mechanism, costs, setup, later)
    mine = simulated_rows(second, mechanism) & (second.recorded_stall_ns >= 0) & (result.stall_ns >= 0)
    predicted, measured = result.stall_ns[mine], second.recorded_stall_ns[mine]
    early = simulated_rows(first, mechanism) & (first.recorded_stall_ns >= 0)
    return Half(
        errors=errors(predicted, measured, run_time_ns=(result.run_time_ns, measured_run_time_ns(second))),
        rows=int(mine.sum()),
        run_time_ns=result.run_time_ns,
        predicted_ns=predicted,
        measured_ns=measured,
        more_ns=[other.stall_ns[mine] for other in others],
        owner=second.accessor_of_row()[mine],
        first_ns=first.recorded_stall_ns[early],
        costs=dict(result.costs_used),
        fitted=frozenset(fitted),
    )
