"""Targets as people give them, and what is said where nothing comes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from recording_host import LACKING

from faultreplay.cli.main import _exit_code
from faultreplay.collect.recorder.hints import children_of, why_nothing
from faultreplay.collect.targets.handlers import handlers_of
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(LACKING), reason=LACKING)]


@pytest.fixture
def family() -> object:
    """A shell that waits for a child that sleeps."""
    shell = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait"])
    for _ in range(100):
        if children_of([shell.pid]):
            break
        time.sleep(0.02)
    yield shell
    subprocess.run(["pkill", "-P", str(shell.pid)], check=False)
    shell.kill()
    shell.wait()


def test_children_are_found_and_named(family: subprocess.Popen[bytes]) -> None:
    (child,) = children_of([family.pid])
    assert Path(f"/proc/{child}/comm").read_text() == "sleep\n"
    assert f"({child}): give --children" in why_nothing([family.pid])[0]


def test_an_idle_target_is_exit_4_with_the_reason(
    family: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["record", "-p", str(family.pid), "--no-children", "-d", "6s", "--probes", "faults"]
    assert _exit_code([*words, "-o", str(tmp_path / "a.trace")]) == 4
    said = capsys.readouterr().err
    assert "no fault yet: they have children that are not recorded" in said
    assert "no event was recorded: they have children" in said
    assert open_trace(tmp_path / "a.trace").event_rows == 0


def test_existing_children_of_a_shell_are_recorded(tmp_path: Path, userfaults: str) -> None:
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f"exec 3<&0; (read go <&3; exec {userfaults} 499) & wait"], stdin=subprocess.PIPE
    )
    while not children_of([shell.pid]):
        time.sleep(0.02)
    command = [sys.executable, "-m", "faultreplay", "record", "-p", f"{shell.pid}", "-o", str(tmp_path / "a.trace")]
    recorder = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert recorder.stderr is not None
    while "recording:" not in (line := recorder.stderr.readline()):
        assert line, "the recorder ended before it recorded"
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.close()
    shell.wait(30)
    _, said = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, said
    assert "also recorded: 1 processes below" in said
    assert open_trace(tmp_path / "a.trace").events([Kind.UFFD_MSG]).height == 499


@pytest.mark.parametrize("text", ["", "12,", "x", "0", "-3", "99999999999"])
def test_what_is_no_process_id_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["record", f"--pid={text}", "-o", str(tmp_path / "a.trace")]) == 2
    assert "a process id is a whole number above 0" in capsys.readouterr().err


def test_several_ids_by_commas(tmp_path: Path) -> None:
    first, second = (subprocess.Popen(["sleep", "30"]) for _ in range(2))
    try:
        pids = f"{first.pid},{second.pid}"
        _exit_code(["record", "-p", pids, "-d", "200ms", "-o", str(tmp_path / "a.trace")])
        assert {t.tgid for t in open_trace(tmp_path / "a.trace").meta.targets} == {first.pid, second.pid}
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


@pytest.mark.parametrize("own", ["keep", "close"])
def test_an_external_handler_is_found_and_recorded(tmp_path: Path, handed: str, own: str) -> None:
    load = subprocess.Popen([handed, "499", own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert load.stdin is not None
    assert load.stdout is not None
    faulting, handler = map(int, load.stdout.readline().split())
    for _ in range(200):  # until it has received the descriptor
        if handlers_of(faulting):
            break
        time.sleep(0.02)
    assert handlers_of(faulting) == [handler]
    assert handlers_of(handler) == ([faulting] if own == "keep" else [])
    out = tmp_path / "a.trace"
    words = [sys.executable, "-m", "faultreplay", "record", "-p", str(faulting), "--no-children", "--with-handler"]
    recorder = subprocess.Popen([*words, "-o", str(out)], stderr=subprocess.PIPE, text=True)
    assert recorder.stderr is not None
    for line in recorder.stderr:
        if line.startswith("recording"):
            break
    load.communicate("go\n")
    said = recorder.communicate(timeout=30)[1]
    assert f"also recorded: {handler} (handed), which takes the userfaults of {faulting}" in said
    trace = open_trace(out)
    faults = trace.faults()
    mine = faults.filter((faults["vm"] == faulting) & (faults["cause"] == "missing"))
    assert mine.height == 499
    assert mine["end_ns"].null_count() == 0
    assert set(mine["handler_tid"].to_list()) == {handler}


def test_no_handler_is_made_up(family: subprocess.Popen[bytes]) -> None:
    assert handlers_of(family.pid) == []
