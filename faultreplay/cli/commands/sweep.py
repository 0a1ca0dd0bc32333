"""`faultreplay sweep`: vary parameters and costs over traces and mechanisms, and say where the ranking changes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import (
    Finite,
    NewPath,
    gathered,
    named_mechanisms_option,
    parse_names,
    pool_options,
    question_options,
    replay_options,
    setup_from,
)
from faultreplay.cli.render import FORMATS
from faultreplay.faulttrace.errors import FaultreplayError, UsageError

if TYPE_CHECKING:
    from faultreplay.analysis.explore.sweep import Sweep

_RANKS = {"total-stall": "total_stall_ns", "run-time": "run_time_ns", "p50": "p50_ns", "p99": "p99_ns"}


@dataclass(frozen=True)
class _Given:
    """What the command line says."""

    traces: tuple[str, ...]
    mechanisms: tuple[str, ...]
    varied: tuple[str, ...]
    output: Path | None
    jobs: int | None
    dask: str | None
    rank: str
    tolerance: float
    fmt: str
    plot: Path | None
    force: bool


@click.command(name="sweep")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...", shell_complete=traces_here)
@named_mechanisms_option
@click.option(
    "--vary",
    "varied",
    multiple=True,
    metavar="NAME=VALUES",
    help="MECH.PARAM=1,2,4 or COST=10us..1ms[:POINTS] (at even ratios) or COST=x0.5,x1,x2. Several make a grid.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Data set to write or go on with. Default: none.")
@pool_options("one a CPU")
@click.option("--rank", type=click.Choice(list(_RANKS)), default="total-stall", show_default=True, help="By what.")
@click.option(
    "--tolerance",
    type=Finite(0, 1000),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="Below this excess of the worst over the best, the mechanism does not matter.",
)
@click.option("--format", "fmt", type=click.Choice([f for f in FORMATS if f != "parquet"]), default="table")
@click.option(
    "--plot",
    type=NewPath(dir_okay=False),
    metavar="FILE",
    help="Also draw it: curves along one --vary, of two a map of which is best; *.svg or *.png.",
)
@click.option("--force", is_flag=True, help="Run again what the data set has already; write over a picture.")
@replay_options
@question_options
@gathered(_Given)
def command(given: _Given, **options: Any) -> None:  # noqa: D103 - the help text is below
    from faultreplay.analysis.compare.settings import check_settings
    from faultreplay.analysis.explore import workers
    from faultreplay.analysis.explore.axes import parse_axis
    from faultreplay.analysis.explore.stored import keep
    from faultreplay.analysis.explore.sweep import Common, plan, run_cell, sweep
    from faultreplay.cli import sweep_plot, sweep_view
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.manners import command_words
    from faultreplay.cli.progress import bar
    from faultreplay.cli.render import emit, put, say
    from faultreplay.faulttrace.remote import expand
    from faultreplay.replay.engine.warm import warm_engine

    names = parse_names(given.mechanisms)
    if len(names) < 1:
        raise UsageError("which mechanisms? name them with -m, as -m uffd-missing,kvm-exit")
    setup, more = setup_from(options)
    check_settings(setup.settings, names, (kind for _, _, kind in more["windows"]))
    axes = tuple(parse_axis(text, names) for text in given.varied)
    if given.plot:
        sweep_plot.check(given.plot, axes, force=given.force)
    common = Common(setup, axes, tuple(more["windows"]), more["fit"], more["max_loss_percent"])
    made = plan(expand(given.traces), names, common)
    count = min(given.jobs or os.cpu_count() or 1, max(len(made.cells), 1))
    pool = workers.chosen(run_cell, jobs=count, dask=given.dask, prepare=warm_engine)
    with computing(), _directory(given.output) as directory, bar() as show:
        done = sweep(
            made,
            pool,
            directory,
            ranked_by=_RANKS[given.rank],
            tolerance=given.tolerance / 100,
            again=given.force,
            progress=lambda done, total: show("cells", done, total),
        )
    if given.fmt in ("table", "md"):
        for number, report in enumerate(sweep_view.tables(done)):
            if number:
                put()
            emit(report, given.fmt)
    else:
        emit(sweep_view.whole(done), given.fmt)
    if given.output:
        keep(done, given.output, command_words())
        say(f"wrote {given.output}")
    if given.plot:
        for path in sweep_plot.draw(done, given.plot):
            say(f"wrote {path}")
    if done.failed:
        raise _failed(done)


def _failed(done: Sweep) -> FaultreplayError:
    """With the exit code that all failed cells have in common, and their reason where all failed for the same."""
    failures = list(done.failed.values())
    codes = {failure.exit_code for failure in failures}
    count = f"{len(failures)} of {len(done.plan.cells)} cells failed"
    reasons = {failure.words for failure in failures}
    tries = "" if failures[0].refused else ", each after two tries"
    error = FaultreplayError(f"{count}{tries}" if len(reasons) > 1 or tries else f"{count}: {reasons.pop()}")
    error.exit_code = codes.pop() if len(codes) == 1 else 1
    return error


@contextlib.contextmanager
def _directory(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="faultreplay-sweep-") as name:
        yield Path(name)


command.help = """Replay TRACEs under mechanisms at each point of a grid.

A TRACE is a directory, a packed trace, an fsspec URL or a bare faults.parquet; * stands for anything, also in URLs.

Prints a table a trace and, in sentences, below which value of each axis which mechanism is better, by how much, and
where it does not matter which. The
cells go to a Parquet data set (-o); a sweep that was interrupted, or grows, only runs the cells it lacks.

Exit code 1: some cells failed, each after two tries; 2 or 4, as everywhere: they make no sense, or their traces lack
something. 5: --dask without dask.distributed.
"""
