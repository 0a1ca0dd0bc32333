"""`faultreplay report`: a comparison as one HTML page."""

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
@click.option("--force", is_flag=True, help="Write over an existing file.")
def command(  # noqa: D103 - the help text is below
    trace: Path,
    mechanisms: tuple[str, ...],
    *,
    output: Path | None,
    force: bool,
    baseline: str,
    verbose: bool,
    **options: Any,
) -> None:
    import faultreplay
    from faultreplay.cli.interrupts import computing
    from faultreplay.cli.progress import steps
    from faultreplay.cli.qemu_view import qemu_reports
    from faultreplay.cli.render import check_output, write_text
    from faultreplay.cli.report_view import figures_page, page

    opened = faultreplay.open_trace(trace)
    output = output or Path(f"{opened.name}.html")
    check_output(output, force=force)
    qemu = qemu_reports(opened)
    if qemu and not opened.event_rows:
        write_text(output, figures_page(opened.name, qemu))
        return
    setup, more = setup_from(options)
    with computing(), steps() as step:
        step("reading the trace")
        case = faultreplay.open_case(opened, setup, **more)
        comparison = faultreplay.compare(case, parse_names(mechanisms), baseline=baseline, progress=step)
        step("drawing")
        text = page(comparison, opened.meta, qemu)
    write_text(output, text)


command.help = """Write a self-contained HTML page: the table of `compare`, distributions, costs and their sources.

The page loads nothing from anywhere and holds no script.
"""
