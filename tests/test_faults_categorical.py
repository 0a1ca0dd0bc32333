"""Faults with words as categories are the same faults: what replays and fits read of them does not differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from faultreplay.analysis.calibrate.calibrate import fit_costs
from faultreplay.analysis.calibrate.samples import COLUMNS
from faultreplay.analysis.compare.busy import others_share
from faultreplay.analysis.compare.case import USED_COLUMNS
from faultreplay.analysis.compare.predict import mechanism_used
from faultreplay.analysis.compare.window_spans import outside_windows
from faultreplay.faulttrace.store import open_trace
from faultreplay.replay.workload.faults import workload_from_faults

SAMPLES = sorted((Path(__file__).parent.parent / "sample-traces").glob("*.trace"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.stem))
def test_what_reads_faults_reads_categories_as_words(path: Path) -> None:
    trace = open_trace(path)
    words = trace.faults(columns=USED_COLUMNS)
    coded = trace.faults(columns=USED_COLUMNS, categorical=True)
    assert {name for name, dtype in coded.schema.items() if dtype == pl.Categorical} == {
        name for name, dtype in words.schema.items() if dtype == pl.String
    }
    assert coded.with_columns(pl.col(pl.Categorical).cast(pl.String)).equals(words)
    one, other = (workload_from_faults(faults, meta=trace.meta) for faults in (words, coded))
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), name)
    assert mechanism_used(trace.meta, words) == mechanism_used(trace.meta, coded)
    assert others_share(pieces_of(words)) == others_share(pieces_of(coded))
    fits = [
        fit_costs(outside_windows(faults, trace.meta), trace.meta, source="x", waits=True) for faults in (words, coded)
    ]
    assert fits[0].refused == fits[1].refused
    assert {name: repr(cost) for name, cost in fits[0].costs.items()} == {
        name: repr(cost) for name, cost in fits[1].costs.items()
    }


def pieces_of(faults: pl.DataFrame, rows: int = 1 << 30) -> Callable[[Sequence[str]], Iterator[pl.DataFrame]]:
    """Columns of faults, `rows` of them at a time."""
    return lambda columns: (faults.select(columns)[at : at + rows] for at in range(0, len(faults), rows))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_costs_and_other_load_are_the_same_of_pieces_as_of_the_whole(path: Path, waits: bool) -> None:
    trace = open_trace(path)
    faults = trace.faults(columns=USED_COLUMNS)
    whole = fit_costs(faults, trace.meta, source="x", waits=waits)
    for rows in (997, 20_000):
        parts = fit_costs(pieces_of(faults, rows)(COLUMNS), trace.meta, source="x", waits=waits)
        assert (parts.refused, parts.at_most_ns) == (whole.refused, whole.at_most_ns)
        for name, samples in whole.samples.items():
            np.testing.assert_array_equal(parts.samples[name], samples, name)
        assert {name: repr(cost) for name, cost in parts.costs.items()} == {
            name: repr(cost) for name, cost in whole.costs.items()
        }
        assert others_share(pieces_of(faults, rows)) == others_share(pieces_of(faults))


def test_faults_come_a_piece_at_a_time_as_they_are_whole() -> None:
    trace = open_trace(SAMPLES[[path.stem for path in SAMPLES].index("process-stress-ng")])
    tid = str(trace.faults(columns=["tid"])["tid"][-1])
    columns = ["accessor", "start_ns", "cause", "vcpu"]
    for named in ((), (tid,)):
        parts = list(trace.fault_frames(columns, vcpu_threads=named))
        assert pl.concat(parts).equals(trace.faults(columns=columns, vcpu_threads=named))


def test_threads_named_as_vcpus_are_so_among_categories(tmp_path: Path) -> None:
    trace = open_trace(SAMPLES[[path.stem for path in SAMPLES].index("process-stress-ng")])
    tid = str(trace.faults(columns=["tid"])["tid"][-1])
    coded = trace.faults(vcpu_threads=[tid], columns=["tid", "accessor"], categorical=True)
    assert coded.schema["accessor"] == pl.Categorical
    assert set(coded.filter(pl.col("tid") == int(tid))["accessor"].to_list()) <= {"vcpu", "kernel"}
