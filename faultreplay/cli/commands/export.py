"""`faultreplay export`: a trace as Perfetto JSON, CSV or one Parquet file."""

from __future__ import annotations

from pathlib import Path

import click

from faultreplay.cli.completion import traces as traces_here
from faultreplay.cli.options import NewPath


@click.command()
@click.argument("trace", type=click.Path(path_type=Path), shell_complete=traces_here)
@click.option("-o", "--output", required=True, type=NewPath(), help="*.json.gz, *.csv or *.parquet.")
@click.option(
    "--what",
    type=click.Choice(["faults", "events", "losses"]),
    default="faults",
    show_default=True,
    help="Which table (CSV and Parquet).",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
def command(trace: Path, *, output: Path, what: str, force: bool) -> None:
    """Write a trace as Perfetto-readable JSON, as CSV or as one Parquet file.

    The format is the ending of the output's name. JSON (open it in ui.perfetto.dev or chrome://tracing) shows each
    stall on its thread's track with its stages inside; CSV and Parquet hold the table in integer ns, and Parquet the
    trace's meta.json as schema metadata.
    """
    from faultreplay.cli.render import check_output, say
    from faultreplay.faulttrace.export import export
    from faultreplay.faulttrace.store import open_trace

    check_output(output, force=force)
    opened = open_trace(trace)
    for note in opened.notes:
        say(f"note: {note}")
    count = export(opened, output, what)
    say(f"wrote {output}: {count:,} records")
