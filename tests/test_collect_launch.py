"""A command that is held back: it dies with its recorder before it is released, and lives on after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOLDER = """
import sys, time
from faultreplay.collect.targets.launch import Launched
launched = Launched(["sleep", "30"])
if sys.argv[1] == "released":
    launched.release()
print(launched.pid, flush=True)
time.sleep(30)
"""


def state(pid: int) -> str:
    """The letter of /proc/PID/stat; Z where nobody reaps, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def wait_until(what: str, pid: int) -> str:
    for _ in range(100):
        if state(pid) in what or (not what and not state(pid)):
            break
        time.sleep(0.05)
    return state(pid)


@pytest.mark.parametrize("when", ["held", "released"])
def test_a_killed_recorder_leaves_no_held_command_and_harms_no_running_one(when: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, when], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert wait_until("T" if when == "held" else "S", pid) == ("T" if when == "held" else "S")
        time.sleep(0.3 if when == "released" else 0)  # until the shell has become the command
        holder.kill()
    if when == "held":
        assert wait_until("Z", pid) in ("", "Z")
    else:
        time.sleep(0.3)
        assert state(pid) == "S"
        os.kill(pid, signal.SIGKILL)
