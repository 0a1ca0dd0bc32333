"""How runs end that do not go to their end: Ctrl-C, a killed host program, a window that never came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from faultreplay.faulttrace.store import open_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec, Window

pytestmark = pytest.mark.lab


def children_named(name: str, parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            comm, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if comm == name and int(rest.split()[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def wait_for_child(parent: int) -> int:
    for _ in range(200):
        if found := children_named("labhost", parent):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no host program came")


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "x.trace"
    command = [sys.executable, "-m", "faultreplay", "lab", "run", "--no-record", "--pages", "20000", "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        guest = wait_for_child(process.pid)
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip() == "error: interrupted"
    assert not Path(f"/proc/{guest}").exists()
    trace = open_trace(out)
    truth = trace.truth()
    assert truth is not None
    assert 100 < truth.height < 20_000
    assert trace.meta.complete
    assert trace.meta.lab["problem"] == "interrupted"


def test_a_killed_host_program_is_said_and_leaves_a_readable_trace(tmp_path: Path) -> None:
    def kill() -> None:
        guest = wait_for_child(os.getpid())
        time.sleep(0.7)
        os.kill(guest, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(LabSpec(pages=100_000), tmp_path / "x.trace", record=False)
    killer.join()
    assert result.problem == "the lab's program was killed by signal 9 in its run"
    assert open_trace(tmp_path / "x.trace").meta.lab == {"problem": result.problem}


def test_a_window_that_never_came_is_a_problem() -> None:
    result = run(LabSpec(pages=50, fetch="0", windows=(Window(10_000_000_000, 1_000_000, "pause"),)))
    assert "before its pause window began" in result.problem
