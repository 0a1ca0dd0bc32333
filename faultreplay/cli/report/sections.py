"""The tables of a page beside that of `compare`: accessors, resources, costs, validation, losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import Column
from faultreplay.cli.report.tables import without_folders
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.analysis.compare.judged import HeldOut
    from faultreplay.replay.language.costs import Cost

Records = list[dict[str, Any]]
USES: Final = (
    Column("mechanism", "mechanism"),
    Column("resource", "resource"),
    Column("servers", "servers", "count"),
    Column("share", "busy", "percent"),
    Column("max_queue", "longest queue", "count"),
)
COSTS: Final = (
    Column("cost", "cost"),
    Column("mean_ns", "mean", "ns"),
    Column("range_text", "range"),
    Column("samples", "samples", "count"),
    Column("source", "from"),
    Column("mechanisms", "charged by"),
    Column("words", "how it is known"),
)
VALIDATION: Final = (
    Column("what", "the recorded mechanism"),
    Column("faults", "faults", "count"),
    Column("predicted_ns", "predicted\nstall", "ns"),
    Column("measured_ns", "measured\nstall", "ns"),
    Column("total", "error", "error"),
    Column("low", "95 %\nfrom", "error"),
    Column("high", "\nto", "error"),
    Column("p50", "p50", "error"),
    Column("p90", "p90", "error"),
    Column("p99", "p99", "error"),
)
LOSSES: Final = (Column("probe", "probe"), Column("lost", "lost events", "count"))
_VCPU: Final = re.compile(r"^vcpu(\d+)")
MOST_ACCESSORS: Final = 200
"""So many have a line of their own; of more, those that stalled least share one."""


def accessors(comparison: Comparison) -> tuple[Sequence[Column], Records]:
    """The stall of each accessor, measured and under each mechanism."""
    import numpy as np

    from faultreplay.analysis.compare.case import REFERENCES

    workload = comparison.workload
    columns, stalls = [Column("accessor", "accessor")], []
    if workload.measured:
        measured = np.zeros(workload.accessors, dtype=np.int64)
        np.add.at(measured, workload.accessor_of_row(), np.maximum(workload.recorded_stall_ns, 0))
        columns.append(Column("measured", "measured", "ns"))
        stalls.append(measured)
    for row in comparison.rows:
        if row.mechanism not in REFERENCES:
            columns.append(Column(f"by:{row.mechanism}", row.mechanism, "ns"))
            stalls.append(row.result.accessor_stall_ns + row.result.window_stall_ns)
    if not stalls:
        return columns, []
    order = np.argsort(-stalls[0], kind="stable")
    kept, rest = np.sort(order[:MOST_ACCESSORS]), order[MOST_ACCESSORS:]
    keys = [column.key for column in columns[1:]]
    records: Records = [
        {
            "accessor": _VCPU.sub(r"vCPU \1", workload.accessor_name[n]),
            **{k: int(s[n]) for k, s in zip(keys, stalls, strict=True)},
        }
        for n in kept
    ]
    if len(rest):
        whole = {k: int(s[rest].sum()) for k, s in zip(keys, stalls, strict=True)}
        records.append({"accessor": f"{len(rest):,} more, together", **whole})
    return columns, records


def uses(rows: Sequence[Row]) -> Records:
    """What was busy under each mechanism."""
    found: Records = []
    for row in rows:
        for use in row.metrics.uses:
            share = 100 * use.share if use.servers else None
            name = {"mechanism": row.mechanism, "resource": use.name}
            found.append({**name, "servers": use.servers or "no limit", "share": share, "max_queue": use.max_queue})
    return found


def costs(rows: Sequence[Row], table: Mapping[str, Cost]) -> Records:
    """Each cost once with its value, where it comes from and who was charged it."""
    charged: dict[tuple[str, float, str], list[str]] = {}
    for row in rows:
        for cost, source in row.costs.items():
            charged.setdefault((cost, row.cost_means_ns[cost], without_folders(str(source))), []).append(row.mechanism)
    found: Records = []
    for (cost, mean_ns, whence), names in sorted(charged.items()):
        record: dict[str, Any] = {"cost": cost, "mean_ns": mean_ns, "source": whence, "mechanisms": ", ".join(names)}
        known = table.get(cost)
        if known is not None:
            reach = f"{format_ns(known.low)} to {format_ns(known.high)}" if known.high else None
            record |= {"range_text": reach, "samples": known.n or None, "words": without_folders(known.source)}
        found.append(record)
    return found


def judged(comparison: Comparison) -> Records:
    """How well the recorded mechanism is reproduced."""
    told = comparison.judged
    if told is None:
        return []
    found: Records = []
    if told.held_out is not None:
        found.append(_held_out("held out: costs from other tenths of the recording", told.held_out))
    if told.over_time is not None:
        found.append(_held_out("its second half, costs from the first", told.over_time))
    inside = {key: getattr(told.in_sample, key) for key in ("total", "p50", "p90", "p99")}
    return [*found, {"what": "in sample: costs from all of it", "faults": told.rows, **inside}]


def _held_out(what: str, one: HeldOut) -> dict[str, Any]:
    return {
        "what": what,
        "faults": one.faults,
        "predicted_ns": one.predicted_total_ns,
        "measured_ns": one.measured_total_ns,
        "low": one.total.low,
        "high": one.total.high,
        **{key: getattr(one.errors, key) for key in ("total", "p50", "p90", "p99")},
    }
