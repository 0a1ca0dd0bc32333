"""Restores of a real QEMU: the shipped traces of two runs, and a pair made in small (slow)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from test_postcopy import lacking

from faultreplay.faulttrace.schema import CAUSES
from faultreplay.faulttrace.store import Trace, open_trace
from faultreplay.replay.workload.faults import workload_from_faults
from faultreplay.replay.workload.reading import first_touch

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample-traces"


def guest_faults(trace: Trace) -> pl.DataFrame:
    (slot,) = trace.meta.targets[0].memslots
    inside = (pl.col("page") >= slot.hva) & (pl.col("page") < slot.hva + slot.size_bytes)
    return trace.faults().filter(inside & (pl.col("accessor") == "vcpu"))


def offsets(trace: Trace) -> set[int]:
    return set((guest_faults(trace)["page"] - trace.meta.targets[0].memslots[0].hva).to_list())


def check_pair(folder: Path, name: str) -> None:
    """Two restores of one snapshot: memory is a private file, hot ones read nothing, cold ones do; sets overlap."""
    traces = {f"{c}-{r}": open_trace(folder / f"{name}-{c}-{r}.trace") for c in ("hot", "cold") for r in (1, 2)}
    for key, trace in traces.items():
        used = trace.meta.mechanism
        assert used is not None
        assert (used.name, used.params["page_cache"]) == ("file-private", key.split("-")[0])
        assert trace.meta.losses.total == 0
        faults = guest_faults(trace)
        assert faults.height >= 100
        on_disk = faults.filter(pl.col("backing") == "disk")
        assert (on_disk.height > 0) == key.startswith("cold")
        assert faults.filter("copied").height > 0
        assert set(faults.filter("copied")["access"].to_list()) == {"w"}
        assert faults["stall_ns"].null_count() <= 0.05 * faults.height
        if on_disk.height:
            others = faults.filter(pl.col("backing") == "cache")
            assert on_disk["stall_ns"].median() > 20 * others["stall_ns"].median()  # type: ignore[operator]
    for cache in ("hot", "cold"):
        one, other = offsets(traces[f"{cache}-1"]), offsets(traces[f"{cache}-2"])
        assert len(one & other) >= 0.5 * len(one | other)


def test_an_emulated_vcpu_s_faults_outside_guest_memory_are_the_vmm_s() -> None:
    trace = open_trace(SAMPLES / "restore-keyvalue-hot-1.trace")
    (slot,) = trace.meta.targets[0].memslots
    faults = trace.faults()
    inside = (faults["page"] >= slot.hva) & (faults["page"] < slot.hva + slot.size_bytes)
    vcpu = faults["accessor"] == "vcpu"
    assert not (vcpu & ~inside).any()
    assert vcpu.sum() > 1000
    assert trace.faults(columns=["accessor"])["accessor"].to_list() == faults["accessor"].to_list()
    assert (~inside).sum() > 50  # of its translated code, among others


def test_what_if_it_had_been_missing_is_asked_of_each_page_of_an_emulated_guest() -> None:
    trace = open_trace(SAMPLES / "restore-keyvalue-cold-1.trace")
    read = first_touch(workload_from_faults(trace.faults()))
    missing = read.cause == CAUSES.index("missing")
    ended = guest_faults(trace).filter(pl.col("stall_ns").is_not_null())
    assert missing.sum() == ended["page"].n_unique()
    assert set(read.page[missing].tolist()) == set((ended["page"] // 4096).to_list())


@pytest.mark.parametrize("name", ["restore-keyvalue", "restore-firmware"])
def test_the_shipped_restores_are_what_they_say(name: str) -> None:
    check_pair(SAMPLES, name)


def test_a_cold_file_is_in_no_cache_and_a_hot_one_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "postcopy")
    monkeypatch.syspath_prepend(ROOT / "scripts" / "restore")
    sys.modules.pop("run", None)
    restore = importlib.import_module("run")
    file = tmp_path / "memory"
    file.write_bytes(os.urandom(23 * 4096))
    restore.prepare_cache(file, False)
    assert restore.cached_pages(file) == 23
    try:
        restore.prepare_cache(file, True)
    except restore.QmpError as error:
        pytest.skip(str(error))  # a tmpfs
    assert restore.cached_pages(file) == 0
    sys.modules.pop("run", None)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("guest", ["kvm", "tcg"])
def test_a_pair_made_in_small(guest: str, tmp_path: Path) -> None:
    if why := lacking():
        pytest.skip(why)
    if guest == "kvm" and not os.access("/dev/kvm", os.W_OK):
        pytest.skip("needs /dev/kvm")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/restore/run.py", guest, "-o", tmp_path, "--mib", "16", "--operations", "2000"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_pair(tmp_path, guest)
