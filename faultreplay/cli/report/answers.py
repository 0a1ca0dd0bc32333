"""What a comparison says, in a sentence a mechanism: by how much the stall changes, how sure that is, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultreplay.cli.compare_view import served_text
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.blackout import Blackout, Stillness
    from faultreplay.analysis.compare.compare import Comparison, Row


def answers(comparison: Comparison) -> list[str]:
    """One sentence for each mechanism that is a choice, the least stall first.

    Those that leave out what the baseline does come behind the others, then those without numbers.
    """
    from faultreplay.analysis.compare.case import REFERENCES
    from faultreplay.analysis.compare.judged import Trust

    rows = [row for row in comparison.rows if row.mechanism not in REFERENCES and row.mechanism != comparison.baseline]
    judged = comparison.judged
    recorded = judged is not None and judged.used.name == comparison.baseline and not comparison.what_if
    of_what = "the stall of this trace" if recorded else f"stall, against {comparison.baseline},"
    words = [_row(row, of_what) for row in sorted(rows, key=_place)]
    words += [_blackout(still, comparison.blackout_measured) for still in comparison.blackouts]
    base = next((row for row in comparison.rows if row.mechanism == comparison.baseline), None)
    if base is not None:
        total = format_ns(base.metrics.total_stall_ns)
        words.append(
            f"{base.mechanism} {'is what these are compared with' if words else 'is replayed'}: {total} of stall."
        )
    if comparison.trust is Trust.NOT:
        words = [f"Not to be relied on: {sentence}" for sentence in words]
    words += [f"{one.mechanism} has no numbers for this trace: {one.reason}." for one in comparison.unanswered]
    return words


def _place(row: Row) -> tuple[bool, int]:
    return bool(row.leaves_out), row.metrics.total_stall_ns


def _row(row: Row, of_what: str) -> str:
    total = format_ns(row.metrics.total_stall_ns)
    sure, mark = row.uncertainty, _marks(row)
    if sure is None or sure.change_percent is None:
        return f"{row.mechanism} would stall for {total}{mark}."
    if row.leaves_out:
        return f"{row.mechanism} is not alike: it {row.leaves_out}. Its {total} of stall are no gain{mark}."
    change, what = sure.change_percent, sure.change
    if what is not None and sure.within_noise:
        span = f"({what.low:+.0f} to {what.high:+.0f})"
        return f"{row.mechanism}: the difference to {sure.baseline} is within noise {span}; {total} of stall{mark}."
    verb = "cut" if change < 0 else "lengthen"
    span = ""
    if what is not None:
        low, high = (-what.high, -what.low) if change < 0 else (what.low, what.high)
        span = f" ({low:.0f} to {high:.0f})"
    return f"{row.mechanism} would {verb} {of_what} by {abs(change):.0f} %{span}, to {total}{mark}."


def _marks(row: Row) -> str:
    """Why a row is not like the others, as the table marks it."""
    marks = "; it depends on costs not measured on this host" if row.marked else ""
    served = served_text(row.served)
    marks += f"; it serves {served} of the faults itself" if served else ""
    if row.metrics.startup_ns:
        marks += f"; before the guest runs it takes {format_ns(row.metrics.startup_ns)}, which are in no stall"
    against = row.uncertainty.baseline if row.uncertainty else ""
    return marks + (f"; {against} {row.adds}" if row.adds else "")


def _blackout(still: Blackout, measured: Stillness | None) -> str:
    longest = _between(still.low.standstill_ns, still.high.standstill_ns)
    sure = still.standstill
    reach = f" ({_between(round(sure.low), round(sure.high))})" if sure else ""
    words = f"{still.mechanism}: at a window a vCPU would stand still for up to {longest}{reach}"
    if measured is not None:
        words += f", {format_ns(measured.standstill_ns)} measured"
    low, high = still.low.refaults, still.high.refaults
    if high:
        words += f", with {low:,}{f' to {high:,}' if high != low else ''} faults on memory that it emptied"
    hazards = sum(still.low.hazards.values())
    return words + (f"; {hazards:,} recorded writes inside are not stopped." if hazards else ".")


def _between(low_ns: int, high_ns: int) -> str:
    low, high = format_ns(low_ns), format_ns(high_ns)
    return low if low == high else f"{low} to {high}"
