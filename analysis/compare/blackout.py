"""Memory held still for a while: the same windows under several rules, over what served the recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.metrics import Ints, Metrics, overlap_ns, stops_ns, union_ns
from faultreplay.analysis.compare.predict import counted, doubled, load_with, metrics_of, run, simulated_rows
from faultreplay.analysis.compare.sources import CostSource
from faultreplay.analysis.compare.still_sure import standstill_interval
from faultreplay.analysis.judge.bootstrap import Interval
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.windows import Window
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.reading import without
from faultreplay.replay.workload.workload import Workload

Retouch = Literal["recorded", "working-set"]
BLACKOUTS: Final = ("pause-only", "freeze", "memslot-destroy", "uffd-wp-freeze")
"""Shipped mechanisms with a window."""


@dataclass(frozen=True)
class Stillness:
    """What a blackout cost, with the faults that its trace shows (or with all that may follow)."""

    standstill_ns: int
    """longest time that a vCPU made no progress at a window, including faults right before the stop"""
    all_stalled_ns: int
    """time at windows in which no vCPU made progress"""
    refaults: int
    """faults on memory that the window emptied: recorded ones, and those that are assumed"""
    refault_stall_ns: int
    make_undo_ns: int | None = None
    """making and undoing the windows, without the work inside; None: not known"""
    hazards: Mapping[str, int] = field(default_factory=dict)
    """accessor kind -> recorded writes inside that nothing stops"""


@dataclass(frozen=True)
class Blackout:
    """One rule over the recorded base. `low`: only what the trace shows is touched; `high`: all touched so far is."""

    mechanism: str
    title: str
    params: Mapping[str, float]
    base: str
    low: Stillness
    high: Stillness
    result: Result
    """with the pages touched again that the set-up's `retouch` selects"""
    workload: Workload
    """what was replayed: without the faults that only the recorded window brought about, if this rule brings none"""
    metrics: Metrics
    """of `result`"""
    costs: Mapping[str, CostSource] = field(default_factory=dict)
    borrowed_effect_percent: float | None = None
    """by how much the longest stand-still changes when every foreign cost is doubled"""
    standstill: Interval | None = None
    """of the longest stand-still, over both bounds; None: not computed, or no vCPU stood still"""
    seen: object = None
    """as of `compare.Row`"""

    @property
    def borrowed(self) -> dict[str, CostSource]:
        """The costs of other hardware."""
        return {name: source for name, source in self.costs.items() if source.foreign}

    def as_record(self) -> dict[str, Any]:
        """Flat: integers in ns, lower and upper bound of each number that has two."""
        record: dict[str, Any] = {"mechanism": self.mechanism, "row": "blackout", "base": self.base}
        for end, still in (("low", self.low), ("high", self.high)):
            record |= {
                f"standstill_{end}_ns": still.standstill_ns,
                f"blackout_all_stalled_{end}_ns": still.all_stalled_ns,
                f"refaults_{end}": still.refaults,
                f"refault_stall_{end}_ns": still.refault_stall_ns,
                f"make_undo_{end}_ns": still.make_undo_ns,
            }
        if self.standstill is not None:
            record["standstill_interval_low_ns"] = round(self.standstill.low)
            record["standstill_interval_high_ns"] = round(self.standstill.high)
        return record | {"hazards": dict(self.low.hazards), "params": dict(self.params)}


def base_of(case: Case) -> Mechanism | None:
    """The recorded mechanism, where it makes most of the stalls; None: they stay as they were recorded."""
    used, workload = case.used, case.workload
    if used is None or used.name not in case.known:
        return None
    base = load_with(used.name, case.setup, used)
    return base if simulated_rows(workload, base).mean() >= 0.5 else None


def over(base: Mechanism | None, rule: Mechanism) -> Mechanism:
    """`rule`'s window, and what follows on it, over `base`'s paths."""
    if base is None:
        return rule
    mine = {name: path for name, path in rule.paths.items() if name in ("window", "refault")}
    return replace(
        base,
        name=rule.name,
        title=rule.title,
        params={**base.params, **rule.params},
        values={**base.values, **rule.values},
        resources={**rule.resources, **base.resources},
        paths={**base.paths, **mine},
        window=rule.window,
    )


def under_rule(case: Case, rule: Mechanism) -> tuple[Workload, npt.NDArray[np.bool_]]:
    """The faults that happen under a window rule, and which of them a recorded window brought by emptying stage 2."""
    workload, refaulted = case.running, case.refaulted
    if rule.window is None or not rule.window.empties_stage2:
        # What faulted because the recorded window emptied stage 2 would not have faulted here.
        return without(workload, refaulted), refaulted[~refaulted]
    return workload, refaulted


def blackout(name: str, case: Case, costs: CostTable, *, weigh: bool = False) -> Blackout:
    """Replay the case's windows under the rule of `name`, by both bounds of what is touched again.

    Args:
        name: of the rule.
        case: from `open_case`.
        costs: to replay with.
        weigh: also say how sure the longest stand-still is.

    Raises:
        UsageError: no such mechanism, or it has no window rule.
    """
    rule, base = load_with(name, case.setup, case.used), base_of(case)
    mechanism = over(base, rule)
    workload, refaulted = under_rule(case, rule)
    ends: list[tuple[Stillness, Result]] = []
    bounds: tuple[Retouch, ...] = ("recorded", "working-set")
    for retouch in bounds:
        setup = replace(case.setup, retouch=retouch)
        results = [run(workload, mechanism, costs, setup, case.windows, seed=k) for k in range(setup.seeds)]
        ends.append((_mean([_stillness(r, workload, case.windows, refaulted) for r in results]), results[0]))
    (low, first), (high, second) = ends
    result = second if case.setup.retouch == "working-set" else first
    sources = case.sources(first.costs_used)
    foreign = [cost for cost, source in sources.items() if source.foreign]
    twice = run(workload, mechanism, doubled(costs, foreign), case.setup, case.windows)
    more = _stillness(twice, workload, case.windows, refaulted).standstill_ns - low.standstill_ns

    def longest(retouch: Retouch, table: CostTable, seed: int) -> int:
        setup = replace(case.setup, retouch=retouch)
        result = run(workload, mechanism, table, setup, case.windows, seed=seed)
        return _stillness(result, workload, case.windows, refaulted).standstill_ns

    ways = [partial(longest, retouch) for retouch in bounds]
    return Blackout(
        mechanism=rule.name,
        title=rule.title,
        params=dict(rule.values),
        base=base.name if base else "the recorded stalls",
        low=low,
        high=high,
        result=result,
        workload=workload,
        metrics=metrics_of(result, workload),
        costs=sources,
        borrowed_effect_percent=100 * more / low.standstill_ns if low.standstill_ns else 0.0,
        standstill=standstill_interval(case, costs, sources, ways) if weigh else None,
    )


def measured_stillness(case: Case) -> Stillness | None:
    """What the recording itself shows at its windows; None: none was recorded, or no thread was seen waiting in one.

    A vCPU that was stopped outside a fault left no stall: where its pause is recorded that is counted, else these are
    lower bounds.
    """
    workload, spans = case.workload, case.recorded_spans()
    if not spans or not workload.recorded_start_ns.size:
        return None
    known = workload.recorded_stall_ns >= 0
    who, start = workload.accessor_of_row()[known], workload.recorded_start_ns[known]
    pauses = [(a, *span) for a in np.flatnonzero(counted(workload)) for span in case.recorded_spans(("pause",))]
    stops = np.array(pauses, np.int64).reshape(-1, 3)
    longest, at_once = _still(
        np.concatenate((who, stops[:, 0])),
        np.concatenate((start, stops[:, 1])),
        np.concatenate((start + workload.recorded_stall_ns[known], stops[:, 2])),
        workload,
        spans,
    )
    again = case.refaulted & (workload.recorded_stall_ns >= 0)
    stall = int(workload.recorded_stall_ns[again].sum())
    return Stillness(longest, at_once, int(again.sum()), stall) if longest else None


def _stillness(
    result: Result, workload: Workload, windows: Sequence[Window], refaulted: npt.NDArray[np.bool_]
) -> Stillness:
    reached = result.start_ns >= 0
    who, start, end = result.accessor[reached], result.start_ns[reached], result.end_ns[reached]
    stopped = np.flatnonzero(result.window_stall_ns > 0)
    spans = np.array(result.windows, np.int64).reshape(-1, 2)
    begin = np.tile(spans[:, 0], len(stopped))
    blocked = (np.repeat(stopped, len(spans)), begin, np.tile(spans[:, 1], len(stopped)))
    # A stop may last beyond its window, as the return of a vCPU does; one that began inside a fault is joined to that
    # fault.
    until = np.maximum(blocked[2], begin + stops_ns(blocked, result.window_stall_ns))
    longest, at_once = _still(
        np.concatenate((who, blocked[0])),
        np.concatenate((start, begin)),
        np.concatenate((end, until)),
        workload,
        result.windows,
    )
    work = sum(w.length_ns for w in windows)
    again = reached & refaulted if len(refaulted) == len(reached) else np.zeros(len(reached), np.bool_)
    return Stillness(
        longest,
        at_once,
        int(result.refaults.sum()) + int(again.sum()),
        int(result.refault_stall_ns.sum()) + int(result.stall_ns[again].sum()),
        sum(b - a for a, b in result.windows) - work if result.windows else None,
        dict(result.hazards),
    )


def _still(
    who: npt.NDArray[np.integer[Any]], start: Ints, end: Ints, workload: Workload, spans: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(longest stand-still of a vCPU, time with all of them still) of the intervals that touch one of `spans`."""
    starts, ends, longest = [], [], 0
    vcpus = np.flatnonzero(counted(workload))
    for one in vcpus:
        begins, finishes = union_ns(start[who == one], end[who == one])
        near = np.zeros(len(begins), bool)
        for a, b in spans:
            near |= (begins < b) & (finishes > a)
        starts.append(begins[near])
        ends.append(finishes[near])
        longest = max(longest, int((finishes[near] - begins[near]).max(initial=0)))
    if not starts:
        return 0, 0
    return longest, overlap_ns(np.concatenate(starts), np.concatenate(ends), len(vcpus))


def _mean(several: Sequence[Stillness]) -> Stillness:
    first = several[0]
    if len(several) == 1:
        return first
    names = ("standstill_ns", "all_stalled_ns", "refaults", "refault_stall_ns")
    means: dict[str, Any] = {name: round(float(np.mean([getattr(s, name) for s in several]))) for name in names}
    made = [s.make_undo_ns for s in several if s.make_undo_ns is not None]
    return replace(first, **means, make_undo_ns=round(float(np.mean(made))) if made else None)
