"""`faultreplay doctor`: what this host can record, and how to fix what it cannot."""

from __future__ import annotations

import dataclasses
import sys
import textwrap

import click


@click.command()
@click.option("--format", "fmt", type=click.Choice(["table", "json", "csv", "md"]), default="table", show_default=True)
def command(fmt: str) -> int:
    """Say what this host can record, and how to fix what it cannot.

    Exits with 0 when a recording would work, 77 when a permission is missing, 5 when a kernel feature or tool is
    missing.
    """
    from faultreplay.cli.render import Column, Report, emit, put, say, table_width
    from faultreplay.collect.doctor.doctor import examine, exit_code

    checks = examine()
    code = exit_code(checks)
    verdict = {
        0: "this host can record",
        5: "this host cannot record: something is missing",
        77: "this host cannot record: a permission is missing",
    }[code]
    if fmt == "table":
        width = table_width(sys.stdout.isatty())
        for check in checks:
            texts = [(check.state, f"{check.name}: {check.found}"), ("", f"enables: {check.enables}")]
            if check.mend and check.state != "ok":
                texts.append(("", f"mend: {check.mend}"))
            for state, text in texts:
                for line in _paragraph(state, text, width):
                    put(line)
        say(verdict)
    else:
        columns = [Column(name, name) for name in ("name", "state", "required", "found", "enables", "mend")]
        emit(Report([dataclasses.asdict(c) for c in checks], columns, title=verdict, extra={"exit_code": code}), fmt)
    return code


def _paragraph(state: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{state:9}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )
