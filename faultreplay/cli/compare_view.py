"""A comparison as a report: which columns, which rows, which words under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison, Judged, Row
    from faultreplay.analysis.compare.metrics import Metrics
    from faultreplay.analysis.judge.judge import Errors

COLUMNS: Final = (
    Column("mechanism", "mechanism"),
    Column("total_stall_ns", "total\nstall", "ns"),
    Column("stall_per_vcpu_mean_ns", "per\nvCPU", "ns", keep=7),
    Column("p50_ns", "p50", "ns"),
    Column("p90_ns", "p90", "ns", keep=6),
    Column("p99_ns", "p99", "ns"),
    Column("p99_9_ns", "p99.9", "ns", keep=4),
    Column("max_ns", "max", "ns"),
    Column("all_stalled_ns", "all\nstalled", "ns"),
    Column("run_time_ns", "run\ntime", "ns"),
    Column("slowdown", "slow-\ndown", "ratio", keep=5),
    Column("stall_per_vcpu_min_ns", "per vCPU\nleast", "ns", keep=2),
    Column("stall_per_vcpu_max_ns", "per vCPU\nmost", "ns", keep=2),
    Column("faults", "faults", "count", keep=3),
    Column("faults_per_s", "faults/s", "count", keep=3),
    Column("bytes_moved", "moved", "bytes", keep=1),
    Column("over_fetch", "over-\nfetch", "ratio", keep=1),
    Column("bottleneck_text", "bottleneck", keep=2),
    Column("hazards_total", "hazards", "count", keep=1),
)
# A column with nothing to say in any row is not shown.
_OPTIONAL: Final = {"over_fetch", "bytes_moved", "hazards_total", "bottleneck_text"}
_ERRORS: Final = {
    "total": "total_stall_ns",
    "p50": "p50_ns",
    "p90": "p90_ns",
    "p99": "p99_ns",
    "run_time": "run_time_ns",
}


def report(comparison: Comparison) -> Report:
    """The table of `faultreplay compare`."""
    from faultreplay.analysis.compare.compare import as_records

    rows: list[dict[str, Any]] = []
    rules = set()
    judged = comparison.judged
    for row in comparison.rows:
        rows.append(_cells(row.metrics) | {"mechanism": row.mechanism + (" *" if row.marked else "")})
        if judged and row.mechanism == judged.used.name:
            rows += _judged_rows(comparison, judged)
        rules.add(len(rows) - 1)
    if judged is None and comparison.workload.measured:
        rows.insert(0, _cells(comparison.measured) | {"mechanism": "measured"})
    columns = [c for c in COLUMNS if c.key not in _OPTIONAL or any(r.get(c.key) for r in rows)]
    return Report(
        records=as_records(comparison),
        columns=columns,
        title=_title(comparison),
        notes=[*_held_out_words(judged), *_interval_words(comparison.rows), *comparison.notes],
        rows=rows,
        rules=frozenset(rules if judged else {0} if comparison.workload.measured else ()),
        extra={
            "trace": comparison.trace,
            "origin": comparison.origin,
            "faults": comparison.faults,
            "vcpus": comparison.vcpus,
            "events": comparison.events,
            "lost_events": comparison.lost_events,
            "windows": [dict(w.__dict__) for w in comparison.windows],
            "held_out_rows": judged.held_out_rows if judged else 0,
        },
    )


def _title(comparison: Comparison) -> str:
    who = "vCPU" if (comparison.workload.accessor_kind == 0).any() else "thread"
    who += "" if comparison.vcpus == 1 else "s"
    origin = "" if comparison.origin in ("recorded", "lab") else f" ({comparison.origin})"
    span = format_ns(comparison.measured.run_time_ns)
    return f"{comparison.trace}{origin}: {comparison.faults:,} faults, {comparison.vcpus} {who}, {span}"


def _cells(metrics: Metrics) -> dict[str, Any]:
    share = metrics.bottleneck_share
    return metrics.as_record() | {
        "bottleneck_text": f"{metrics.bottleneck} {share:.0%}" if metrics.bottleneck and share else None,
        "hazards_total": sum(metrics.hazards.values()) or None,
    }


def _judged_rows(comparison: Comparison, judged: Judged) -> list[dict[str, Any]]:
    rows = [_cells(comparison.measured) | {"mechanism": "  measured"}]
    rows.append({"mechanism": "  error in sample"} | _error_cells(judged.in_sample))
    if judged.held_out:
        rows.append({"mechanism": "  error held out"} | _error_cells(judged.held_out))
    return rows


def _error_cells(errors: Errors) -> dict[str, str]:
    values = {key: getattr(errors, name) for name, key in _ERRORS.items()}
    return {key: "-" if value is None else f"{value:+.1f} %" for key, value in values.items()}


def _held_out_words(judged: Judged | None) -> list[str]:
    if judged is None:
        return []
    words = []
    if judged.why_not:
        words.append(f"no held-out error: {judged.why_not}")
    if judged.held_out:
        total = judged.held_out_intervals.get("total")
        bounds = f" (95 %: {total.low:+.1f} to {total.high:+.1f})" if total else ""
        distance = judged.held_out.wasserstein
        words.append(
            f"held out: costs from the first half of the faults, judged on the {judged.held_out_rows} of the second: "
            f"total stall {_signed(judged.held_out.total)}{bounds}, "
            f"distance of the distributions {'-' if distance is None else f'{distance:.1f} %'} of the mean"
        )
    return words


def _interval_words(rows: tuple[Row, ...]) -> list[str]:
    return [
        f"{row.mechanism}: total stall 95 % between {format_ns(row.total_interval.low)} and "
        f"{format_ns(row.total_interval.high)}"
        for row in rows
        if row.total_interval
    ]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"
