"""`faultreplay export`: a trace as Perfetto JSON, CSV, Parquet, or as a trace again: packed, cut, anonymised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from faultreplay.cli.completion import mechanisms as complete_mechanisms
from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.fault_options import parse_vcpus
from faultreplay.cli.options import NewPath, gathered, parse_names
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import format_bytes

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta
    from faultreplay.faulttrace.store import Trace


@dataclass(frozen=True)
class _Piece:
    """What of a trace goes into another one."""

    packed: bool
    anonymise: bool
    span: str | None
    vcpus: str | None

    @property
    def asked(self) -> str:
        """The first option that only a trace can have; empty: none is given."""
        given = (("--anonymise", self.anonymise), ("--time", self.span is not None), ("--vcpu", self.vcpus is not None))
        return next((name for name, is_given in given if is_given), "")


@click.command()
@click.argument("trace", type=click.Path(path_type=Path), shell_complete=traces_here)
@click.option(
    "-o",
    "--output",
    required=True,
    type=NewPath(),
    help="*.pftrace, *.json.gz, *.csv, *.parquet, or *.trace: a trace again.",
)
@click.option(
    "--what",
    type=click.Choice(["faults", "events", "losses"]),
    default="faults",
    show_default=True,
    help="Which table (CSV and Parquet).",
)
@click.option(
    "-m",
    "--mechanisms",
    multiple=True,
    metavar="NAME,...",
    shell_complete=complete_mechanisms,
    help="Into *.pftrace: also the replay under these, beside the recording.",
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
@gathered(_Piece)
def command(
    piece: _Piece,
    *,
    trace: Path,
    output: Path,
    what: str,
    mechanisms: tuple[str, ...],
    force: bool,
) -> None:
    """Write a trace for Perfetto, as CSV, as one Parquet file, or as a smaller trace.

    The format is the ending of the output's name. *.pftrace (open it in ui.perfetto.dev) has a track for each vCPU,
    handler and lock, with scheduling and windows; a fault's flow leads from its stall to its handler and to its wake;
    with -m each replay is beside the recording. JSON has the stalls alone and needs no further package.

    CSV and Parquet hold the table in integer ns, and Parquet the trace's meta.json as schema metadata. NAME.trace is a
    trace again: a directory, or with --pack one file.
    """
    from faultreplay.cli.render import check_output, say
    from faultreplay.faulttrace.export import export
    from faultreplay.faulttrace.store import open_trace

    to_trace = piece.packed or output.suffix == ".trace"
    if piece.asked and not to_trace:
        raise UsageError(f"{piece.asked} makes a trace: name the output NAME.trace")
    if piece.packed and output.suffix != ".trace":
        raise UsageError(f"{output}: a packed trace is named NAME.trace")
    if output.suffix == ".pftrace" and what != "faults":
        raise UsageError(f"*.pftrace shows faults; {what} go to CSV or Parquet: name the file *.csv or *.parquet")
    if mechanisms and output.suffix != ".pftrace":
        raise UsageError("-m goes with *.pftrace: `replay` writes the rows of a replay")
    if to_trace:
        from faultreplay.faulttrace.directory import check_free

        check_free(output, force=force)
    else:
        check_output(output, force=force)
    opened = open_trace(trace)
    for note in opened.notes:
        say(f"note: {note}")
    if to_trace:
        _as_trace(opened, output, piece, force=force)
        return
    count = _timeline(opened, output, mechanisms) if output.suffix == ".pftrace" else export(opened, output, what)
    say(f"wrote {output}: {count:,} records")


def _timeline(opened: Trace, output: Path, mechanisms: tuple[str, ...]) -> int:
    from faultreplay.analysis.tracks.timeline_file import write_timeline
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps

    with computing(), steps() as step:
        return write_timeline(opened, output, parse_names(mechanisms), step)


def _as_trace(opened: Trace, output: Path, piece: _Piece, *, force: bool) -> None:
    from faultreplay.cli.render import say
    from faultreplay.faulttrace.cut import parse_span
    from faultreplay.faulttrace.pack import send
    from faultreplay.faulttrace.place import whole_size
    from faultreplay.faulttrace.store import open_trace

    meta = send(
        opened,
        output,
        packed=piece.packed,
        span=parse_span(piece.span) if piece.span else None,
        vcpus=parse_vcpus(piece.vcpus),
        anonymise=piece.anonymise,
        force=force,
    )
    for line in _told(meta, cut=bool(piece.span or piece.vcpus), anonymised=piece.anonymise):
        say(line)
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
