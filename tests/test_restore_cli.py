"""Restores on the command line: earlier runs, storage, page cache, and the columns that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_working_sets import HVA, run_trace

from faultreplay.analysis.compare.setup import restore_used
from faultreplay.analysis.compare.storage_setting import parse_page_cache, parse_storage
from faultreplay.cli.main import _exit_code, main
from faultreplay.faulttrace.errors import UsageError

GIB = 1 << 30


def said(*words: str, columns: int = 80) -> str:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def records(*words: str) -> dict[str, dict[str, Any]]:
    data = json.loads(CliRunner().invoke(main, [*words, "--format", "json"]).stdout)
    return {record["mechanism"]: record for record in data["records"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    paths = []
    for run in (1, 2):
        paths.append(str(folder / f"run{run}.trace"))
        said("synth", "restore", "--vcpus", "2", "--pages", "400", "--run", str(run), "-o", paths[-1])
    return paths[0], paths[1]


def test_coverage_and_waste_are_those_of_the_sets(runs: tuple[str, str]) -> None:
    first, second = runs
    row = records("replay", second, "-m", "prefetch-before", "--working-set", first)["prefetch-before"]
    common = round(800 * 2 * 0.927 / 1.927)
    assert row["coverage_percent"] == pytest.approx(100 * common / 800, abs=0.01)
    assert row["waste_percent"] == pytest.approx(100 - 100 * common / 800, abs=0.01)
    assert row["late_pages"] == 0
    own = records("replay", second, "-m", "prefetch-before")["prefetch-before"]
    assert (own["coverage_percent"], own["waste_percent"]) == (100, 0)
    assert own["startup_ns"] > 0
    assert own["total_stall_ns"] < row["total_stall_ns"]


def test_several_earlier_runs_are_one_set(runs: tuple[str, str]) -> None:
    first, second = runs
    both = records("replay", second, "-m", "prefetch-before", "--working-set", f"{first},{second}")["prefetch-before"]
    assert both["coverage_percent"] == 100
    assert both["waste_percent"] > 0


def test_a_stream_over_a_link_knows_earlier_runs_too(runs: tuple[str, str]) -> None:
    first, second = runs
    words = ("replay", second, "-m", "prefetch-working-set", "--link", "10Gbit")
    own, known = (records(*words, *more)["prefetch-working-set"] for more in ((), ("--working-set", first)))
    assert known["total_stall_ns"] > own["total_stall_ns"]


def test_storage_and_page_cache_are_every_rows(runs: tuple[str, str]) -> None:
    words = ("replay", runs[1], "-m", "file-private,uffd-handler-process")
    slow, fast = (records(*words, "--storage", text, "--page-cache", "none") for text in ("1ms,1GB/s", "10us,1GB/s,4"))
    hot = records(*words, "--page-cache", "all")
    for name in ("file-private", "uffd-handler-process"):
        assert slow[name]["total_stall_ns"] > fast[name]["total_stall_ns"] > hot[name]["total_stall_ns"]
        assert slow[name]["params"]["storage_bandwidth"] == GIB
        assert fast[name]["params"]["queue_depth"] == 4
    assert hot["file-private"]["bytes_moved"] == 0


def test_what_earlier_runs_left_in_the_page_cache(runs: tuple[str, str]) -> None:
    words = ("replay", runs[1], "-m", "file-private", "--working-set", runs[0], "--page-cache")
    cold, left = (records(*words, text)["file-private"]["total_stall_ns"] for text in ("none", "left"))
    assert left < cold / 3


def test_a_fetch_that_is_said_is_the_handlers_source(runs: tuple[str, str]) -> None:
    words = ("replay", runs[1], "-m", "uffd-handler-process,uffd-missing", "--fetch", "50us")
    rows = records(*words)
    assert rows["uffd-handler-process"]["params"]["remote"] == 1
    assert rows["uffd-handler-process"]["bytes_moved"] == 0
    assert rows["uffd-handler-process"]["total_stall_ns"] == pytest.approx(
        rows["uffd-missing"]["total_stall_ns"], rel=0.01
    )


def test_two_environments_in_one_table_are_said(runs: tuple[str, str]) -> None:
    shown = said("compare", runs[1], "-m", "uffd-missing,file-private", "--no-bounds", "-v", columns=200)
    assert "two environments: content of uffd-missing comes as fetch says, that of file-private from the" in shown
    one = said("compare", runs[1], "-m", "prefetch-before,file-private", "--no-bounds", "-v", columns=200)
    assert "two environments" not in one
    assert "the best any prefetch could know" in one


def test_columns_of_restores_stand_where_a_row_is_one_and_80_columns_hold_them(runs: tuple[str, str]) -> None:
    shown = said("compare", runs[1], "-m", "restore-copy,prefetch-beside", "--no-bounds", "--first", "200")
    head = shown[: shown.index("----")]
    assert "start-" in head
    assert " 200 " in head
    assert max(len(line) for line in shown.splitlines()) <= 80
    plain = said("compare", runs[1], "-m", "uffd-missing,kvm-exit", "--no-bounds", columns=300)
    assert "start-" not in plain
    assert "waste" not in plain


def test_first_n_counts_accesses(runs: tuple[str, str]) -> None:
    words = ("replay", runs[1], "-m", "file-private", "--page-cache", "all", "--first")
    few, many, beyond = (records(*words, n)["file-private"] for n in ("1", "400", "100000"))
    assert few["first_ns"] < many["first_ns"] < beyond["first_ns"]
    assert beyond["first_ns"] == beyond["all_there_ns"] or beyond["first_ns"] >= beyond["all_there_ns"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--storage", "80us"], "write LATENCY,RATE"),
        (["--storage", "80us,2GB/s,x"], "write LATENCY,RATE"),
        (["--storage", "80us,2GB/s,100000"], "at most 65,536"),
        (["--page-cache", "most"], "say none, all, left or a share"),
        (["--page-cache", "1.5"], "say none, all, left or a share"),
        (["--working-set", "nowhere.trace"], "nowhere.trace"),
    ],
)
def test_what_cannot_be_is_one_line(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert _exit_code(["replay", runs[1], "-m", "file-private", *options]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_earlier_runs_elsewhere_in_memory_are_found_by_guest_address(tmp_path: Path) -> None:
    a = run_trace(tmp_path / "a.trace", [1, 2, 3], hva=HVA)
    b = run_trace(tmp_path / "b.trace", [2, 3, 9], hva=HVA + (1 << 33))
    row = records("replay", str(b), "-m", "prefetch-before", "--working-set", str(a))["prefetch-before"]
    assert row["coverage_percent"] == pytest.approx(100 * 2 / 3)


def test_words_of_storage() -> None:
    assert parse_storage("80us, 2GB/s").depth is None
    assert (parse_storage("80us,2GB/s,32").latency_ns, parse_storage("1ms,1GB/s").bytes_per_s) == (80_000, GIB)
    assert parse_page_cache("left") == {"cached": 0.0, "left": 1.0}
    assert parse_page_cache("0.25") == {"cached": 0.25, "left": 0.0}
    with pytest.raises(UsageError):
        parse_page_cache("-1")


def test_what_the_lab_recorded_is_read_in_the_mechanisms_words() -> None:
    assert restore_used("file-private", {"page_cache": "hot"}) == ("file-private", {"page_cache": "hot", "cached": 1.0})
    name, params = restore_used("prefetch-beside", {"base": "file-private", "page_cache": "cold"})
    assert (name, params["cached"]) == ("file-private-prefetch", 0.0)
    assert restore_used("uffd-missing", {"fetch": "50us"})[1]["remote"] == 1
    assert restore_used("uffd-handler-process", {"fetch": "snapshot"})[1]["remote"] == 0


def test_the_set_of_a_workload_is_numbered_as_its_pages_are(runs: tuple[str, str]) -> None:
    import faultreplay

    case = faultreplay.open_case(runs[1], faultreplay.Setup(working_sets=(runs[0],)))
    assert case.setup.known is not None
    assert case.setup.known.working_set is not None
    both = np.intersect1d(case.setup.known.working_set, np.unique(case.workload.page))
    assert both.size == round(800 * 2 * 0.927 / 1.927)
