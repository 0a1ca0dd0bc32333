"""Runs the examples of Markdown pages, and compares what they print with what the page says.

    python scripts/docs/examples.py docs/tutorial.md ...          # 1 and a diff where a page is out of date
    python scripts/docs/examples.py --write docs/tutorial.md ...  # writes it anew (make examples: every page)

Two kinds of block are run, from the top of a page, in an empty folder that holds `sample-traces`:

- ```console: lines that begin with `$ faultreplay`, each followed by what it prints on stdout;
- ```python: code, all blocks of a page in one namespace; the ```text block right below is what it prints.

Anything else (```sh, ```toml) is for people; a ```toml or ```python block below a line `<!-- file: NAME -->` is written
to that file.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WIDTH = "100"
_BLOCK = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>console|python|toml)\n(?P<body>.*?)^```\n"
    r"(?:(?P<gap>\n*)^```text\n(?P<says>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


def fresh(text: str) -> str:
    """The page with what its examples print now."""
    names: dict[str, Any] = {"__name__": "__page__"}
    with _workplace():
        return _BLOCK.sub(lambda match: _run(match, names), text)


def _run(match: re.Match[str], names: dict[str, Any]) -> str:
    whole, kind, body = match[0], match["kind"], match["body"]
    if match["file"]:
        Path(match["file"]).write_text(body, encoding="utf-8")
        return whole
    if kind == "console":
        return whole.replace(body, _console(body), 1)
    if kind == "python":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(body, "<page>", "exec"), names)
        if match["says"] is None:
            if out.getvalue():
                raise SystemExit(f"a python block prints and has no text block below it:\n{body}")
            return whole
        return f"```python\n{body}```\n{match['gap']}```text\n{_trimmed(out.getvalue())}```\n"
    return whole


def _console(body: str) -> str:
    """Each command with what it prints; a line that ends in a backslash goes on."""
    lines = []
    for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE):
        lines += [f"$ {command}\n", _trimmed(_faultreplay(shlex.split(command.replace("\\\n", " "))))]
    return "".join(lines)


def _faultreplay(words: list[str]) -> str:
    from click.testing import CliRunner

    from faultreplay.cli.main import main

    if words[0] != "faultreplay":
        raise SystemExit(f"only faultreplay is run here, not {words[0]}: use a sh block")
    done = CliRunner().invoke(main, words[1:], prog_name="faultreplay")
    if done.exit_code:
        raise SystemExit(f"{shlex.join(words)}: {done.exception or ''} {done.stderr}")
    return done.stdout


def _trimmed(text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _workplace() -> Iterator[None]:
    """An empty folder with the sample traces, a fixed width, and no costs of this host."""
    before, environment = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "sample-traces").symlink_to(ROOT / "sample-traces")
        os.environ |= {"COLUMNS": WIDTH, "XDG_CONFIG_HOME": f"{name}/.config"}
        os.chdir(name)
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)


def main() -> int:
    """Exit code 0: all pages are as they say."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--write", action="store_true", help="write pages anew")
    arguments.add_argument("pages", nargs="+", type=Path)
    asked = arguments.parse_args()
    differ = 0
    for page in asked.pages:
        old = page.read_text(encoding="utf-8")
        new = fresh(old)
        if old == new:
            continue
        if asked.write:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page}", file=sys.stderr)
            continue
        differ += 1
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(page), "now"))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
