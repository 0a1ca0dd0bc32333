"""`faultreplay compare`: one table, a trace under each mechanism, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import (
    mechanisms_option,
    output_format,
    output_options,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    weighing_options,
)
from faultreplay.faulttrace.errors import ThresholdExceeded

if TYPE_CHECKING:
    from faultreplay.cli.render import Report


@click.command(name="compare")
@click.argument(
    "traces", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="TRACE...", shell_complete=traces_here
)
@mechanisms_option
@replay_options
@question_options
@weighing_options
@click.option("--strict", is_flag=True, help="Exit 3 where the recorded mechanism is not reproduced or not judged.")
@click.option(
    "--columns", metavar="NAME,...", help="Columns to show, as total-stall,p99,run-time; a wrong name lists all."
)
@click.option("--sort", metavar="NAME", help="Rows by this column, the least first; -NAME: the greatest first.")
@output_options
def command(  # noqa: D103 - the help text is below
    traces: tuple[Path, ...],
    mechanisms: tuple[str, ...],
    *,
    fmt: str | None,
    output: Path | None,
    force: bool,
    columns: str | None,
    sort: str | None,
    **options: Any,
) -> None:
    from faultreplay.cli import compare_view, pick_view
    from faultreplay.cli.render import check_output, emit

    if output is not None:
        check_output(output, force=force)
    chosen = pick_view.columns_of(columns, compare_view.COLUMNS) if columns else []
    order = pick_view.sort_key(sort, compare_view.COLUMNS) if sort else None
    reports, distrusted = [], []
    for trace in dict.fromkeys(traces):
        report, doubt = _one(trace, parse_names(mechanisms), options)
        report = pick_view.with_order(report, *order) if order else report
        reports.append((trace.name.removesuffix(".trace"), report))
        distrusted += [doubt] if doubt else []
    report = pick_view.together(reports) if len(reports) > 1 else reports[0][1]
    report = pick_view.with_columns(report, chosen) if chosen else report
    emit(report, output_format(fmt, output), output, force=force)
    if options["strict"] and distrusted:
        raise ThresholdExceeded("; ".join(distrusted))


def _one(trace: Path, names: list[str], options: Mapping[str, Any]) -> tuple[Report, str]:
    """The table of one trace, and why it is not to be trusted; empty where it is."""
    import faultreplay
    from faultreplay.analysis.compare.judged import Trust
    from faultreplay.cli import compare_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.faulttrace.remote import identity

    setup, more = setup_from(options)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(trace, setup, **more, progress=step)
        done = faultreplay.compare(case, names, baseline=options["baseline"], progress=step)
    asked = {**options, "mechanisms": names}
    report = compare_view.report(done, verbose=options["verbose"], options=asked, trace_id=identity(str(trace)))
    if done.trust in (Trust.NOT, Trust.UNJUDGED):
        why = f"{trace}: the recorded mechanism is {done.trust.value}: the rows are no prediction (--strict)"
        return report, why
    return report, ""


command.help = """Replay TRACEs under each mechanism and print one table beside what was measured.

The first line says how well the recorded mechanism is reproduced on faults that its costs were not fitted on: where it
is not, the rows are no prediction. Every row has its difference to the recorded mechanism (or --baseline) with a 90 %
interval. Rows marked * depend on costs of other hardware: `faultreplay calibrate --lab` measures this host's.

A mechanism may stand several times, with parameters of its own: -m uffd-missing:handlers=1,uffd-missing:handlers=4.

Exit codes: 3, with --strict, the recorded mechanism is not reproduced; 4, more events were lost than --max-loss allows,
or nothing can be replayed.
"""
