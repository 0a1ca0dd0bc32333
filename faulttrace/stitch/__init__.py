"""Stitching: from raw events to faults. No tracepoint says "this userfault took so long"; this package works it out.

How each column is found, and what it is off by, is in docs/accuracy.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from faultreplay.faulttrace.meta import Meta, WindowSpan
from faultreplay.faulttrace.stitch.columns import USED
from faultreplay.faulttrace.stitch.report import StitchReport
from faultreplay.faulttrace.stitch.run import STRETCH_ROWS, Run
from faultreplay.faulttrace.stitch.source import FrameSource

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.store import Trace

__all__ = ["STRETCH_ROWS", "StitchReport", "Stitched", "stitch", "stitch_events", "stitch_trace"]


@dataclass
class Stitched:
    """Faults (columns of `FAULTS`), the windows that the ioctls show, and what could not be joined."""

    faults: pl.DataFrame
    windows: list[WindowSpan]
    report: StitchReport


def stitch(trace: Trace) -> pl.DataFrame:
    """The faults of a trace (columns of `FAULTS`), sorted by (`start_ns`, `tid`)."""
    return stitch_trace(trace).faults


def stitch_trace(trace: Trace, *, rows: int = STRETCH_ROWS) -> Stitched:
    """Faults, windows and the report of a trace; `rows`: about how many events are looked at together."""
    return _gathered(Run(trace.source(USED), trace.meta, rows))


def stitch_events(frame: pl.DataFrame, meta: Meta | None = None, *, rows: int = STRETCH_ROWS) -> Stitched:
    """Faults of raw events (columns of `EVENTS`, sorted by `ts_ns`).

    Args:
        frame: the events.
        meta: where threads, memory slots and page sizes are known from, besides the events.
        rows: about how many events are looked at together; the faults do not depend on it.
    """
    return _gathered(Run(FrameSource(frame, USED), meta or Meta(), rows))


def _gathered(run: Run) -> Stitched:
    import polars as pl
    import pyarrow as pa

    from faultreplay.faulttrace.schema import FAULTS

    tables = list(run.faults())
    frame = pl.from_arrow(pa.concat_tables(tables) if tables else FAULTS.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return Stitched(frame, run.windows, run.report)
