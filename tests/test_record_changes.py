"""Targets that change while they are recorded: descriptors closed, threads moved, vCPUs added, reads under way."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from recording_host import LACKING

from faultreplay.collect.backends.backends import kept_attached
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_trace
from faultreplay.faulttrace.store import open_trace

FAULTS = 1009
NEVER = threading.Event()
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(LACKING), reason=LACKING)]


@pytest.fixture(scope="module", autouse=True)
def attached_once() -> Iterator[None]:
    """Attach the probes once for all recordings of this module."""
    with kept_attached():
        yield


@pytest.mark.parametrize("backend", ["bcc", "bpftrace"])
def test_the_message_of_a_read_that_began_before_the_recording(tmp_path: Path, userfaults: str, backend: str) -> None:
    if shutil.which(backend) is None and backend == "bpftrace":
        pytest.skip("needs bpftrace")
    target = subprocess.Popen(
        [userfaults, str(FAULTS), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert target.stdin is not None
    assert target.stdout is not None
    with target.stdin, target.stdout:
        assert target.stdout.readline() == "ready\n"
        with Recorder(RecordSpec(pids=(target.pid,), backend=backend), tmp_path / "a.trace"):
            target.stdin.write("go\n")
            target.stdin.flush()
            assert target.wait(20) == 0
    trace = open_trace(tmp_path / "a.trace")
    messages = trace.events([Kind.UFFD_MSG])
    assert messages.height == trace.events([Kind.UFFD_COPY]).height == FAULTS
    assert messages["addr"].n_unique() == FAULTS
    assert (messages["dur_ns"] >= 0).all()
    assert stitch_trace(trace).report.messages_joined == FAULTS


def test_a_userfaultfd_that_is_closed_lets_its_waiter_go(tmp_path: Path, userfaults: str) -> None:
    summary = record(RecordSpec(command=(userfaults, str(FAULTS), "close")), tmp_path / "a.trace", NEVER)
    trace = open_trace(tmp_path / "a.trace")
    assert summary.exit_status == 0
    assert trace.events([Kind.UFFD_MSG]).height == FAULTS
    assert trace.events([Kind.UFFD_COPY]).height == FAULTS - 1
    stitched = stitch_trace(trace)
    faults = stitched.faults.filter(pl.col("cause") == "missing")
    assert faults.height == FAULTS
    last = faults.row(-1, named=True)
    # It waited, was let go and went on: its end is known, and that no ioctl brought it.
    assert (last["resolution"], last["handler_tid"] > 0) == ("none", True)
    assert last["end_ns"] is not None
    assert last["offcpu_ns"] > 0
    assert faults["resolution"].head(FAULTS - 1).unique().to_list() == ["copy"]
    assert stitched.report.messages_joined == FAULTS


def test_threads_that_move_between_cpus_lose_nothing_and_stay_in_order(tmp_path: Path, userfaults: str) -> None:
    summary = record(RecordSpec(command=(userfaults, str(FAULTS), "move")), tmp_path / "a.trace", NEVER)
    trace = open_trace(tmp_path / "a.trace")
    assert not {name for name in summary.lost if name != "sched:sched_waking"}
    events = trace.events()
    assert events["ts_ns"].is_sorted()
    messages, copies = trace.events([Kind.UFFD_MSG]), trace.events([Kind.UFFD_COPY])
    assert messages["addr"].to_list() == copies["addr"].to_list()
    pages = trace.events([Kind.PAGE_FAULT_USER]).filter(pl.col("addr").is_in(messages["addr"].implode()))
    assert pages["addr"].to_list() == messages["addr"].to_list()
    # message, copy, message, copy, ...: across CPUs, in the order in which they happened
    order = np.concatenate([messages["ts_ns"].to_numpy(), copies["ts_ns"].to_numpy()]).argsort(kind="stable")
    assert (order.reshape(-1, 2) == np.arange(2 * FAULTS).reshape(2, -1).T).all()
    for moved in (pages, copies):
        share = moved["cpu"].value_counts(normalize=True)["proportion"].max()
        assert moved["cpu"].n_unique() > 1
        assert isinstance(share, float)
        assert share < 0.9
    report = stitch_trace(trace).report
    assert (report.messages_joined, report.messages_unjoined) == (FAULTS, {})


@pytest.mark.parametrize("backend", ["bcc", pytest.param("bpftrace", marks=pytest.mark.slow)])
def test_a_vcpu_added_while_recording(tmp_path: Path, vm: str, backend: str) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm")
    actions = ["touch:0:11", "wait", "touch:100:13:1", "touch:200:17:0", "touch:300:19:5"]
    target = subprocess.Popen([vm, "anon", "1024", *actions], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert target.stdin is not None
    assert target.stdout is not None
    with target.stdin, target.stdout:
        assert target.stdout.readline().startswith("memory ")
        assert target.stdout.readline() == "touch:0:11\n"
        with Recorder(RecordSpec(pids=(target.pid,), backend=backend), tmp_path / "a.trace"):
            target.stdin.write("go\n")
            target.stdin.flush()
            assert target.wait(20) == 0
    trace = open_trace(tmp_path / "a.trace")
    assert set(trace.events([Kind.KVM_RUN_ENTER])["vcpu"]) == {0, 1, 5}
    threads = {t.vcpu: t.tid for t in trace.meta.targets[0].threads if t.role == "vcpu"}
    assert set(threads) == {0, 1, 5}
    faults = stitch_trace(trace).faults.filter(pl.col("cause") == "stage2", pl.col("accessor") == "vcpu")
    for vcpu, first, count in ((1, 100, 13), (0, 200, 17), (5, 300, 19)):
        mine = faults.filter(pl.col("vcpu") == vcpu)
        # Its memslots were set before: pages are known by their guest address.
        assert mine["page"].to_list() == [(1 << 30) + (first + i) * 4096 for i in range(count)]
        assert set(mine["tid"]) == {threads[vcpu]}
