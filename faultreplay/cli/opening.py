"""A word on what is kept of a large trace when a verb has opened it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

_MANY_EVENTS: Final = 1 << 20
"""Of fewer a stitch takes no time that one would notice."""


def say_kept(trace: Trace) -> None:
    """Say that the faults of a large trace are kept, where they were stitched just now."""
    from faultreplay.cli.render import say

    if trace.faults_made and trace.event_rows >= _MANY_EVENTS:
        say(f"{trace.event_rows:,} events stitched; the faults are kept in {trace.path}: the next command reads them")
