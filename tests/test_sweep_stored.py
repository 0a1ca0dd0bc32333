"""A sweep that was stored answers again without a replay, also in the page of `report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from faultreplay.analysis.explore.stored import kept
from faultreplay.cli.main import main
from faultreplay.cli.report.pictures import stored_pictures
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.remote import identity
from faultreplay.replay.workload.synth import SynthSpec, Think, write_synthetic

NAMES = "uffd-missing,uffd-missing:handlers=2,kvm-exit,host-lazy"


def run_cli(*arguments: str) -> Result:
    with mock.patch.object(sys, "argv", ["faultreplay", *arguments]):
        return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "small.trace"
    write_synthetic(SynthSpec("demand-paging", 4, 50, Think(20_000, True)), path)
    return path


@pytest.fixture(scope="module")
def stored(trace: Path) -> tuple[Path, Result]:
    """A data set, and what the sweep printed."""
    path = trace.parent / "cells"
    got = run_cli("sweep", str(trace), "-m", NAMES, "--vary", "fetch=1us..1ms:3", "-o", str(path))
    assert got.exit_code == 0, got.output
    return path, got


def test_a_stored_sweep_says_what_it_said(trace: Path, stored: tuple[Path, Result]) -> None:
    place, printed = stored
    found = kept(place, identity(str(trace)))
    assert (found.label, found.seed) == ("small", 0)
    assert "--vary fetch=1us..1ms:3" in found.command and str(trace.parent) not in found.command
    pictures, table = stored_pictures(found)
    assert [picture.name for picture in pictures] == ["sweep-fetch"]
    flat = " ".join(printed.stdout.split())
    sentences = [note for note in table.notes if not note.startswith("Stored in")]
    assert any(note.startswith("Not ranked: host-lazy leaves out the content") for note in sentences)
    assert all(note in flat for note in sentences)
    first = pictures[0].words.partition(" Dashed:")[0]
    assert first in flat and first not in sentences  # said below the picture
    totals = {(m, dict(at)["fetch"]): row["total_stall_ns"] for (_, m, at), row in found.sweep.rows.items()}
    assert totals["uffd-missing:handlers=2", 1e6] < totals["uffd-missing", 1e6]
    assert kept(place / found.file, identity(str(trace))).sweep.courses == found.sweep.courses


def test_the_page_has_its_curves_its_table_and_where_they_come_from(trace: Path, stored: tuple[Path, Result]) -> None:
    pytest.importorskip("altair")
    page = trace.parent / "page.html"
    got = run_cli("report", str(trace), "--sweep", str(stored[0]), "-o", str(page), "-m", "uffd-missing,kvm-exit")
    assert got.exit_code == 0, got.output
    text = page.read_text()
    assert "Sweep: total stall" in text and "Total stall along fetch" in text
    assert "Not ranked: host-lazy" in text
    assert "Stored in sweep-" in text
    assert str(trace.parent) not in text


def test_what_cannot_be_drawn_is_one_line(trace: Path, stored: tuple[Path, Result], tmp_path: Path) -> None:
    other = tmp_path / "other.trace"
    write_synthetic(SynthSpec("demand-paging", 2, 50, Think(20_000, True)), other)
    for arguments, words in (
        ([str(trace), "--sweep", str(tmp_path / "none")], "not a data set of faultreplay sweep -o"),
        ([str(other), "--sweep", str(stored[0])], "no sweep of this trace in it"),
        ([str(trace), "--sweep", str(stored[0]), "--vary", "fetch=1us,2us"], "one of both"),
    ):
        got = run_cli("report", *arguments, "-o", str(tmp_path / "x.html"))
        assert isinstance(got.exception, UsageError)
        assert words in str(got.exception)


def test_damaged_and_lost_cells_are_told(trace: Path, tmp_path: Path) -> None:
    place, trace_id = tmp_path / "cells", identity(str(trace))
    assert run_cli("sweep", str(trace), "-m", "kvm-exit", "-o", str(place)).exit_code == 0
    (told,) = place.glob("sweep-*.json")
    whole = json.loads(told.read_text())
    assert kept(place, trace_id).sweep.courses == ()  # one mechanism: nothing to choose
    told.write_text(json.dumps(whole | {"layout": 0}))
    with pytest.raises(UsageError, match="not a sweep of this version"):
        kept(place, trace_id)
    told.write_text(json.dumps(whole | {"axes": [{"mechanism": ""}]}))
    with pytest.raises(IncompleteData, match="damaged"):
        kept(place, trace_id)
    told.write_text("{")
    with pytest.raises(IncompleteData, match="cannot be read"):
        kept(place, trace_id)
    told.write_text(json.dumps(whole))
    (cells,) = place.glob("cells-*.parquet")
    cells.unlink()
    with pytest.raises(IncompleteData, match="is gone: run the sweep again"):
        kept(place, trace_id)


def test_the_latest_of_several_is_taken(trace: Path, tmp_path: Path) -> None:
    place, trace_id = tmp_path / "cells", identity(str(trace))
    for names in ("kvm-exit", "kvm-exit,uffd-missing"):
        assert run_cli("sweep", str(trace), "-m", names, "-o", str(place)).exit_code == 0
    one, two = sorted(place.glob("sweep-*.json"), key=lambda path: len(json.loads(path.read_text())["mechanisms"]))
    for path, when in ((one, "2026-01-02 00:00:00"), (two, "2026-01-01 00:00:00")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"made": when}))
    assert kept(place, trace_id).file == one.name
    assert kept(two, trace_id).file == two.name
