"""The compiled kernel works where no cache may be written, keeps to one signature, and runs in threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from faultreplay.replay.engine import jit as jit_module
from faultreplay.replay.engine import kernel
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.engine.jit import _stamp_with_all_sources, jit
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload, make_workload

SMALL = """
import sys
from faultreplay.replay.engine.jit import jit

@jit
def twice(x):
    return 2 * x

print(twice(21))
"""


def work(seed: int = 1) -> Workload:
    rng = np.random.default_rng(seed)
    return make_workload([{"think_ns": rng.integers(1, 90_000, 2_000)} for _ in range(4)])


@pytest.mark.parametrize("where", ["a file in place of the directory", "no such device"])
def test_a_cache_that_cannot_be_written_is_done_without(where: str, tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("not a directory")
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    target = blocked / "x" if where.startswith("a file") else Path("/proc/nothing/here")
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(target),
        "HOME": "/proc/nothing",
        "XDG_CACHE_HOME": "/proc/nothing",
    }
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    assert blocked.read_text() == "not a directory"


LONG = """
from faultreplay.replay.engine import jit
jit.LONG_CODE_BYTES = 0

@jit.jit
def twice(x):
    return 2 * x

twice(21)
twice(22)
"""


def test_compiling_is_said_once_and_not_where_the_cache_has_it(tmp_path: Path) -> None:
    script = tmp_path / "long.py"
    script.write_text(LONG)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "NUMBA_CACHE_DIR": str(tmp_path / "c")}
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), "/proc/nothing")
    (tmp_path / "__pycache__").write_text("where numba would keep it")
    said = [
        subprocess.run(
            [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120, check=True
        ).stderr.splitlines()
        for env in (environment, environment, environment | nowhere)
    ]
    assert said[0] == ["compiling the replay engine, some 30 s (once for this version)"]
    assert said[1] == []
    assert said[2] == ["compiling the replay engine, some 30 s (in each process: no cache can be written)"]


def test_the_cache_is_of_all_sources_that_are_folded_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("jit.py", "cpus.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(jit_module, "__file__", str(tmp_path / "jit.py"))

    def stamp() -> Any:
        compiled = numba.njit(cache=True)(work)
        _stamp_with_all_sources(compiled)
        return compiled._cache._cache_file._source_stamp

    before = stamp()
    assert stamp() == before
    os.utime(tmp_path / "cpus.py", ns=(0, 0))
    assert stamp() != before


def test_a_cache_that_fails_at_the_call_is_done_without() -> None:
    def thrice(x: int) -> int:
        return 3 * x

    compiled = jit(thrice)

    def full(_x: int) -> int:
        raise OSError(28, "No space left on device")

    compiled._compiled = full  # type: ignore[attr-defined]
    assert compiled(14) == 42
    assert compiled(15) == 45


def test_seeds_run_in_threads_and_give_what_they_give_alone() -> None:
    mechanism, costs, shared = load_mechanism("uffd-missing"), load_costs(), work()

    def total(seed: int) -> int:
        return simulate(shared, mechanism, costs, seed=seed).total_stall_ns

    alone = [total(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(total, range(8))) == alone
    assert len(set(alone)) == 8


def test_recorded_and_synthetic_workloads_share_one_compiled_kernel() -> None:
    before = {str(signature) for signature in kernel.run_program.signatures}  # type: ignore[attr-defined]
    simulate(work(), load_mechanism("uffd-missing"), load_costs())
    first = {str(signature) for signature in kernel.run_program.signatures}  # type: ignore[attr-defined]
    simulate(work(), load_mechanism("memslot-destroy"), load_costs(), loop="open", cpus=2)
    simulate(work(), load_mechanism("precopy-push"), load_costs(), rows=False)
    after = {str(signature) for signature in kernel.run_program.signatures}  # type: ignore[attr-defined]
    assert after == first
    assert len(after - before) <= 1
