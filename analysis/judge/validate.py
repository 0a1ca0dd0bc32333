"""Predictions compared with fresh measurements: a trace against its own second half, or against another trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.notes import host_notes
from faultreplay.analysis.compare.opening import open_case
from faultreplay.analysis.compare.predict import (
    Setup,
    Used,
    counted,
    load_with,
    run,
    simulated_rows,
)
from faultreplay.analysis.compare.second_half import predict_second_half
from faultreplay.analysis.compare.sources import HOST, sources_of
from faultreplay.analysis.judge.cells import Cell
from faultreplay.analysis.judge.judge import by_accessor, error_intervals
from faultreplay.analysis.judge.side import errors_of
from faultreplay.analysis.judge.sides import (
    as_missing,
    elsewhere,
    elsewhere_notes,
    measured_side,
    of_start_up,
    predicted_side,
)
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.lab.matrix_spec import COLD
from faultreplay.lab.restore import cold, working_set_of
from faultreplay.lab.spec import PAGE_BYTES
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import list_mechanisms
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace


Progress = Callable[[str], None]


def halves(case: Case) -> Cell:
    """A trace against its own second half, with costs from its first.

    Raises:
        IncompleteData: the recorded mechanism is not known, or there are too few faults.
    """
    used = _used(case)
    half = predict_second_half(case, used)
    predicted, measured = half.predicted, half.measured
    if not measured.faults:
        raise IncompleteData(f"{case.trace.path}: {used.name} serves none of the faults of its second half")
    return Cell(
        source=f"{case.trace.name}, first half",
        target=f"{case.trace.name}, second half",
        mechanism=used.name,
        source_mechanism=used.name,
        predicted=predicted,
        measured=measured,
        errors=errors_of(predicted, measured),
        intervals=error_intervals(
            by_accessor(predicted.stalls, predicted.owner, case.workload.accessors),
            by_accessor(measured.stalls, measured.owner, case.workload.accessors),
            paired=True,
            seed=case.setup.seed,
        ),
        floor=errors_of(half.first, measured) if half.first.faults else None,
        floor_is="first half measured against second half measured",
        again=half.first if half.first.faults else None,
        bounds=None,
        costs=sources_of(half.costs, case.where, half.fitted),
        simulated_percent=100.0,
        notes=tuple(case.workload.notes),
    )


def pair(
    source: Case,
    target: Case,
    *,
    again: Case | None = None,
    host_costs: CostTable | None = None,
    target_costs: CostTable | None = None,
    replicates: int | None = None,
) -> Cell:
    """Predict `target`'s mechanism on `source`'s accesses, with `source`'s costs, and judge on `target`.

    Args:
        source: what the prediction may see.
        target: what it is judged on; only its mechanism, parameters and windows are read for the prediction.
        again: the target's mechanism measured once more, for the floor.
        host_costs: measured elsewhere on this host; under the source's own, over shipped ones.
        target_costs: measured on this host under the target's mechanism, in other runs than the target; over all.
        replicates: of the bootstrap.

    Raises:
        IncompleteData: the target's mechanism is not known.
    """
    used = _used(target)
    setup = replace(source.setup, cpus=target.setup.cpus, pinned=target.setup.pinned, known=_known(source, target))
    mechanism = load_with(used.name, setup, used)
    fitted = source.fitted()
    host = host_costs if host_costs is not None else CostTable({})
    near = target_costs if target_costs is not None else CostTable({})
    costs = source.shipped.merge(host, fitted, near)
    workload = as_missing(source.running, source.used)
    windows = _moved(target, source)
    result = run(workload, mechanism, costs, setup, windows)
    unnamed = elsewhere(source)[~of_start_up(source.running, source.used)]
    one = predicted_side(workload, result, unnamed)
    other = measured_side(target)
    bounds = None
    if windows or mechanism.write_after_read:
        at_once = setup.retouch == "working-set"
        again_how = replace(setup, retouch="recorded" if at_once else "working-set")
        ends = [one, predicted_side(workload, run(workload, mechanism, costs, again_how, windows), unnamed)]
        lower, upper = reversed(ends) if at_once else ends
        bounds = (lower, upper)
    mine = counted(workload)[workload.accessor_of_row()] & (result.start_ns >= 0)
    simulated = simulated_rows(workload, mechanism)[mine].mean() * 100 if mine.any() else 0.0
    repeated = measured_side(again) if again is not None else None
    stalls = by_accessor(one.stalls, one.owner, workload.accessors)
    measured_stalls = by_accessor(other.stalls, other.owner, target.workload.accessors)
    intervals = error_intervals(stalls, measured_stalls, paired=False, seed=source.setup.seed, replicates=replicates)
    return Cell(
        source=source.trace.name,
        target=target.trace.name,
        mechanism=label(target),
        source_mechanism=label(source) or "unknown",
        predicted=one,
        measured=other,
        errors=errors_of(one, other),
        intervals=intervals,
        floor=errors_of(repeated, other) if repeated else None,
        floor_is=f"{again.trace.name} measured against {target.trace.name}" if again else "",
        again=repeated,
        bounds=bounds,
        costs=sources_of(
            result.costs_used,
            {**source.where, **dict.fromkeys([*host, *near], HOST)},
            frozenset(fitted) - frozenset(near),
        ),
        simulated_percent=float(simulated),
        cpus=setup.cpus,
        notes=(
            *source.workload.notes,
            *result.warnings,
            *host_notes(source, {WINDOW_KINDS[w.kind] for w in windows}),
            *elsewhere_notes(source),
            *elsewhere_notes(target),
        ),
    )


def open_for(trace: Trace, setup: Setup, *, fit: bool = True, max_loss_percent: float = 1.0) -> Case:
    """A case without a default window: only recorded ones; the lab's threads on the CPUs they were pinned to."""
    case = open_case(trace, setup, fit=fit, max_loss_percent=max_loss_percent, as_pinned=True)
    return case if trace.meta.windows else replace(case, windows=())


def _used(case: Case) -> Used:
    if case.used is None:
        raise IncompleteData(f"{case.trace.path}: neither the trace nor its faults say which mechanism was in use")
    if case.used.name not in list_mechanisms() and case.used.name not in case.setup.settings:
        raise UsageError(f"{case.trace.path}: recorded under {case.used.name}, of which there is no model to judge")
    return case.used


def label(case: Case) -> str:
    """The mechanism of the recording, or the window it had; of the lab's restores, whether the page cache was cold."""
    if case.used is None:
        return ""
    name = case.used.window_kind if case.used.window_kind and case.windows else case.used.name
    return name + COLD if cold(case.trace.meta) else name


def _known(source: Case, target: Case) -> Knowledge | None:
    """What the target's prefetch knew, in the source's guest: neither run's own pages, but those of an earlier one."""
    known, mapped = source.setup.known, source.trace.meta.memory_map
    pages = working_set_of(target.trace.meta)
    if pages is None or not mapped:
        return known
    return replace(
        known or Knowledge(), working_set=(mapped[0].start + pages * PAGE_BYTES) // source.workload.page_bytes
    )


def _moved(target: Case, source: Case) -> Sequence[Window]:
    """The target's windows on the source's clock: as long after the first fault."""
    if not target.windows:
        return []
    shift = _first_ns(source.workload) - _first_ns(target.workload)
    return [replace(w, start_ns=max(w.start_ns + shift, 0)) for w in target.windows]


def _first_ns(workload: Workload) -> int:
    mine = counted(workload)[workload.accessor_of_row()]
    return int(workload.recorded_start_ns[mine].min(initial=np.iinfo(np.int64).max)) if mine.any() else 0
