"""Fitting costs of windows: each from ioctls whose times are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_events import (
    GPA,
    OTHER,
    PAGE,
    VM,
    at,
    frame,
    placed,
)

from faultreplay.analysis.calibrate.windows import split_by_pages, window_samples
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.faulttrace.writer import TraceWriter


def test_protecting_has_a_fixed_part_and_one_for_each_page() -> None:
    assert split_by_pages(np.array([100, 100, 1000, 1000]), np.array([15_000, 15_000, 105_000, 105_000])) == (
        pytest.approx(5000),
        pytest.approx(100),
    )
    assert split_by_pages(np.array([1000, 1000]), np.array([100_000, 102_000])) == (0.0, pytest.approx(101))
    assert split_by_pages(np.array([10, 1000]), np.array([900, 800])) == (850.0, 0.0)


def windows_trace(path: Path) -> Trace:
    events: list[dict[str, Any]] = []
    for n in range(40):
        pages = 100 if n % 2 else 1000
        start = 1_000_000 * (n + 1)
        for offset, mode in ((0, 1), (500_000, 0)):
            events.append(
                placed(start + offset, 1000 + 10 * pages, pages=pages, kind=Kind.UFFD_WRITEPROTECT, code=mode, value=0)
            )
        slot = {"addr": GPA, "ip": PAGE, "code": 1}
        events.append(at(start + 1, Kind.KVM_SET_MEMSLOT, VM, size=0, dur_ns=300, **slot))
        events.append(at(start + 2, Kind.KVM_SET_MEMSLOT, VM, size=4096, dur_ns=60, **slot))
    with TraceWriter(path, Meta()) as writer:
        writer.append_events(frame(*events).to_arrow())
    return open_trace(path)


def test_costs_of_windows_come_from_the_ioctls(tmp_path: Path) -> None:
    samples = window_samples([windows_trace(tmp_path / "w.trace")])
    assert {name: (len(values), float(values.mean())) for name, values in samples.items()} == {
        "protect_fixed": (40, 1000),
        "protect_per_page": (40, 10),
        "unprotect_fixed": (40, 1000),
        "unprotect_per_page": (40, 10),
        "memslot_delete": (40, 300),
        "memslot_add": (40, 60),
    }


def test_deleting_a_slot_counts_from_where_stage_2_is_emptied(tmp_path: Path) -> None:
    def deleted(end_ns: int, *, tid: int = VM, **columns: int) -> dict[str, Any]:
        return at(end_ns, Kind.KVM_SET_MEMSLOT, tid, code=1, dur_ns=3000, **columns)

    events = [
        at(7800, Kind.KVM_MMU_ZAP_ALL, VM),
        deleted(8000),
        at(8100, Kind.KVM_MMU_ZAP_ALL, VM),  # of another ioctl
        deleted(12000),  # its own was lost
        at(15700, Kind.KVM_MMU_ZAP_ALL, OTHER),  # another VM's at the same time
        at(15900, Kind.KVM_MMU_ZAP_ALL, VM),
        deleted(16000),
        at(19900, Kind.KVM_MMU_ZAP_ALL, VM),
        deleted(20000, value=-16),
    ]
    with TraceWriter(tmp_path / "w.trace", Meta()) as writer:
        writer.append_events(frame(*events).to_arrow())
    assert window_samples([open_trace(tmp_path / "w.trace")])["memslot_delete"].tolist() == [200, 3000, 100]


def test_a_slot_set_up_for_the_first_time_is_not_put_back(tmp_path: Path) -> None:
    events = [at(n, Kind.KVM_SET_MEMSLOT, VM, size=4096, code=n, dur_ns=99) for n in range(1, 9)]
    with TraceWriter(tmp_path / "w.trace", Meta()) as writer:
        writer.append_events(frame(*events).to_arrow())
    assert window_samples([open_trace(tmp_path / "w.trace")]) == {}
