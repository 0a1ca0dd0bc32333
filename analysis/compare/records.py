"""A comparison as flat records, for JSON, CSV and Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from faultreplay.analysis.compare.judged import run_errors

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison


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
        record["foreign_costs"] = sorted(row.borrowed)
        if row.uncertainty:
            record |= row.uncertainty.as_record()
        if row.question:
            record |= row.question.as_record()
        record["leaves_out"] = row.leaves_out
        if row.differs:
            record["what_if"] = list(row.differs)
        judged = comparison.judged
        if judged and row.recorded:
            record["error_percent"] = run_errors(row.metrics, comparison.measured)
            record["judged_faults"] = judged.rows
            for prefix, found in (("held_out_", judged.held_out), ("over_time_", judged.over_time)):
                record |= found.as_record(prefix) if found else {}
        records.append(record)
    records += [{"mechanism": u.mechanism, "row": "none", "reason": u.reason} for u in comparison.unanswered]
    records += [still.as_record() for still in comparison.blackouts]
    return records
