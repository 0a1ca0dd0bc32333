"""Recording on this kernel: known workloads with a prime number of faults, checked against a second tool."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording_host import LACKING

from faultreplay.cli.main import _exit_code
from faultreplay.collect.backends.backends import kept_attached
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec, RecordSummary
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace, open_trace

FAULTS = 1009
NEVER = threading.Event()


@pytest.fixture(scope="module", autouse=True)
def attached_once() -> Iterator[None]:
    """Attach the probes once for all recordings of this module."""
    with kept_attached():
        yield


pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(LACKING), reason=LACKING)]


def _record(out: Path, *command: str, **options: object) -> tuple[RecordSummary, Trace]:
    spec = RecordSpec(command=command, **options)  # type: ignore[arg-type]
    return record(spec, out, NEVER), open_trace(out)


def _count(trace: Trace, *kinds: Kind) -> int:
    return trace.events(kinds).height


def test_1009_userfaults_are_1009_messages_and_copies_and_nothing_is_lost(tmp_path: Path, userfaults: str) -> None:
    summary, trace = _record(tmp_path / "a.trace", userfaults, str(FAULTS))
    messages = trace.events([Kind.UFFD_MSG])
    copies = trace.events([Kind.UFFD_COPY])
    assert (messages.height, copies.height) == (FAULTS, FAULTS)
    assert sorted(messages["addr"]) == sorted(copies["addr"])
    assert messages["addr"].n_unique() == FAULTS
    assert set(messages["ip"]) == {0x12}
    assert set(messages["code"]) == {1}  # a write to a missing page
    assert set(copies["value"]) == {4096}
    assert (copies["dur_ns"] > 0).all()
    assert copies["tid"].unique().to_list() == messages["tid"].unique().to_list()
    faults = trace.events([Kind.PAGE_FAULT_USER]).filter(_in(messages["addr"]))
    assert faults.height == FAULTS
    # each fault blocks its thread once and ends in a retry that lets go of mmap_lock
    faulter = faults["tid"][0]
    released = trace.events([Kind.MMAP_LOCK_RELEASED])
    assert FAULTS <= released.filter(released["tid"] == faulter).height <= FAULTS * 1.05
    assert {name for name in summary.lost if name != "sched:sched_waking"} == set()
    assert summary.exit_status == 0
    assert summary.events == trace.event_rows
    assert trace.meta.complete


def _in(addresses: object) -> object:
    import polars as pl

    return pl.col("addr").is_in(pl.Series(addresses).implode())


def test_bpftrace_counts_the_same_run(tmp_path: Path, userfaults: str) -> None:
    if shutil.which("bpftrace") is None:
        pytest.skip("needs bpftrace")
    program = (
        'tracepoint:syscalls:sys_exit_ioctl /comm == "userfaults" && @copy[tid]/ '
        "{ @copies = count(); delete(@copy[tid]); } "
        'tracepoint:syscalls:sys_enter_ioctl /comm == "userfaults" && args->cmd == 0xc028aa03/ { @copy[tid] = 1; } '
        'tracepoint:syscalls:sys_exit_read /comm == "userfaults" && args->ret == 32/ { @messages = count(); } '
        'BEGIN { printf("ready\\n"); }'
    )
    other = subprocess.Popen(["bpftrace", "-e", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert other.stdout is not None
    while "ready" not in (line := other.stdout.readline()):
        assert line, "bpftrace ended early"
    _, trace = _record(tmp_path / "a.trace", userfaults, str(FAULTS))
    other.send_signal(signal.SIGINT)
    said, _ = other.communicate(timeout=20)
    assert f"@copies: {FAULTS}" in said
    assert f"@messages: {FAULTS}" in said
    assert _count(trace, Kind.UFFD_MSG) == _count(trace, Kind.UFFD_COPY) == FAULTS


def test_a_userfaultfd_from_the_device_is_known_too(tmp_path: Path, userfaults: str) -> None:
    if not Path("/dev/userfaultfd").exists():
        pytest.skip("needs /dev/userfaultfd")
    _, trace = _record(tmp_path / "a.trace", userfaults, str(FAULTS), "dev")
    assert _count(trace, Kind.UFFD_MSG) == _count(trace, Kind.UFFD_COPY) == FAULTS


def test_what_a_tiny_ring_cannot_keep_is_counted_to_the_last_event(tmp_path: Path, userfaults: str) -> None:
    many = 20011
    summary, trace = _record(
        tmp_path / "a.trace", userfaults, str(many), ring_bytes=1 << 16, groups=("faults", "sched")
    )
    lost = trace.meta.losses.by_probe
    assert lost["syscalls:sys_exit_read"] > 0
    assert _count(trace, Kind.UFFD_MSG) + lost["syscalls:sys_exit_read"] == many
    ioctls = _count(trace, Kind.UFFD_COPY, Kind.UFFD_REGISTER, Kind.UFFD_API)
    assert ioctls + lost["syscalls:sys_exit_ioctl"] == many + 2
    rows = trace.losses()
    assert rows["lost"].sum() == sum(lost.values()) == sum(summary.lost.values()) == trace.meta.losses.total
    assert (rows["ts_ns"] >= trace.meta.clock.start_ns).all()


def test_only_the_groups_asked_for_give_events(tmp_path: Path, userfaults: str) -> None:
    _, trace = _record(tmp_path / "a.trace", userfaults, str(FAULTS), groups=("sched",))
    kinds = {Kind(kind) for kind in trace.events()["kind"].unique()}
    assert {Kind.SCHED_OUT, Kind.SCHED_IN, Kind.SCHED_WAKING, Kind.THREAD_NEW, Kind.THREAD_EXIT} <= kinds
    assert not kinds & {Kind.UFFD_MSG, Kind.UFFD_COPY, Kind.PAGE_FAULT_USER, Kind.MMAP}


def test_other_processes_leave_no_event(tmp_path: Path, userfaults: str) -> None:
    other = subprocess.Popen([userfaults, "200000"])
    try:
        _, trace = _record(tmp_path / "a.trace", userfaults, str(FAULTS))
    finally:
        other.kill()
        other.wait()
    tgids = set(trace.events()["tgid"])
    assert tgids == {trace.meta.targets[0].tgid}
    assert _count(trace, Kind.UFFD_MSG) == FAULTS


def test_a_running_process_and_its_later_children_are_followed(tmp_path: Path, userfaults: str) -> None:
    script = f"read go; {userfaults} {FAULTS}; {userfaults} {FAULTS} & wait"
    shell = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE)
    assert shell.stdin is not None
    out = tmp_path / "a.trace"
    with Recorder(RecordSpec(pids=(shell.pid,)), out) as recorder:
        shell.stdin.write(b"go\n")
        shell.stdin.close()
        shell.wait(20)
        assert recorder.targets_ended()
    trace = open_trace(out)
    messages = trace.events([Kind.UFFD_MSG])
    assert sorted(messages.group_by("tgid").len()["len"]) == [FAULTS, FAULTS]
    assert shell.pid not in set(messages["tgid"])
    assert {target.tgid for target in trace.meta.targets} >= {shell.pid, *messages["tgid"]}


def wait_for_line(recorder: subprocess.Popen[str], words: str) -> None:
    """On a busy host the steps before it take long enough to be told, too."""
    assert recorder.stderr is not None
    while (line := recorder.stderr.readline()) != f"{words}\n":
        assert line, f"the recorder ended before it said '{words}'"


def test_ctrl_c_ends_a_recording_normally_and_the_command_with_it(tmp_path: Path) -> None:
    out = tmp_path / "a.trace"
    recorder = subprocess.Popen(
        [sys.executable, "-m", "faultreplay", "record", "-o", out, "--", "sleep", "1000"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_line(recorder, "recording: Ctrl-C ends it")
    time.sleep(0.3)
    recorder.send_signal(signal.SIGINT)
    _, said = recorder.communicate(timeout=20)
    assert recorder.returncode == 0
    assert f"wrote {out}" in said
    assert "signal 15" in said
    assert open_trace(out, allow_incomplete=False).event_rows > 0


SLOW_END = """
import sys, time
from faultreplay.faulttrace.writer import TraceWriter
close = TraceWriter.close
def slowly(self, **how):
    time.sleep(2)
    close(self, **how)
TraceWriter.close = slowly
from faultreplay.cli.main import run
run(sys.argv[1:])
"""


def test_while_the_trace_is_sealed_it_is_said_and_another_ctrl_c_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a.trace"
    recorder = subprocess.Popen(
        [sys.executable, "-c", SLOW_END, "record", "-o", out, "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True
    )
    wait_for_line(recorder, "recording: Ctrl-C ends it")
    recorder.send_signal(signal.SIGINT)
    wait_for_line(recorder, "sealing the trace")
    recorder.send_signal(signal.SIGINT)
    _, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 0
    assert f"wrote {out}" in said
    assert open_trace(out, allow_incomplete=False).event_rows > 0


def test_duration_ends_a_recording(tmp_path: Path) -> None:
    summary, _ = _record(tmp_path / "a.trace", "sleep", "1000", duration_ns=300_000_000)
    assert summary.ended_by == "duration"
    assert 300_000_000 <= summary.duration_ns < 2_000_000_000


def test_traces_are_private(tmp_path: Path) -> None:
    _record(tmp_path / "a.trace", "true")
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "a.trace").rglob("*")}
    assert modes == {0}


def test_meta_extra_goes_into_the_meta(tmp_path: Path) -> None:
    _, trace = _record(tmp_path / "a.trace", "true", meta_extra={"origin": "lab", "lab": {"pinned": True}, "note": "x"})
    assert (trace.meta.origin, trace.meta.lab, trace.meta.extra["note"]) == ("lab", {"pinned": True}, "x")


def test_a_pid_of_nothing_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["record", "-o", str(tmp_path / "a.trace"), "-p", "4194303"]) == 1
    assert capsys.readouterr().err == "error: no process has the id 4194303: it may have ended; see ps -e\n"
    assert not (tmp_path / "a.trace").exists()


def test_an_existing_trace_is_kept_without_force(tmp_path: Path) -> None:
    _record(tmp_path / "a.trace", "true")
    with pytest.raises(UsageError, match="--force"):
        _record(tmp_path / "a.trace", "true")
    _record(tmp_path / "a.trace", "true", force=True)
