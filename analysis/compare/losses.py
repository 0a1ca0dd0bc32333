"""Whether a trace lost too much to be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faultreplay.faulttrace.errors import IncompleteData

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace


def loss_percent(lost: int, kept: int) -> float:
    """Lost events in percent of all that happened."""
    return 100 * lost / (lost + kept) if lost else 0.0


def check_losses(trace: Trace, most_percent: float) -> int:
    """Events lost in `trace`.

    Raises:
        IncompleteData: a greater share than `most_percent`.
    """
    lost, events = trace.meta.losses.total, trace.event_rows
    share = loss_percent(lost, events)
    if share > most_percent:
        raise IncompleteData(
            f"{trace.path}: {lost} events lost ({share:.3g} %), more than {most_percent:g} %: "
            "record again with a larger ring (--ring), or allow it with --max-loss"
        )
    return lost
