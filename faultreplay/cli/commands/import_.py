"""`faultreplay import`: a trace from another tool's output."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--from",
    "source",
    type=click.Choice(["perf-script", "perf-json", "trace-cmd", "bpftrace", "qemu-migrate"]),
    required=True,
    help="The tool whose output the files are.",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The trace to make: NAME.trace.")
@click.option("--into", type=click.Path(path_type=Path), help="qemu-migrate: add the figures to this trace.")
@click.option(
    "--max-errors", type=click.IntRange(min=0), default=0, show_default=True, help="Lines that may be unreadable."
)
@click.option("--force", is_flag=True, help="Replace an existing trace.")
def command(
    source: str, files: tuple[Path, ...], *, output: Path | None, into: Path | None, max_errors: int, force: bool
) -> None:
    """Make a trace from perf, trace-cmd, bpftrace or QEMU output.

    FILES are text, packed with gzip or not: perf script --ns, perf data convert --to-json (perf 6.2 or newer),
    trace-cmd report -t, bpftrace -f json with lines "nsecs cpu pid tid category:name field=value ...", or the
    answers of QMP's query-migrate. What the source cannot know is marked as missing in the trace.
    """
    from faultreplay.cli.render import say
    from faultreplay.collect.importers import import_file, import_qemu
    from faultreplay.faulttrace.errors import UsageError

    if (output is None) == (into is None):
        raise UsageError("give the trace to make with -o NAME.trace" + (", or --into, not both" if output else ""))
    if source == "qemu-migrate":
        summary = import_qemu(list(files), output or into or Path(), into=into is not None, force=force)
    elif into is not None:
        raise UsageError("--into is for --from qemu-migrate: events make a trace of their own (-o)")
    elif len(files) != 1:
        raise UsageError(f"--from {source} takes one file, {len(files)} are given")
    else:
        assert output is not None
        summary = import_file(source, files[0], output, max_errors=max_errors, force=force)
        say(f"imported {summary.events:,} events" + (f", {summary.lost:,} lost by {source}" if summary.lost else ""))
    if summary.bad_lines:
        say(f"could not read {summary.bad_lines} lines, the first: {summary.first_bad}")
    for note in summary.notes:
        say(f"note: {note}")
    say(f"wrote {summary.path}")
