"""How `inspect --truth` shows an accuracy: records in, a report out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultreplay.cli.render import Column, Report

if TYPE_CHECKING:
    from faultreplay.analysis.judge.accuracy import Accuracy


def accuracy_report(accuracy: Accuracy) -> Report:
    """The table of stitched stalls against the accessors' own clock."""
    columns = [
        Column("cause", "cause"),
        Column("join", "start/end\ntaken from"),
        Column("n", "faults", "count"),
        Column("true_p50_ns", "true\np50", "ns", keep=7),
        Column("bias_ns", "bias", "ns"),
        Column("start_bias_ns", "start\nlate by", "ns", keep=4),
        Column("end_bias_ns", "end\nlate by", "ns", keep=4),
        Column("residual_p50_ns", "residual\np50", "ns", keep=6),
        Column("residual_p95_ns", "\np95", "ns"),
        Column("stretch_p95_ns", "typical\np95", "ns", keep=6),
        Column("residual_p99_ns", "\np99", "ns", keep=5),
        Column("total_percent", "total\nstall", "error", keep=5),
    ]
    records = [row.as_record() for row in accuracy.rows]
    rows = [record | {"total_percent": 100 * record["total_error"]} for record in records]
    notes = [
        "stitched minus true; bias is the median and belongs to the markers, residual is what is left of it "
        "(absolute); typical: in the middle one of 20 stretches of the run, without bursts of other work",
        f"{accuracy.faults:,} faults with an end, {accuracy.accesses:,} accesses timed by the accessors themselves; "
        f"their clock is off by at most {accuracy.clock_error_ns} ns",
    ]
    counts = (
        (accuracy.unmatched_faults, "faults lie in no access"),
        (accuracy.second_faults, "further faults of one access: the longest is compared with it"),
        (accuracy.other_page, "faults on another page than their access"),
        (accuracy.silent_stalls, "accesses as slow as a fault, and none was seen"),
    )
    notes += [f"{count:,} {words}" for count, words in counts if count]
    extra = {key: value for key, value in accuracy.__dict__.items() if key != "rows"}
    return Report(
        records, columns, f"{accuracy.trace}: stitched stalls against the truth", notes, rows=rows, extra=extra
    )
