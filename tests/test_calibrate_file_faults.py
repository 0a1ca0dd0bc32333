"""Costs of faults on a private mapping of a file: the sums that a trace shows come out again, whatever their parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from faultreplay.analysis.calibrate.samples import observe
from faultreplay.faulttrace.meta import MapEntry, MechanismUsed, Meta
from faultreplay.faulttrace.schema import FAULTS
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import make_workload

HVA, PAGES = 1 << 40, 4096
KINDS = {
    "around": ("r", "cache", None),
    "alone": ("r", None, None),
    "fresh": ("w", None, None),
    "fresh on disk": ("w", "cache", True),
    "shared": ("w", None, True),
    "disk": ("r", "disk", None),
}


def faults(**stalls: tuple[int, int]) -> pl.DataFrame:
    """Faults of these kinds: (how many, stall); of `disk` all but 20 us asleep."""
    rows = []
    for kind, (count, stall_ns) in stalls.items():
        access, backing, copied = KINDS[kind.replace("_", " ")]
        for _ in range(count):
            start = 1_000_000 * len(rows)
            row: dict[str, Any] = dict.fromkeys(FAULTS.names)
            row |= {"fault_id": len(rows), "vm": 1, "accessor": "vcpu", "tid": 2, "vcpu": 0, "start_ns": start}
            row |= {"end_ns": start + stall_ns, "stall_ns": stall_ns, "page": HVA + 4096 * len(rows), "granule": 4096}
            row |= {"access": access, "cause": "stage2", "resolution": "kernel", "handler_tid": 0, "rounds": 1}
            row |= {"backing": backing, "copied": copied, "preempted_ns": 0, "join": "made", "service_preempted_ns": 0}
            row |= {"offcpu_ns": stall_ns - 20_000 if kind == "disk" else 0}
            rows.append(row)
    return pl.DataFrame(rows, schema=pl.from_arrow(FAULTS.empty_table()).schema)  # type: ignore[union-attr]


def meta(file: str = "private", **params: Any) -> Meta:
    mapped = [MapEntry(0, 1, HVA, HVA + 4096 * PAGES, file=file)]
    return Meta(memory_map=mapped, mechanism=MechanismUsed("file-private", params))


def means(frame: pl.DataFrame, of: Meta) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in observe(frame, of).samples.items() if len(values)}


def test_the_sums_come_out_again() -> None:
    seen = {"around": (40, 8_200), "alone": (40, 1_800), "fresh": (40, 5_000), "shared": (40, 9_500)}
    found = means(faults(**seen), meta())
    assert found["host_fault_minor"] == 1_800 + 400
    assert found["map_around"] == 400
    assert found["host_fault_minor"] + 15 * found["map_around"] == 8_200
    assert found["host_fault_minor"] + found["copy_on_write"] == 5_000
    assert found["host_fault_minor"] + found["copy_on_write"] + found["unshare"] == 9_500
    assert found["stage2_fault"] == 1_800
    assert not {"host_fault", "host_fault_read"} & set(found)


def test_a_replay_with_these_costs_takes_as_long_as_the_faults_did() -> None:
    """One page with its neighbours, fifteen alone; a write to one that was mapped, one to one that was not."""
    seen = {"around": (40, 8_200), "alone": (40, 1_800), "fresh": (40, 5_000), "shared": (40, 9_500)}
    costs = load_costs().with_constants(**{name: round(value) for name, value in means(faults(**seen), meta()).items()})
    pages = [*range(15), 15, 64]
    work = make_workload([{"think_ns": [0] * 17, "page": pages, "access": np.array([0] * 15 + [1, 1])}])
    result = simulate(work, load_mechanism("file-private").with_params({"cached": 1}), costs)
    assert result.stall_ns.tolist() == [8_200, *[1_800] * 14, 9_500, 5_000]


def test_the_device_has_what_a_fault_slept_less_the_bytes() -> None:
    seen = {"around": (40, 8_200), "alone": (40, 1_800), "disk": (40, 220_000)}
    told = means(faults(**seen), meta(storage_bandwidth=10**9, readahead=100_000))
    assert told["storage_read"] == 200_000 - 100_000
    assert told["major_fault"] == 20_000 - 8_200
    # not told: what the model assumes, 128 KiB at 2G/s, so that a replay takes as long
    assert means(faults(**seen), meta())["storage_read"] == 200_000 - round((128 << 10) / (2 << 30) * 1e9)


@pytest.mark.parametrize("file", ["", "shared"])
def test_other_memory_is_what_it_was(file: str) -> None:
    found = means(faults(around=(40, 8_200), alone=(40, 1_800)), meta(file))
    assert found == {"stage2_fault": pytest.approx(5_000)}


def test_few_faults_show_nothing() -> None:
    assert set(means(faults(around=(29, 8_200), alone=(40, 1_800), fresh=(40, 5_000)), meta())) == {"stage2_fault"}
