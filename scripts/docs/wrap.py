"""Prose of the pages wraps at 100 columns; tables, code, headings and links of their own line stay as they are.

python scripts/docs/wrap.py            # 1 where a page has longer lines; part of `make lint`
python scripts/docs/wrap.py --write    # wraps them
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WIDTH: Final = 100
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.)\s+")
_AS_IT_IS = ("#", "|", "<", "!", "    ", ":::", "---")
_LIKE_MARKUP = re.compile(r" (?=(?:[-+*|<!#]|\d+\.|#+|```|:::|---)(?: |$))")
"""The space before what would begin a list or a table, were it the first of a line."""


def pages() -> list[Path]:
    """Every page that is read by people."""
    names = (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "benchmarks/README.md",
        "sample-traces/README.md",
    )
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").rglob("*.md"))]


def wrapped(text: str) -> str:
    """The page, with each paragraph and list item that has a long line wrapped anew."""
    out: list[str] = []
    for prose, lines in _blocks(text.split("\n")):
        out += _wrap(lines) if prose and max(map(len, lines)) > WIDTH else lines
    return "\n".join(out)


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """(is prose, its lines): paragraphs, list items, code blocks, and single lines of anything else."""
    at = 0
    while at < len(lines):
        first, end = lines[at], at + 1
        if first.startswith("```"):
            while end < len(lines) and not lines[end].startswith("```"):
                end += 1
            yield False, lines[at : end + 1]
            at = end + 1
            continue
        if not first.strip() or first.startswith(_AS_IT_IS):
            yield False, [first]
            at = end
            continue
        item = _ITEM.match(first) is not None
        while end < len(lines) and _goes_on(lines[end], item):
            end += 1
        yield True, lines[at:end]
        at = end


def _goes_on(line: str, item: bool) -> bool:
    if not line.strip() or _ITEM.match(line) or line.lstrip().startswith(("|", "```")):
        return False
    return line.startswith(" ") if item else not line.startswith(_AS_IT_IS)


def _wrap(lines: list[str]) -> list[str]:
    text, lead = " ".join(line.strip() for line in lines), ""
    if item := _ITEM.match(lines[0]):
        lead, text = f"{item[1]}{item[2]} ", text[len(item[2]) :].lstrip()
    whole = re.sub(r"`[^`]*`|\]\([^)]*\)", lambda match: match[0].replace(" ", "\0"), text)
    whole = _LIKE_MARKUP.sub("\0", whole)
    made = textwrap.wrap(
        whole,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in made]


def main(write: bool) -> int:
    """Wrap the pages, or name those that are not wrapped."""
    found = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (better := wrapped(text)) != text:
            if write:
                page.write_text(better, encoding="utf-8")
            else:
                found = 1
                print(
                    f"{page.relative_to(ROOT)}: prose beyond {WIDTH} columns: scripts/docs/wrap.py --write",
                    file=sys.stderr,
                )
    return found


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
