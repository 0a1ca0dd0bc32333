"""From a trace to a prediction: which mechanism, which parameters, which costs, and the numbers that come out.

The one place of `analysis` that calls the engine, so that comparison, validation and report predict alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.metrics import Metrics, Run, Use, measure
from faultreplay.analysis.compare.restore_metrics import FIRST, recorded_restore_metrics, restore_metrics
from faultreplay.analysis.compare.setup import (
    HOST_SETTINGS,
    LAB_WINDOWS,
    Setup,
    Used,
    for_host,
    for_lab,
    label_of,
    link_of,
    load_with,
    mechanism_used,
    served_at_once,
    split_choice,
    with_link,
    with_used,
)
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine.engine import Options, Result, simulate
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.workload import Workload, derived

if TYPE_CHECKING:
    from faultreplay.replay.engine.follow import Followed

__all__ = [
    "HOST_SETTINGS",
    "LAB_WINDOWS",
    "VCPU",
    "Setup",
    "Stops",
    "Used",
    "counted",
    "doubled",
    "followed",
    "for_host",
    "for_lab",
    "ideal_run_time_ns",
    "label_of",
    "link_of",
    "load_with",
    "mean_metrics",
    "measured_metrics",
    "measured_run_time_ns",
    "mechanism_used",
    "metrics_of",
    "present",
    "replications",
    "rows_of",
    "run",
    "served_at_once",
    "simulated_rows",
    "split_choice",
    "total_stall_ns",
    "with_link",
    "with_used",
]

VCPU: Final = ACCESSORS.index("vcpu")


def run(
    workload: Workload,
    mechanism: Mechanism,
    costs: CostTable,
    setup: Setup,
    windows: Sequence[Window] = (),
    *,
    seed: int = 0,
) -> Result:
    """One replay; `seed` counts from the set-up's."""
    workload, options = _asked(workload, mechanism, setup, windows, seed)
    return simulate(workload, mechanism, costs, **options)


def total_stall_ns(  # noqa: PLR0917
    workload: Workload,
    mechanism: Mechanism,
    costs: CostTable,
    setup: Setup,
    windows: Sequence[Window] = (),
    seed: int = 0,
) -> int:
    """The total of one replay; no row of it is kept."""
    workload, options = _asked(workload, mechanism, setup, windows, seed)
    options["rows"] = False
    return simulate(workload, mechanism, costs, **options).total_stall_ns


def followed(  # noqa: PLR0917
    workload: Workload,
    mechanism: Mechanism,
    costs: CostTable,
    setup: Setup,
    windows: Sequence[Window],
    span_ns: tuple[int, int],
) -> Followed:
    """As `run`, and what the engine did step by step within `span_ns`."""
    from faultreplay.replay.engine.follow import follow

    workload, options = _asked(workload, mechanism, setup, windows, 0)
    return follow(workload, mechanism, costs, span_ns, **options)


def _asked(
    workload: Workload, mechanism: Mechanism, setup: Setup, windows: Sequence[Window], seed: int
) -> tuple[Workload, Options]:
    """What the engine is given."""
    if any(stage.verb == "recorded" for stage in mechanism.paths.get("window", ())):
        # The engine drops a window's fault where that window is not replayed; a reference keeps what was recorded.
        window, missing = CAUSES.index("window"), CAUSES.index("missing")
        cause = np.where(workload.cause == window, missing, workload.cause).astype(workload.cause.dtype)
        workload = replace(workload, cause=cause)
    return workload, Options(
        seed=setup.seed + seed,
        loop=setup.loop,
        windows=[replace(w, settings=setup.settings.get(WINDOW_KINDS.get(w.kind, ""), {})) for w in windows],
        retouch=setup.retouch,
        cpus=setup.cpus,
        pinned=setup.pinned,
        known=setup.known,
    )


def replications(
    workload: Workload, mechanism: Mechanism, costs: CostTable, setup: Setup, windows: Sequence[Window] = ()
) -> list[Result]:
    """A replay for each of the set-up's seeds, on all CPUs: the engine runs without the interpreter lock."""
    first = run(workload, mechanism, costs, setup, windows)  # lays the workload out for the others
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        others = pool.map(lambda k: run(workload, mechanism, costs, setup, windows, seed=k), range(1, setup.seeds))
        return [first, *others]


def doubled(costs: CostTable, names: Sequence[str]) -> CostTable:
    """`costs` with these twice as long."""
    return costs.merge(
        {name: replace(costs[name], distribution=costs[name].distribution.stretched(2)) for name in names}
    )


def counted(workload: Workload) -> npt.NDArray[np.bool_]:
    """The accessors that represent the guest: its vCPUs, or every accessor if it has none."""
    vcpu = workload.accessor_kind == VCPU
    every: npt.NDArray[np.bool_] = vcpu if vcpu.any() else np.ones(workload.accessors, dtype=np.bool_)
    return every


def ideal_run_time_ns(workload: Workload) -> int:
    """The run time with the same think times and no stall."""
    spans = zip(workload.accessor_start[:-1], workload.accessor_start[1:], strict=True)
    thinking = np.array([workload.think_ns[first:last].sum() for first, last in spans], np.int64)
    return int((thinking + workload.tail_ns).max(initial=0))


@dataclass(frozen=True)
class Stops:
    """When accessors were stopped in recorded pauses, which their faults do not show."""

    accessor: npt.NDArray[np.int64]
    start_ns: npt.NDArray[np.int64]
    end_ns: npt.NDArray[np.int64]
    stall_ns: npt.NDArray[np.int64]
    """int64[A]: how long each did, out of its faults"""


def metrics_of(result: Result, workload: Workload, stops: Stops | None = None, first: int = FIRST) -> Metrics:
    """The metrics of a replay.

    Args:
        result, workload: the replay, and what was replayed.
        stops: stops of the recording that are still part of its think times.
        first: accesses that `Metrics.first_ns` waits for.
    """
    return replace(_metrics_of(result, workload, stops), **restore_metrics(result, first, workload.resume_ns))


def _metrics_of(result: Result, workload: Workload, stops: Stops | None) -> Metrics:
    time_ns = result.run_time_ns
    uses = tuple(
        Use(name, u.servers * u.instances, u.busy_ns, u.busy_share(result.span_ns), u.max_queue)
        for name, u in result.resources.items()
    )
    stopped = np.flatnonzero(result.window_stall_ns > 0)
    spans = np.array(result.windows, dtype=np.int64).reshape(-1, 2)
    blocked = (
        np.repeat(stopped, len(spans)),
        np.tile(spans[:, 0], len(stopped)),
        np.tile(spans[:, 1], len(stopped)),
    )
    window_stall_ns = result.window_stall_ns
    if stops is not None:
        blocked, window_stall_ns = (stops.accessor, stops.start_ns, stops.end_ns), stops.stall_ns
    reached = result.start_ns >= 0
    return measure(
        Run(
            accessor=result.accessor,
            start_ns=result.start_ns,
            stall_ns=np.where(reached, result.stall_ns, -1) if not reached.all() else result.stall_ns,
            latency_ns=result.latency_ns if len(result.latency_ns) else None,
            counted=counted(workload),
            run_time_ns=time_ns,
            ideal_run_time_ns=ideal_run_time_ns(workload),
            bytes_moved=result.bytes_moved,
            needed_bytes=derived(workload, "pages touched", lambda: len(np.unique(workload.page)))
            * workload.page_bytes,
            uses=uses,
            hazards=result.hazards,
            where_ns=result.stage_ns,
            blocked=blocked,
            window_stall_ns=window_stall_ns,
            refaults=int(result.refaults.sum()),
            refault_stall_ns=result.refault_stall_ns,
        )
    )


def measured_metrics(
    workload: Workload, stops: Stops | None = None, *, startup_ns: int = 0, first: int = FIRST
) -> Metrics:
    """The numbers of the recording itself; `stops` are stalls too, `startup_ns` is in none."""
    restore = recorded_restore_metrics(workload, startup_ns, first)
    return replace(_measured_metrics(workload, stops), **restore)


def _measured_metrics(workload: Workload, stops: Stops | None) -> Metrics:
    owner = workload.accessor_of_row()
    held = {}
    if stops is not None:
        held = {"blocked": (stops.accessor, stops.start_ns, stops.end_ns), "window_stall_ns": stops.stall_ns}
    return measure(
        Run(
            accessor=owner,
            start_ns=workload.recorded_start_ns,
            stall_ns=workload.recorded_stall_ns,
            counted=counted(workload),
            run_time_ns=measured_run_time_ns(workload),
            ideal_run_time_ns=ideal_run_time_ns(workload) - (int(stops.stall_ns.max(initial=0)) if stops else 0),
            **held,  # type: ignore[arg-type]
        )
    )


def measured_run_time_ns(workload: Workload) -> int:
    """From the beginning until the last accessor's recorded work was done."""
    last = workload.accessor_start[1:] - 1
    some = last >= workload.accessor_start[:-1]
    last = last[some]
    ends = workload.recorded_start_ns[last] + np.maximum(workload.recorded_stall_ns[last], 0)
    return int((ends + workload.tail_ns[some]).max(initial=0))


def simulated_rows(workload: Workload, mechanism: Mechanism) -> npt.NDArray[np.bool_]:
    """Faults whose stall the mechanism makes. Others are replayed with what was recorded: no prediction to judge."""
    answers = [(pair, mechanism.answer(*names)) for pair, names in present(workload)]
    return rows_of(workload, [pair for pair, answer in answers if answer.simulated])


def rows_of(workload: Workload, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Faults of these (class, accessor kind)."""
    kinds = workload.accessor_kind[workload.accessor_of_row()]
    rows = np.zeros(workload.faults, dtype=np.bool_)
    for cause, kind in pairs:
        rows |= (workload.cause == cause) & (kinds == kind)
    return rows


def present(workload: Workload) -> list[tuple[tuple[int, int], tuple[str, str]]]:
    """The (class, accessor kind) that occur, as numbers and as names."""
    seen = derived(workload, "classes by kind", lambda: _classes_by_kind(workload))
    pairs = [(int(cause), int(kind)) for cause, kind in zip(*np.nonzero(seen), strict=True)]
    return [((cause, kind), (CAUSES[cause], ACCESSORS[kind])) for cause, kind in pairs]


def _classes_by_kind(workload: Workload) -> npt.NDArray[np.int64]:
    """int64[classes, accessor kinds]: faults of each."""
    kinds = workload.accessor_kind[workload.accessor_of_row()].astype(np.int64)
    place = workload.cause.astype(np.int64) * len(ACCESSORS) + kinds
    counts: npt.NDArray[np.int64] = np.bincount(place, minlength=len(CAUSES) * len(ACCESSORS))
    return counts.reshape(len(CAUSES), len(ACCESSORS))


def mean_metrics(several: Sequence[Metrics]) -> Metrics:
    """The mean of each number over several seeds; resources and hazards are the first seed's."""
    if len(several) == 1:
        return several[0]
    means: dict[str, Any] = {}
    for item in fields(Metrics):
        values = [getattr(m, item.name) for m in several]
        if all(isinstance(v, int) for v in values):
            means[item.name] = round(sum(values) / len(values))
        elif all(isinstance(v, float) for v in values):
            means[item.name] = sum(values) / len(values)
    return replace(several[0], **means)
