"""Random runs of all shipped mechanisms x loops x CPUs x pinning: none is lost, none hangs, all can be repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_runs import NAMES, check

SCRIPT = Path(__file__).with_name("random_runs.py")


def test_each_mechanism_in_each_loop_with_and_without_cpus() -> None:
    """250 runs: every combination of mechanism, five numbers of CPUs and two loops; the same in a second call."""
    digests = [check(seed) for seed in range(10 * len(NAMES))]
    assert sum(digest.startswith("refused") for digest in digests) < len(digests) // 10
    assert [check(seed) for seed in range(0, len(digests), 7)] == digests[::7]


def test_two_processes_tell_the_same() -> None:
    command = [sys.executable, str(SCRIPT), "250", "330"]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert [line.split(" ", 1)[1] for line in runs[0].stdout.splitlines()] == [check(s) for s in range(250, 330)]


@pytest.mark.slow
def test_two_thousand_random_runs() -> None:
    for seed in range(330, 2_330):
        check(seed)
