"""`faultreplay import`: a trace from another tool's output."""

from __future__ import annotations

from pathlib import Path

import click

from faultreplay.cli.options import NewPath


@click.command()
@click.option(
    "--from",
    "source",
    type=click.Choice(["perf-script", "perf-json", "trace-cmd", "bpftrace", "qemu-migrate"]),
    required=True,
    help="The tool whose output the files are.",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=NewPath(), help="The trace to make: NAME.trace.")
@click.option("--into", type=click.Path(path_type=Path), help="qemu-migrate: add the figures to this trace.")
@click.option(
    "--max-errors", type=click.IntRange(min=0), default=0, show_default=True, help="Lines that may be unreadable."
)
@click.option(
    "--vcpus",
    metavar="TID,TID,...",
    help="qemu-migrate: the threads of vCPU 0, 1, ... (default: by vCPU, then by thread number).",
)
@click.option("--force", is_flag=True, help="Replace an existing trace.")
def command(
    source: str,
    files: tuple[Path, ...],
    *,
    output: Path | None,
    into: Path | None,
    max_errors: int,
    vcpus: str | None,
    force: bool,
) -> None:
    """Make a trace from perf, trace-cmd, ftrace, bpftrace or QEMU output; - is standard input.

    FILES are text, packed with gzip, bzip2 or xz or not: perf script --ns, perf data convert --to-json (perf 6.2 or
    newer), trace-cmd report -t or tracefs' trace, bpftrace -f json with lines "nsecs cpu pid tid category:name
    field=value ...", or the answers of QMP's query-migrate. perf.data (perf-script) and trace.dat (trace-cmd) are
    read where the tool is installed. What the source cannot know is marked as missing in the trace, and what is in it
    but not taken is counted: inspect shows both.
    """
    from faultreplay.cli.progress import amount
    from faultreplay.cli.render import say
    from faultreplay.collect.importers import import_file, import_qemu
    from faultreplay.faulttrace.errors import UsageError

    if (output is None) == (into is None):
        raise UsageError("give the trace to make with -o NAME.trace" + (", or --into, not both" if output else ""))
    files = tuple(Path("/dev/stdin") if str(file) == "-" else file for file in files)
    if source == "qemu-migrate":
        threads = _threads(vcpus)
        summary = import_qemu(list(files), output or into or Path(), into=into is not None, force=force, vcpus=threads)
    elif vcpus is not None:
        raise UsageError("--vcpus is for --from qemu-migrate")
    elif into is not None:
        raise UsageError("--into is for --from qemu-migrate: events make a trace of their own (-o)")
    elif len(files) != 1:
        raise UsageError(f"--from {source} takes one file, {len(files)} are given")
    else:
        assert output is not None
        with amount(f"reading {files[0].name}") as progress:
            summary = import_file(source, files[0], output, max_errors=max_errors, force=force, progress=progress)
        lost = f", {summary.lost:,} lost by {source}" if summary.lost else ""
        say(f"imported {summary.events:,} events{lost}", always=bool(lost))
    for note in summary.notes:
        say(f"note: {note}")
    say(f"wrote {summary.path}")


def _threads(text: str | None) -> list[int] | None:
    from faultreplay.faulttrace.errors import UsageError

    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--vcpus {text}: thread numbers, with commas between")
    return [int(word) for word in words]
