"""Every example on the pages runs, and prints what its page says."""

import difflib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from faultreplay.cli.main import VERBS, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("tutorial.md", "which-mechanism.md", "sweep.md", "howto/*.md", "guides/*.md", "questions/*.md")
    for path in DOCS.glob(pattern)
)
PAGES.append(ROOT / "README.md")


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples", ROOT / "scripts/docs/examples.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_prints_what_it_says(page: Path) -> None:
    old = page.read_text()
    new = runner().fresh(old)
    diff = "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(page), "printed now"))
    assert not diff, f"run: make examples\n{diff}"


def test_a_wrong_number_is_noticed() -> None:
    fresh = runner().fresh
    assert fresh("```python\nprint(40 + 2)\n```\n\n```text\n43\n```\n").endswith("```text\n42\n```\n")
    page = "```console\n$ faultreplay --version\nfaultreplay, version 99\n```\n"
    assert "version 99" not in fresh(page)


def test_an_example_that_fails_is_no_example() -> None:
    with pytest.raises(SystemExit, match="no such trace"):
        runner().fresh("```console\n$ faultreplay inspect nowhere.trace\n```\n")
    with pytest.raises(SystemExit, match="no text block"):
        runner().fresh("```python\nprint(1)\n```\n")


def test_a_page_that_is_out_of_date_fails_and_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(2)\n```\n```text\n1\n```\n")
    command = [sys.executable, ROOT / "scripts/docs/examples.py"]
    assert subprocess.run([*command, page], capture_output=True, check=False).returncode == 1
    assert subprocess.run([*command, "--write", page], capture_output=True, check=False).returncode == 0
    assert page.read_text() == "```python\nprint(2)\n```\n```text\n2\n```\n"


def commands_in(page: Path) -> list[str]:
    """Lines of code blocks that call faultreplay, whether they are run or are for people: without comment."""
    text = re.sub(r"^```(?:console|python|text|toml)\n.*?^```\n", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = text.replace("\\\n", " ").replace("$(pidof qemu-system-x86_64)", "1")
    line = r"^(?:    |\S* ?)?(?:sudo |ssh \S+ )?(?:\.venv/bin/|\./)?faultreplay(?:-recorder\.pyz)? ([a-z]+ .*)$"
    found = [re.split(r"\s{2,}[^\s-]|\s#|\s[|>&]|`", one)[0].strip() for one in re.findall(line, text, re.MULTILINE)]
    # Not prose about a verb, and not a form with letters in the place of values.
    return [one for one in found if one.split()[0] in VERBS and " -" in one and not re.search(r" [A-Z]\b|\w\|\w", one)]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_every_command_on_a_page_can_be_typed(page: Path) -> None:
    wrong = []
    for words in commands_in(page):
        try:
            command, rest = main, shlex.split(words)
            while isinstance(command, click.Group) and rest:
                below = command.get_command(click.Context(command), rest.pop(0))
                assert below is not None, words
                command = below
            command.make_context("faultreplay", rest)
        except (click.ClickException, AssertionError, ValueError) as error:
            wrong.append(f"faultreplay {words}: {error}")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found() -> None:
    assert len(commands_in(ROOT / "README.md")) > 5
    assert sum(len(commands_in(page)) for page in DOCS.rglob("*.md")) > 25


def test_every_page_of_examples_is_in_the_makefile() -> None:
    line = re.search(r"^PAGES := \$\(wildcard (.*)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line
    named = {path for pattern in line[1].split() for path in ROOT.glob(pattern)}
    runs = {path for path in DOCS.rglob("*.md") if re.search(r"^```(console|python)$", path.read_text(), re.MULTILINE)}
    assert runs <= named


def test_the_readmes_picture_shows_todays_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    out = tmp_path / "demo.svg"
    subprocess.run([sys.executable, ROOT / "scripts/docs/picture.py", out], check=True)

    def words(path: Path) -> list[str]:
        return re.findall(r">([^<]*\d[^<]*)</text>", path.read_text())

    assert words(out)
    assert words(DOCS / "assets/demo.svg") == words(out), "run: make examples"
