"""Prose of the pages wraps at 100 columns (`scripts/docs/wrap.py`), and wrapping changes nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

WRAP = runpy.run_path(str(Path(__file__).parent.parent / "scripts/docs/wrap.py"))
LONG = "word " * 30


def test_every_page_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    assert WRAP["main"](False) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [f"```sh\n{LONG}\n```\n", f"| {LONG} |\n", f"# {LONG}\n", f"    {LONG}\n", f"![{LONG}](x.svg)\n", "short\nlines\n"],
)
def test_what_is_no_long_prose_stays(text: str) -> None:
    assert WRAP["wrapped"](text) == text


def test_paragraphs_and_items_wrap_with_their_indent() -> None:
    made = WRAP["wrapped"](f"{LONG}\n\n- {LONG}\n  more `a code span` here\n- short\n").split("\n")
    assert max(map(len, made)) <= 100
    assert made[3].startswith("- word") and made[4].startswith("  word")
    assert "- short" in made
    assert any("`a code span`" in line for line in made)


def test_a_number_or_dash_never_begins_a_line() -> None:
    for at in range(80, 100):
        text = "x" * at + " - 4. and so on " + LONG
        assert not any(line.startswith(("- ", "4. ")) for line in WRAP["wrapped"](text).split("\n"))


@given(st.lists(st.text(alphabet="ab`|-1. ", max_size=140), max_size=8))
def test_wrapping_keeps_the_words_and_is_done_once(lines: list[str]) -> None:
    text = "\n".join(lines)
    once = WRAP["wrapped"](text)
    assert once.split() == text.split()
    assert WRAP["wrapped"](once).split() == text.split()
