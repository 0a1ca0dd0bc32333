"""Where the stall goes, of the recording and of each mechanism, with the interval of each total."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from faultreplay.analysis.compare.case import REFERENCES
from faultreplay.analysis.picture.times import MEASURED
from faultreplay.faulttrace.plain_text import plain

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison, Row

WINDOW: Final = "window"
"""Time that a window stopped accessors, which is no fault's stall."""
_SCHEMA: Final = {
    "mechanism": pl.String,
    "stage": pl.String,
    "stall_ns": pl.Int64,
    "total_ns": pl.Int64,
    "low_ns": pl.Int64,
    "high_ns": pl.Int64,
}


def stall_by_stage(comparison: Comparison, case: Case) -> pl.DataFrame:
    """A row for each mechanism and stage that has some of its stall; the recording first, called `measured`.

    References are left out.

    Columns: `mechanism`, `stage` (a key of `TIME_WORDS`, or `window`), `stall_ns`, `total_ns` (of the mechanism, as in
    the table of `compare`), `low_ns` and `high_ns` (its 90 % interval; null: not looked at). The stages of a mechanism
    add up to its total. Of the recording `queue` holds the entry too, `fetch` is what the handler did before the call
    that placed the page, and what cannot be told apart is `other`.
    """
    rows: list[tuple[object, ...]] = []
    if comparison.workload.measured:
        total = comparison.measured.total_stall_ns
        parts = measured_stages(case.faults)
        parts["window"] = comparison.measured.window_stall_ns
        rows += _rows(MEASURED, _to_total(parts, total), total, None, None)
    for row in comparison.rows:
        if row.mechanism not in REFERENCES:
            sure = row.uncertainty.total_ns if row.uncertainty else None
            low, high = (round(sure.low), round(sure.high)) if sure else (None, None)
            rows += _rows(plain(row.mechanism), _stages(row), row.metrics.total_stall_ns, low, high)
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def measured_stages(faults: pl.DataFrame) -> dict[str, int]:
    """Stages of the faults whose end was seen, ns, by the words of a replay; what none of them holds is `other`."""
    seen = faults.filter(faults["stall_ns"].is_not_null())
    whole = seen.select(
        pl.col("stall_ns").sum(),
        pl.col("queue_ns").fill_null(0).clip(0).sum(),
        pl.col("service_ns").fill_null(0).clip(0).sum(),
        pl.when(pl.col("service_ns").is_not_null()).then(pl.col("resolve_ns")).fill_null(0).clip(0).sum(),
        pl.col("wake_ns").fill_null(0).clip(0).sum(),
    ).row(0, named=True)
    found = {
        "queue": whole["queue_ns"],
        "fetch": max(whole["service_ns"] - whole["resolve_ns"], 0),
        "resolve": min(whole["resolve_ns"], whole["service_ns"]),
        "wake": whole["wake_ns"],
    }
    return {**found, "other": max(whole["stall_ns"] - sum(found.values()), 0)}


def _stages(row: Row) -> dict[str, int]:
    parts = {**row.result.stage_ns, WINDOW: int(row.result.window_stall_ns.sum())}
    return _to_total(parts, row.metrics.total_stall_ns)


def _to_total(parts: dict[str, int], total_ns: int) -> dict[str, int]:
    """`parts` made to add up to a total that is a mean over several seeds; the rest of rounding is the largest's."""
    whole = sum(parts.values())
    if not whole or not total_ns:
        return {"other": total_ns}
    if whole == total_ns:
        return parts
    scaled = {name: ns * total_ns // whole for name, ns in parts.items()}
    largest = max(scaled, key=lambda name: scaled[name])
    scaled[largest] += total_ns - sum(scaled.values())
    return scaled


def _rows(
    mechanism: str, parts: dict[str, int], total: int, low: int | None, high: int | None
) -> list[tuple[object, ...]]:
    kept = {stage: ns for stage, ns in parts.items() if ns} or {"other": 0}
    return [(mechanism, stage, ns, total, low, high) for stage, ns in kept.items()]
