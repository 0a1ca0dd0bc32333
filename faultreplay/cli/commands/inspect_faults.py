"""The views of `faultreplay inspect` that go through the faults: `--faults`, `--timeline`, `--top`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from faultreplay.cli import faults_view
from faultreplay.cli.progress import amount
from faultreplay.cli.render import emit, emit_frame, say
from faultreplay.faulttrace.units import parse_duration_ns

if TYPE_CHECKING:
    from faultreplay.analysis.views.chosen import Choice
    from faultreplay.analysis.views.top import By
    from faultreplay.faulttrace.store import Trace

USUAL_ROWS: Final = 20
"""Of a table; files of data hold all."""


def show(view: str, trace: Trace, choice: Choice, given: Mapping[str, Any], out: tuple[str, Path | None, bool]) -> None:
    """Show one view of the faults; `out`: format, file (None: stdout), whether it may be written over."""
    fmt, output, force = out
    limit = given["limit"] or (USUAL_ROWS if fmt in ("table", "text", "md") else None)
    with amount(f"stitching {trace.name}") as progress:
        if view == "timeline":
            from faultreplay.analysis.views.timeline import timeline_of

            step_ns = parse_duration_ns(given["step"]) if given["step"] else 0
            report = faults_view.timeline_report(trace, choice, timeline_of(trace, choice, step_ns, progress))
        elif view == "top":
            from faultreplay.analysis.views.top import top_of

            by = cast("By", given["top"])
            report = faults_view.top_report(trace, by, choice, top_of(trace, by, choice, limit, progress))
        else:
            from faultreplay.analysis.views.faults import faults_of

            chosen = faults_of(trace, choice, longest_first=given["sort"] == "stall", progress=progress)
            report = faults_view.faults_report(trace, choice, chosen, limit)
            if fmt in ("csv", "parquet"):
                frame = chosen.frame if limit is None else chosen.frame.head(limit)
                for note in report.notes:
                    say(note)
                emit_frame(frame, fmt, output, faults_view.FAULTS, force=force)
                return
    emit(report, fmt, output, force=force)
