"""All verbs and their sub-verbs, for the reference and the man pages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from faultreplay.cli.main import main


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """(name as typed, command, its context): `faultreplay`, then each verb in the order of --help."""
    yield from _below("faultreplay", main, None)


def _below(
    name: str, command: click.Command, above: click.Context | None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    word = name.rpartition(" ")[2]
    context = click.Context(command, info_name=word, parent=above, terminal_width=88, max_content_width=88)
    yield name, command, context
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            assert below is not None
            yield from _below(f"{name} {verb}", below, context)


def help_of(command: click.Command, context: click.Context) -> str:
    """The text of --help, 88 columns wide."""
    os.environ["COLUMNS"] = "88"
    return command.get_help(context)
