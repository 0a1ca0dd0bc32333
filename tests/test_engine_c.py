"""The plain C program that the benchmark puts beside the engine has its answer, to the ns: else no ratio."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "engine.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_benchmark", BENCHMARK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    path: Path = bench.build_c(tmp_path_factory.mktemp("engine"))
    return path


@pytest.mark.parametrize(("handlers", "woken_in_vain"), [(1, 0), (2, 0), (4, 0), (4, 2), (4, 4096), (16, 3)])
@pytest.mark.parametrize("vcpus", [1, 4, 16])
def test_c_has_the_engines_stall_and_run_time(
    bench: ModuleType, program: Path, vcpus: int, handlers: int, woken_in_vain: int
) -> None:
    work, costs = bench.workload(vcpus, 40_000), load_costs()
    mechanism = load_mechanism("uffd-missing").with_params({"handlers": handlers, "woken_in_vain": woken_in_vain})
    result = simulate(work, mechanism, costs)
    _, stall_ns, run_time_ns = bench.run_c(program, work, costs, mechanism, 1)
    assert (stall_ns, run_time_ns) == (result.total_stall_ns, result.run_time_ns)
