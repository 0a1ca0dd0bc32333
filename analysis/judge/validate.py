"""Predictions held against fresh measurements: a trace against its own second half, or against another trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.case import Case, held_out, open_case
from faultreplay.analysis.compare.metrics import Ints, quantile
from faultreplay.analysis.compare.notes import host_notes
from faultreplay.analysis.compare.predict import (
    Setup,
    Used,
    counted,
    load_with,
    measured_run_time_ns,
    run,
    simulated_rows,
)
from faultreplay.analysis.judge.bootstrap import Interval
from faultreplay.analysis.judge.judge import NAMES, Errors, by_accessor, error_intervals, errors, relative_percent
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.units import format_ns
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import list_mechanisms
from faultreplay.replay.language.words import CLASSES
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

Progress = Callable[[str], None]
OF_KERNEL: Final = ("stage2", "minor-host")


@dataclass(frozen=True)
class Numbers:
    """What is compared, of one side; times in ns."""

    faults: int
    total: int
    mean: int
    p50: int
    p90: int
    p99: int
    run_time: int
    held: int = 0
    """part of `total`: stood still inside windows"""
    held_accessors: int = 0
    """vCPUs that stood still inside windows"""
    refaults: int = 0
    """faults of the kernel alone from the first window on: on memory that was there"""
    refault: int = 0
    """their stall; part of `total`"""

    def as_record(self, prefix: str) -> dict[str, int]:
        """Flat, for output; counts as they are, times with their unit."""
        return {prefix + k + ("" if k in _COUNTS else "_ns"): v for k, v in self.__dict__.items()}


_COUNTS: Final = ("faults", "held_accessors", "refaults")
_BOUNDED: Final = ("total_ns", "held_ns", "held_accessors", "refaults", "refault_ns")


@dataclass(frozen=True)
class Cell:
    """One prediction against one measurement.

    `floor`: the same measured once more against the measurement (A/A), or what `floor_is` says; None: not measured.
    """

    source: str
    target: str
    mechanism: str
    source_mechanism: str
    predicted: Numbers
    measured: Numbers
    errors: Errors
    intervals: dict[str, Interval]
    floor: Errors | None
    floor_is: str
    again: Numbers | None
    """what the floor was measured with"""
    bounds: tuple[Numbers, Numbers] | None
    """predicted if nothing, and if everything, that is there already is touched again"""
    costs: dict[str, str]
    simulated_percent: float
    predicted_ns: Ints
    measured_ns: Ints
    again_ns: Ints | None
    notes: tuple[str, ...]
    group: str = ""
    runs: int = 1
    """repeats that this cell is the median of"""
    cpus: int | None = None
    """host CPUs that were a resource"""

    @property
    def beyond_percent(self) -> float | None:
        """The error of total stall; where a trace gives bounds, 0 between them and outside that of the nearest one."""
        if not self.bounds or not self.measured.total:
            return self.errors.total
        ends = sorted(side.total for side in self.bounds)
        nearest = min(max(self.measured.total, ends[0]), ends[1])
        return relative_percent(nearest, self.measured.total)

    def within(self, most_percent: float, floor_factor: float | None = None) -> bool:
        """Whether `beyond_percent` is at most `most_percent`, or at most `floor_factor` floors."""
        beyond = self.beyond_percent
        error = abs(beyond) if beyond is not None else float("inf")
        if error <= most_percent:
            return True
        floor = self.floor.total if self.floor else None
        return bool(floor_factor is not None and floor is not None and error <= floor_factor * abs(floor))

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        record: dict[str, Any] = {
            "source": self.source,
            "target": self.target,
            "source_mechanism": self.source_mechanism,
            "mechanism": self.mechanism,
            "group": self.group,
        }
        for side, numbers in (("predicted", self.predicted), ("measured", self.measured)):
            record |= numbers.as_record(f"{side}_")
        for side, numbers in zip(("lower", "upper"), self.bounds or (), strict=False):
            record |= {f"{side}_{name}": value for name, value in numbers.as_record("").items() if name in _BOUNDED}
        record |= self.errors.as_record() | {"beyond_bounds_percent": self.beyond_percent, "runs": self.runs}
        for name, interval in self.intervals.items():
            record |= {f"{name}_error_low_percent": interval.low, f"{name}_error_high_percent": interval.high}
        record |= self.floor.as_record("floor_") if self.floor else {}
        return record | {"floor_is": self.floor_is, "simulated_percent": self.simulated_percent, "costs": self.costs}


def together(cells: Sequence[Cell]) -> Cell:
    """Repeats of one cell as one: every number the median of the repeats', and errors of these.

    One run in a slow spell of its host says nothing of the model; one pair of runs says little of the noise.
    """
    first = cells[0]
    if len(cells) == 1:
        return first
    predicted, measured = (_median([getattr(c, side) for c in cells]) for side in ("predicted", "measured"))
    repeated = [c.again for c in cells if c.again]
    again = _median(repeated) if len(repeated) == len(cells) else None
    bounds = [c.bounds for c in cells if c.bounds]
    middle = {name: [c.intervals[name] for c in cells if name in c.intervals] for name in first.intervals}
    return replace(
        first,
        predicted=predicted,
        measured=measured,
        errors=_errors_of(predicted, measured, [c.errors for c in cells]),
        intervals={
            name: Interval(float(np.median([i.low for i in some])), float(np.median([i.high for i in some])))
            for name, some in middle.items()
        },
        floor=_errors_of(again, measured, [c.floor for c in cells if c.floor]) if again else None,
        floor_is=f"{first.floor_is}, medians of {len(cells)} runs each",
        again=again,
        bounds=(_median([b[0] for b in bounds]), _median([b[1] for b in bounds])) if bounds else None,
        predicted_ns=np.concatenate([c.predicted_ns for c in cells]),
        measured_ns=np.concatenate([c.measured_ns for c in cells]),
        again_ns=np.concatenate([c.again_ns for c in cells if c.again_ns is not None]) if again else None,
        notes=tuple(dict.fromkeys(note for c in cells for note in c.notes)),
        runs=len(cells),
    )


def _median(several: Sequence[Numbers]) -> Numbers:
    return Numbers(**{f.name: round(float(np.median([getattr(n, f.name) for n in several]))) for f in fields(Numbers)})


def _errors_of(predicted: Numbers, measured: Numbers, each: Sequence[Errors]) -> Errors:
    distances = [e.wasserstein for e in each if e.wasserstein is not None]
    return Errors(
        **{k: relative_percent(getattr(predicted, k), getattr(measured, k)) for k in (*NAMES, "run_time")},
        wasserstein=float(np.median(distances)) if distances else None,
    )


def halves(case: Case) -> Cell:
    """A trace against its own second half, with costs from its first.

    Raises:
        IncompleteData: the recorded mechanism is not known, or there are too few faults.
    """
    used = _used(case)
    half = held_out(case, used)
    if not half.rows:
        raise IncompleteData(f"{case.trace.path}: {used.name} serves none of the faults of its second half")
    first, second = case.workload.split(0.5)
    times = measured_run_time_ns(second), measured_run_time_ns(first)
    return Cell(
        source=f"{case.trace.name}, first half",
        target=f"{case.trace.name}, second half",
        mechanism=used.name,
        source_mechanism=used.name,
        predicted=_numbers(half.predicted_ns, half.run_time_ns),
        measured=_numbers(half.measured_ns, times[0]),
        errors=half.errors,
        intervals=dict(half.intervals),
        floor=errors(half.first_ns, half.measured_ns, run_time_ns=(times[1], times[0])) if len(half.first_ns) else None,
        floor_is="first half measured against second half measured",
        again=_numbers(half.first_ns, times[1]) if len(half.first_ns) else None,
        bounds=None,
        costs=_sources(half.costs, half.fitted, case.own),
        simulated_percent=100.0,
        predicted_ns=half.predicted_ns,
        measured_ns=half.measured_ns,
        again_ns=half.first_ns,
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
    setup = replace(source.setup, cpus=target.setup.cpus, pinned=target.setup.pinned)
    mechanism = load_with(used.name, setup, used)
    fitted = source.fitted()
    host = host_costs if host_costs is not None else CostTable({})
    near = target_costs if target_costs is not None else CostTable({})
    costs = source.shipped.merge(host, fitted, near)
    workload = as_missing(without_pauses(source), source.used)
    windows = _moved(target, source)
    result = run(workload, mechanism, costs, setup, windows)
    unnamed = elsewhere(source)
    one = predicted_side(workload, result, unnamed)
    other = measured_side(target)
    bounds = None
    at_once = setup.retouch == "working-set"
    if windows or mechanism.write_after_read:
        other_how: Literal["recorded", "working-set"] = "recorded" if at_once else "working-set"
        again_how = replace(setup, retouch=other_how)
        ends = [one, predicted_side(workload, run(workload, mechanism, costs, again_how, windows), unnamed)]
        lower, upper = reversed(ends) if at_once else ends
        bounds = (lower.numbers(), upper.numbers())
    mine = counted(workload)[workload.accessor_of_row()] & (result.start_ns >= 0)
    simulated = simulated_rows(workload, mechanism)[mine].mean() * 100 if mine.any() else 0.0
    repeated = measured_side(again) if again is not None else None
    intervals = error_intervals(
        by_accessor(one.stalls, one.owner, workload.accessors),
        by_accessor(other.stalls, other.owner, target.workload.accessors),
        paired=False,
        seed=source.setup.seed,
        replicates=replicates,
    )
    return Cell(
        source=source.trace.name,
        target=target.trace.name,
        mechanism=label(target),
        source_mechanism=label(source) or "unknown",
        predicted=one.numbers(),
        measured=other.numbers(),
        errors=_errors(one, other),
        intervals=intervals,
        floor=_errors(repeated, other) if repeated else None,
        floor_is=f"{again.trace.name} measured against {target.trace.name}" if again else "",
        again=repeated.numbers() if repeated else None,
        bounds=bounds,
        costs=_sources(
            result.costs_used,
            frozenset(fitted) - frozenset(near),
            {**source.own, **dict.fromkeys([*host, *near], "this host")},
        ),
        simulated_percent=float(simulated),
        predicted_ns=one.stalls,
        measured_ns=other.stalls,
        again_ns=repeated.stalls if repeated else None,
        cpus=setup.cpus,
        notes=(
            *source.workload.notes,
            *result.warnings,
            *host_notes(source, {WINDOW_KINDS[w.kind] for w in windows}),
            *_elsewhere_notes(source),
            *_elsewhere_notes(target),
        ),
    )


@dataclass(frozen=True)
class Side:
    """What is compared: stalls of the vCPUs outside windows, and how long they stood still inside."""

    stalls: Ints
    owner: npt.NDArray[np.int32]
    held: int
    run_time_ns: int
    held_accessors: int = 0
    refaults: int = 0
    refault_ns: int = 0
    unrecorded_ns: int = 0
    """stall of faults that have no row of their own: assumed refaults"""

    def numbers(self) -> Numbers:
        """What is compared."""
        found = _numbers(self.stalls, self.run_time_ns, self.held)
        return replace(
            found,
            total=found.total + self.unrecorded_ns,
            held_accessors=self.held_accessors,
            refaults=self.refaults,
            refault=self.refault_ns,
        )


def predicted_side(workload: Workload, result: Result, left_out: npt.NDArray[np.bool_] | None = None) -> Side:
    """A replay's vCPUs (all accessors where there are none); without the faults that are `left_out`."""
    owner = workload.accessor_of_row()
    who = counted(workload)
    mine = who[owner] & (result.start_ns >= 0)
    if left_out is not None:
        mine &= ~left_out
    outside, inside = _part_at_windows(result.start_ns[mine], result.stall_ns[mine], result.windows)
    held = int(inside.sum() + result.window_stall_ns[who].sum())
    stood = np.union1d(owner[mine][inside > 0], np.flatnonzero(who & (result.window_stall_ns > 0)))
    refaults, refault_ns = _refaults(workload, result.start_ns, result.stall_ns, mine, result.windows)
    assumed_ns = int(result.refault_stall_ns[who].sum())
    return Side(
        outside,
        owner[mine],
        held,
        result.run_time_ns,
        held_accessors=len(stood),
        refaults=refaults + int(result.refaults[who].sum()),
        refault_ns=refault_ns + assumed_ns,
        unrecorded_ns=assumed_ns,
    )


def measured_side(case: Case) -> Side:
    """A recording's vCPUs; inside windows by the lab guests' own clock where that is known."""
    workload = case.workload
    owner = workload.accessor_of_row()
    mine = counted(workload)[owner] & (workload.recorded_stall_ns >= 0) & ~elsewhere(case)
    spans = _spans(case)
    outside, inside = _part_at_windows(workload.recorded_start_ns[mine], workload.recorded_stall_ns[mine], spans)
    lab = case.trace.meta.lab
    held, held_accessors = int(inside.sum()), len(np.unique(owner[mine][inside > 0]))
    if waiters := lab.get("waiters"):
        held, held_accessors = (sum(int(w.get(key, 0)) for w in waiters) for key in ("waited_ns", "accesses"))
    # A vCPU that was computing when a pause came has no access that waited; the lab knows how long it was parked.
    parked = [ns for a in lab.get("accessors") or [] if (ns := int(a.get("parked_ns", 0)))]
    if parked:
        held, held_accessors = sum(parked), len(parked)
    start_ns, stall_ns = workload.recorded_start_ns, workload.recorded_stall_ns
    refaults, refault_ns = _refaults(workload, start_ns, stall_ns, mine, spans)
    return Side(
        outside,
        owner[mine],
        held if spans else 0,
        measured_run_time_ns(workload),
        held_accessors=held_accessors if spans else 0,
        refaults=refaults,
        refault_ns=refault_ns,
    )


def elsewhere(case: Case) -> npt.NDArray[np.bool_]:
    """Refaults on memory that is not in the trace's memory map: a window empties stage 2 of all of a VM's memory.

    The lab's guest keeps code, lists and logs in a slot of its own. Who replays the accesses elsewhere has other such
    memory, or none. Where most faults are not in the map, the map says nothing of them.
    """
    workload, entries = case.workload, case.trace.meta.memory_map
    inside = np.zeros(workload.faults, dtype=np.bool_)
    for entry in entries:
        first, end = entry.start // workload.page_bytes, -(-entry.end // workload.page_bytes)
        inside |= (workload.page >= first) & (workload.page < end)
    if 2 * np.count_nonzero(inside) < workload.faults:
        return np.zeros(workload.faults, dtype=np.bool_)
    return _after_first(workload, workload.recorded_start_ns, _spans(case)) & ~inside


def _elsewhere_notes(case: Case) -> list[str]:
    rows = elsewhere(case) & counted(case.workload)[case.workload.accessor_of_row()]
    if not rows.any():
        return []
    stall_ns = int(np.maximum(case.workload.recorded_stall_ns[rows], 0).sum())
    return [
        f"{case.trace.name}: {rows.sum()} refaults ({format_ns(stall_ns)}) on memory that is not in its memory map"
        " are not counted"
    ]


def _spans(case: Case) -> list[tuple[int, int]]:
    begin = case.workload.clock_start_ns
    return [(w.start_ns - begin, w.end_ns - begin) for w in case.trace.meta.windows]


def _after_first(workload: Workload, start_ns: Ints, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Faults that the kernel alone resolved from the first window on.

    From its beginning, as a vCPU may touch memory again before whoever held it notes the end.
    """
    after: npt.NDArray[np.bool_] = workload.cls == CLASSES.index("stage2")
    return after & (start_ns >= spans[0][0]) if spans else np.zeros_like(after)


def _refaults(
    workload: Workload, start_ns: Ints, stall_ns: Ints, mine: npt.NDArray[np.bool_], spans: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(number, stall) of refaults."""
    after = mine & _after_first(workload, start_ns, spans)
    return int(after.sum()), int(stall_ns[after].sum())


def _part_at_windows(start_ns: Ints, stall_ns: Ints, spans: Sequence[tuple[int, int]]) -> tuple[Ints, Ints]:
    """(stall outside, stall held) by the spans, per fault: a window holds a fault that waits for the window's end."""
    inside = np.zeros(len(stall_ns), dtype=np.int64)
    for begin, end in spans:
        waits = (start_ns < end) & (start_ns + stall_ns >= end)
        inside += np.where(waits, end - np.maximum(start_ns, begin), 0)
    return stall_ns - inside, inside


def _errors(predicted: Side, measured: Side) -> Errors:
    """Errors of the stalls outside windows; the total has what was held inside too."""
    found = errors(predicted.stalls, measured.stalls, run_time_ns=(predicted.run_time_ns, measured.run_time_ns))
    return replace(found, total=relative_percent(predicted.numbers().total, measured.numbers().total))


def open_for(trace: Trace, setup: Setup, *, fit: bool = True, max_loss_percent: float = 1.0) -> Case:
    """A case without a default window: only recorded ones; the lab's threads on the CPUs they were pinned to."""
    case = open_case(trace, setup, fit=fit, max_loss_percent=max_loss_percent, as_pinned=True)
    return case if trace.meta.windows else replace(case, windows=())


def without_pauses(case: Case) -> Workload:
    """The workload without the time that its vCPUs stood still in recorded pauses: that is no think time of theirs.

    In other windows who touches memory waits in a fault, which is a stall.
    """
    workload = case.workload
    begin = workload.clock_start_ns
    spans = [(w.start_ns - begin, w.end_ns - begin) for w in case.trace.meta.windows if w.kind == "pause"]
    if not spans:
        return workload
    away = np.zeros(workload.faults, dtype=np.int64)
    for first, last in spans:
        since = np.maximum(workload.recorded_start_ns - workload.think_ns, first)
        away += np.maximum(np.minimum(workload.recorded_start_ns, last) - since, 0)
    away[~counted(workload)[workload.accessor_of_row()]] = 0
    asleep_ns = workload.asleep_ns
    if asleep_ns.size:
        asleep_ns = np.maximum(asleep_ns - away, 0)
    return replace(workload, think_ns=workload.think_ns - away, asleep_ns=asleep_ns, _cache={})


def as_missing(workload: Workload, used: Used | None) -> Workload:
    """Where the kernel alone filled memory in, the first fault on each page is what another mechanism calls missing."""
    if used is None or used.name != "host-lazy":
        return workload
    kernel = np.isin(workload.cls, [CLASSES.index(name) for name in OF_KERNEL])
    rows = np.flatnonzero(kernel)
    order = rows[np.argsort(workload.recorded_start_ns[rows], kind="stable")]
    _, first = np.unique(workload.page[order], return_index=True)
    cls = workload.cls.copy()
    cls[order[first]] = CLASSES.index("missing")
    return replace(workload, cls=cls, _cache={})


def _used(case: Case) -> Used:
    if case.used is None:
        raise IncompleteData(f"{case.trace.path}: neither the trace nor its faults say which mechanism was in use")
    if case.used.name not in list_mechanisms() and case.used.name not in case.setup.settings:
        raise UsageError(f"{case.trace.path}: recorded under {case.used.name}, of which there is no model to judge")
    return case.used


def label(case: Case) -> str:
    """The mechanism of the recording, or the window it had."""
    if case.used is None:
        return ""
    return case.used.window_kind if case.used.window_kind and case.windows else case.used.name


def _moved(target: Case, source: Case) -> Sequence[Window]:
    """The target's windows on the source's clock: as long after the first fault."""
    if not target.windows:
        return []
    shift = _first_ns(source.workload) - _first_ns(target.workload)
    return [replace(w, start_ns=max(w.start_ns + shift, 0)) for w in target.windows]


def _first_ns(workload: Workload) -> int:
    mine = counted(workload)[workload.accessor_of_row()]
    return int(workload.recorded_start_ns[mine].min(initial=np.iinfo(np.int64).max)) if mine.any() else 0


def _numbers(stalls: Ints, run_time_ns: int, held: int = 0) -> Numbers:
    ranked = np.sort(stalls)
    mean = round(float(stalls.mean())) if len(stalls) else 0
    p50, p90, p99 = (quantile(ranked, q) for q in (0.5, 0.9, 0.99))
    return Numbers(len(stalls), int(stalls.sum()) + held, mean, p50, p90, p99, run_time_ns, held)


def _sources(costs: Any, fitted: frozenset[str], own: Mapping[str, str]) -> dict[str, str]:
    return {name: "this trace" if name in fitted else own.get(name, how) for name, how in costs.items()}


@dataclass(frozen=True)
class Summary:
    """Absolute errors of total stall over several cells, percent (`Cell.beyond_percent`)."""

    what: str
    cells: int
    median: float
    worst: float
    worst_cell: str
    floor_median: float | None
    floor_worst: float | None
    p50_median: float | None
    """median |error of p50|"""
    floor_p50_median: float | None
    reached_percent: float
    """cells within `WANTED_PERCENT`, or within `WANTED_FLOORS` times the A/A difference of their own cell"""
    within_worst_percent: float
    """cells within `WANTED_WORST_PERCENT`, or within `WANTED_FLOORS` times that difference"""


WANTED_PERCENT: Final = 10.0
WANTED_WORST_PERCENT: Final = 25.0
WANTED_FLOORS: Final = 1.5


def summarize(cells: Sequence[Cell], what: str) -> Summary | None:
    """Median and worst |error of total stall|; None of no cells."""
    known = [(abs(e), f"{c.source} -> {c.target}") for c in cells if (e := c.beyond_percent) is not None]
    if not known:
        return None
    floors = [abs(c.floor.total) for c in cells if c.floor and c.floor.total is not None]
    worst, name = max(known)
    p50 = [abs(c.errors.p50) for c in cells if c.errors.p50 is not None]
    floor_p50 = [abs(c.floor.p50) for c in cells if c.floor and c.floor.p50 is not None]
    return Summary(
        what=what,
        cells=len(known),
        median=float(np.median([e for e, _ in known])),
        worst=worst,
        worst_cell=name,
        floor_median=float(np.median(floors)) if floors else None,
        floor_worst=max(floors, default=None),
        p50_median=float(np.median(p50)) if p50 else None,
        floor_p50_median=float(np.median(floor_p50)) if floor_p50 else None,
        reached_percent=100 * float(np.mean([c.within(WANTED_PERCENT, WANTED_FLOORS) for c in cells])),
        within_worst_percent=100 * float(np.mean([c.within(WANTED_WORST_PERCENT, WANTED_FLOORS) for c in cells])),
    )
