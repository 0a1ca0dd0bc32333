"""perf.data and trace.dat: read by their own tools, here by stand-ins that print known text, and by perf itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from faultreplay.collect.importers import import_file
from faultreplay.faulttrace.errors import IncompleteData, MissingFeature
from faultreplay.faulttrace.store import open_trace

PERF_DATA, TRACE_DAT = b"PERFILE2" + b"\0" * 100, b"\x17\x08Dtracing6" + b"\0" * 100
LINE = {
    "perf": "  q 12/13 [001] 5.123456789: kvm:kvm_entry: vcpu 0, rip 0x1",
    "trace-cmd": "  q-13 [001] 5.123456789: kvm_entry: vcpu 0, rip 0x1",
}
KIND = {"perf": "perf-script", "trace-cmd": "trace-cmd"}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is in PATH; tools may be put into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_tool(folder: Path, tool: str, script: str) -> None:
    path = folder / tool
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def data_file(folder: Path, tool: str) -> Path:
    path = folder / ("perf.data" if tool == "perf" else "trace.dat")
    path.write_bytes(PERF_DATA if tool == "perf" else TRACE_DAT)
    return path


@pytest.mark.parametrize("tool", ["perf", "trace-cmd"])
def test_a_data_file_is_read_by_its_tool(tool: str, stand_in: Path, tmp_path: Path) -> None:
    header = "echo '# clockid: monotonic (1)'; echo '# os release : 6.1.0'" if tool == "perf" else "true"
    put_tool(stand_in, tool, f'echo "$@" >{tmp_path}/asked; {header}; echo "{LINE[tool]}"; echo "a warning" >&2')
    summary = import_file(KIND[tool], data_file(tmp_path, tool), tmp_path / "x.trace")
    meta = open_trace(tmp_path / "x.trace").meta
    assert summary.events == 1 and meta.extra["import"]["losses_told"]
    asked = (tmp_path / "asked").read_text()
    if tool == "perf":
        assert "--show-lost-events" in asked and "comm,pid,tid,cpu,time,event,trace" in asked
        assert (meta.clock.name, meta.host.kernel) == ("CLOCK_MONOTONIC", "6.1.0")
    else:
        assert asked.startswith("report -t -i")


@pytest.mark.parametrize("tool", ["perf", "trace-cmd"])
def test_a_missing_tool_is_named_with_what_to_do(tool: str, stand_in: Path, tmp_path: Path) -> None:
    assert not list(stand_in.iterdir())
    with pytest.raises(
        MissingFeature, match=rf"only {tool} reads this and it is not installed.*{tool} (script|report)"
    ):
        import_file(KIND[tool], data_file(tmp_path, tool), tmp_path / "x.trace")


@pytest.mark.parametrize("tool", ["perf", "trace-cmd"])
def test_a_tool_that_fails_leaves_nothing(tool: str, stand_in: Path, tmp_path: Path) -> None:
    put_tool(stand_in, tool, f'echo "{LINE[tool]}"; echo "first" >&2; echo "the file is damaged" >&2; exit 3')
    with pytest.raises(IncompleteData, match=f"{tool} cannot read it: the file is damaged"):
        import_file(KIND[tool], data_file(tmp_path, tool), tmp_path / "x.trace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", data_file(tmp_path, tool).name]


def test_lines_past_the_budget_end_the_tool(stand_in: Path, tmp_path: Path) -> None:
    put_tool(stand_in, "perf", "exec /usr/bin/yes rubbish")
    with pytest.raises(IncompleteData, match="not a line of perf script"):
        import_file("perf-script", data_file(tmp_path, "perf"), tmp_path / "x.trace")


def test_chunks_that_perf_lost_are_losses(stand_in: Path, tmp_path: Path) -> None:
    put_tool(stand_in, "perf", f"echo '{LINE['perf']}'; echo 'Processed 12 events and lost 5 chunks!' >&2")
    import_file("perf-script", data_file(tmp_path, "perf"), tmp_path / "x.trace")
    assert open_trace(tmp_path / "x.trace").meta.losses.total == 5


def test_data_of_the_other_tool(tmp_path: Path) -> None:
    for tool, other in (("perf", "trace-cmd"), ("trace-cmd", "perf")):
        with pytest.raises(IncompleteData, match=f"give it with --from {KIND[tool]}"):
            import_file(KIND[other], data_file(tmp_path, tool), tmp_path / "x.trace")


@pytest.mark.live
def test_perf_itself(tmp_path: Path) -> None:
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    data = tmp_path / "perf.data"
    record = [
        "perf",
        "record",
        "-q",
        "-k",
        "CLOCK_MONOTONIC",
        "-a",
        "-e",
        "sched:sched_switch",
        "-o",
        str(data),
        "sleep",
        "0.2",
    ]
    for _ in range(20):
        done = subprocess.run(record, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            pytest.skip(f"perf may not record here: {done.stderr.strip()[:100]}")
        # The kernel detaches a recorder that has just ended in the background; until then perf gets no samples.
        if subprocess.run(["perf", "script", "-i", data], capture_output=True, timeout=60, check=False).stdout:
            break
        time.sleep(0.5)
    summary = import_file("perf-script", data, tmp_path / "x.trace")
    meta = open_trace(tmp_path / "x.trace").meta
    assert summary.events > 10 and meta.clock.name == "CLOCK_MONOTONIC" and meta.host.kernel and meta.command
