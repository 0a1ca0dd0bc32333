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
    weighing_options,
)


@click.command(name="compare")
@trace_argument
@mechanisms_option
@replay_options
@question_options
@weighing_options
@click.option("--strict", is_flag=True, help="Exit 3 where the recorded mechanism is not reproduced or not judged.")
@output_options
def command(  # noqa: D103 - the help text is below
    trace: Path,
    mechanisms: tuple[str, ...],
    *,
    fmt: str | None,
    output: Path | None,
    force: bool,
    strict: bool,
    verbose: bool,
    baseline: str,
    **options: Any,
) -> None:
    from faultreplay.analysis.compare.case import open_case
    from faultreplay.analysis.compare.compare import blackout_names, compare, default_names
    from faultreplay.analysis.compare.judged import Trust
    from faultreplay.cli import compare_view
    from faultreplay.cli.progress import steps
    from faultreplay.cli.render import check_output, emit
    from faultreplay.faulttrace.errors import ThresholdExceeded
    from faultreplay.faulttrace.remote import identity
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
        comparison = compare(case, names, baseline=baseline, progress=step)
    asked = {**options, "mechanisms": names, "baseline": baseline}
    report = compare_view.report(comparison, verbose=verbose, options=asked, trace_id=identity(str(trace)))
    emit(report, output_format(fmt, output), output, force=force)
    if strict and comparison.trust in (Trust.NOT, Trust.UNJUDGED):
        raise ThresholdExceeded(
            f"{trace}: the recorded mechanism is {comparison.trust.value}: the rows are no prediction (--strict)"
        )


command.help = """Replay TRACE under each mechanism and print one table beside what was measured.

The first line says how well the recorded mechanism is reproduced on faults that its costs were not fitted on: where it
is not, the rows are no prediction. Every row has its difference to the recorded mechanism (or --baseline) with a 90 %
interval. Rows marked * hang on costs of other hardware: `faultreplay calibrate --lab` measures this host's.

Exit codes: 3, with --strict, the recorded mechanism is not reproduced; 4, more events were lost than --max-loss allows,
or nothing can be replayed.
"""
