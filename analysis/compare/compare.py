"""One trace under several mechanisms, beside what was measured. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from faultreplay.analysis.compare.blackout import BLACKOUTS, Blackout, Stillness, blackout, measured_stillness
from faultreplay.analysis.compare.case import Case, held_out, loss_percent
from faultreplay.analysis.compare.metrics import Metrics
from faultreplay.analysis.compare.notes import notes_of
from faultreplay.analysis.compare.predict import (
    Used,
    doubled,
    load_with,
    mean_metrics,
    measured_metrics,
    metrics_of,
    replications,
    run,
    simulated_rows,
)
from faultreplay.analysis.compare.served import Served, served, why_no_row
from faultreplay.analysis.compare.sources import CostSource
from faultreplay.analysis.judge.bootstrap import Interval, intervals
from faultreplay.analysis.judge.judge import Errors, by_accessor, errors
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.workload import Workload

DEFAULT_MECHANISMS: Final = ("as-recorded", "uffd-missing", "kvm-exit", "ideal")
FEWEST_TO_JUDGE: Final = 60
MARKED_FROM_PERCENT: Final = 1.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One mechanism's prediction."""

    mechanism: str
    title: str
    params: Mapping[str, float]
    metrics: Metrics
    costs: Mapping[str, CostSource]
    cost_means_ns: Mapping[str, float]
    total_interval: Interval | None
    borrowed_effect_percent: float | None
    """by how much total stall changes when every borrowed cost is doubled; None: not looked at"""
    warnings: tuple[str, ...]
    result: Result
    served: Served = field(default_factory=Served)

    @property
    def marked(self) -> bool:
        """True when costs of other hardware matter for this row."""
        return abs(self.borrowed_effect_percent or 0) >= MARKED_FROM_PERCENT

    @property
    def borrowed(self) -> dict[str, CostSource]:
        """The costs of other hardware."""
        return {name: source for name, source in self.costs.items() if source.foreign}


@dataclass(frozen=True)
class Unanswered:
    """A mechanism that has no numbers for this trace, and why."""

    mechanism: str
    title: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """The recorded mechanism's prediction against the recording.

    `in_sample`: costs from all faults, judged on the same. `held_out`: costs from the first half, judged on the second.
    """

    used: Used
    rows: int
    in_sample: Errors
    held_out: Errors | None
    held_out_rows: int
    held_out_intervals: Mapping[str, Interval]
    why_not: str


@dataclass(frozen=True)
class Comparison:
    """All that `faultreplay compare` says."""

    trace: str
    origin: str
    faults: int
    vcpus: int
    measured: Metrics
    rows: tuple[Row, ...]
    judged: Judged | None
    windows: tuple[Window, ...]
    lost_events: int
    events: int
    workload: Workload
    notes: tuple[str, ...]
    asked: tuple[str, ...] = ()
    """all mechanisms of the table on missing memory, in order, with numbers or without"""
    unanswered: tuple[Unanswered, ...] = ()
    blackouts: tuple[Blackout, ...] = ()
    blackout_measured: Stillness | None = None
    windows_from: str = ""
    what_if: tuple[str, ...] = ()

    @property
    def loss_percent(self) -> float:
        """Lost events in percent of all that happened."""
        return loss_percent(self.lost_events, self.events)


def compare(
    case: Case,
    mechanisms: Sequence[str] = (),
    *,
    measure_held_out: bool = True,
    weigh_borrowed: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Replay a trace under `mechanisms`.

    Args:
        case: from `open_case`.
        mechanisms: names or files; by default `DEFAULT_MECHANISMS` and the recorded one.
        measure_held_out: also predict the second half with costs of the first.
        weigh_borrowed: also replay with borrowed costs doubled, to see how much hangs on them.
        progress: called with a word on each long step.

    Raises:
        UsageError: an unknown mechanism, parameter or cost.
    """
    step = progress or (lambda _: None)
    measured = measured_metrics(case.workload)
    loaded = [load_with(name, case.setup, case.used) for name in mechanisms or default_names(case)]
    missing = [mechanism for mechanism in loaded if mechanism.window is None]
    rows: list[Row] = []
    unanswered: list[Unanswered] = []
    for mechanism in missing:
        step(f"replaying {mechanism.name}")
        found = _row(mechanism, case, weigh_borrowed)
        if isinstance(found, Row):
            rows.append(found)
        else:
            unanswered.append(found)
    still = []
    for name in blackout_names(case, mechanisms):
        step(f"replaying windows under {name}")
        still.append(blackout(name, case, case.costs()))
    judged = None
    recorded = next((r for r in rows if case.used and r.mechanism == case.used.name), None)
    if case.used and recorded and not case.what_if:
        step(f"judging {case.used.name} on the second half")
        judged = _judge(case, case.used, recorded, measured, measure_held_out)
    return Comparison(
        trace=str(case.trace.path),
        origin=str(case.trace.meta.origin),
        faults=case.workload.faults,
        vcpus=measured.vcpus,
        measured=measured,
        rows=tuple(rows),
        judged=judged,
        windows=case.windows,
        lost_events=case.trace.meta.losses.total,
        events=case.trace.event_rows,
        workload=case.workload,
        notes=tuple(notes_of(case, rows, still)),
        asked=tuple(mechanism.name for mechanism in missing),
        unanswered=tuple(unanswered),
        blackouts=tuple(still),
        blackout_measured=measured_stillness(case) if still else None,
        windows_from=case.windows_from,
        what_if=case.what_if,
    )


def blackout_names(case: Case, mechanisms: Sequence[str]) -> list[str]:
    """What stands in the table on blackouts: what was asked for, and the kinds of the windows, recorded or asked for.

    Where no mechanism was named and there are windows, all that are shipped.
    """
    if not mechanisms:
        return list(BLACKOUTS) if any(w.kind for w in case.windows) else []
    asked = [name for name in mechanisms if load_with(name, case.setup, case.used).window is not None]
    of_windows = [WINDOW_KINDS[w.kind] for w in case.windows if w.kind]
    return list(dict.fromkeys((*asked, *of_windows)))


def default_names(case: Case) -> list[str]:
    """What is compared where nothing was asked for: the defaults and the recorded mechanism."""
    from faultreplay.replay.language.mechanism import list_mechanisms

    used = case.used
    names = [n for n in DEFAULT_MECHANISMS if case.workload.measured or n != "as-recorded"]
    mine = load_with(used.name, case.setup, used) if used and used.name in list_mechanisms() else None
    if used and used.name not in names and mine and served(case.read, mine).own_faults:
        names.insert(1, used.name)
    return names


def _row(mechanism: Mechanism, case: Case, weigh_borrowed: bool) -> Row | Unanswered:
    setup, workload = case.setup, case.read
    if reason := why_no_row(case, mechanism):
        return Unanswered(mechanism.name, mechanism.title, reason)
    costs = case.costs()
    windows = case.windows_of(mechanism.name)
    results = replications(workload, mechanism, costs, setup, windows)
    first = results[0]
    sources = case.sources(first.costs_used)
    interval = None
    if setup.seeds > 1:
        groups = [[part for r in results for part in by_accessor(r.stall_ns, r.accessor, workload.accessors)]]
        (interval,) = intervals(groups, lambda g: np.array([g[0].sum() / len(results)]), seed=setup.seed)
    return Row(
        mechanism=mechanism.name,
        title=mechanism.title,
        params=dict(mechanism.values),
        metrics=mean_metrics([metrics_of(result, workload) for result in results]),
        costs=sources,
        cost_means_ns={cost: costs[cost].distribution.mean for cost in sources},
        total_interval=interval,
        borrowed_effect_percent=_effect_of_borrowed(case, mechanism, costs, sources, first) if weigh_borrowed else None,
        warnings=first.warnings,
        result=first,
        served=served(workload, mechanism, first),
    )


def _effect_of_borrowed(
    case: Case, mechanism: Mechanism, costs: CostTable, sources: Mapping[str, CostSource], result: Result
) -> float:
    borrowed = [name for name, source in sources.items() if source.foreign]
    if not borrowed or not result.total_stall_ns:
        return 0.0
    again = run(case.read, mechanism, doubled(costs, borrowed), case.setup, case.windows_of(mechanism.name))
    return 100 * (again.total_stall_ns - result.total_stall_ns) / result.total_stall_ns


def _judge(case: Case, used: Used, row: Row, measured: Metrics, measure_held_out: bool) -> Judged | None:
    workload = case.workload
    mechanism = load_with(used.name, case.setup, used)
    mine = simulated_rows(workload, mechanism) & (workload.recorded_stall_ns >= 0) & (row.result.stall_ns >= 0)
    count = int(mine.sum())
    if not count:
        return None
    in_sample = errors(
        row.result.stall_ns[mine],
        workload.recorded_stall_ns[mine],
        run_time_ns=(row.metrics.run_time_ns, measured.run_time_ns),
    )
    half, why = None, ""
    if count < FEWEST_TO_JUDGE:
        why = f"{count} faults are too few to hold half of them out"
    elif measure_held_out:
        half = held_out(case, used)
    return Judged(
        used=used,
        rows=count,
        in_sample=in_sample,
        held_out=half.errors if half else None,
        held_out_rows=half.rows if half else 0,
        held_out_intervals=half.intervals if half else {},
        why_not=why,
    )


def as_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Flat records: one for the measurement if there is one, one a mechanism, integers in ns."""
    measured = {"mechanism": comparison.judged.used.name if comparison.judged else "", "row": "measured"}
    records: list[dict[str, Any]] = []
    if comparison.workload.measured:
        records.append(measured | comparison.measured.as_record())
    for row in comparison.rows:
        record: dict[str, Any] = {"mechanism": row.mechanism, "row": "predicted"} | row.metrics.as_record()
        record |= row.served.as_record()
        record["params"] = dict(row.params)
        record["costs"] = {name: str(source) for name, source in row.costs.items()}
        record["cost_means_ns"] = dict(row.cost_means_ns)
        record["borrowed_costs"] = sorted(row.borrowed)
        record["borrowed_costs_doubled_change_total_percent"] = row.borrowed_effect_percent
        if row.total_interval:
            record |= {
                "total_stall_low_ns": round(row.total_interval.low),
                "total_stall_high_ns": round(row.total_interval.high),
            }
        if comparison.judged and row.mechanism == comparison.judged.used.name:
            record |= comparison.judged.in_sample.as_record("in_sample_")
            if comparison.judged.held_out:
                record |= comparison.judged.held_out.as_record("held_out_")
        records.append(record)
    records += [{"mechanism": u.mechanism, "row": "none", "reason": u.reason} for u in comparison.unanswered]
    records += [still.as_record() for still in comparison.blackouts]
    return records
