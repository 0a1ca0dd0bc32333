"""One recording has one total, wherever it is read: table, JSON, HTML, Parquet, Perfetto, library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_tracks import read

import faultreplay
from faultreplay.cli.main import _exit_code
from faultreplay.faulttrace.units import format_ns

SAMPLES = Path(__file__).parent.parent / "sample-traces"
MECHANISMS = ["uffd-missing", "kvm-exit"]


def _json(capsys: pytest.CaptureFixture[str], trace: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert _exit_code(["compare", str(trace), "-m", ",".join(MECHANISMS), "--format", "json"]) == 0
    whole: dict[str, Any] = json.loads(capsys.readouterr().out)
    return whole


def _table_cells(capsys: pytest.CaptureFixture[str], trace: Path) -> dict[str, str]:
    capsys.readouterr()
    assert _exit_code(["compare", str(trace), "-m", ",".join(MECHANISMS), "--columns", "mechanism,total_stall_ns"]) == 0
    found = re.findall(
        r"^ {0,2}(measured|[a-z-]+)(?: \*)? +([\d.,]+ [mun]?s)\b", capsys.readouterr().out.split("\nBlackout")[0], re.M
    )
    return dict(found)


@pytest.mark.parametrize("name", ["guest-uffd-missing", "guest-freeze"])
def test_the_same_total_everywhere(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = SAMPLES / f"{name}.trace"
    done = faultreplay.compare(trace, MECHANISMS)
    totals = {row.mechanism: row.metrics.total_stall_ns for row in done.rows}
    totals["measured"] = done.measured.total_stall_ns
    # JSON, and the records as Parquet: to the ns.
    records = _json(capsys, trace)["records"]
    assert {_called(r): r["total_stall_ns"] for r in records if "total_stall_ns" in r} == totals
    flat = tmp_path / "rows.parquet"
    command = ["compare", str(trace), "-m", ",".join(MECHANISMS), "--format", "parquet", "-o", str(flat)]
    assert _exit_code(command) == 0
    rows = pl.read_parquet(flat).filter(pl.col("total_stall_ns").is_not_null()).to_dicts()
    assert {_called(r): r["total_stall_ns"] for r in rows} == totals
    # Of what was measured also the faults as Parquet, and the slices as Perfetto sees them.
    faults, slices = tmp_path / "faults.parquet", tmp_path / "x.json"
    for out in (faults, slices):
        assert _exit_code(["export", str(trace), "-o", str(out)]) == 0
    assert pl.read_parquet(faults)["stall_ns"].sum() == totals["measured"]
    events = json.loads(slices.read_text())["traceEvents"]
    stalls = [e for e in events if e["ph"] == "X" and e.get("cat") == "fault"]
    assert sum(round(e["dur"] * 1000) for e in stalls) == totals["measured"]
    assert faultreplay.faults(trace)["stall_ns"].sum() == totals["measured"]
    # Perfetto's own format holds the replays too.
    packets = tmp_path / "x.pftrace"
    named = ["-m", ",".join(row.mechanism for row in done.rows)] if done.rows else []
    assert _exit_code(["export", str(trace), *named, "-o", str(packets)]) == 0
    file, in_perfetto = read(packets), dict.fromkeys(totals, 0)
    for one in file.slices:
        if one.category == "fault":
            group = file.under(one.track)
            in_perfetto[group.removesuffix(" (replayed)") if group.endswith("(replayed)") else "measured"] += one.dur_ns
    assert in_perfetto == totals
    # The page: in its picture to the ns, in its cells as in the table.
    page = tmp_path / "x.html"
    assert _exit_code(["report", str(trace), "-m", ",".join(MECHANISMS), "-o", str(page)]) == 0
    text = page.read_text()
    drawn = re.search(r'id="pictures">(.*?)</script>', text, re.S)
    assert drawn
    bars: dict[str, int] = {}
    for bar in _rows(json.loads(drawn[1])["total-stall"]):
        called = bar["mechanism"].removesuffix(" *")
        bars[called] = bars.get(called, 0) + bar["stall_ns"]
    assert bars == totals
    cells = _table_cells(capsys, trace)
    assert cells == {called: format_ns(total) for called, total in totals.items()}
    body = text[text.index("<tbody>") :]
    for called, total in totals.items():
        assert re.search(rf'<td[^>]*>{called}(?: \*)?</td>.*?<td data-v="{total}">{format_ns(total)}</td>', body), (
            called
        )


def _called(record: dict[str, Any]) -> str:
    return "measured" if record["row"] == "measured" else str(record["mechanism"])


def _rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Data of a picture's bars, wherever its library put them."""
    layer = spec["layer"][0] if "data" not in spec else spec
    found: list[dict[str, Any]] = layer["data"]["values"]
    return found
