"""A replay's summary, and the columns of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.render import SPAN, Column, Report

if TYPE_CHECKING:
    from faultreplay.analysis.compare.blackout import Blackout
    from faultreplay.analysis.compare.compare import Comparison, Row

COLUMNS: Final = (
    Column("mechanism", "mechanism"),
    Column("params_text", "parameters", keep=1),
    Column("faults", "faults", "count"),
    Column("total_stall_ns", "total\nstall", "ns"),
    Column("p50_ns", "p50", "ns"),
    Column("p99_ns", "p99", "ns"),
    Column("max_ns", "max", "ns", keep=4),
    Column("run_time_ns", "run\ntime", "ns"),
    Column("slowdown", "slow-\ndown", "ratio", keep=3),
    Column("faults_per_s", "faults/s", "count", keep=4),
    Column("bottleneck_text", "bottleneck", keep=2),
)
ROW_COLUMNS: Final = (
    Column("mechanism", "mechanism"),
    Column("accessor", "accessor"),
    Column("seq", "seq", "count"),
    Column("class", "class"),
    Column("access", "access", keep=5),
    Column("start_ns", "start", "ns"),
    Column("end_ns", "end", "ns", keep=4),
    Column("stall_ns", "stall", "ns"),
    Column("recorded_stall_ns", "recorded", "ns"),
)


def summary(done: Comparison) -> Report:
    """One row a mechanism."""
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    shown: list[Row | Blackout] = [*done.rows, *done.blackouts]
    for row in shown:
        record = {"mechanism": row.mechanism, **row.metrics.as_record(), "params": dict(row.params)}
        records.append(record)
        share = row.metrics.bottleneck_share
        rows.append(
            record
            | {
                "params_text": ", ".join(f"{k}={v:g}" for k, v in row.params.items()) or None,
                "bottleneck_text": f"{row.metrics.bottleneck} {share:.0%}" if share else None,
            }
        )
    for none in done.unanswered:
        records.append({"mechanism": none.mechanism, "reason": none.reason})
        rows.append({"mechanism": none.mechanism, SPAN: none.reason})
    return Report(records=records, columns=COLUMNS, rows=rows, notes=done.notes, extra={"trace": done.trace})
