"""`faultreplay export`: a trace as Perfetto JSON, CSV, Parquet, or as a trace again: packed, cut, anonymised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.fault_options import parse_vcpus
from faultreplay.cli.options import NewPath
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import format_bytes

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace


@click.command()
@click.argument("trace", type=click.Path(path_type=Path), shell_complete=traces_here)
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(),
    help="*.json.gz, *.csv, *.parquet, or *.trace: a trace again.",
)
@click.option(
    "--what",
    type=click.Choice(["faults", "events", "losses"]),
    default="faults",
    show_default=True,
    help="Which table (CSV and Parquet).",
)
@click.option("--pack", "packed", is_flag=True, help="A trace in one file, to send; every verb reads it as it is.")
@click.option(
    "--anonymise",
    is_flag=True,
    help="A trace without names, ids, command lines, host, addresses, instruction pointers.",
)
@click.option("--time", "span", metavar="FROM-UNTIL", help="A trace of this time only, as 5s-8s from its start.")
@click.option("--vcpu", "vcpus", metavar="N,...", help="A trace of these vCPUs only; other threads stay.")
@click.option("--force", is_flag=True, help="Write over an existing file or trace.")
def command(
    trace: Path,
    *,
    output: Path,
    what: str,
    packed: bool,
    anonymise: bool,
    span: str | None,
    vcpus: str | None,
    force: bool,
) -> None:
    """Write a trace as Perfetto-readable JSON, as CSV, as one Parquet file, or as a smaller trace.

    The format is the ending of the output's name. JSON (open it in ui.perfetto.dev or chrome://tracing) shows each
    stall on its thread's track with its stages inside; CSV and Parquet hold the table in integer ns, and Parquet the
    trace's meta.json as schema metadata. NAME.trace is a trace again: a directory, or with --pack one file.
    """
    from faultreplay.cli.render import check_output, say
    from faultreplay.faulttrace.export import export
    from faultreplay.faulttrace.store import open_trace

    to_trace = packed or output.suffix == ".trace"
    asked = [
        name
        for name, given in (("--anonymise", anonymise), ("--time", span), ("--vcpu", vcpus))
        if given not in (None, False)
    ]
    if asked and not to_trace:
        raise UsageError(f"{asked[0]} makes a trace: name the output NAME.trace")
    if packed and output.suffix != ".trace":
        raise UsageError(f"{output}: a packed trace is named NAME.trace")
    if to_trace:
        from faultreplay.faulttrace.directory import check_free

        check_free(output, force=force)
    else:
        check_output(output, force=force)
    opened = open_trace(trace)
    for note in opened.notes:
        say(f"note: {note}")
    if to_trace:
        _as_trace(opened, output, packed=packed, anonymise=anonymise, span=span, vcpus=vcpus, force=force)
        return
    count = export(opened, output, what)
    say(f"wrote {output}: {count:,} records")


def _as_trace(
    opened: Trace, output: Path, *, packed: bool, anonymise: bool, span: str | None, vcpus: str | None, force: bool
) -> None:
    from faultreplay.cli.render import say
    from faultreplay.faulttrace.cut import parse_span
    from faultreplay.faulttrace.pack import send
    from faultreplay.faulttrace.store import open_trace

    meta = send(
        opened,
        output,
        packed=packed,
        span=parse_span(span) if span else None,
        vcpus=parse_vcpus(vcpus),
        anonymise=anonymise,
        force=force,
    )
    for line in _told(meta, cut=bool(span or vcpus), anonymised=anonymise):
        say(line)
    from faultreplay.faulttrace.place import whole_size

    made = open_trace(output)
    say(f"wrote {output}: {made.event_rows:,} events ({format_bytes(whole_size(made.path))})")


def _told(meta: Meta, *, cut: bool, anonymised: bool) -> list[str]:
    lines = []
    if cut:
        piece = meta.extra["cut"][-1]
        lines.append(
            f"cut: {piece['events_left_out']:,} events and {piece['losses_left_out']:,} losses left out, "
            f"{meta.losses.total:,} losses within; faults open at the start {piece['faults_open_at_start']:,}, "
            f"at the end {piece['faults_open_at_end']:,}"
        )
    if anonymised:
        lines += [f"anonymised: {done}" for done in meta.extra["anonymised"]]
    return lines
