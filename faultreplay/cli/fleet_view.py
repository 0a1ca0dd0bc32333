"""The comparisons of many traces as one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from faultreplay.cli import pick_view
from faultreplay.cli.render import Report
from faultreplay.cli.spread_view import MOST_TABLES, spread_report


def together(answers: Sequence[tuple[str, Report]], failed: Sequence[tuple[str, str]], baseline: str = "") -> Report:
    """The tables of several traces as one, and how far their differences spread.

    Args:
        answers: (name of the trace, its table).
        failed: (name, why) of those that have none.
        baseline: what is compared against; by default the first mechanism that is no reference.
    """
    if not answers:
        return Report([], [])
    over = _spread(answers, baseline)
    report = pick_view.together(answers)
    notes = [f"failed: {name}: {why}" for name, why in failed]
    return replace(
        report,
        notes=[*notes, *report.notes],
        brief=report.brief and report.brief + len(notes),
        further=[*report.further, *([over] if over else [])],
        extra={**report.extra, "over_traces": list(over.records) if over else [], "failed": dict(failed)},
    )


def brief(report: Report, traces: int) -> Report:
    """For people: of very many traces only how far they spread."""
    if traces <= MOST_TABLES or not report.further:
        return report
    over = report.further[-1]
    failed = [note for note in report.notes if note.startswith("failed: ")]
    words = f"{traces} traces: the rows of each are in --format json, csv and parquet"
    return replace(over, lead=[_trusts(report)], notes=[*over.notes, words, *failed])


def _trusts(report: Report) -> str:
    found = Counter(str(extra["trust"]) for extra in report.extra["traces"].values())
    return "the recorded mechanism is " + ", ".join(f"{trust} in {count}" for trust, count in found.most_common())


def _spread(answers: Sequence[tuple[str, Report]], baseline: str) -> Report | None:
    """Each mechanism's total stall against one that most traces have."""
    from faultreplay.analysis.compare.case import REFERENCES
    from faultreplay.analysis.explore.spread import spread

    totals: dict[str, dict[str, float]] = {}
    for label, report in answers:
        for record in report.records:
            name, total = str(record.get("mechanism")), _total(record)
            if total is not None and name not in REFERENCES and not record.get("leaves_out"):
                totals.setdefault(name, {})[label] = total
    names = list(totals)
    first = baseline if baseline in totals else next(iter(sorted(names, key=lambda n: -len(totals[n]))), "")
    spreads = []
    for name in names:
        pairs = [
            (label, total, totals[first][label]) for label, total in totals[name].items() if label in totals[first]
        ]
        found = [(label, 100 * (total / base - 1)) for label, total, base in pairs if base > 0]
        if name != first and (one := spread(name, found)) is not None:
            spreads.append(one)
    return spread_report(spreads, "total stall", first) if spreads else None


def _total(record: Any) -> float | None:
    total = record.get("total_stall_ns")
    return float(total) if record.get("row") == "predicted" and isinstance(total, int | float) else None
