"""Modules, functions and signatures stay small enough to be read: `scripts/sizes.py`, which `make lint` runs too."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIZES = runpy.run_path(str(ROOT / "scripts/sizes.py"))


def test_nothing_in_the_tree_is_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    assert SIZES["main"](ROOT) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("x = 1\n" * 2_501, "m.py", "15,006 bytes"),
        ("def f():\n" + "    x = 1\n" * 80, "m.py:f", "81 lines"),
        ("def f(a, b, c, d, /, e, f, g, *, h, i): ...\n", "m.py:f", "9 parameters"),
    ],
)
def test_what_is_too_large_is_named(text: str, where: str, what: str) -> None:
    ((found, words),) = SIZES["too_large"]("m.py", text)
    assert found == where
    assert words.startswith(what)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * 2_500,
        "def f():\n" + "    x = 1\n" * 79,
        "class C:\n    def f(self, a, b, c, d, *, e, f, g, h): ...\n",
    ],
)
def test_the_limits_themselves_are_allowed(text: str) -> None:
    assert not list(SIZES["too_large"]("m.py", text))


def test_a_tree_with_a_large_module_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/m.py").write_text("x = 1\n" * 2_501)
    assert SIZES["main"](tmp_path) == 1
    assert "lab/m.py: 15,006 bytes, at most 15,000: split it" in capsys.readouterr().err


def test_a_test_module_may_be_larger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_m.py").write_text("x = 1\n" * 4_000)
    assert SIZES["main"](tmp_path) == 0
    (tmp_path / "tests/test_m.py").write_text("x = 1\n" * 4_001)
    assert SIZES["main"](tmp_path) == 1
    assert "tests/test_m.py: 24,006 bytes, at most 24,000: split it" in capsys.readouterr().err
