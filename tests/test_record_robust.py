"""What is left when a recorder is killed, when the disk is full, when two record at once, when targets change."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busy_host import judged_in_time
from recording_host import LACKING

from faultreplay.collect.backends.backends import kept_attached
from faultreplay.collect.recorder.keep import Rotation, Trigger
from faultreplay.collect.recorder.limits import Limits
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch import stitch_trace
from faultreplay.faulttrace.store import Trace, open_trace

NEVER = threading.Event()
live = pytest.mark.live
needs_host = pytest.mark.skipif(bool(LACKING), reason=LACKING)


@pytest.fixture(scope="module", autouse=True)
def attached_once() -> Iterator[None]:
    """Attach the probes once for all recordings of this module."""
    with kept_attached():
        yield


def _check_killed(path: Path, parts_before: int, rows_before: int) -> None:
    trace = open_trace(path)
    assert trace.notes, "a killed recorder cannot have finished"
    values = trace.events(columns=["value"])["value"].to_list()
    assert values == list(range(len(values))), "a gap, or events out of order"
    assert len(values) >= rows_before, "a whole part was lost"
    assert len(list((path / "events").glob("part-*.parquet"))) >= parts_before


def _kill(directory: Path, runs: int, seed: int) -> list[dict[str, object]]:
    helper = Path(__file__).parent / "kill_helper.py"
    result = subprocess.run(
        [sys.executable, helper, directory, str(runs), str(seed)], stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_kill_9_leaves_every_whole_part(tmp_path: Path) -> None:
    runs = _kill(tmp_path, 6, 1)
    for run in runs:
        path = Path(str(run["path"]))
        if (path / "meta.json").exists():
            _check_killed(path, int(str(run["parts"])), int(str(run["rows"])))
    assert sum(int(str(run["parts"])) for run in runs) > 6


@pytest.mark.slow
def test_kill_9_fifty_times(tmp_path: Path) -> None:
    runs = _kill(tmp_path, 50, 2)
    for run in runs:
        _check_killed(Path(str(run["path"])), int(str(run["parts"])), int(str(run["rows"])))
    assert sum(int(str(run["parts"])) for run in runs) > 100


@live
@needs_host
def test_kill_9_of_a_real_recorder_leaves_a_readable_trace_and_no_probes(tmp_path: Path, userfaults: str) -> None:
    out = tmp_path / "a.trace"
    load = subprocess.Popen([userfaults, "100000000"])
    code = (
        "import sys, threading; from pathlib import Path; "
        "from faultreplay.collect.recorder.run import record; "
        "from faultreplay.collect.recorder.spec import RecordSpec; "
        "record(RecordSpec(pids=(int(sys.argv[1]),), part_age_ns=100_000_000), Path(sys.argv[2]), threading.Event())"
    )
    recorder = subprocess.Popen([sys.executable, "-c", code, str(load.pid), out])
    try:
        deadline = time.monotonic() + 30
        while len(list(out.glob("events/part-*.parquet"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        recorder.kill()
        recorder.wait(20)
    finally:
        load.kill()
        load.wait()
    trace = open_trace(out)
    assert trace.event_rows > 1000
    assert trace.events([Kind.UFFD_MSG]).height > 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.getuid() != 0:
        pytest.skip("needs root to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", place], check=False).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


@live
@needs_host
def test_a_full_disk_ends_in_one_line_and_a_readable_trace(small_disk: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    try:
        spec = RecordSpec(pids=(load.pid,), reserve_bytes=0, part_age_ns=200_000_000, duration_ns=60_000_000_000)
        with pytest.raises(FaultreplayError, match="no space left") as error:
            record(spec, small_disk / "a.trace", NEVER)
    finally:
        load.kill()
        load.wait()
    assert "\n" not in str(error.value)
    trace = open_trace(small_disk / "a.trace")
    assert trace.notes
    assert trace.event_rows > 10_000
    assert trace.events().height == trace.event_rows


@live
@needs_host
def test_the_reserve_of_a_disk_is_left_untouched(small_disk: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    reserve = 3 << 20
    try:
        spec = RecordSpec(pids=(load.pid,), reserve_bytes=reserve, part_age_ns=100_000_000, duration_ns=60_000_000_000)
        summary = record(spec, small_disk / "a.trace", NEVER)
    finally:
        load.kill()
        load.wait()
    assert summary.ended_by == "disk reserve"
    assert any("reserve" in note for note in summary.notes)
    free = os.statvfs(small_disk)
    assert free.f_bavail * free.f_frsize >= reserve
    assert open_trace(small_disk / "a.trace", allow_incomplete=False).event_rows == summary.events > 1000


@live
@needs_host
def test_two_recorders_at_once_see_the_same(tmp_path: Path, userfaults: str) -> None:
    first, second = tmp_path / "a.trace", tmp_path / "b.trace"
    shell = subprocess.Popen(["/bin/sh", "-c", f"read go; exec {userfaults} 1009"], stdin=subprocess.PIPE)
    assert shell.stdin is not None
    spec = RecordSpec(pids=(shell.pid,))
    with Recorder(spec, first), Recorder(spec, second):
        shell.stdin.write(b"go\n")
        shell.stdin.close()
        shell.wait(20)
    counts = [
        (open_trace(path).events([Kind.UFFD_MSG]).height, open_trace(path).events([Kind.UFFD_COPY]).height)
        for path in (first, second)
    ]
    assert counts == [(1009, 1009), (1009, 1009)]


@live
@needs_host
def test_a_rate_ceiling_sheds_groups_and_says_so(tmp_path: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    try:
        spec = RecordSpec(pids=(load.pid,), limits=Limits(max_rate=2000), duration_ns=4_000_000_000)
        summary = record(spec, tmp_path / "a.trace", NEVER)
    finally:
        load.kill()
        load.wait()
    trace = open_trace(tmp_path / "a.trace")
    spans = trace.meta.extra["shed"]
    assert [span["group"] for span in spans][:1] == ["sched"]
    assert all(trace.meta.clock.start_ns < span["start_ns"] < span["end_ns"] for span in spans)
    assert trace.meta.losses.by_probe["sched:sched_switch"] > 1000
    late = trace.events([Kind.SCHED_OUT]).filter(_between(spans[0]["start_ns"] + 10_000_000, spans[0]["end_ns"]))
    assert late.height == 0
    assert "shed" in {probe.status for probe in trace.meta.probes}
    assert any("group sched was shed" in note for note in summary.notes)
    report = stitch_trace(trace).report
    assert set(report.messages_unjoined) <= {"while a group of probes was shed", "still waiting at the end"}


@live
@needs_host
def test_a_ceiling_on_cpu_sheds_groups_and_says_so(tmp_path: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    out = tmp_path / "a.trace"
    command = [sys.executable, "-m", "faultreplay", "record", "-o", out, "-p", str(load.pid), "-d", "4s"]
    try:
        done = subprocess.run([*command, "--max-cpu", "1"], stderr=subprocess.PIPE, text=True, check=True)
    finally:
        load.kill()
        load.wait()
    trace = open_trace(out, allow_incomplete=False)
    spans = trace.meta.extra["shed"]
    assert all("% of a core, ceiling" in span["reason"] for span in spans)
    assert f"group {spans[0]['group']} was shed for" in done.stderr
    assert sum(trace.meta.losses.by_probe.values()) > 1000
    kept = trace.events([Kind.SCHED_OUT]).filter(_between(spans[0]["start_ns"] + 10_000_000, spans[0]["end_ns"]))
    assert spans[0]["group"] == "sched"
    assert kept.height == 0


@live
@needs_host
def test_a_flight_recorder_keeps_to_a_size(tmp_path: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000"])
    out = tmp_path / "a.trace"
    command = [sys.executable, "-m", "faultreplay", "record", "-o", out, "-p", str(load.pid), "-d", "8s"]
    sizes = []
    try:
        recorder = subprocess.Popen([*command, "--rotate", "256K", "--keep", "2"], stderr=subprocess.PIPE, text=True)
        assert recorder.stderr is not None
        while recorder.poll() is None:
            sizes.append(sum(_size(part) for part in out.glob("events/part-*.parquet")))
            time.sleep(0.05)
        said = recorder.stderr.read()
        recorder.stderr.close()
    finally:
        load.kill()
        load.wait()
    assert recorder.returncode == 0, said
    trace = open_trace(out, allow_incomplete=False)
    assert trace.meta.extra["rotated"]
    times = trace.events(columns=["ts_ns"])["ts_ns"]
    # The newest segments are there, the oldest are gone, and the disk never held much more than was allowed.
    assert times[0] - trace.meta.clock.start_ns > 1_000_000_000
    assert trace.meta.clock.end_ns - times[-1] < 1_000_000_000
    assert max(sizes) < 6 * (256 << 10), sizes


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # rotated away since
        return path.stat().st_size
    return 0


def _between(start_ns: int, end_ns: int) -> object:
    import polars as pl

    return pl.col("ts_ns").is_between(start_ns, end_ns)


@live
@needs_host
def test_a_flight_recorder_keeps_the_last_segments(tmp_path: Path, userfaults: str) -> None:
    numbers = itertools.count()

    def attempt() -> Trace:
        path = tmp_path / f"{next(numbers)}.trace"
        load = subprocess.Popen([userfaults, "100000000"])
        try:
            rotation = Rotation(keep=2, segment_ns=300_000_000)
            record(RecordSpec(pids=(load.pid,), rotation=rotation, duration_ns=3_000_000_000), path, NEVER)
        finally:
            load.kill()
            load.wait()
        return open_trace(path, allow_incomplete=False)

    def judge(trace: Trace) -> None:
        times = trace.events(columns=["ts_ns"])["ts_ns"]
        assert 300_000_000 < times[-1] - times[0] < 1_500_000_000
        assert trace.meta.clock.end_ns - times[-1] < 300_000_000

    judged_in_time(attempt, judge)


@live
@needs_host
def test_a_stalled_fault_pulls_the_trigger(tmp_path: Path, userfaults: str) -> None:
    load = subprocess.Popen([userfaults, "100000000", "slow"])
    try:
        spec = RecordSpec(pids=(load.pid,), trigger=Trigger(200_000_000, 500_000_000), duration_ns=20_000_000_000)
        summary = record(spec, tmp_path / "a.trace", NEVER)
    finally:
        load.kill()
        load.wait()
    assert summary.ended_by == "trigger"
    trace = open_trace(tmp_path / "a.trace")
    assert trace.meta.extra["trigger"]["stall_ns"] > 200_000_000


@live
@needs_host
def test_two_capabilities_are_enough(tmp_path: Path, userfaults: str) -> None:
    if shutil.which("setpriv") is None or os.getuid() != 0:
        pytest.skip("needs setpriv and root")
    out = tmp_path / "a.trace"
    shell = subprocess.Popen(["/bin/sh", "-c", f"read go; exec {userfaults} 1009"], stdin=subprocess.PIPE)
    only = ["setpriv", "--bounding-set", "-all,+bpf,+perfmon", "--inh-caps", "-all"]
    recorder = subprocess.Popen(
        [*only, sys.executable, "-m", "faultreplay", "record", "-o", out, "-p", str(shell.pid), "--probes", "faults"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None
    assert recorder.stderr is not None
    begun = next((line for line in recorder.stderr if line.startswith("recording:")), "")
    shell.stdin.write(b"go\n")
    shell.stdin.close()
    shell.wait(20)
    _, said = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, begun + said
    assert "CAP_SYS_PTRACE" in said
    assert open_trace(out).events([Kind.UFFD_MSG]).height == 1009


@live
@needs_host
def test_a_target_that_executes_itself_anew_stays_recorded(tmp_path: Path, userfaults: str) -> None:
    command = ("/bin/sh", "-c", f"exec /bin/sh -c 'exec {userfaults} 1009'")
    record(RecordSpec(command=command), tmp_path / "a.trace", NEVER)
    trace = open_trace(tmp_path / "a.trace")
    assert trace.events([Kind.PROCESS_EXEC]).height == 3
    assert trace.events([Kind.UFFD_MSG]).height == 1009
