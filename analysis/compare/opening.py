"""Opening a trace for replays: losses checked, stitched, and all gathered that a `Case` holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from faultreplay.analysis.compare.case import Case, check_losses, windows_for
from faultreplay.analysis.compare.knowledge import knowledge_of
from faultreplay.analysis.compare.known import why_no_faults
from faultreplay.analysis.compare.predict import Setup, for_host, for_lab, mechanism_used
from faultreplay.analysis.compare.setup import MECHANISM_COLUMNS
from faultreplay.analysis.compare.sources import load_cost_files
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.replay.workload.faults import WORKLOAD_COLUMNS, workload_from_faults
from faultreplay.replay.workload.reading import reading_of
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

_WORKLOAD_COLUMNS: Final = tuple(dict.fromkeys((*WORKLOAD_COLUMNS, *MECHANISM_COLUMNS)))


def open_case(
    trace: Trace,
    setup: Setup,
    *,
    windows: Sequence[tuple[int, int, str]] = (),
    fit: bool = True,
    max_loss_percent: float = 1.0,
    as_pinned: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Case:
    """Check the losses, stitch, and gather what a replay needs; `as_pinned`: on CPUs as the lab pinned its threads.

    `progress` is called with a word on how far a stitch is.

    Raises:
        IncompleteData: a greater share of events lost than allowed, or no faults.
    """
    check_losses(trace, max_loss_percent)
    faults = trace.faults(
        vcpu_threads=setup.vcpu_threads,
        columns=_WORKLOAD_COLUMNS,
        progress=_stitching(trace, progress),
        categorical=True,
    )
    workload = workload_of(trace, faults)
    shipped, where = load_cost_files(setup.cost_files, trace.meta.host)
    used = mechanism_used(trace.meta, faults)
    del faults  # of a long trace they take more than the workload: what else wants them reads them by pieces
    spans, windows_from = windows_for(trace, workload, windows, used)
    asked = setup.settings
    setup = for_host(setup, trace.meta.host.kvm_flavour)
    setup = for_lab(setup, trace.meta) if as_pinned else setup
    setup = replace(setup, known=knowledge_of(trace, workload, setup.working_sets))
    case = Case(trace, workload, used, setup, shipped, where, spans, windows_from, fit, asked)
    reading = reading_of(workload) if setup.reading == "auto" else setup.reading
    read = replace(case, reading=reading)
    return case if setup.reading == "auto" and not read.read_as_missing else read


def _stitching(trace: Trace, progress: Callable[[str], None] | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, all_: progress(f"stitching {trace.name}: {done / max(all_, 1):.0%}")


def workload_of(trace: Trace, faults: pl.DataFrame) -> Workload:
    """The trace's workload.

    Raises:
        IncompleteData: it has no fault that can be replayed.
    """
    workload = workload_from_faults(faults, meta=trace.meta)
    if not workload.faults:
        why = "; ".join(workload.notes) or why_no_faults(trace.meta)
        raise IncompleteData(f"{trace.path}: no fault to replay ({why}): see 'faultreplay inspect {trace.path}'")
    return workload
