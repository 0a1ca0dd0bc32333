"""`inspect` of several traces: one row each, from globs and URLs, on workers; what cannot be read is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from faultreplay.analysis.compare.inspection import inspect_trace
from faultreplay.cli.main import _exit_code, main
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

SAMPLES = Path(__file__).parent.parent / "sample-traces"
NAMES = ("restore-firmware-hot-1", "restore-firmware-hot-2")


def ask(*args: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(main, ["inspect", *args, "--format", "json"], catch_exceptions=False)
    found: list[dict[str, object]] = json.loads(result.stdout)["records"]
    return found


def test_each_row_is_what_inspect_says_of_that_trace() -> None:
    rows = ask(*(str(SAMPLES / f"{name}.trace") for name in NAMES))
    assert [row["trace"] for row in rows] == list(NAMES)
    for row, name in zip(rows, NAMES, strict=True):
        alone = inspect_trace(open_trace(SAMPLES / f"{name}.trace"))
        assert (row["faults"], row["events"]) == (alone.faults, alone.events)
        assert row["total_ns"] == sum(group.stall.total_ns for group in alone.groups)
        assert row["max_ns"] == max(group.stall.max_ns for group in alone.groups)
        assert row["unjoined"] == sum(group.faults - group.joined for group in alone.groups)


def test_globs_and_processes_give_the_same_rows() -> None:
    named = ask(*(str(SAMPLES / f"{name}.trace") for name in NAMES))
    assert ask(str(SAMPLES / "restore-firmware-hot-*.trace"), "-j", "2") == named


def test_urls_are_read_where_they_are(tmp_path: Path) -> None:
    for number in range(2):
        spec = SynthSpec("zipf", 2, 50, Think(10_000, False), seed=number)
        write_synthetic(spec, tmp_path / f"run{number}.trace")
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            memory.pipe(f"/many/{path.relative_to(tmp_path)}", path.read_bytes())
    faults = [len(open_trace(path).faults()) for path in sorted(tmp_path.glob("*.trace"))]
    rows = ask("memory://many/run*.trace")
    assert [(row["trace"], row["faults"]) for row in rows] == [("run0", faults[0]), ("run1", faults[1])]
    assert all(faults)
    both = CliRunner().invoke(main, ["inspect", "--working-set", "memory://many/run*.trace"], catch_exceptions=False)
    assert "2 runs" in both.stdout


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "gone.trace")
    assert _exit_code(["inspect", str(SAMPLES / f"{NAMES[0]}.trace"), missing]) == 2
    shown = capsys.readouterr()
    assert NAMES[0] in shown.out
    assert "1 of 2 traces failed: gone" in shown.err


@pytest.mark.parametrize("view", ["--header", "--events", "--timeline"])
def test_views_are_of_one_trace(view: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["inspect", view, *(str(SAMPLES / f"{name}.trace") for name in NAMES)]) == 2
    assert f"{view} shows one trace: 2 are given" in capsys.readouterr().err


HALF = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
from faultreplay.analysis.explore.workers import here
from test_inspect_many import half_written
if __name__ == "__main__":
    list(here(half_written, [Path({directory!r}) / name for name in "ab"], jobs=2))
"""


def half_written(path: Path) -> None:
    """A task that writes for long."""
    from faultreplay.faulttrace.files import replacing

    with replacing(path):
        path.with_suffix(".begun").touch()
        time.sleep(60)


def test_ctrl_c_leaves_nothing_that_workers_had_half_written(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HALF.format(tests=str(Path(__file__).parent), directory=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, env=os.environ)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(list(tmp_path.glob(".[ab].*"))) == 2
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode
    assert b"_Ended" not in shown
    assert not list(tmp_path.glob(".[ab].*"))
