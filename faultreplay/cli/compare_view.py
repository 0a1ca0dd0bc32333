"""A comparison as a report: which columns, which rows, which words under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import SPAN, Column, Report, format_cell
from faultreplay.cli.verdict_view import verdict
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.blackout import Stillness
    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.analysis.compare.metrics import Metrics
    from faultreplay.analysis.compare.served import Served
    from faultreplay.analysis.compare.uncertainty import Uncertainty

COLUMNS: Final = (
    Column("mechanism", "mechanism"),
    Column("served_text", "served", "count", keep=8),
    Column("startup_ns", "start-\nup", "ns"),
    Column("first_ns", "first\nN", "ns"),
    Column("all_there_ns", "all\nthere", "ns"),
    Column("total_stall_ns", "total\nstall", "ns"),
    Column("change_text", "against\nbaseline", "count"),
    Column("stall_per_vcpu_mean_ns", "per\nvCPU", "ns", keep=5),
    Column("p50_ns", "p50", "ns"),
    Column("p90_ns", "p90", "ns", keep=5),
    Column("p99_ns", "p99", "ns", keep=8),
    Column("p99_9_ns", "p99.9", "ns", keep=4),
    Column("max_ns", "max", "ns", keep=8),
    Column("all_stalled_ns", "all\nstalled", "ns", keep=7),
    Column("latency_p50_ns", "latency\np50", "ns", keep=8),
    Column("latency_p99_ns", "latency\np99", "ns", keep=8),
    Column("run_time_ns", "run\ntime", "ns", keep=6),
    Column("slowdown", "slow-\ndown", "ratio", keep=4),
    Column("where_text", "where the\ntime goes", "count", keep=6),
    Column("stall_per_vcpu_min_ns", "per vCPU\nleast", "ns", keep=2),
    Column("stall_per_vcpu_max_ns", "per vCPU\nmost", "ns", keep=2),
    Column("faults", "faults", "count", keep=3),
    Column("faults_per_s", "faults/s", "count", keep=3),
    Column("bytes_moved", "moved", "bytes", keep=1),
    Column("over_fetch", "over-\nfetch", "ratio", keep=1),
    Column("bottleneck_text", "bottleneck", keep=2),
    Column("hazards_total", "hazards", "count", keep=1),
    Column("coverage_percent", "cover-\nage", "percent", keep=8),
    Column("waste_percent", "waste", "percent", keep=8),
    Column("late_pages", "late", "count", keep=8),
)
_OF_RESTORES: Final = ("startup_ns", "first_ns", "all_there_ns")
"""Shown where some row restores from a file or has a stream."""
_OF_PREFETCH: Final = ("coverage_percent", "waste_percent", "late_pages")
"""Shown where some row has a stream."""

# A column that is empty in every row is not shown.
_OPTIONAL: Final = {
    "change_text",
    "where_text",
    "served_text",
    "latency_p50_ns",
    "latency_p99_ns",
    "over_fetch",
    "bytes_moved",
    "hazards_total",
    "bottleneck_text",
}
BLACKOUT_COLUMNS: Final = (
    Column("mechanism", "blackout"),
    Column("standstill_ns", "longest\nstand-still", "ns"),
    Column("sure_text", "90 %\ninterval"),
    Column("all_stalled_ns", "all\nstalled", "ns"),
    Column("make_undo_ns", "make and\nundo", "ns"),
    Column("refaults", "refaults", "count"),
    Column("refault_stall_ns", "their\nstall", "ns", keep=8),
    Column("hazards_text", "hazards", "count", keep=7),
)
NOTES: Final = 3
"""Number shown unless all are requested."""


def report(
    comparison: Comparison, *, verbose: bool = True, options: Mapping[str, Any] | None = None, trace_id: str = ""
) -> Report:
    """The table of `faultreplay compare`.

    Args:
        comparison: what it says.
        verbose: with all notes.
        options: of the command line, for JSON.
        trace_id: which trace it was, wherever it lies.
    """
    from faultreplay.analysis.compare.case import REFERENCES
    from faultreplay.analysis.compare.records import as_records

    rows: list[dict[str, Any]] = []
    rules = set()
    labels = labels_of(comparison)
    judged, shown = comparison.judged, False
    with_numbers = {row.mechanism: row for row in comparison.rows}
    reasons = {row.mechanism: row.reason for row in comparison.unanswered}
    for name in comparison.asked:
        row = with_numbers.get(name)
        if row is None:
            rows.append({"mechanism": name, SPAN: reasons[name]})
        else:
            cells = _cells(row.metrics) | {"mechanism": labels[row.mechanism]}
            if row.mechanism in REFERENCES:
                cells["where_text"] = None
            rows.append(cells | {"served_text": served_text(row.served)} | _change_cells(row))
            if judged and row.recorded:
                rows += _judged_rows(comparison, row)
                shown = True
        rules.add(len(rows) - 1)
    if not shown and comparison.workload.measured and comparison.asked:
        rows.insert(0, _cells(comparison.measured) | {"mechanism": "measured"})
    columns = [c for c in COLUMNS if c.key not in _OPTIONAL or any(r.get(c.key) for r in rows)]
    columns = _for_restores(comparison, columns)
    against = f"against\n{comparison.baseline}" if len(comparison.baseline) < 16 else "against\nbaseline"
    columns = [replace(c, title=against) if c.key == "change_text" else c for c in columns]
    further = [blackout_report(comparison)] if comparison.blackouts else []
    return Report(
        records=as_records(comparison),
        columns=columns if comparison.asked else [],
        title=_title(comparison),
        lead=verdict(comparison),
        notes=comparison.notes,
        brief=0 if verbose else NOTES,
        made_of={"trace": f"{comparison.trace} ({trace_id[:12]})", "seed": comparison.seed},
        rows=rows,
        rules=frozenset(rules if shown else {0} if comparison.workload.measured else ()),
        further=further,
        extra={
            "trace": comparison.trace,
            "origin": comparison.origin,
            "faults": comparison.faults,
            "vcpus": comparison.vcpus,
            "events": comparison.events,
            "lost_events": comparison.lost_events,
            "windows": [dict(w.__dict__) for w in comparison.windows],
            "what_if": list(comparison.what_if),
            "verdict": " ".join(verdict(comparison)),
            "trust": comparison.trust.value,
            "others_share": comparison.others_share,
            "baseline": comparison.baseline,
            "trace_id": trace_id,
            "seed": comparison.seed,
            "options": dict(options or {}),
        },
    )


def _for_restores(comparison: Comparison, columns: Sequence[Column]) -> list[Column]:
    """Columns of restores only where a row is one; there a single fault's median goes before them."""
    found = [row.result.restored for row in comparison.rows if row.result.restored]
    if not any(one.set_pages for one in found):
        columns = [c for c in columns if c.key not in _OF_PREFETCH]
    if not found:
        return [c for c in columns if c.key not in _OF_RESTORES]
    columns = [replace(c, keep=5) if c.key == "p50_ns" else c for c in columns]
    return [replace(c, title=f"first\n{comparison.first:,}") if c.key == "first_ns" else c for c in columns]


def labels_of(comparison: Comparison) -> dict[str, str]:
    """Mechanism -> how its row is called: with a star where it depends on costs of other hardware."""
    from faultreplay.analysis.compare.compare import MARKED_FROM_PERCENT

    marked = {row.mechanism: row.marked for row in comparison.rows}
    marked |= {
        still.mechanism: abs(still.borrowed_effect_percent or 0) >= MARKED_FROM_PERCENT
        for still in comparison.blackouts
    }
    return {name: name + (" *" if star else "") for name, star in marked.items()}


def served_words(comparison: Comparison) -> str:
    """Which mechanisms do not serve all faults themselves, or leave something out, in a sentence; empty: none."""
    from faultreplay.analysis.compare.case import REFERENCES

    told = [
        f"{row.mechanism} serves {text} of the faults itself ({_others_serve(row.served)})"
        for row in comparison.rows
        if row.mechanism not in REFERENCES and (text := served_text(row.served))
    ]
    told += [f"{row.mechanism} {row.leaves_out}" for row in comparison.rows if row.leaves_out]
    return f"Not like for like: {'; '.join(told)}." if told else ""


def _others_serve(served: Served) -> str:
    """Who serves the rest."""
    rest = []
    if served.fallback_faults:
        rest.append(f"{served.fallback_faults:,} by {', '.join(served.fallbacks) or 'a fall-back'}")
    if served.recorded_faults:
        rest.append(f"{served.recorded_faults:,} as recorded")
    return ", ".join(rest)


def blackout_report(comparison: Comparison) -> Report:
    """The table on blackouts: a row a rule, and its upper bound where that is another."""
    rows: list[dict[str, Any]] = []
    rules = set()
    labels = labels_of(comparison)
    if comparison.blackout_measured is not None:
        rows.append({"mechanism": "measured", **_still_cells(comparison.blackout_measured)})
        rows[0] |= {"hazards_text": None}
        rules.add(0)
    for still in comparison.blackouts:
        low, high = _still_cells(still.low), _still_cells(still.high)
        sure = still.standstill
        reach = _span(round(sure.low), round(sure.high)) if sure else None
        rows.append({"mechanism": labels[still.mechanism], **low, "sure_text": reach})
        if [format_cell(v, "ns") for v in low.values()] != [format_cell(v, "ns") for v in high.values()]:
            rows.append({"mechanism": "  at most", **high, "hazards_text": None})
    spans = ", ".join(f"{format_ns(w.start_ns)}+{format_ns(w.length_ns)}".replace(" ", "") for w in comparison.windows)
    base = comparison.blackouts[0].base
    return Report(
        records=(),
        columns=BLACKOUT_COLUMNS,
        title=f"Blackout: memory held still at {spans} ({comparison.windows_from}), over {base}",
        rows=rows,
        rules=frozenset(rules),
    )


def _span(low_ns: int, high_ns: int) -> str:
    """`26.9-28.3 ms`; both units where they differ."""
    low, high = format_ns(low_ns), format_ns(high_ns)
    number, _, unit = low.partition(" ")
    return f"{number}-{high}" if high.endswith(f" {unit}") else f"{low}-{high}"


def _still_cells(still: Stillness) -> dict[str, Any]:
    hazards = [f"{count:,} {kind}" for kind, count in still.hazards.items() if count]
    return {
        "standstill_ns": still.standstill_ns,
        "all_stalled_ns": still.all_stalled_ns,
        "make_undo_ns": still.make_undo_ns,
        "refaults": still.refaults,
        "refault_stall_ns": still.refault_stall_ns,
        "hazards_text": ", ".join(hazards) or "none",
    }


def served_text(served: Served) -> str | None:
    """The share of the faults that a row's own paths serve; None: all of them."""
    if served.whole:
        return None
    percent = 100 * served.own_share
    return "> 99 %" if percent > 99 else "< 1 %" if percent < 1 else f"{percent:.0f} %"


def _title(comparison: Comparison) -> str:
    who = "vCPU" if (comparison.workload.accessor_kind == 0).any() else "thread"
    who += "" if comparison.vcpus == 1 else "s"
    origin = "" if comparison.origin in ("recorded", "lab") else f" ({comparison.origin})"
    span = format_ns(comparison.measured.run_time_ns)
    read = f"; {', '.join(comparison.what_if)}" if comparison.what_if else ""
    what = "fault" if comparison.faults == 1 else "faults"
    return f"{comparison.trace}{origin}: {comparison.faults:,} {what}, {comparison.vcpus} {who}, {span}{read}"


def _cells(metrics: Metrics) -> dict[str, Any]:
    share = metrics.bottleneck_share
    return metrics.as_record() | {
        "bottleneck_text": f"{metrics.bottleneck} {share:.0%}" if metrics.bottleneck and share else None,
        "where_text": metrics.where() or None,
        "hazards_total": sum(metrics.hazards.values()) or None,
    }


def _judged_rows(comparison: Comparison, row: Row) -> list[dict[str, Any]]:
    """What was measured, and the errors of the very numbers in the row above it."""
    from faultreplay.analysis.compare.judged import run_errors

    rows = [_cells(comparison.measured) | {"mechanism": "  measured"}]
    errors = run_errors(row.metrics, comparison.measured)
    cells = {key: "-" if value is None else f"{value:+.1f} %" for key, value in errors.items()}
    return [*rows, {"mechanism": f"  error on {comparison.faults:,}"} | cells]


def _change_cells(row: Row) -> dict[str, str]:
    """The row against the baseline, in words if there is no clear difference; and both bounds of its stall."""
    sure = row.uncertainty
    if sure is None:
        return {}
    cells = {}
    if sure.bounds:
        totals = sorted([row.metrics.total_stall_ns, *(bound.total_ns for bound in sure.bounds)])
        cells["total_stall_ns"] = span_text(totals[0], totals[-1])
    words = _change_words(row, sure)
    return cells | {"change_text": words} if words else cells


def _change_words(row: Row, sure: Uncertainty) -> str:
    if sure.change_percent is None:
        return ""
    if row.leaves_out:
        return "not alike"
    if row.mechanism == sure.baseline and not sure.change_percent:
        return "baseline"
    if sure.change is None:
        return f"{sure.change_percent:+.0f} %"
    interval = f"({sure.change.low:+.0f} to {sure.change.high:+.0f})"
    return f"noise {interval}" if sure.within_noise else f"{sure.change_percent:+.0f} % {interval}"


def span_text(low_ns: int, high_ns: int) -> str:
    """Two times as one cell: `56.3-84.0 ms`."""
    low, high = format_ns(low_ns), format_ns(high_ns)
    if low == high:
        return low
    same = low.rsplit(" ", 1)[1] == high.rsplit(" ", 1)[1]
    return f"{low.rsplit(' ', 1)[0] if same else low}-{high}"
