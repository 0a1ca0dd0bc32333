"""`faultreplay validate`: predictions against measurements, beside the A/A floor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import Finite, gathered, output_format, output_options, replay_options, setup_from
from faultreplay.faulttrace.errors import ThresholdExceeded, UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.judge.cells import Cell
    from faultreplay.cli.render import Report

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class _Given:
    """What the command line says."""

    trace: Path | None
    source: Path | None
    target: Path | None
    again: Path | None
    matrix: Path | None
    calibrate_on: str
    show: str
    max_error_percent: float | None
    floor_factor: float | None
    plot: Path | None
    fmt: str | None
    output: Path | None
    force: bool


@click.command(name="validate")
@click.argument("trace", type=_PATH, required=False, shell_complete=traces_here)
@click.option("--from", "source", type=_PATH, metavar="A.trace", help="Take accesses and costs from this trace ...")
@click.option("--to", "target", type=_PATH, metavar="B.trace", help="... predict this one's mechanism, judge on it.")
@click.option("--again", type=_PATH, metavar="B2.trace", help="B's mechanism measured once more: the A/A floor.")
@click.option("--matrix", type=_PATH, metavar="DIR", help="All ordered pairs of a directory of lab traces.")
@click.option(
    "--calibrate-on",
    type=click.Choice(("source", "host", "near")),
    default="near",
    show_default=True,
    help="With --matrix, what of side A gives costs: the source trace alone; all of side A; "
    "or besides the target's mechanism in other cells. Never side B.",
)
@click.option(
    "--show",
    type=click.Choice(("pairs", "parts", "cells")),
    default="pairs",
    show_default=True,
    help="With --matrix: a line for every pair of mechanisms; for every part of it by vCPUs, fetch, workload and "
    "mechanism; or for every prediction.",
)
@click.option(
    "--max-error",
    "max_error_percent",
    type=Finite(0),
    metavar="PERCENT",
    help="Exit 3 if the total stall of any prediction is further off.",
)
@click.option(
    "--or-floor",
    "floor_factor",
    type=Finite(0),
    metavar="FACTOR",
    help="With --max-error: or if it is off by no more than FACTOR times the A/A floor.",
)
@click.option("--plot", type=_PATH, metavar="FILE.png", help="Draw predicted against measured quantiles.")
@replay_options
@output_options
@gathered(_Given)
def command(given: _Given, **options: Any) -> None:  # noqa: D103 - the help text is below
    from faultreplay.cli.render import check_output

    if (given.trace is not None) + (given.source is not None or given.target is not None) + (
        given.matrix is not None
    ) != 1:
        raise UsageError("give one of: TRACE, --from A --to B, or --matrix DIR")
    if (given.source is None) != (given.target is None):
        raise UsageError("--from and --to go together")
    if given.again is not None and given.target is None:
        raise UsageError("--again goes with --from and --to")
    for path in (given.output, given.plot):
        if path is not None:
            check_output(path, force=given.force)
    if given.trace is not None and _only_figures(given.trace, given.fmt, given.output, force=given.force):
        return
    if given.trace is not None:
        cells, report = _halves(given.trace, options)
    elif given.source is not None and given.target is not None:
        cells, report = _pair(given.source, given.target, given.again, options)
    else:
        assert given.matrix is not None
        cells, report = _matrix(given.matrix, options, given.show, given.calibrate_on)
    fmt = output_format(given.fmt, given.output)
    _emit(report, given.trace, fmt, given.output, force=given.force)
    if given.plot is not None:
        _plot(cells, given.plot)
    if given.max_error_percent is not None:
        _judge(cells, given.max_error_percent, given.floor_factor)


command.help = """Compare predictions with measurements. Three forms:

\b
  validate TRACE            costs from its first half, judged on its second
  validate --from A --to B  accesses and costs from A, B's mechanism, judged on B
  validate --matrix DIR     every ordered pair of a lab matrix, side A to side B

What a cost was fitted on is never what it is judged on. Intervals are block-bootstrapped; the A/A floor is the
same mechanism measured twice.
"""


def _emit(report: Report, trace: Path | None, fmt: str, output: Path | None, *, force: bool) -> None:
    """The report, and what QEMU says of the same trace."""
    from faultreplay.cli.qemu_view import qemu_reports
    from faultreplay.cli.render import emit, put
    from faultreplay.faulttrace.store import open_trace

    qemu = qemu_reports(open_trace(trace)) if trace is not None else []
    if qemu:
        report = replace(report, extra={**report.extra, "qemu": [row for one in qemu for row in one.records]})
    emit(report, fmt, output, force=force)
    for one in qemu if fmt == "table" and output is None else ():
        put()
        emit(one, fmt)


def _only_figures(trace: Path, fmt: str | None, output: Path | None, *, force: bool) -> bool:
    """Show QEMU's figures of a trace that has nothing else; whether it is one."""
    from faultreplay.cli.qemu_view import figures
    from faultreplay.cli.render import emit
    from faultreplay.faulttrace.store import open_trace

    opened = open_trace(trace)
    report = figures(opened.meta) if not opened.event_rows else None
    if report is None:
        return False
    notes = (*report.notes, "no recording: nothing to compare these figures with")
    emit(replace(report, notes=notes), output_format(fmt, output), output, force=force)
    return True


def _halves(trace: Path, options: dict[str, Any]) -> tuple[list[Cell], Report]:
    from faultreplay.analysis.compare.opening import open_case
    from faultreplay.analysis.judge.validate import halves
    from faultreplay.cli import validate_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.faulttrace.store import open_trace

    setup, more = setup_from(options)
    with computing(), steps() as step:
        step("reading the trace")
        case = open_case(open_trace(trace), setup, **more)
        step("predicting the second half")
        cell = halves(case)
    return [cell], validate_view.one(cell)


def _pair(source: Path, target: Path, again: Path | None, options: dict[str, Any]) -> tuple[list[Cell], Report]:
    from faultreplay.analysis.judge.validate import open_for, pair
    from faultreplay.cli import validate_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.faulttrace.store import open_trace

    setup, more = setup_from(options)
    if more.pop("windows"):
        raise UsageError("--window: a prediction of another trace takes that trace's own windows")
    with computing(), steps() as step:
        step("reading the traces")
        one, other = (open_for(open_trace(p), setup, **more) for p in (source, target))
        third = open_for(open_trace(again), setup, **more) if again else None
        step("predicting")
        cell = pair(one, other, again=third)
    return [cell], validate_view.one(cell)


def _matrix(directory: Path, options: dict[str, Any], shown: str, calibrate_on: str) -> tuple[list[Cell], Report]:
    from faultreplay.analysis.judge.matrix import validate_matrix
    from faultreplay.cli import validate_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import bar

    setup, more = setup_from(options)
    if more.pop("windows"):
        raise UsageError("--window: a matrix takes the windows that were recorded")
    with computing(), bar() as show:
        matrix = validate_matrix(directory, setup, calibrate_on=calibrate_on, progress=show, **more)
    return list(matrix.cells), validate_view.matrix(matrix, shown=shown)


def _plot(cells: list[Cell], path: Path) -> None:
    from faultreplay.analysis.compare.plot import MOST_PANELS, Panel, quantile_plot
    from faultreplay.cli.render import say

    cross = sorted(cells, key=lambda c: -abs(c.errors.total or 0))
    shown = cells if len(cells) <= MOST_PANELS else cross[:MOST_PANELS]
    panels = [
        Panel(
            f"{c.source_mechanism} -> {c.mechanism}\n{c.group}".strip(),
            c.predicted.stalls,
            c.measured.stalls,
            c.again.stalls if c.again else None,
        )
        for c in shown
    ]
    quantile_plot(panels, path)
    extra = "" if len(shown) == len(cells) else f" (the {len(shown)} worst of {len(cells)})"
    say(f"wrote {path}{extra}")


def _judge(cells: list[Cell], max_error_percent: float, floor_factor: float | None) -> None:
    failed = [c for c in cells if not c.within(max_error_percent, floor_factor)]
    if not failed:
        return
    worst = max(failed, key=lambda c: abs(c.errors.total or 0))
    total = "unknown" if worst.errors.total is None else f"{worst.errors.total:+.1f} %"
    what = f"{worst.source} -> {worst.target}: total stall {total}"
    raise ThresholdExceeded(f"{len(failed)} of {len(cells)} predictions past --max-error {max_error_percent:g}: {what}")
