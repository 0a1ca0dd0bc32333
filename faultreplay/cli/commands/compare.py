"""`faultreplay compare`: one table, a trace under each mechanism, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import (
    gathered,
    mechanisms_option,
    output_format,
    output_options,
    parse_names,
    pool_options,
    question_options,
    replay_options,
    setup_from,
    weighing_options,
)
from faultreplay.faulttrace.errors import FaultreplayError, ThresholdExceeded

if TYPE_CHECKING:
    from faultreplay.analysis.compare.predict import Setup
    from faultreplay.analysis.explore.fleet import TraceTask
    from faultreplay.analysis.explore.workers import Failure
    from faultreplay.cli.render import Report


@dataclass(frozen=True)
class _Given:
    """What the command line says of traces and tables."""

    traces: tuple[str, ...]
    mechanisms: tuple[str, ...]
    columns: str | None
    sort: str | None
    jobs: int | None
    dask: str | None
    fmt: str | None
    output: Path | None
    force: bool


@click.command(name="compare")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...", shell_complete=traces_here)
@mechanisms_option
@replay_options
@question_options
@weighing_options
@click.option("--strict", is_flag=True, help="Exit 3 where the recorded mechanism is not reproduced or not judged.")
@click.option(
    "--columns", metavar="NAME,...", help="Columns to show, as total-stall,p99,run-time; a wrong name lists all."
)
@click.option("--sort", metavar="NAME", help="Rows by this column, the least first; -NAME: the greatest first.")
@pool_options("1: one trace after the other")
@output_options
@gathered(_Given)
def command(given: _Given, **options: Any) -> None:  # noqa: D103 - the help text is below
    from faultreplay.cli import compare_view, fleet_view, pick_view
    from faultreplay.cli.render import check_output, emit
    from faultreplay.faulttrace.remote import expand

    if given.output is not None:
        check_output(given.output, force=given.force)
    chosen = pick_view.columns_of(given.columns, compare_view.COLUMNS) if given.columns else []
    order = pick_view.sort_key(given.sort, compare_view.COLUMNS) if given.sort else None
    names = parse_names(given.mechanisms)
    addresses = expand(given.traces)
    failed: list[tuple[str, Failure]] = []
    setup, more = setup_from(options)
    asked = _Asked(setup, more, names, {**options, "mechanisms": names})
    if len(addresses) == 1 and given.dask is None:
        answers = [_one(addresses[0], asked)]
    else:
        answers, failed = _many(addresses, asked, given.jobs or 1, given.dask)
    answers = [replace(a, report=pick_view.with_order(a.report, *order)) for a in answers] if order else answers
    if len(addresses) == 1 and answers:
        report = answers[0].report
    else:
        report = fleet_view.together(
            [(a.label, a.report) for a in answers], [(label, why.words) for label, why in failed], options["baseline"]
        )
    report = pick_view.with_columns(report, chosen) if chosen and report.columns else report
    fmt = output_format(given.fmt, given.output)
    report = fleet_view.brief(report, len(answers)) if fmt in ("table", "text", "md") else report
    if answers:
        emit(report, fmt, given.output, force=given.force)
    if failed:
        raise _failed(failed, len(addresses))
    distrusted = [a.doubt for a in answers if a.doubt]
    if options["strict"] and distrusted:
        raise ThresholdExceeded("; ".join(distrusted))


def _failed(failed: list[tuple[str, Failure]], count: int) -> FaultreplayError:
    """With the exit code that all failed traces have in common."""
    label, first = failed[0]
    tries = "" if first.refused else ", each after two tries"
    error = FaultreplayError(f"{len(failed)} of {count} traces failed{tries}: {label}: {first.words}")
    codes = {failure.exit_code for _, failure in failed}
    error.exit_code = codes.pop() if len(codes) == 1 else 1
    return error


@dataclass(frozen=True)
class _Asked:
    """What is asked of every trace."""

    setup: Setup
    more: Mapping[str, Any]
    names: list[str]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What one trace says: its table, and why it is not to be trusted; empty where it is."""

    label: str
    report: Report
    doubt: str


def answer(task: TraceTask) -> Answer:
    """What a worker does for one trace: it returns a table of sums, no rows of faults."""
    from faultreplay.analysis.explore.fleet import check_key, key_of

    asked = task.asked
    check_key(task, key_of(asked.setup, asked.more["windows"], asked.more["fit"], asked.names))
    return replace(_one(task.address, asked), label=task.label)


def _many(
    addresses: list[str], asked: _Asked, jobs: int, dask: str | None
) -> tuple[list[Answer], list[tuple[str, Failure]]]:
    """The answers, and (trace, why) of those that have none."""
    from faultreplay.analysis.explore import fleet, workers
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import bar
    from faultreplay.replay.engine.warm import warm_engine

    key = fleet.key_of(asked.setup, asked.more["windows"], asked.more["fit"], asked.names)
    tasks = fleet.tasks_of(addresses, asked, key)
    pool = workers.chosen(answer, jobs=min(jobs, len(tasks)), dask=dask, prepare=warm_engine)
    with computing(), bar() as show:
        outcomes = fleet.run_all(pool, tasks, lambda done, total: show("traces", done, total))
    failed = [(outcome.task.label, outcome.failure) for outcome in outcomes if outcome.failure]
    return [outcome.value for outcome in outcomes if not outcome.failure], failed


def _one(address: str, asked: _Asked) -> Answer:
    import faultreplay
    from faultreplay.analysis.compare.judged import Trust
    from faultreplay.cli import compare_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.opening import say_kept
    from faultreplay.cli.progress import steps
    from faultreplay.faulttrace.remote import identity, name_of, open_address

    options, trace = asked.options, open_address(address)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(trace, asked.setup, **asked.more, progress=step)
        say_kept(trace)
        done = faultreplay.compare(case, asked.names, baseline=options["baseline"], progress=step)
    report = compare_view.report(done, verbose=options["verbose"], options=options, trace_id=identity(address))
    why = ""
    if done.trust in (Trust.NOT, Trust.UNJUDGED):
        why = f"{address}: the recorded mechanism is {done.trust.value}: the rows are no prediction (--strict)"
    return Answer(name_of(address), report, why)


command.help = """Replay TRACEs under each mechanism and print one table beside what was measured.

The first line says how well the recorded mechanism is reproduced on faults that its costs were not fitted on: where it
is not, the rows are no prediction. Every row has its difference to the recorded mechanism (or --baseline) with a 90 %
interval. Rows marked * depend on costs of other hardware: `faultreplay calibrate --lab` measures this host's.

A mechanism may stand several times, with parameters of its own: -m uffd-missing:handlers=1,uffd-missing:handlers=4.

A TRACE is a directory, a packed trace, an fsspec URL or a bare faults.parquet; * stands for anything, also in URLs.
With several, one more table says how far the differences spread over them and which are outliers; of more than
20 only that table is shown (JSON, CSV and Parquet have all rows). -j and --dask spread them over workers: each trace is
stitched, fitted and replayed there, and only its rows come back.

Exit codes: where some of several traces fail, theirs if it is one, else 1; 3, with --strict, the recorded mechanism is
not reproduced; 4, more events were lost than --max-loss allows, or nothing can be replayed.
"""
