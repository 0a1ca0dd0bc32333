"""`faultreplay replay`: a trace's faults through mechanisms; the rows, or the summary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli import completion
from faultreplay.cli.options import (
    named_mechanisms_option,
    output_format,
    output_options,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    trace_argument,
)
from faultreplay.faulttrace.errors import UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.analysis.compare.compare import Comparison
    from faultreplay.cli.render import Report


@click.command(name="replay")
@trace_argument
@named_mechanisms_option
@click.option(
    "--rows/--summary",
    "rows",
    default=None,
    help="One row a fault, or one a mechanism. Default: rows into a Parquet file, else the summary.",
)
@click.option(
    "--beside",
    "beside",
    multiple=True,
    type=click.Path(path_type=Path),
    shell_complete=completion.traces,
    metavar="OTHER.trace",
    help="Another VM that restores from the same storage device at the same time (again for a third): each VM's "
    "numbers alone and together.",
)
@replay_options
@question_options
@output_options
def command(  # noqa: D103 - the help text is below
    trace: Path,
    mechanisms: tuple[str, ...],
    *,
    rows: bool | None,
    beside: tuple[Path, ...],
    fmt: str | None,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    import faultreplay
    from faultreplay.cli import replay_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.opening import say_kept
    from faultreplay.cli.progress import steps
    from faultreplay.cli.render import check_output, emit

    fmt = output_format(fmt, output)
    if output is not None:
        check_output(output, force=force)
    if fmt == "parquet" and output is None:
        raise UsageError("Parquet is binary: give it a file with -o FILE")
    names = parse_names(mechanisms)
    if not names:
        raise UsageError("say which mechanisms: -m uffd-missing,kvm-exit (`faultreplay models` lists them)")
    if rows and options["seeds"] > 1:
        raise UsageError("--rows are of one seed: leave --seeds away")
    if beside:
        if rows:
            raise UsageError("--beside gives a summary: leave --rows away")
        emit(_beside((trace, *beside), names, options), fmt, output, force=force)
        return
    setup, more = setup_from(options)
    opened = faultreplay.open_trace(trace)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(opened, setup, **more, progress=step)
        say_kept(opened)
        done = faultreplay.compare(case, names, weigh=False, progress=step)
        asked = {case.load(name).name for name in names}
        done = replace(done, blackouts=tuple(still for still in done.blackouts if still.mechanism in asked))
    wants_rows = fmt == "parquet" if rows is None else rows
    if wants_rows:
        _write_rows(case, done, fmt, output, force=force)
    else:
        emit(replay_view.summary(done), fmt, output, force=force)


def _beside(traces: tuple[Path, ...], names: list[str], options: dict[str, Any]) -> Report:
    from faultreplay.analysis.compare.neighbours import share_storage
    from faultreplay.analysis.compare.opening import open_case
    from faultreplay.cli import neighbours_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.faulttrace.store import open_trace

    setup, more = setup_from(options)
    with computing(), steps() as step:
        cases = []
        for path in traces:
            step(f"reading {path.name}")
            cases.append(open_case(open_trace(path), setup, **more, progress=step))
        step("replaying them alone and together")
        return neighbours_view.shared(share_storage(cases, names))


def _write_rows(case: Case, done: Comparison, fmt: str, output: Path | None, *, force: bool) -> None:
    from faultreplay.analysis.compare.notes import beyond_notes
    from faultreplay.analysis.compare.rows import rows_of_all
    from faultreplay.cli import replay_view
    from faultreplay.cli.render import emit_frame, say

    if done.unanswered and not (done.rows or done.blackouts):
        raise UsageError("; ".join(f"{row.mechanism}: {row.reason}" for row in done.unanswered))
    for row in done.unanswered:
        say(f"no rows of {row.mechanism}: {row.reason}", always=True)
    for note in beyond_notes(case, done.rows, done.blackouts):  # rows have no place for it
        say(note)
    pairs = [(case.read, row.result) for row in done.rows]
    frame = rows_of_all([*pairs, *((still.workload, still.result) for still in done.blackouts)])
    emit_frame(frame, fmt, output, replay_view.ROW_COLUMNS, force=force)


command.help = """Run the faults of TRACE through mechanisms.

    faultreplay replay my.trace -m uffd-missing,kvm-exit -o result.parquet

writes one row a fault and mechanism, in integer ns; without a file the summary is printed.

    faultreplay replay one.trace --beside two.trace -m file-private --page-cache none

replays two VMs that restore from one storage device at the same time.
"""
