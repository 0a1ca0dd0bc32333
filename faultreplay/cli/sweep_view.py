"""A sweep as tables: one a trace with a line a point, and one of what changes along each axis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from faultreplay.analysis.explore.axes import Axis, Point
from faultreplay.analysis.explore.crossover import REFERENCES, Crossing, excess
from faultreplay.analysis.explore.sweep import Sweep
from faultreplay.cli.render import Column, Report

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
        [Column("trace", "trace"), Column("mechanism", "mechanism"), Column(done.ranked_by, _says(done), "ns")],
        title="sweep",
        notes=notes(done),
        extra={"crossings": [_crossing_record(c) for c in done.crossings]},
    )


def tables(done: Sweep) -> list[Report]:
    """A table for each trace (of many traces none, but one over all), then one of the changes."""
    labels = done.plan.traces if len(done.plan.traces) <= _MOST_TABLES else {}
    over = [over_hosts(done)] if len(done.plan.traces) > 1 and len(done.plan.mechanisms) > 1 else []
    return [*(_trace_table(done, label) for label in labels), *over, _changes(done)]


def over_hosts(done: Sweep) -> Report:
    """Each mechanism against the first one over all traces, at the same points: quantiles, and which traces differ."""
    first, *others = done.plan.mechanisms
    records = []
    for mechanism in others:
        found: list[tuple[float, str]] = []
        for label in done.plan.traces:
            for point in done.plan.points:
                at = done.plan.cells_at(label, point)
                if at[first] in done.rows and at[mechanism] in done.rows:
                    base = float(done.rows[at[first]][done.ranked_by])
                    if base > 0:
                        found.append((100 * (float(done.rows[at[mechanism]][done.ranked_by]) / base - 1), label))
        if not found:
            continue
        values = sorted(value for value, _ in found)
        middle = _quantile(values, 0.5)
        against = sorted({label for value, label in found if value * middle < 0})
        record: dict[str, Any] = {"mechanism": mechanism, "traces": len({label for _, label in found})}
        record |= {name: _quantile(values, share) for name, share in _QUANTILES.items()}
        record["against"] = ", ".join(against[:5]) + (f" and {len(against) - 5} more" if len(against) > 5 else "")
        records.append(record)
    columns = [Column("mechanism", "mechanism"), Column("traces", "traces", "count")]
    columns += [Column(name, name, "percent") for name in _QUANTILES] + [Column("against", "the other way round at")]
    words = "quantiles over traces and points; nothing is weighed: a trace of a minute counts as one of an hour"
    return Report(records, columns, title=f"over all traces: {_says(done)} against {first}", notes=[words])


_QUANTILES = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "most": 1.0}
_MOST_TABLES = 20


def _quantile(values: list[float], share: float) -> float:
    """Of sorted values, the one at `share`, or between two."""
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def notes(done: Sweep) -> list[str]:
    """What was done, and each cell that could not be."""
    cells = len(done.plan.cells)
    kept = cells - done.computed - len(done.failed)
    lines = [f"{cells} cells: {done.computed} computed, {kept} taken from the data set, {len(done.failed)} failed"]
    lines += [
        f"failed: {cell.label} {cell.mechanism} {_at(cell.point, done.plan.common.axes) or '(no axis)'}: {why}"
        for cell, why in done.failed.items()
    ]
    return lines


def _trace_table(done: Sweep, label: str) -> Report:
    made = done.plan
    axes = {axis.key: axis for axis in made.common.axes}
    records, origin = [], ""
    for point in made.points:
        found: dict[str, float] = {}
        for mechanism, at in made.cells_at(label, point).items():
            if at in done.rows:
                found[mechanism] = done.rows[at][done.ranked_by]
                origin = str(done.rows[at]["origin"])
        choice = {m: v for m, v in found.items() if m not in REFERENCES}
        over = excess(found)
        record: dict[str, Any] = {key: axes[key].show(value) for key, value in point}
        record |= {f"by:{m}": v for m, v in found.items()}
        record["first"] = min(choice, key=lambda m: (choice[m], m)) if choice else None
        record["excess"] = None if over is None or over > 1e6 else 100 * over
        records.append(record)
    columns = [Column(key, key.replace(".", "\n")) for key in axes]
    columns += [Column(f"by:{m}", m.rsplit("/", 1)[-1].replace("-", "-\n", 1), "ns", 5) for m in made.mechanisms]
    columns += [Column("first", "best"), Column("excess", "worst\nover best", "percent", 6)]
    return Report(records, columns, title=f"{label} ({origin or 'no cell'}): {_says(done)}")


def _changes(done: Sweep) -> Report:
    axes = {axis.key: axis for axis in done.plan.common.axes}
    records = [_change(done, crossing, axes) for crossing in done.crossings]
    columns = [
        Column("trace", "trace"),
        Column("axis", "along"),
        Column("at", "at"),
        Column("below", "below"),
        Column("above", "above"),
        Column("others", "with", keep=8),
        Column("between", "between points", keep=3),
    ]
    if len(done.plan.traces) == 1:
        del columns[0]
    share = f"{100 * done.tolerance:g} %"
    words = [
        f"differ: the worst exceeds the best by more than {share}; alike: it does not, which mechanism is used no "
        "longer matters. A name: this one is better of the two."
    ]
    words = (words if records else []) + _how_often(done, share) + _borrowed(done) + notes(done)
    title = "where the ranking changes" if records else "the ranking changes nowhere on this grid"
    return Report(records, columns if records else [], title=title, notes=words)


def _how_often(done: Sweep, share: str) -> list[str]:
    lines = []
    for label in done.plan.traces:
        found = [
            excess(
                {m: done.rows[at][done.ranked_by] for m, at in done.plan.cells_at(label, p).items() if at in done.rows}
            )
            for p in done.plan.points
        ]
        known = [over for over in found if over is not None]
        if known:
            apart = sum(over > done.tolerance for over in known)
            lines.append(f"{label}: mechanisms differ by more than {share} at {apart} of {len(known)} points")
    return lines


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


def _change(done: Sweep, crossing: Crossing, axes: Mapping[str, Axis]) -> dict[str, Any]:
    axis = axes[crossing.axis]
    below, above = {
        "order": (crossing.first, crossing.second),
        "alike": ("differ", "alike"),
        "matters": ("alike", "differ"),
    }[crossing.what]
    return {
        "trace": crossing.trace,
        "axis": crossing.axis,
        "at": axis.show(crossing.at),
        "below": below,
        "above": above,
        "others": _at(crossing.others, done.plan.common.axes),
        "between": f"{axis.show(crossing.low)} .. {axis.show(crossing.high)}",
    }


def _crossing_record(crossing: Crossing) -> dict[str, Any]:
    return {**crossing.__dict__, "others": dict(crossing.others)}


def _at(point: Point, axes: tuple[Axis, ...]) -> str:
    by_key = {axis.key: axis for axis in axes}
    return ", ".join(f"{key}={by_key[key].show(value)}" for key, value in point)


def _says(done: Sweep) -> str:
    return _SAYS.get(done.ranked_by, done.ranked_by)
