"""`faultreplay explain`: one fault's life, as it was recorded and under mechanisms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from faultreplay.cli.options import (
    gathered,
    named_mechanisms_option,
    output_format,
    output_options,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    trace_argument,
)
from faultreplay.faulttrace.errors import UsageError

_MOST_FAULTS = 1000


@dataclass(frozen=True)
class _Given:
    """What the command line says of the faults and the output."""

    trace: Path
    faults: tuple[int, ...]
    worst: int | None
    mechanisms: tuple[str, ...]
    fmt: str | None
    output: Path | None
    force: bool


@click.command(name="explain")
@trace_argument
@click.argument("faults", metavar="[FAULT]...", nargs=-1, type=click.IntRange(0))
@named_mechanisms_option
@click.option(
    "--worst",
    type=click.IntRange(1, _MOST_FAULTS),
    metavar="N",
    help="The N faults with the longest measured stalls.",
)
@replay_options
@question_options
@output_options
@gathered(_Given)
def command(given: _Given, **options: Any) -> None:  # noqa: D103 - the help text is below
    import faultreplay
    from faultreplay.cli.explain_view import explain_report
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.cli.render import check_output, emit

    fmt = output_format(given.fmt, given.output)
    if given.output is not None:
        check_output(given.output, force=given.force)
    if not given.faults and not given.worst:
        raise UsageError("which faults? Give their numbers (`inspect --faults` lists them) or --worst N")
    if options["seeds"] > 1:
        raise UsageError("one life is of one seed: leave --seeds away")
    setup, more = setup_from(options)
    names = parse_names(given.mechanisms)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(given.trace, setup, **more, progress=step)
        step("replaying")
        lives = faultreplay.explain(case, given.faults, names, worst=given.worst or 0)
    emit(explain_report(str(given.trace), lives), fmt, given.output, force=given.force)


command.help = """Show the life of FAULTs of TRACE stage by stage, as recorded and as replayed under mechanisms.

    faultreplay explain my.trace 1157 -m uffd-missing,kvm-exit

    faultreplay explain my.trace --worst 10 -m kvm-exit

Numbers of faults are those of `inspect --faults`. Below a wait stand the faults that had the server, lock or link
meanwhile, and those that had queued before. The stages of a replayed fault add up to its row of `replay --rows`, to the
nanosecond.
"""
