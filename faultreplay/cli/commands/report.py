"""`faultreplay report`: a comparison as one HTML page, and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faultreplay.cli.options import (
    NewPath,
    mechanisms_option,
    parse_names,
    question_options,
    replay_options,
    setup_from,
    trace_argument,
    weighing_options,
)


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
@click.option("--force", is_flag=True, help="Write over an existing file.")
def command(  # noqa: D103 - the help text is below
    trace: Path,
    mechanisms: tuple[str, ...],
    *,
    output: Path | None,
    png: Path | None,
    svg: Path | None,
    force: bool,
    baseline: str,
    verbose: bool,
    **options: Any,
) -> None:
    import faultreplay
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.cli.qemu_view import qemu_reports
    from faultreplay.cli.render import check_output, say, write_text
    from faultreplay.cli.report.page import Made, figures_page, page
    from faultreplay.cli.report.pictures import pictures_of, runtime, write_pictures
    from faultreplay.faulttrace.remote import identity

    opened = faultreplay.open_trace(trace)
    output = output or Path(f"{opened.name}.html")
    check_output(output, force=force)
    made = Made(identity(str(trace)), "", qemu=qemu_reports(opened))
    if made.qemu and not opened.event_rows:
        write_text(output, figures_page(opened.name, made))
        return
    script = runtime()  # without its library nothing need be replayed
    setup, more = setup_from(options)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(opened, setup, **more)
        comparison = faultreplay.compare(case, parse_names(mechanisms), baseline=baseline, progress=step)
        step("drawing")
        pictures = pictures_of(comparison, case)
        text = page(comparison, opened.meta, Made(made.trace_id, script, pictures, made.qemu))
        write_text(output, text)
        for directory, ending in ((png, "png"), (svg, "svg")):
            if directory is not None:
                step(f"drawing {ending.upper()}s")
                say(f"wrote {len(write_pictures(pictures, directory, ending))} pictures to {directory}")


command.help = """Write a self-contained HTML page: the answer, pictures, the table of `compare`, costs and their sources.

The page loads nothing from anywhere. Needs the extra `report` (altair, vl-convert).
"""
