"""`faultreplay report`: a comparison as one HTML page, and as pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from faultreplay.cli.options import (
    NewPath,
    gathered,
    mechanisms_option,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    trace_argument,
    weighing_options,
)
from faultreplay.faulttrace.errors import UsageError


@dataclass(frozen=True)
class _Given:
    """What the command line says of the page itself."""

    trace: Path
    mechanisms: tuple[str, ...]
    output: Path | None
    png: Path | None
    svg: Path | None
    vary: str | None
    stored: Path | None
    force: bool
    baseline: str
    verbose: bool


@click.command(name="report")
@trace_argument
@mechanisms_option
@replay_options
@question_options
@weighing_options
@click.option(
    "-o",
    "--output",
    type=NewPath(dir_okay=False),
    metavar="FILE.html",
    help="Default: the trace's name with .html, here.",
)
@click.option("--png", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Also write PNGs there.")
@click.option("--svg", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Also write SVGs there.")
@click.option(
    "--vary",
    metavar="NAME=VALUES",
    help="Draw stall along this axis, as of sweep. Default: fetch, a tenth to ten times, if that is quick.",
)
@click.option(
    "--sweep",
    "stored",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Draw a stored sweep of this trace (sweep -o DIR) instead: the latest, or the one of DIR/sweep-HASH.json.",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@gathered(_Given)
def command(given: _Given, **options: Any) -> None:  # noqa: D103 - the help text is below
    import faultreplay
    from faultreplay.analysis.compare.compare import compare
    from faultreplay.analysis.explore.stored import kept
    from faultreplay.analysis.picture.times import look
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.opening import say_kept
    from faultreplay.cli.progress import steps
    from faultreplay.cli.qemu_view import qemu_reports
    from faultreplay.cli.render import check_output, say, write_text
    from faultreplay.cli.report.page import Made, figures_page, page
    from faultreplay.cli.report.pictures import pictures_of, stored_pictures, swept_pictures, write_pictures
    from faultreplay.cli.report.runtime import runtime
    from faultreplay.faulttrace.remote import identity

    opened = faultreplay.open_trace(given.trace)
    output = given.output or Path(f"{opened.name}.html")
    check_output(output, force=given.force)
    if given.stored and given.vary:
        raise UsageError("--sweep and --vary: the curves come from one of both")
    made = Made(identity(str(given.trace)), "", qemu=qemu_reports(opened))
    if made.qemu and not opened.event_rows:
        write_text(output, figures_page(opened.name, made))
        return
    held = kept(given.stored, made.trace_id) if given.stored else None
    script = runtime()  # without its library nothing need be replayed
    setup, more = setup_from(options)
    names = parse_names(given.mechanisms)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(opened, setup, **more, progress=step)
        say_kept(opened)
        comparison = compare(case, names, baseline=given.baseline, look=look, progress=step)
        step("drawing")
        pictures = pictures_of(comparison, case)
        if held is not None:
            swept, table = stored_pictures(held)
            made = replace(made, swept=swept, sweep=table)
        else:
            swept, words = swept_pictures(comparison, case, names, given.vary or "")
            made = replace(made, swept=swept, swept_words=words)
        text = page(comparison, case, replace(made, runtime=script, pictures=pictures))
        write_text(output, text)
        for directory, ending in ((given.png, "png"), (given.svg, "svg")):
            if directory is not None:
                step(f"drawing {ending.upper()}s")
                written = write_pictures([*pictures, *swept], directory, ending)
                say(f"wrote {len(written)} pictures to {directory}")


command.help = """Write a self-contained HTML page: the answer, pictures, the table of `compare`, costs, losses.

The page loads nothing from anywhere and may be mailed. Needs the extra `report` (altair, vl-convert).
"""
