"""`import faultreplay`: quick, typed, its examples run, and its numbers are the command line's."""

import ast
import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import faultreplay
from faultreplay import api
from faultreplay.cli.main import main

ROOT = Path(__file__).parent.parent
SAMPLE = "sample-traces/guest-uffd-missing.trace"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_importing_takes_nothing() -> None:
    heavy = "{'numpy', 'polars', 'numba', 'pyarrow', 'click', 'faultreplay.api'}"
    assert python(f"import sys, faultreplay; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_help_does_not_load_the_library() -> None:
    code = "import sys\nfrom faultreplay.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
    loaded = python(f"{code}print('\\n', sorted({{'numpy', 'polars', 'numba', 'pyarrow'}} & set(sys.modules)))")
    assert loaded.splitlines()[-1].strip() == "[]"


def test_every_name_is_there_and_typed() -> None:
    stub = ast.parse((ROOT / "faultreplay/__init__.pyi").read_text())
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(faultreplay.__all__) - {"__version__"}
    for name in faultreplay.__all__:
        assert getattr(faultreplay, name) is not None
        assert name in dir(faultreplay)
    places = {a.name: n.module for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {name: f"faultreplay.{place}" for name, place in faultreplay._AT.items()} == places


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'comparison'"):
        _ = faultreplay.comparison  # type: ignore[attr-defined]


def test_examples_in_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = doctest.testmod(api)
    assert found.failed == 0
    assert found.attempted >= 10


def test_a_users_file_passes_mypy_strict() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "tests/typed_user.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


def test_the_total_is_the_same_in_table_and_library() -> None:
    told = CliRunner().invoke(main, ["compare", str(ROOT / SAMPLE), "-m", "kvm-exit", "--format", "json"])
    table = {r["mechanism"]: r["total_stall_ns"] for r in json.loads(told.stdout)["records"] if r["row"] == "predicted"}
    case = faultreplay.open_case(ROOT / SAMPLE)
    row = faultreplay.compare(case, ["kvm-exit"], weigh=False).rows[0]
    by_hand = faultreplay.simulate(
        faultreplay.workload(case), faultreplay.mechanism("kvm-exit", trace=case), faultreplay.costs(trace=case)
    )
    assert table == {"kvm-exit": row.metrics.total_stall_ns} == {"kvm-exit": by_hand.total_stall_ns}


def test_what_is_set_for_nobody_is_refused_here_too() -> None:
    case = faultreplay.open_case(ROOT / SAMPLE, faultreplay.Setup(settings={"swap": {"granule": "4K"}}))
    with pytest.raises(faultreplay.FaultreplayError, match="'swap' is not replayed"):
        faultreplay.compare(case, ["kvm-exit"])
