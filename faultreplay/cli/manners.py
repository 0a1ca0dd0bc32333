"""What every verb has: -q, and whether a person is there to be shown progress."""

from __future__ import annotations

import logging
import sys
from pathlib import PurePath
from typing import Final

import click

_owned: Final[list[bool]] = []
_KEY: Final = "faultreplay.quiet"


def quiet() -> bool:
    """Whether -q was given: no words but errors, and what makes a result doubtful."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_KEY))


def own_process() -> None:
    """This process runs one verb and ends: a verb may give away what cannot be had back."""
    _owned.append(True)


def owns_process() -> bool:
    """Whether `own_process` was called: not where a verb is called from a program, or a test."""
    return bool(_owned)


def person_watches() -> bool:
    """Whether progress is shown: on a terminal, without -q."""
    return sys.stderr.isatty() and not quiet()


def with_quiet(command: click.Command) -> click.Command:
    """The command, and each verb below it, with the option -q."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            with_quiet(below)
    elif not any(param.name == "quiet" for param in command.params):
        command.params.append(quiet_option())
    return command


def quiet_option() -> click.Option:
    """-q, --quiet."""
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_set,
        help="No progress and no words on stderr but errors and losses.",
    )


def _set(context: click.Context, _param: click.Parameter, given: bool) -> None:
    if given and not context.meta.get(_KEY):
        context.meta[_KEY] = True  # shared with the contexts of the verbs below
        log = logging.getLogger("faultreplay")  # the engine's word on its one compilation
        before = log.level
        log.setLevel(logging.ERROR)
        context.find_root().call_on_close(lambda: log.setLevel(before))


def command_words() -> str:
    """The command that runs, as it may be passed on: names of files without their folders."""
    return " ".join(["faultreplay", *map(without_folder, sys.argv[1:])])


def without_folder(word: str) -> str:
    """An argument of a command without the folders of an absolute path, also one with blanks."""
    option, equals, value = word.partition("=")
    if equals and value.startswith("/"):
        return f"{option}={PurePath(value).name}"
    return PurePath(word).name if word.startswith("/") else word
