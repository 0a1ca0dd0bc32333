"""The windows of a case: requested, recorded, or default; and the faults outside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from faultreplay.analysis.compare.predict import (
    Used,
    measured_run_time_ns,
)
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import format_ns
from faultreplay.replay.engine.windows import WINDOW_KINDS, Window
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace

DEFAULT_WINDOW_NS: Final = 50_000_000


def outside_windows(faults: pl.DataFrame, meta: Meta) -> pl.DataFrame:
    """The faults that no recorded window overlaps."""
    for window in meta.windows:
        inside = (faults["start_ns"] < window.end_ns) & (faults["end_ns"].fill_null(window.end_ns) > window.start_ns)
        faults = faults.filter(~inside)
    return faults


def windows_for(
    trace: Trace, workload: Workload, asked: Sequence[tuple[int, int, str]], used: Used | None
) -> tuple[tuple[Window, ...], str]:
    """The windows to replay and a word on where they come from.

    Those asked for and recorded bind every mechanism, by its own rule or by that of the window's kind; the default one
    has no kind and binds only mechanisms with a rule of their own.

    Raises:
        UsageError: one that was asked for begins after the recording's end.
    """
    if asked:
        for start_ns, length_ns, kind in asked:
            if start_ns >= measured_run_time_ns(workload):
                raise UsageError(
                    f"window {format_ns(start_ns)}+{format_ns(length_ns)}:{kind} begins after the recording's end "
                    f"({format_ns(measured_run_time_ns(workload))})"
                )
        return tuple(Window(*w) for w in asked), "as asked for"
    begin = workload.clock_start_ns
    # A span includes the time to set up and undo the window, which the rule charges; the lab records how long the work
    # was.
    told = trace.meta.lab.get("windows", [])
    work_ns = {int(w["begin_from_ns"]): int(w["end_from_ns"]) - int(w["begin_ns"]) for w in told}
    recorded = tuple(
        Window(max(w.start_ns - begin, 0), work_ns.get(w.start_ns, w.end_ns - w.start_ns), window_kind(w.kind, used))
        for w in trace.meta.windows
        if w.end_ns > w.start_ns
    )
    if recorded:
        return recorded, "as recorded"
    span_ns = measured_run_time_ns(workload)
    length_ns = max(min(DEFAULT_WINDOW_NS, span_ns // 10), 1)
    return (Window((span_ns - length_ns) // 2, length_ns),), "by default; choose your own with --window"


def window_kind(kind: str, used: Used | None) -> str:
    """The kind of a recorded window under which it is replayed; empty: none that is known."""
    kind = used.window_kind if used and used.window_kind else kind
    return kind if kind in WINDOW_KINDS else ""
