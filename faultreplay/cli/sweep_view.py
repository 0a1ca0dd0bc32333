"""A sweep as tables: one a trace with a line a point and, below it, the answer in sentences."""

from __future__ import annotations

import json
from typing import Any

from faultreplay.analysis.explore.axes import stem_of
from faultreplay.analysis.explore.crossover import REFERENCES, Crossing, excess
from faultreplay.analysis.explore.spread import spread
from faultreplay.analysis.explore.sweep import Sweep
from faultreplay.cli.render import Column, Report
from faultreplay.cli.spread_view import MOST_TABLES, spread_report
from faultreplay.cli.sweep_words import course_record, point_words, sentences, turns_between
from faultreplay.faulttrace.units import format_ns

_SAYS = {
    "total_stall_ns": "total stall",
    "run_time_ns": "run time",
    "p50_ns": "median stall",
    "p99_ns": "p99 of stalls",
}


def whole(done: Sweep) -> Report:
    """All cells as flat records, the crossings beside them (JSON, CSV, Parquet)."""
    records = [
        {"trace": cell.label, "mechanism": cell.mechanism, **done.rows[cell.label, cell.mechanism, cell.point]}
        for cell in done.plan.cells
        if (cell.label, cell.mechanism, cell.point) in done.rows
    ]
    return Report(
        records,
        [Column("trace", "trace"), Column("mechanism", "mechanism"), Column(done.ranked_by, ranked_words(done), "ns")],
        title="sweep",
        notes=notes(done),
        extra={
            "crossings": [_crossing_record(c) for c in done.crossings],
            "courses": [course_record(c) for c in done.courses],
            "unranked": {label: dict(unranked) for label, unranked in done.unranked.items()},
        },
    )


def tables(done: Sweep) -> list[Report]:
    """A table and the answer for each trace (of many traces none, but one over all), then what was done."""
    labels = done.plan.traces if len(done.plan.traces) <= MOST_TABLES else {}
    over = [over_hosts(done)] if len(done.plan.traces) > 1 and len(done.plan.mechanisms) > 1 else []
    return [*(trace_table(done, label) for label in labels), *over, _last(done)]


def over_hosts(done: Sweep) -> Report:
    """Each mechanism against the first one over all traces, at the same points: quantiles, and which traces differ."""
    missing = {mechanism for unranked in done.unranked.values() for mechanism in unranked}
    alike = [mechanism for mechanism in done.plan.mechanisms if mechanism not in missing]
    first, *others = alike or done.plan.mechanisms
    spreads = []
    for mechanism in others:
        found: list[tuple[str, float]] = []
        for label in done.plan.traces:
            for point in done.plan.points:
                at = done.plan.cells_at(label, point)
                if at[first] in done.rows and at[mechanism] in done.rows:
                    base = float(done.rows[at[first]][done.ranked_by])
                    if base > 0:
                        found.append((label, 100 * (float(done.rows[at[mechanism]][done.ranked_by]) / base - 1)))
        if (one := spread(mechanism, found)) is not None:
            spreads.append(one)
    words = [f"not in it, as at some trace it leaves something out: {', '.join(sorted(missing))}"] if missing else []
    return spread_report(spreads, ranked_words(done), first, words)


def notes(done: Sweep) -> list[str]:
    """What was done, and each cell that could not be."""
    cells = len(done.plan.cells)
    kept = cells - done.computed - len(done.failed)
    axes = {axis.key: axis for axis in done.plan.common.axes}
    lines = [f"{cells} cells: {done.computed} computed, {kept} taken from the data set, {len(done.failed)} failed"]
    lines += [
        f"failed: {cell.label} {cell.mechanism} {point_words(cell.point, axes) or '(no axis)'}: {why.words}"
        for cell, why in done.failed.items()
    ]
    return lines


def trace_table(done: Sweep, label: str) -> Report:
    """The numbers of one trace, a line a point, and the answer in sentences."""
    made = done.plan
    axes = {axis.key: axis for axis in made.common.axes}
    records, origin = [], ""
    for point in made.points:
        found: dict[str, float] = {}
        for mechanism, at in made.cells_at(label, point).items():
            if at in done.rows:
                found[mechanism] = done.rows[at][done.ranked_by]
                origin = str(done.rows[at]["origin"])
        ranked = {m: v for m, v in found.items() if m not in done.unranked[label]}
        choice = {m: v for m, v in ranked.items() if m not in REFERENCES}
        over = excess(ranked)
        record: dict[str, Any] = {key: axes[key].show(value) for key, value in point}
        record |= {f"by:{m}": v for m, v in found.items()}
        record["first"] = stem_of(min(choice, key=lambda m: (choice[m], m))) if choice else None
        record["excess"] = None if over is None or over > 1e6 else 100 * over
        records.append(record)
    columns = [Column(key, key.replace(".", "\n")) for key in axes]
    columns += [Column(f"by:{m}", stem_of(m).replace("-", "-\n", 1), "ns", 5) for m in made.mechanisms]
    columns += [Column("first", "best"), Column("excess", "worst\nover best", "percent", 6)]
    said = sentences([course for course in done.courses if course.trace == label], made.common.axes)
    title = f"{label} ({origin or 'no cell'}): {ranked_words(done)}"
    columns = columns if origin else []
    return Report(records, columns, title=title, notes=[*said, *_not_alike(done, label), *_how_often(done, label)])


def _last(done: Sweep) -> Report:
    """What the sentences mean, what is borrowed, and which cells failed."""
    share = f"{100 * done.tolerance:g} %"
    words = []
    if done.courses:
        words = [
            f"N %: so much less {ranked_words(done)} than the other one has; it does not matter which: the worst has "
            f"at most {share} more than the best (--tolerance)"
        ]
    if any(turns_between(course, done.plan.common.axes) for course in done.courses):
        words.append("turning points lie between two points of the sweep, on a straight line over the axis's logarithm")
    if len(done.plan.traces) > MOST_TABLES:
        words = [*_counted(done), *words]
    return Report([], [], notes=words + _borrowed(done) + notes(done))


def _counted(done: Sweep) -> list[str]:
    """Of many traces: at how many which mechanism is best, and where it does not matter, in all their points."""
    found: dict[str, int] = {}
    points = 0
    for label in done.plan.traces:
        for at in done.values(label).values():
            over = excess(at)
            if over is not None:
                points += 1
                best = min((m for m in at if m not in REFERENCES), key=lambda m: (at[m], m))
                answer = stem_of(best) if over > done.tolerance else ""
                found[answer] = found.get(answer, 0) + 1
    words = [f"{name} is best at {count:,}" for name, count in sorted(found.items(), key=lambda i: -i[1]) if name]
    words += [f"it does not matter which at {found['']:,}"] if "" in found else []
    return [f"of {points:,} points of {len(done.plan.traces):,} traces {', '.join(words)}"] if words else []


def _how_often(done: Sweep, label: str) -> list[str]:
    """At how many points it matters, where that says more than the sentences."""
    if len(done.plan.common.axes) < 2:
        return []
    known = [over for at in done.values(label).values() if (over := excess(at)) is not None]
    apart = sum(over > done.tolerance for over in known)
    return [f"it matters which at {apart} of {len(known)} points"] if known else []


def _not_alike(done: Sweep, label: str) -> list[str]:
    """Which mechanisms are not ranked, and whose time before the guest runs is in no stall."""
    words = [f"Not ranked: {stem_of(name)} {why}." for name, why in done.unranked[label].items()]
    before: dict[str, int] = {}
    for (trace, mechanism, _), row in done.rows.items():
        if trace == label and row["startup_ns"] and mechanism not in done.unranked[label]:
            before[mechanism] = max(before.get(mechanism, 0), int(row["startup_ns"]))
    words += [
        f"But {stem_of(name)} takes up to {format_ns(ns)} before the guest runs, which are in no stall."
        for name, ns in before.items()
    ]
    return words


def _borrowed(done: Sweep) -> list[str]:
    """Costs that neither the trace shows nor the sweep varies."""
    varied = {axis.key for axis in done.plan.common.axes}
    found: dict[str, set[str]] = {}
    for (_, mechanism, _), row in done.rows.items():
        for cost, provenance in json.loads(row["costs"]).items():
            if provenance != "measured-trace" and cost not in varied:
                found.setdefault(mechanism, set()).add(cost)
    if not found:
        return []
    lists = "; ".join(f"{m}: {', '.join(sorted(costs))}" for m, costs in sorted(found.items()))
    return [f"costs not measured in the traces: {lists}"]


def _crossing_record(crossing: Crossing) -> dict[str, Any]:
    return {**crossing.__dict__, "others": dict(crossing.others)}


def ranked_words(done: Sweep) -> str:
    """What mechanisms are ranked by."""
    return _SAYS.get(done.ranked_by, done.ranked_by)
