"""`faultreplay compare`: one table, a trace under each mechanism, beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faultreplay.cli.options import (
    check_settings,
    mechanisms_option,
    output_format,
    output_options,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    trace_argument,
)


@click.command(name="compare")
@trace_argument
@mechanisms_option
@replay_options
@question_options
@output_options
def command(  # noqa: D103 - the help text is below
    trace: Path, mechanisms: tuple[str, ...], fmt: str | None, output: Path | None, force: bool, **options: Any
) -> None:
    from faultreplay.analysis.compare.case import open_case
    from faultreplay.analysis.compare.compare import blackout_names, compare, default_names
    from faultreplay.cli import compare_view
    from faultreplay.cli.progress import steps
    from faultreplay.cli.render import check_output, emit
    from faultreplay.faulttrace.store import open_trace

    if output is not None:
        check_output(output, force=force)
    setup, more = setup_from(options)
    with steps() as step:
        step("reading the trace")
        case = open_case(open_trace(trace), setup, **more)
        names = parse_names(mechanisms)
        check_settings(
            setup, names or [*default_names(case), *blackout_names(case, ())], (window.kind for window in case.windows)
        )
        comparison = compare(case, names, progress=step)
    emit(compare_view.report(comparison), output_format(fmt, output), output, force=force)


command.help = """Replay TRACE under each mechanism and print one table beside what was measured.

Errors of the recorded mechanism are given twice: in sample (costs from all faults, judged on the same) and held out
(costs from the first half, judged on the second). Mechanisms marked * use costs of other hardware.

Exit code 4: more events were lost than --max-loss allows, or nothing can be replayed.
"""
