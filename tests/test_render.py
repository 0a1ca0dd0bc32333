"""One door for output: every format from the same records, nothing cut short, nothing on the wrong stream."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from faultreplay.cli import render
from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.errors import FaultreplayError, UsageError

COLUMNS = (
    Column("mechanism", "mechanism"),
    Column("total_ns", "total\nstall", "ns"),
    Column("moved_bytes", "moved", "bytes", keep=3),
    Column("share", "busy", "percent", keep=1),
)
RECORDS: tuple[dict[str, Any], ...] = (
    {"mechanism": "uffd-missing", "total_ns": 1_234_567_890, "moved_bytes": 4 << 20, "share": 51.24},
    {"mechanism": "a|b", "total_ns": 7, "moved_bytes": None, "share": math.nan},
)
REPORT = Report(RECORDS, COLUMNS, title="two rows", notes=("costs: assumed",), extra={"trace": "x.trace"})


def table(report: Report, width: int = 80) -> str:
    return render.to_table(report, width)[0]


def test_table_pins_its_look() -> None:
    assert table(REPORT) == (
        "two rows\n"
        "\n"
        "               total\n"
        "mechanism      stall     moved    busy\n"
        "--------------------------------------\n"
        "uffd-missing  1.23 s  4.00 MiB  51.2 %\n"
        "a|b             7 ns         -       -\n"
        "\n"
        "costs: assumed\n"
    )


def test_narrow_terminal_leaves_out_the_least_dear_and_names_it() -> None:
    text, left_out = render.to_table(REPORT, 30)
    assert left_out == ["busy"]
    assert "4.00 MiB" in text
    assert "51.2" not in text
    text, left_out = render.to_table(REPORT, 22)
    assert left_out == ["moved", "busy"]
    assert max(map(len, text.splitlines())) <= 22


def test_what_must_stay_stays_even_when_too_wide() -> None:
    assert "1.23 s" in table(REPORT, 5)


@given(
    st.lists(st.tuples(st.text("abc ", max_size=12), st.integers(0, 10**18), st.integers(0, 10**12)), max_size=6),
    st.integers(40, 120),
)
def test_no_line_is_too_wide_and_no_number_is_cut(rows: list[tuple[str, int, int]], width: int) -> None:
    columns = (Column("a", "a"), Column("b", "b", "ns", keep=2), Column("c", "c", "count", keep=1))
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    text, left_out = render.to_table(Report(records, columns), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for record in records:
        for column in columns:
            if column.title not in left_out:
                assert render.format_cell(record[column.key], column.unit).rstrip() in text


def test_rows_take_the_place_of_records_in_tables_only() -> None:
    report = Report(RECORDS, COLUMNS, rows=({"mechanism": "  error", "total_ns": "+2.1 %"},))
    assert "+2.1 %" in table(report)
    assert "uffd-missing" not in table(report)
    assert "+2.1 %" in render.to_markdown(report)
    assert "uffd-missing" in render.to_csv(report)


def test_rules_part_groups_of_rows() -> None:
    lines = table(Report(RECORDS, COLUMNS, rules=frozenset({0, 1}))).splitlines()
    assert [line.startswith("---") for line in lines] == [False, False, True, False, True, False]


def test_json_keeps_integers_and_holds_the_notes() -> None:
    whole = json.loads(render.to_json(Report(RECORDS[:1], COLUMNS, notes=("n",), extra={"trace": Path("x")})))
    assert whole["records"][0]["total_ns"] == 1_234_567_890
    assert whole["notes"] == ["n"]
    assert whole["trace"] == "x"


def test_json_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="nan"):
        render.to_json(REPORT)


def test_csv_reads_back_and_flattens() -> None:
    report = Report(({"a": 1, "b": {"c": 2, "d": [3, 4]}}, {"a": "x,y", "e": None}), COLUMNS)
    rows = list(csv.DictReader(io.StringIO(render.to_csv(report))))
    assert rows[0] == {"a": "1", "b.c": "2", "b.d": "[3, 4]", "e": ""}
    assert rows[1]["a"] == "x,y"


def test_markdown_escapes_bars() -> None:
    lines = render.to_markdown(REPORT).splitlines()
    assert lines[2] == "| mechanism | total stall | moved | busy |"
    assert lines[3] == "|---|--:|--:|--:|"
    assert "a\\|b" in lines[5]
    assert lines[-1] == "- costs: assumed"


def test_emit_parts_data_from_words(capsys: pytest.CaptureFixture[str]) -> None:
    render.emit(REPORT, "csv")
    seen = capsys.readouterr()
    assert seen.out.splitlines()[0] == "mechanism,total_ns,moved_bytes,share"
    assert seen.err == "costs: assumed\n"


def test_emit_piped_has_no_escape_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    render.emit(REPORT, "table")
    seen = capsys.readouterr()
    assert "\x1b" not in seen.out
    assert "uffd-missing" in seen.out


def test_parquet_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="-o FILE"):
        render.emit(REPORT, "parquet")
    out = tmp_path / "x.parquet"
    render.emit(REPORT, "parquet", out)
    assert capsys.readouterr().err == f"wrote {out}\n"
    assert parquet.read_table(out).column("total_ns").to_pylist() == [1_234_567_890, 7]
    with pytest.raises(UsageError, match="--force"):
        render.emit(REPORT, "parquet", out)
    render.emit(REPORT, "md", out, force=True)
    assert out.read_text().startswith("**two rows**")
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(UsageError, match="no folder"):
        render.emit(REPORT, "csv", tmp_path / "no" / "x.csv")
    with pytest.raises(UsageError, match="output format"):
        render.emit(REPORT, "xml")


def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(FaultreplayError, match="cannot write"):
        render.emit(REPORT, "csv", tmp_path / "d", force=True)
