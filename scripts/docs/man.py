"""Man pages from the help: python scripts/docs/man.py DIR (or: make man) writes DIR/man1/faultreplay*.1."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from commands import commands

from faultreplay import __version__
from faultreplay.cli.main import VERBS

SEE: dict[str, tuple[str, ...]] = {
    "record": ("inspect", "doctor"),
    "inspect": ("record", "explain", "compare"),
    "explain": ("inspect", "replay", "compare"),
    "compare": ("inspect", "sweep", "report", "models"),
    "sweep": ("compare", "synth"),
    "validate": ("calibrate", "lab"),
    "calibrate": ("validate", "lab", "models"),
}


def man_page(name: str, command: click.Command, context: click.Context) -> str:
    """One page in roff, its words those of --help."""
    page = name.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(context))
    short = VERBS[name.split()[1]][1] if name.count(" ") == 1 else command.get_short_help_str(200)
    lines = [f'.TH "{page.upper()}" "1" "" "faultreplay {__version__}" "faultreplay"', ".SH NAME"]
    lines += [f"{_text(page)} \\- {_text(short.rstrip('.'))}", ".SH SYNOPSIS", f".B {_text(name)}", _text(usage)]
    lines += [".SH DESCRIPTION", *_paragraphs(command.help or "")]
    params = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    options = [record for param in params if (record := param.get_help_record(context))]
    if options:
        lines.append(".SH OPTIONS")
        for names, words in options:
            lines += [".TP", f".B {_text(names)}", _text(words)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            assert below is not None
            words = VERBS[verb][1] if name == "faultreplay" else below.get_short_help_str(200)
            lines += [".TP", f".BR {_text(page)}\\-{_text(verb)} (1)", _text(words)]
    also = SEE.get(name.split()[1], ()) if name.count(" ") == 1 else ()
    see = [f".BR faultreplay\\-{verb} (1)" for verb in also] or [".BR faultreplay (1)"]
    return "\n".join([*lines, ".SH SEE ALSO", ",\n".join(see), ""])


def _paragraphs(text: str) -> list[str]:
    """Help in paragraphs; what is indented in it stays as it is."""
    lines: list[str] = []
    for part in text.replace("\b\n", "").strip().split("\n\n"):
        if part.startswith("    "):
            lines += [".PP", ".RS", ".nf", *(_text(line.strip()) for line in part.splitlines()), ".fi", ".RE"]
        else:
            lines += [".PP", _text(" ".join(part.split()))]
    return lines


def _text(words: str) -> str:
    """Words in which roff finds nothing to obey."""
    escaped = " ".join(words.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def main() -> int:
    """Write them all; the folder is printed."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/man") / "man1"
    folder.mkdir(parents=True, exist_ok=True)
    for name, command, context in commands():
        (folder / f"{name.replace(' ', '-')}.1").write_text(man_page(name, command, context), encoding="utf-8")
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
