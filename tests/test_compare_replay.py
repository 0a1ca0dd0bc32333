"""`faultreplay replay`: rows and summary, in every format, the same each time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from made_traces import uffd_faults, write_trace

from faultreplay.cli.main import _exit_code


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("t") / "made.trace", uffd_faults(each=100))


def test_rows_into_parquet_are_whole_and_repeat(trace: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1.parquet", tmp_path / "2.parquet"
    for out in (one, two):
        assert _exit_code(["replay", str(trace), "-m", "uffd-missing,as-recorded", "-o", str(out)]) == 0
    rows = pl.read_parquet(one)
    assert rows.equals(pl.read_parquet(two))
    assert rows.group_by("mechanism").len().sort("mechanism")["len"].to_list() == [200, 200]
    recorded = rows.filter(pl.col("mechanism") == "as-recorded")
    assert recorded["stall_ns"].equals(recorded["recorded_stall_ns"], check_names=False)
    assert (rows["end_ns"] - rows["start_ns"] == rows["stall_ns"]).all()
    assert rows["latency_ns"].null_count() == len(rows)
    assert sorted(rows["accessor"].unique()) == ["vcpu0", "vcpu1"]
    assert rows.filter(pl.col("accessor") == "vcpu1")["seq"].max() == 99


def test_summary_and_rows_on_stdout(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["replay", str(trace), "-m", "uffd-missing"]) == 0
    assert "faults/s" in capsys.readouterr().out
    assert _exit_code(["replay", str(trace), "-m", "uffd-missing", "--rows", "--format", "csv"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("mechanism,accessor,seq,page,class,access,start_ns")
    assert len(out) == 201


def test_usage(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["replay", str(trace)]) == 2
    assert "-m uffd-missing" in capsys.readouterr().err
    assert _exit_code(["replay", str(trace), "-m", "ideal", "--format", "parquet"]) == 2
    assert _exit_code(["replay", str(trace), "-m", "ideal", "--rows", "--seeds", "2"]) == 2


def test_a_seed_changes_the_draws(trace: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        out = str(tmp_path / f"{seed}.parquet")
        assert _exit_code(["replay", str(trace), "-m", "uffd-missing", "--seed", seed, "-o", out]) == 0
    one, two = (pl.read_parquet(tmp_path / f"{s}.parquet") for s in "12")
    assert not one["stall_ns"].equals(two["stall_ns"])


def test_rows_are_of_what_was_asked_for_alone(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.parquet"
    window = ["--window", "1ms+2ms:uffd-wp", "-o", str(out)]
    assert _exit_code(["replay", str(trace), "-m", "freeze,uffd-missing,hugetlb-2m", *window]) == 0
    assert sorted(pl.read_parquet(out)["mechanism"].unique()) == ["freeze", "uffd-missing"]
    assert "no rows of hugetlb-2m" in capsys.readouterr().err
    assert _exit_code(["replay", str(trace), "-m", "hugetlb-2m", "--rows", "--format", "csv"]) == 2
    assert "--link" in capsys.readouterr().err
