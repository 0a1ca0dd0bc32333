"""`faultreplay inspect`: what a trace holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.header_view import facts_of, header_report
from faultreplay.cli.joins_view import join_lines
from faultreplay.cli.options import output_format, output_options
from faultreplay.cli.progress import amount, bar
from faultreplay.cli.render import Column, Report, check_output, emit, put
from faultreplay.cli.working_set_view import working_set_report
from faultreplay.cli.zaps_view import zap_lines, zaps_report
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.units import format_bytes, format_ns

if TYPE_CHECKING:
    from faultreplay.analysis.compare.inspection import Inspection
    from faultreplay.faulttrace.store import Trace

_BAR = 40


def _view(name: str, help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that shows something else in place of the faults."""
    return click.option(f"--{name}", "views", flag_value=name, multiple=True, help=help_text)


@click.command("inspect", short_help="Show what a trace holds.")
@click.argument(
    "traces", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="TRACE", shell_complete=traces_here
)
@_view("truth", "Hold the stitched stalls against the lab's own clock (lab traces).")
@_view("header", "Only what the trace says of itself, at once: no event is read.")
@_view("exits", "Guest exits by reason: how many, how long, in the kernel and in userspace.")
@_view("zaps", "Guest memory taken away: by whom, how often, why.")
@_view("verify", "Check every file, and do nothing else; exit 4 if one is bad.")
@_view("working-set", "The pages it touched, and in what order; several TRACEs: what their sets have in common.")
@click.option("--events", "with_events", is_flag=True, help="Also list the raw events by kind.")
@output_options
def command(
    traces: tuple[Path, ...],
    *,
    views: tuple[str, ...],
    with_events: bool,
    fmt: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Show what TRACE holds: host, probes, losses, faults joined and not, stalls and where their time went."""
    from faultreplay.faulttrace.store import open_trace

    chosen = output_format(fmt, output)
    if output is not None:
        check_output(output, force=force)
    if len(set(views)) > 1 or (views and with_events):
        asked = [f"--{view}" for view in dict.fromkeys(views)] + (["--events"] if with_events else [])
        raise UsageError(f"one view at a time: give {' or '.join(asked)}")
    if "working-set" in views:
        emit(working_set_report(traces), chosen, output, force=force)
        return
    if len(traces) > 1:
        raise UsageError(f"one trace at a time: {len(traces)} are given (--working-set takes several)")
    (trace,) = traces
    if "verify" in views:
        _verify(trace, chosen, output, force=force)
        return
    opened = open_trace(trace)
    if views:
        emit(_VIEWS[views[0]](opened), chosen, output, force=force)
        return
    from faultreplay.analysis.compare.inspection import inspect_trace
    from faultreplay.cli.qemu_view import qemu_reports

    with amount(f"stitching {opened.name}") as progress:
        inspection = inspect_trace(opened, progress)
    qemu = qemu_reports(opened)
    if chosen == "table" and qemu and not opened.event_rows and not inspection.faults:
        emit(qemu[0], chosen, output, force=force)  # QEMU's figures and nothing else
    elif chosen == "table":
        emit(_whole_table(inspection, with_events=with_events), chosen, output, force=force)
        for report in qemu if output is None else ():
            put()
            emit(report, chosen)
    else:
        report = _data(inspection)
        figures = {"qemu": [row for one in qemu for row in one.records]} if qemu else {}
        emit(replace(report, extra={**report.extra, **figures}), chosen, output, force=force)


def _truth(trace: Trace) -> Report:
    from faultreplay.analysis.judge.accuracy import accuracy_of
    from faultreplay.cli.accuracy_view import accuracy_report

    return accuracy_report(accuracy_of(trace))


def _exits(trace: Trace) -> Report:
    from faultreplay.analysis.compare.exits import exit_statistics
    from faultreplay.cli.exits_view import exits_report

    return exits_report(str(trace.path), exit_statistics(trace))


def _zaps(trace: Trace) -> Report:
    from faultreplay.faulttrace.stitch.zaps import zap_groups

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


def _data(inspection: Inspection) -> Report:
    """One record a group of faults; JSON also carries all the rest."""
    from dataclasses import asdict

    meta = inspection.meta
    report = {key: value for key, value in asdict(inspection.report).items() if not key.startswith("_")}
    extra: dict[str, Any] = {
        "trace": inspection.name,
        "events": inspection.events,
        "size_bytes": inspection.size_bytes,
        "duration_ns": inspection.duration_ns,
        "kinds": dict(inspection.kinds),
        "stitch": report,
        "histogram": [asdict(bucket) for bucket in inspection.histogram],
        "windows": [asdict(window) for window in inspection.windows],
        "zaps": [asdict(group) for group in inspection.zaps],
    }
    whole = asdict(meta)
    extra |= {key: whole[key] for key in ("origin", "host", "clock", "command", "mechanism", "targets", "probes")}
    extra |= {key: whole[key] for key in ("losses", "recorder", "lab", "complete")}
    extra["told_windows"] = whole["windows"]
    extra["import"] = meta.extra.get("import")
    columns = [
        Column("cause", "cause"),
        Column("resolution", "resolved by"),
        Column("accessor", "accessor"),
        *(Column(key, key, "count") for key in ("faults", "joined", "unjoined")),
        *(Column(f"stall_{q}_ns", f"stall {q}", "ns") for q in ("total", "p50", "p90", "p99", "max")),
        *(Column(f"{s}_p50_ns", f"{s} p50", "ns") for s in ("queue", "service", "resolve", "wake")),
    ]
    records = [group.as_record() for group in inspection.groups]
    return Report(records, columns, _title(inspection), _facts_as_notes(inspection), extra=extra)


def _whole_table(inspection: Inspection, *, with_events: bool) -> Report:
    """The table of faults; facts, histogram and joins stand under it."""
    from faultreplay.analysis.compare.known import why_no_faults

    columns = [
        Column("what", "faults"),
        Column("faults", "n", "count"),
        Column("unjoined", "un-\njoined", "count"),
        Column("p50", "p50", "ns"),
        Column("p90", "p90", "ns", keep=5),
        Column("p99", "p99", "ns"),
        Column("max", "max", "ns", keep=6),
        Column("total", "total", "ns", keep=7),
    ]
    rows: list[dict[str, Any]] = []
    rules = set()
    for group in inspection.groups:
        what = f"{group.cause}, {group.resolution}" if group.resolution != "none" else group.cause
        row: dict[str, Any] = {
            "what": what if group.accessor == "vcpu" else f"{what} ({group.accessor})",
            "faults": group.faults,
            "unjoined": group.faults - group.joined,
        }
        if group.stall.n:
            stall = group.stall
            row |= {"p50": stall.p50_ns, "p90": stall.p90_ns, "p99": stall.p99_ns}
            row |= {"max": stall.max_ns, "total": stall.total_ns}
        rows.append(row)
        for name, stage in (
            ("queue", "queue"),
            ("service", "service"),
            ("  of it the ioctl", "resolve"),
            ("wake", "wake"),
        ):
            spent = group.stages[stage]
            if spent.n:
                rows.append(
                    {"what": f"  {name}", "p50": spent.p50_ns, "p90": spent.p90_ns, "p99": spent.p99_ns}
                    | {"max": spent.max_ns, "total": spent.total_ns, "faults": None, "unjoined": None}
                )
        rules.add(len(rows) - 1)
    for row in rows:
        for key in ("faults", "unjoined"):
            if row.get(key) is None:
                row[key] = ""
    joins = join_lines(inspection.report)
    if not inspection.faults and not joins:
        joins = [why_no_faults(inspection.meta)]
    notes = [*_facts_as_notes(inspection), "", *_histogram(inspection), *joins, *zap_lines(inspection.zaps)]
    if with_events:
        notes += ["", "events:", *(f"  {name:<24} {count:>12,}" for name, count in inspection.kinds.items())]
    return Report(
        [group.as_record() for group in inspection.groups],
        columns,
        _title(inspection),
        notes,
        rows=rows,
        rules=frozenset(rules),
    )


def _title(inspection: Inspection) -> str:
    return (
        f"{inspection.path}: {inspection.faults:,} faults, {inspection.events:,} events "
        f"in {format_ns(inspection.duration_ns)} ({format_bytes(inspection.size_bytes)})"
    )


def _facts_as_notes(inspection: Inspection) -> list[str]:
    return [*inspection.notes, *facts_of(inspection.meta, inspection.duration_ns, inspection.windows)]


def _histogram(inspection: Inspection) -> list[str]:
    if not inspection.histogram:
        return []
    most = max(bucket.faults for bucket in inspection.histogram)
    lines = ["stalls:"]
    for bucket in inspection.histogram:
        # A bar is never empty where there is something.
        length = -(-bucket.faults * _BAR // most)
        edges = f"{format_ns(bucket.from_ns):>8} - {format_ns(bucket.until_ns):<8}"
        lines.append(f"  {edges} {bucket.faults:>9,} {'#' * length}".rstrip())
    return [*lines, ""]
