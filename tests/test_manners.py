"""-q, completion, and one style of progress."""

import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from faultreplay.cli import progress
from faultreplay.cli.main import VERBS, main
from faultreplay.cli.render import say

ROOT = Path(__file__).parent.parent
SAMPLE = str(ROOT / "sample-traces/guest-uffd-missing.trace")


def completed(words: str, folder: Path) -> list[str]:
    """What bash is offered for the last word."""
    asked = {
        "_FAULTREPLAY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "from faultreplay.cli.main import run; import sys; sys.argv = ['faultreplay']; run()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ) | asked | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("faultreplay comp", ["compare"]),
        ("faultreplay compare x.trace -m kvm-e", ["kvm-exit"]),
        ("faultreplay compare x.trace -m uffd-missing,kvm-e", ["uffd-missing,kvm-exit"]),
        ("faultreplay compare x.trace -m uffd-missing:hand", ["uffd-missing:handlers="]),
        ("faultreplay compare x.trace -m kvm-exit,mi", ["kvm-exit,mine.toml"]),
        ("faultreplay compare x.trace --baseline swa", ["swap"]),
        ("faultreplay sweep x.trace --set uffd-missing.woken", ["uffd-missing.woken_in_vain="]),
        ("faultreplay compare x.trace --set hg", ["hgm."]),
        ("faultreplay compare x.trace --costs pv", ["pvm"]),
        ("faultreplay inspect vm", ["vm-packed.trace", "vm.trace"]),
        ("faultreplay compare sub/", ["sub/other.trace"]),
        ("faultreplay models show hg", ["hgm"]),
    ],
)
def test_the_shell_is_offered_what_fits(words: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "vm.trace").mkdir()
    (tmp_path / "vm.txt").touch()
    (tmp_path / "vm-packed.trace").touch()
    (tmp_path / "mine.toml").touch()
    (tmp_path / "sub" / "other.trace").mkdir(parents=True)
    assert completed(words, tmp_path) == offered


def test_a_wrong_mechanism_has_no_parameters_and_no_traceback(tmp_path: Path) -> None:
    assert completed("faultreplay compare x --set nobody.", tmp_path) == []


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_the_option(verb: str) -> None:
    told = CliRunner().invoke(main, [verb, "--help"])
    group = isinstance(main.get_command(click.Context(main), verb), click.Group)
    assert ("--quiet" in told.stdout) != group


@pytest.mark.parametrize("arguments", [["-q", "export"], ["export", "-q"]])
def test_quiet_leaves_words_out_and_keeps_data(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    rest = [SAMPLE, "-o", str(out)]
    assert "wrote" in CliRunner().invoke(main, ["export", *rest]).stderr
    done = CliRunner().invoke(main, [*arguments, *rest, "--force"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert out.stat().st_size > 100_000


def test_quiet_keeps_errors_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faultreplay", "-q", "inspect", "nowhere.trace"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: nowhere.trace: no such trace\n")
    with click.Context(main) as context:
        context.meta["faultreplay.quiet"] = True
        say("wrote it")
        say("LOST 3 events", always=True)
    assert capsys.readouterr().err == "LOST 3 events\n"


def test_progress_is_for_a_person_who_did_not_ask_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for asked, shown in ((False, True), (True, False)):
        seen = Terminal()
        monkeypatch.setattr("sys.stderr", seen)
        with click.Context(main) as context:
            context.meta["faultreplay.quiet"] = asked
            with progress.bar() as show:
                show("cells", 1, 2)
            with progress.steps() as step:
                step("reading")
        assert bool(seen.getvalue()) == shown


def test_there_is_one_style_of_progress() -> None:
    for path in (ROOT / "faultreplay/cli").rglob("*.py"):
        if path.name != "progress.py":
            assert "rich.progress" not in path.read_text()
            assert "rich.status" not in path.read_text()
