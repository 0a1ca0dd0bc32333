"""Privileges: given away once the probes are attached; two capabilities are enough; the trace is the caller's."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recording_host import LACKING

from faultreplay.faulttrace.store import open_trace

WITHOUT = LACKING or ("" if os.geteuid() == 0 else "needs root")
pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]
NOBODY = 65534
KEPT = {2: "CAP_DAC_READ_SEARCH", 5: "CAP_KILL", 19: "CAP_SYS_PTRACE", 39: "CAP_BPF"}


@pytest.fixture
def open_dir(tmp_path: Path) -> Path:
    """A directory that anyone may write, below ones that anyone may pass."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o777)
    return tmp_path


def threads_of(pid: int) -> dict[str, tuple[int, int]]:
    """Name and number of each thread -> its effective capabilities and user."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        told = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        found[f"{told['Name']} {task.name}"] = (int(told["CapEff"], 16), int(told["Uid"].split()[0]))
    return found


@pytest.mark.parametrize("sudo", [False, True])
def test_what_is_needed_no_more_is_given_away(open_dir: Path, userfaults: str, *, sudo: bool) -> None:
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    out = open_dir / "a.trace"
    environment = {**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)} if sudo else dict(os.environ)
    words = [sys.executable, "-m", "faultreplay", "record", "-p", str(sleeper.pid), "-o", str(out)]
    recorder = subprocess.Popen(
        [*words, "--backend", "precompiled"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert recorder.stderr is not None
        for line in recorder.stderr:
            if line.startswith("recording"):
                break
        time.sleep(0.3)
        threads = threads_of(recorder.pid)
        ours = {name: told for name, told in threads.items() if name.split()[0].startswith("faultreplay")}
        assert len(ours) >= 2 or str(recorder.pid) in " ".join(threads)
        for name, (capabilities, user) in threads.items():
            left = [bit for bit in range(64) if capabilities >> bit & 1]
            assert set(left) <= set(KEPT), (name, left)
            assert user == (NOBODY if sudo else 0)
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=20)
        sleeper.kill()
        sleeper.wait()
    trace = open_trace(out)
    assert trace.meta.complete
    assert "CAP_SYS_PTRACE" in trace.meta.extra["privileges"]
    for entry in (out, *out.rglob("*")):
        info = entry.stat()
        assert info.st_uid == (NOBODY if sudo else 0), entry
        assert stat.S_IMODE(info.st_mode) & 0o077 == 0


def test_a_command_is_ended_after_privileges_are_gone(open_dir: Path, userfaults: str) -> None:
    out = open_dir / "a.trace"
    environment = {**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    words = [sys.executable, "-m", "faultreplay", "record", "-d", "1s", "-o", str(out), "--", "/bin/sleep", "77"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "command ended with signal 15" in done.stderr


def test_two_capabilities_of_another_user_record(open_dir: Path, userfaults: str) -> None:
    """CAP_BPF and CAP_PERFMON; the other two let it read this host's tracefs, libraries and processes."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    capabilities = "+bpf,+perfmon,+dac_read_search,+sys_ptrace"
    out = open_dir / "a.trace"
    program = shutil.copy(userfaults, open_dir / "userfaults")
    who = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    who += ["--inh-caps", capabilities, "--ambient-caps", capabilities]
    words = [sys.executable, "-m", "faultreplay", "record", "--backend", "precompiled", "-o", str(out)]
    done = subprocess.run(
        [*who, *words, "--", program, "100"], capture_output=True, text=True, timeout=60, check=False, cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"this kernel refuses: {done.stderr}")
    assert done.returncode == 0, done.stderr
    trace = open_trace(out)
    assert out.stat().st_uid == NOBODY
    assert trace.event_rows > 0
    assert trace.meta.losses.total == 0
