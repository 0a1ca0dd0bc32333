"""`faultreplay inspect`: what a trace holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.fault_options import fault_choice, fault_choice_options
from faultreplay.cli.header_view import header_report
from faultreplay.cli.options import gathered, output_format, output_options, pool_options
from faultreplay.cli.progress import amount, bar
from faultreplay.cli.render import Column, Report, check_output, emit, put
from faultreplay.cli.working_set_view import working_set_report
from faultreplay.cli.zaps_view import zaps_report
from faultreplay.faulttrace.errors import IncompleteData, UsageError

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace


def _view(name: str, help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that shows something else in place of the faults."""
    return click.option(f"--{name}", "views", flag_value=name, multiple=True, help=help_text)


@dataclass(frozen=True)
class _Given:
    """What the command line says of faults, beside the choice of them."""

    top: str | None
    step: str | None
    limit: int | None
    sort: str
    jobs: int | None
    dask: str | None


@click.command("inspect", short_help="Show what a trace holds.")
@click.argument("traces", nargs=-1, required=True, metavar="TRACE...", shell_complete=traces_here)
@_view("truth", "Compare the stitched stalls with the lab's own clock (lab traces).")
@_view("header", "Only what the trace says of itself, at once: no event is read.")
@_view("exits", "Guest exits by reason: how many, how long, in the kernel and in userspace.")
@_view("zaps", "Guest memory taken away: by whom, how often, why.")
@_view("timeline", "Faults and stall over time.")
@click.option(
    "--top",
    type=click.Choice(["pages", "ips", "threads", "ranges"]),
    help="Where the stall comes from: pages, guest instructions, threads (and handlers), ranges of memory.",
)
@_view("faults", "The faults, one by one.")
@_view("verify", "Check every file, and do nothing else; exit 4 if one is bad.")
@_view("working-set", "The pages it touched, and in what order; several TRACEs: what their sets have in common.")
@fault_choice_options
@click.option(
    "--step", metavar="TIME", help="With --timeline: length of a step. Default: a round one, at most 40 steps."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="With --faults and --top: at most so many rows. Default: 20 in tables, all in json, csv and parquet.",
)
@click.option(
    "--sort",
    type=click.Choice(["time", "stall"]),
    default="time",
    show_default=True,
    help="With --faults: in order of time, or the longest first.",
)
@click.option("--events", "with_events", is_flag=True, help="Also list the raw events by kind.")
@pool_options("of several traces one after the other")
@output_options
@gathered(_Given)
def command(
    given: _Given,
    *,
    traces: tuple[str, ...],
    views: tuple[str, ...],
    with_events: bool,
    fmt: str | None,
    output: Path | None,
    force: bool,
    **chosen: Any,
) -> None:
    """Show what TRACE holds: host, probes, losses, faults joined and not, stalls and where their time went.

    A TRACE is a directory, a packed trace or an fsspec URL; * stands for anything, also in URLs. Several are stitched
    on -j processes or a dask cluster and shown in one row each.
    """
    from faultreplay.faulttrace.remote import expand, open_address

    form = output_format(fmt, output)
    if output is not None:
        check_output(output, force=force)
    view = _one_view([*views, *(["top"] if given.top else [])], given, chosen, with_events=with_events)
    addresses = expand(traces)
    if view == "working-set":
        emit(working_set_report(addresses, given.jobs or 1, given.dask), form, output, force=force)
        return
    if len(addresses) > 1 and (view or with_events):
        asked = f"--{view}" if view else "--events"
        raise UsageError(f"{asked} shows one trace: {len(addresses)} are given (--working-set takes several)")
    if len(addresses) > 1 or given.dask is not None:
        from faultreplay.cli.commands.inspect_many import show_many

        show_many(addresses, given.jobs or 1, given.dask, (form, output), force=force)
        return
    (trace,) = addresses
    if view == "verify":
        _verify(Path(trace), form, output, force=force)
        return
    opened = open_address(trace)
    if view in _VIEWS:
        emit(_VIEWS[view](opened), form, output, force=force)
    elif view:
        from faultreplay.cli.commands.inspect_faults import show

        show(view, opened, fault_choice(chosen), given.__dict__, (form, output, force))
    else:
        _whole(opened, form, output, with_events=with_events, force=force)


def _one_view(asked: list[str], given: _Given, chosen: Mapping[str, Any], *, with_events: bool) -> str:
    """The view that is asked for, empty for all that the trace holds.

    Raises:
        UsageError: several views, or an option that the view does not know.
    """
    views = list(dict.fromkeys(asked))
    if len(views) > 1 or (views and with_events):
        both = [f"--{view}" for view in views] + (["--events"] if with_events else [])
        raise UsageError(f"one view at a time: give {' or '.join(both)}")
    view = views[0] if views else ""
    sorted_ = None if given.sort == "time" else given.sort
    for names, values, where in (
        (("vcpu", "cause", "longer", "time"), chosen, ("faults", "timeline", "top")),
        (("step",), given.__dict__, ("timeline",)),
        (("limit",), given.__dict__, ("faults", "top")),
        (("sort",), {"sort": sorted_}, ("faults",)),
    ):
        for name in names:
            if values.get(name) is not None and view not in where:
                raise UsageError(f"--{name} goes with {', '.join(f'--{one}' for one in where)}")
    return view


def _whole(opened: Trace, form: str, output: Path | None, *, with_events: bool, force: bool) -> None:
    """All that the trace holds, and QEMU's own figures where it has some."""
    from faultreplay.analysis.compare.inspection import inspect_trace
    from faultreplay.cli.inspection_view import data_report, whole_report
    from faultreplay.cli.opening import say_kept
    from faultreplay.cli.qemu_view import qemu_reports

    with amount(f"stitching {opened.name}") as progress:
        inspection = inspect_trace(opened, progress)
    say_kept(opened)
    qemu = qemu_reports(opened)
    if form == "table" and qemu and not opened.event_rows and not inspection.faults:
        emit(qemu[0], form, output, force=force)  # QEMU's figures and nothing else
    elif form == "table":
        emit(whole_report(inspection, with_events=with_events), form, output, force=force)
        for report in qemu if output is None else ():
            put()
            emit(report, form)
    else:
        report = data_report(inspection)
        figures = {"qemu": [row for one in qemu for row in one.records]} if qemu else {}
        emit(replace(report, extra={**report.extra, **figures}), form, output, force=force)


def _truth(trace: Trace) -> Report:
    from faultreplay.analysis.judge.accuracy import accuracy_of
    from faultreplay.cli.accuracy_view import accuracy_report

    return accuracy_report(accuracy_of(trace))


def _exits(trace: Trace) -> Report:
    from faultreplay.analysis.compare.exits import exit_statistics
    from faultreplay.cli.exits_view import exits_report

    return exits_report(str(trace.path), exit_statistics(trace))


def _zaps(trace: Trace) -> Report:
    from faultreplay.faulttrace.stitch.zap_groups import zap_groups

    duration_ns = max(trace.meta.clock.end_ns - trace.meta.clock.start_ns, 0)
    return zaps_report(str(trace.path), zap_groups(trace), trace.meta, duration_ns)


_VIEWS: Final[Mapping[str, Callable[[Trace], Report]]] = {
    "truth": _truth,
    "header": header_report,
    "exits": _exits,
    "zaps": _zaps,
}
"""What each option shows in place of the faults."""


def _verify(path: Path, fmt: str, output: Path | None, *, force: bool) -> None:
    """The table of files; ends with the first that is bad."""
    from faultreplay.faulttrace.verify import verify_trace

    with bar() as tell:
        files = verify_trace(path, tell)
    columns = [
        Column("file", "file"),
        Column("rows", "rows", "count"),
        Column("size_bytes", "bytes", "count"),
        Column("checked", "checked by"),
        Column("result", "result"),
    ]
    bad = [file for file in files if file.problem]
    words = f"{len(bad)} of {len(files)} files are bad" if bad else f"all {len(files)} files are what was written"
    if not bad and any(not file.checked for file in files):
        words = f"all {len(files)} files can be read; what has no checksums may have changed unseen"
    emit(Report([file.as_record() for file in files], columns, f"{path}: {words}", []), fmt, output, force=force)
    if bad:
        raise IncompleteData(bad[0].problem)
