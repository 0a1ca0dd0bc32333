"""Doing a recorded trace again: from truth exactly, from faults as far as they tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import FAULTS, TRUTH
from faultreplay.faulttrace.store import Trace
from faultreplay.faulttrace.writer import TraceWriter, write_truth
from faultreplay.lab.lists import make_lists
from faultreplay.lab.rerun import lists_from_trace
from faultreplay.lab.runner import run
from faultreplay.lab.spec import LabSpec


def empty_trace(path: Path) -> Path:
    with TraceWriter(path, Meta()):
        pass
    return path


def with_faults(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]) -> None:
    blank = {"vm": 1, "granule": 4096, "resolution": "copy", "handler_tid": 0, "join": "x", "vcpu": 0, "access": "r"}
    full = [{name: None for name in FAULTS.names} | blank | {"fault_id": i} | row for i, row in enumerate(rows)]
    frame = pl.DataFrame(full, schema=pl.DataFrame(pl.from_arrow(FAULTS.empty_table())).schema)
    monkeypatch.setattr(Trace, "faults", lambda self, **_: frame)


def test_faults_become_lists_of_vcpus_with_dense_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"accessor": "vcpu", "cause": "missing"}
    rows = [
        base | {"tid": 7, "start_ns": 100, "page": 0x9000, "think_ns": None},
        base | {"tid": 8, "start_ns": 150, "page": 0x1000, "think_ns": None, "access": "w"},
        base | {"tid": 7, "start_ns": 400, "page": 0x5000, "think_ns": 30, "access": "x"},
        base | {"tid": 7, "start_ns": 700, "page": 0, "think_ns": 9, "cause": "mmio"},
        base | {"tid": 9, "start_ns": 50, "page": 0x7000, "think_ns": None, "accessor": "vmm"},
    ]
    with_faults(monkeypatch, rows)
    lists, pages, notes = lists_from_trace(empty_trace(tmp_path / "x.trace"), 1)
    assert pages == 3
    assert [list(a.page) for a in lists] == [[2, 1], [0]]
    assert [list(a.think_ns) for a in lists] == [[0, 30], [50]]
    assert [list(a.op & 3) for a in lists] == [[0, 0], [1]]
    assert notes == ["1 faults of other threads than vCPUs are not done again"]
    assert [list(a.page) for a in lists_from_trace(tmp_path / "x.trace", 512)[0]] == [[1024, 512], [0]]


def test_a_trace_without_memory_accesses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faults(monkeypatch, [])
    with pytest.raises(IncompleteData, match=r"x\.trace"):
        lists_from_trace(empty_trace(tmp_path / "x.trace"), 1)


def test_truth_is_done_again_as_it_was(tmp_path: Path) -> None:
    path = empty_trace(tmp_path / "x.trace")
    rows = pl.DataFrame(
        {
            "accessor": ["vcpu"] * 3, "tid": [5, 5, 5], "vcpu": [0, 0, 0], "seq": [0, 1, 2], "access": ["r", "w", "r"],
            "page": [0x3000, 0x1000, 0x3000], "start_ns": [1000, 2000, 3000], "end_ns": [1500, 2100, 3001],
        }
    )  # fmt: skip
    write_truth(path, rows.select(TRUTH.names).to_arrow().cast(TRUTH))
    (only,), pages, notes = lists_from_trace(path, 1)
    assert pages == 2
    assert list(only.page) == [1, 0, 1]
    assert list(only.think_ns) == [0, 500, 900]
    assert "truth" in notes[0]


@pytest.mark.lab
def test_another_mechanism_gets_the_same_accesses(tmp_path: Path) -> None:
    spec = LabSpec(vcpus=2, pages=97, accesses=300, order="uniform", access="mixed", think="exp:30us", fetch="30us")
    first = run(spec, tmp_path / "x.trace", record=False)
    again = run(LabSpec(mechanism="kvm-exit", workload=tmp_path / "x.trace", fetch="30us"))
    assert again.problem == ""
    assert again.truth["access"] == first.truth["access"]
    assert again.spec.vcpus == 2
    for vcpu, asked in enumerate(make_lists(spec)[0]):
        rows = np.array(again.truth["vcpu"]) == vcpu
        page = np.array(again.truth["page"])[rows]
        assert (np.unique(page, return_inverse=True)[1] == np.unique(asked.page, return_inverse=True)[1]).all()
        think = np.array(again.truth["start_ns"])[rows][1:] - np.array(again.truth["end_ns"])[rows][:-1]
        assert np.median(think - asked.think_ns[1:]) < 2_000
