"""Two backends at once on one run: the same events, column by column, but for their own clocks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest
from recording_host import LACKING

from faultreplay.collect.backends.bpftrace_backend import BpftraceBackend
from faultreplay.collect.backends.precompiled_program import check_object, object_path
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.errors import MissingFeature, UsageError
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace, open_trace

FAULTS = 1009
WITHOUT = LACKING or ("" if shutil.which("bpftrace") else "needs bpftrace")
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]

# What both must agree on. `cpu` too: the probes run where the event happens.
SAME = ["kind", "tgid", "tid", "cpu", "fd", "vcpu", "addr", "ip", "code", "size", "value"]


PAIRS = [("bcc", "bpftrace"), ("bcc", "precompiled")]


def _needs(*backends: str) -> None:
    if "precompiled" in backends:
        try:
            check_object(object_path())
        except MissingFeature as error:
            pytest.skip(f"needs the precompiled programs: {error}")


def _both(tmp_path: Path, names: tuple[str, str], go: subprocess.Popen[bytes]) -> tuple[Trace, Trace]:
    paths = (tmp_path / "one.trace", tmp_path / "other.trace")
    first, second = (RecordSpec(pids=(go.pid,), backend=name) for name in names)
    with Recorder(first, paths[0]), Recorder(second, paths[1]):
        assert go.stdin is not None
        go.stdin.write(b"go\n")
        go.stdin.close()
        go.wait(30)
    return open_trace(paths[0]), open_trace(paths[1])


def _middle(trace: Trace, start_ns: int, end_ns: int) -> pl.DataFrame:
    events = trace.events()
    return events.filter(pl.col("ts_ns").is_between(start_ns, end_ns))


def _assert_same(one: Trace, other: Trace) -> None:
    messages = one.events([Kind.UFFD_MSG])["ts_ns"]
    # Away from the ends, so that an event at the border is on the same side for both clocks.
    start_ns, end_ns = int(messages[5]), int(messages[-5])
    frames = [_middle(trace, start_ns, end_ns) for trace in (one, other)]
    counts = [frame.group_by("kind").len().sort("kind") for frame in frames]
    by_kind = counts[0].join(counts[1], on="kind", how="full", suffix="_other").fill_null(0)
    off = by_kind.filter((pl.col("len").cast(pl.Int64) - pl.col("len_other").cast(pl.Int64)).abs() > 2)
    assert off.is_empty(), off
    keyed = [frame.group_by(SAME).len() for frame in frames]
    common = keyed[0].join(keyed[1], on=[*SAME, "len"], how="inner")
    assert common["len"].sum() >= 0.999 * frames[0].height - 4
    # An event's time is taken by each program on its own; they run one after the other.
    for kind in (Kind.UFFD_MSG, Kind.UFFD_COPY):
        joined = one.events([kind]).join(other.events([kind]), on=["addr", "tid"], suffix="_other")
        apart = (joined["ts_ns"] - joined["ts_ns_other"]).abs()
        assert apart.median() < 20_000, kind  # type: ignore[operator]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_same_events_of_a_process(names: tuple[str, str], tmp_path: Path, userfaults: str) -> None:
    _needs(*names)
    shell = subprocess.Popen(["/bin/sh", "-c", f"read go; {userfaults} {FAULTS}"], stdin=subprocess.PIPE)
    one, other = _both(tmp_path, names, shell)
    for trace in (one, other):
        assert trace.events([Kind.UFFD_MSG]).height == FAULTS
        assert trace.events([Kind.UFFD_COPY]).height == FAULTS
        assert trace.meta.losses.total == 0
        assert all(probe.status in ("attached", "off") for probe in trace.meta.probes)
    assert other.meta.recorder.backend == names[1]
    _assert_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_same_events_of_a_kvm_guest(names: tuple[str, str], tmp_path: Path) -> None:
    _needs(*names)
    if not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm")
    guest = f"{sys.executable} -m faultreplay lab run --no-record --pages 499 --vcpus 2 --fetch 20us"
    shell = subprocess.Popen(["/bin/sh", "-c", f"read go; {guest} 2>/dev/null"], stdin=subprocess.PIPE)
    one, other = _both(tmp_path, names, shell)
    for trace in (one, other):
        assert trace.events([Kind.UFFD_MSG]).height == 998
        assert set(trace.events([Kind.KVM_RUN_ENTER])["vcpu"]) == {0, 1}
        assert trace.events([Kind.KVM_SET_MEMSLOT]).height >= 1
    _assert_same(one, other)


def test_bpftrace_says_what_it_lost(tmp_path: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    try:
        spec = RecordSpec(
            pids=(load.pid,), backend="bpftrace", groups=("faults",), ring_bytes=1 << 16, duration_ns=3_000_000_000
        )
        started = time.monotonic()
        summary = record(spec, tmp_path / "a.trace", threading.Event())
        assert time.monotonic() - started < 60
    finally:
        load.kill()
        load.wait()
    trace = open_trace(tmp_path / "a.trace")
    assert summary.events == trace.event_rows > 0
    assert trace.losses()["lost"].sum() == sum(summary.lost.values())
    assert set(summary.lost) <= {"bpftrace"}


def test_bpftrace_cannot_shed(tmp_path: Path) -> None:
    from faultreplay.collect.recorder.limits import Limits

    spec = RecordSpec(command=("true",), backend="bpftrace", limits=Limits(max_rate=1))
    with pytest.raises(UsageError, match="--backend bcc"):
        record(spec, tmp_path / "a.trace", threading.Event())


def test_without_bpftrace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingFeature, match="apt install bpftrace"):
        BpftraceBackend(["faults"], 1 << 20)


def test_auto_falls_back_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from faultreplay.collect.backends import bcc_backend, precompiled_backend

    def refuse() -> None:
        raise MissingFeature("not installed: made up")

    monkeypatch.setattr(precompiled_backend, "object_path", refuse)
    spec = RecordSpec(command=("true",), groups=("sched",))
    summary = record(spec, tmp_path / "a.trace", threading.Event())
    assert summary.backend == "bcc"
    assert "bcc, because precompiled: not installed: made up" in summary.notes
    monkeypatch.setattr(bcc_backend, "load_bcc", refuse)
    summary = record(spec, tmp_path / "b.trace", threading.Event())
    assert summary.backend == "bpftrace"
    assert any("bcc: not installed: made up" in note for note in summary.notes)


def test_signs_and_sizes_are_those_of_this_kernel() -> None:
    """Which fields have a sign stands in a table: the kernel's own description must agree with it."""
    from faultreplay.collect.backends.backend import find_probes
    from faultreplay.collect.backends.precompiled_program import signed_bytes
    from faultreplay.collect.backends.probes import PROBES

    for item in find_probes(PROBES)[0]:
        for name in item.probe.reads:
            field = item.format.fields[name]
            assert signed_bytes(item.probe, name) == (field.size_bytes if field.signed else 0), (item.probe, name)


def test_the_prompt_is_back_at_once(tmp_path: Path) -> None:
    """Compiled before and detached after by a process of its own: starting and ending take no seconds."""
    _needs("precompiled")
    began = time.monotonic()
    command = [sys.executable, "-m", "faultreplay", "record", "--backend", "precompiled", "-o", tmp_path / "a.trace"]
    done = subprocess.run([*command, "--", "true"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10  # 1.5 s on a quiet host; with BCC 8 to 12
