"""Ctrl-C: exit code 130 and one line, at once, whatever the verb is doing; and what a person is shown meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import faultreplay
from faultreplay.cli.main import main

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample-traces" / "process-stress-ng.trace"

# The verb is run through its door, and what it calls in the end works for a minute: in Python, or in code that holds
# no interpreter lock and asks for no signal, as the compiled loop.
BUSY = """
import importlib, hashlib, pathlib, sys, time
module, name, how, mark, *argv = sys.argv[1:]
def busy(*_, **__):
    pathlib.Path(mark).touch()
    if how == "compiled":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 31 - 1)
    for _ in range(6000):
        time.sleep(0.01)
setattr(importlib.import_module(module), name, busy)
from faultreplay.cli.main import run
run(argv)
"""
RUN = ("faultreplay.analysis.compare.predict", "simulate")
INSPECT = ("faultreplay.analysis.compare.inspection", "inspect_trace")
VERIFY = ("faultreplay.faulttrace.verify", "verify_trace")


def started(*words: str | Path) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for(mark: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not mark.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    assert mark.exists(), process.communicate(timeout=1)


def interrupted(process: subprocess.Popen[str]) -> None:
    """Ctrl-C of a terminal reaches the whole group."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=40)
    said = [line for line in err.splitlines() if not line.startswith("compiling the replay engine")]
    assert (process.returncode, out, said) == (130, "", ["error: interrupted"])
    until = time.monotonic() + 1
    while (left := living(process.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def living(group: int) -> list[str]:
    """Processes of a group that still run; those that only wait for init to take notice of their end do not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = stat.read_text().rsplit(")", 1)
            state, _, of = fields.split()[:3]
            if int(of) == group and state not in "ZX":
                found.append(f"{name}) {state}")
    return found


@pytest.mark.parametrize(
    ("words", "place", "how"),
    [
        (("compare", SAMPLE), RUN, "python"),
        (("compare", SAMPLE), RUN, "compiled"),
        (("replay", SAMPLE, "-m", "uffd-missing", "--seeds", "8"), RUN, "compiled"),
        pytest.param(("report", SAMPLE, "-o", "page.html"), RUN, "compiled", marks=pytest.mark.slow),
        pytest.param(("validate", SAMPLE), RUN, "compiled", marks=pytest.mark.slow),
        (("sweep", SAMPLE, "-m", "uffd-missing", "--vary", "fetch=1us,2us", "--jobs", "1"), RUN, "python"),
        (("inspect", SAMPLE), INSPECT, "python"),
        (("inspect", SAMPLE, "--verify"), VERIFY, "python"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0] if isinstance(value[0], str) else "",
)
def test_ctrl_c_ends_a_verb(
    words: tuple[str | Path, ...], place: tuple[str, str], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process = started("-c", BUSY, *place, how, tmp_path / "mark", *words)
    wait_for(tmp_path / "mark", process)
    time.sleep(0.1)
    begun = time.monotonic()
    interrupted(process)
    assert time.monotonic() - begun < 30  # the work would have taken a minute, or an hour
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_ctrl_c_ends_a_sweep_and_all_its_workers(tmp_path: Path) -> None:
    """Real cells in two processes; what was done by then stays."""
    out = tmp_path / "cells"
    words = ("-m", "faultreplay", "sweep", SAMPLE, "-m", "uffd-missing,kvm-exit", "--seeds", "40", "--jobs", "2")
    process = started(*words, "--vary", "fetch=1us..1s:500", "-o", out)
    until = time.monotonic() + 240
    while not any(out.rglob("*.parquet")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    interrupted(process)
    assert list(out.rglob("*.parquet"))


def test_ctrl_c_is_the_callers_where_a_verb_is_called_from_a_program() -> None:
    before = signal.set_wakeup_fd(-1)
    CliRunner().invoke(main, ["compare", str(SAMPLE), "-m", "kvm-exit"])
    assert signal.set_wakeup_fd(before) == -1


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a person on a terminal would be shown, a word a step."""
    words: list[str] = []

    @contextlib.contextmanager
    def steps() -> Iterator[object]:
        yield words.append

    monkeypatch.setattr("faultreplay.cli.progress.steps", steps)
    return words


@pytest.mark.parametrize("verb", ["compare", "replay"])
def test_stitching_and_replaying_are_shown(verb: str, tmp_path: Path, shown: list[str]) -> None:
    trace = tmp_path / "new.trace"
    shutil.copytree(SAMPLE, trace, ignore=shutil.ignore_patterns("faults.parquet"))
    done = CliRunner().invoke(main, [verb, str(trace), "-m", "uffd-missing,kvm-exit"])
    assert done.exit_code == 0, done.output
    assert shown[0] == "reading the trace"
    stitching = [word for word in shown if word.startswith("stitching new: ")]
    assert stitching[-1].endswith("100%")
    assert "replaying uffd-missing (1 of 2)" in shown
    assert "replaying kvm-exit (2 of 2)" in shown


def test_a_stitch_tells_its_progress_to_a_program(tmp_path: Path) -> None:
    trace = tmp_path / "new.trace"
    shutil.copytree(SAMPLE, trace, ignore=shutil.ignore_patterns("faults.parquet"))
    words: list[str] = []
    faultreplay.open_case(trace, progress=words.append)
    assert words and all(word.startswith("stitching new: ") for word in words)
    again: list[str] = []
    faultreplay.open_case(trace, progress=again.append)
    assert again == []  # its faults are kept now
