"""What the rows of a comparison are worth, in plain words: the first thing under its title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.compare import Comparison, Row
    from faultreplay.analysis.compare.judged import HeldOut, Judged

_NO_PREDICTION: Final = "THE ROWS BELOW ARE NO PREDICTION."


def verdict(comparison: Comparison, *, alike: bool = True) -> list[str]:
    """Sentences: how the recorded mechanism is reproduced, what is asked otherwise, which costs are foreign.

    `alike`: and which rows leave something out.
    """
    from faultreplay.analysis.compare.judged import Trust

    words = [_trust_words(comparison)]
    if comparison.trust is Trust.NOT:
        words[0] = f"{_NO_PREDICTION} {words[0]}"
    if comparison.others_share:
        words.append(
            f"The host was busy while it was recorded: other processes had the CPUs for "
            f"{comparison.others_share:.0%} of the stall. Intervals range from none of that load to three times as "
            "much."
        )
    asked = [f"{row.mechanism}: {', '.join(row.differs)}" for row in comparison.rows if row.differs]
    if asked:
        words.append(f"What if: {'; '.join(asked)}. This was not recorded, so there is no measured error.")
    foreign = [text for row in comparison.rows if row.marked and (text := _foreign_words(row))]
    if foreign:
        words.append(f"* depends on costs not measured on this host (90 % range): {'; '.join(foreign)}.")
    unlike = [f"{row.mechanism} {row.leaves_out}" for row in comparison.rows if row.leaves_out]
    if unlike and alike:
        words.append(f"Not alike: {'; '.join(unlike)}. Less stall is no gain there.")
    if alike and (added := [row.adds for row in comparison.rows if row.adds]):
        words.append(f"Not alike: {comparison.baseline} {'; '.join(added)}. More stall than it has is no loss there.")
    bounds = _bound_words(comparison.rows)
    return [*words, *([bounds] if bounds else [])]


def _trust_words(comparison: Comparison) -> str:
    judged = comparison.judged
    if judged is None:
        if not comparison.workload.measured:
            return "Verdict: synthetic, so nothing was measured and nothing shows how good the rows are."
        return (
            "Verdict: not judged: the mechanism of the recording is not known or made none of its faults, so nothing "
            "shows how good the rows are."
        )
    name = judged.used.name
    if judged.held_out is None:
        return f"Verdict: not judged: {judged.why_not} ({name})."
    words = f"Verdict: {name}, as recorded, is {comparison.trust.value}. Held out: {_held_out_words(judged.held_out)}"
    if judged.over_time is not None:
        words += f"; its second half predicted from its first: {_signed(judged.over_time.errors.total)}"
    return words + "." + _why(judged)


def _held_out_words(found: HeldOut) -> str:
    return (
        f"{format_ns(found.predicted_total_ns)} of stall for {format_ns(found.measured_total_ns)} measured, "
        f"{_signed(found.errors.total)} ({found.total.low:+.1f} to {found.total.high:+.1f}) on {found.faults:,} "
        f"faults, p99 {_signed(found.errors.p99)}"
    )


def _why(judged: Judged) -> str:
    """What holds the verdict down, where it is not the total."""
    from faultreplay.analysis.compare.judged import DISTANCE_PERCENT, ROUGHLY_PERCENT

    held, drift = judged.held_out, judged.over_time
    words = ""
    if drift is not None and abs(drift.errors.total or 0) > ROUGHLY_PERCENT:
        words += (
            " Its costs changed during the recording: rows hold for the recording as a whole, not for a part of it."
        )
    distance = max(held.errors.wasserstein or 0 if held else 0, judged.in_sample.wasserstein or 0)
    if distance > DISTANCE_PERCENT:
        words += f" Single stalls are off by {distance:.0f} % of the mean: do not read the quantiles."
    return words


def _foreign_words(row: Row) -> str:
    foreign = row.uncertainty.foreign if row.uncertainty else None
    if foreign is None:
        return ""
    return f"{row.mechanism} {foreign.low:+.0f} to {foreign.high:+.0f} % by {', '.join(sorted(row.borrowed))}"


def _bound_words(rows: tuple[Row, ...]) -> str:
    what: dict[str, str] = {}
    for row in rows:
        for bound in row.uncertainty.bounds if row.uncertainty else ():
            what[bound.what] = bound.setting
    if not what:
        return ""
    settings = " and ".join(f"{name} ({setting} gives the other bound)" for name, setting in what.items())
    return f"Two numbers for a total are bounds: the trace does not record {settings}."


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"
