"""QEMU's blocktime beside stitched stalls: arithmetic on made faults, and two real migrations (slow)."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from faultreplay.analysis.judge.qemu import blocktimes, explanation
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import FAULTS
from faultreplay.faulttrace.store import Trace, open_trace

ROOT = Path(__file__).resolve().parent.parent
MS = 1_000_000


@dataclass
class Made:
    """What `blocktimes` asks of a trace."""

    meta: Meta
    rows: list[dict[str, Any]]
    path: Path = Path("made.trace")

    def faults(self) -> pl.DataFrame:
        empty = pl.from_arrow(FAULTS.empty_table())
        assert isinstance(empty, pl.DataFrame)
        blank = {name: "" if dtype == pl.String else 0 for name, dtype in empty.schema.items()}
        return pl.DataFrame([blank | row for row in self.rows], schema=empty.schema, strict=False)


def fault(tid: int, start_ms: float, queue: float, service: float, wake: float, **more: Any) -> dict[str, Any]:
    stall = int((queue + service + wake) * MS)
    return {
        "tid": tid, "start_ns": int(start_ms * MS), "end_ns": int(start_ms * MS) + stall, "stall_ns": stall,
        "queue_ns": int(queue * MS), "service_ns": int(service * MS), "wake_ns": int(wake * MS), "cause": "missing",
        "handler_tid": 9, **more,
    }  # fmt: skip


def made(rows: list[dict[str, Any]], destination: dict[str, Any], tids: tuple[int, ...] = (1, 2)) -> Trace:
    vcpus = [{"index": i, "tid": tid} for i, tid in enumerate(tids)]
    return cast(Trace, Made(Meta(extra={"qemu": {"destination": destination, "vcpus": vcpus}}), rows))


DESTINATION = {"status": "completed", "postcopy-blocktime": 3, "postcopy-vcpu-blocktime": [7, 4]}


def test_parts_add_up_and_overlap_is_that_of_all_vcpus() -> None:
    rows = [
        fault(1, 0, 1, 5, 2), fault(1, 20, 1, 2, 1), fault(2, 4, 1, 4, 1),
        fault(3, 0, 1, 1, 1),  # not a vCPU
        fault(1, 30, 0, 0, 0, cause="stage2"), fault(1, 40, 1, 1, 1, handler_tid=0),  # not QEMU's business
    ]  # fmt: skip
    first, second, both = blocktimes(made(rows, DESTINATION))
    assert (first.faults, first.stall_ns, first.qemu_ns, first.unbooked_ns) == (2, 12 * MS, 7 * MS, 0)
    assert (second.queue_ns, second.service_ns, second.wake_ns) == (1 * MS, 4 * MS, 1 * MS)
    # whole stalls: [0, 8) and [4, 10) share 4 ms; from read to placed: [1, 6) and [5, 9) share 1 ms
    assert (both.vcpu, both.stall_ns, both.service_ns, both.qemu_ns) == (-1, 4 * MS, 1 * MS, 3 * MS)
    words = explanation([first, second, both])
    assert words[0].endswith(f"{3 / 18:.1%} of the stall")
    assert words[1].endswith(f"{4 / 18:.1%} of the stall")


def test_a_vcpu_without_faults_is_never_blocked_with_the_others() -> None:
    rows = blocktimes(made([fault(1, 0, 1, 1, 1)], DESTINATION))
    assert [row.stall_ns for row in rows] == [3 * MS, 0, 0]
    assert explanation([rows[1]]) == ["no vCPU faulted on a missing page"]


def test_a_page_that_came_before_its_message_was_read() -> None:
    rows = [fault(1, 0, 1, 5, 2), fault(1, 20, 9, 0, 1, queue_ns=None, service_ns=None)]
    first, both = blocktimes(made(rows, DESTINATION, tids=(1,)))
    assert (first.stall_ns, first.pushed_ns, first.service_ns, first.wake_ns) == (18 * MS, 9 * MS, 5 * MS, 3 * MS)
    assert (both.stall_ns, both.service_ns) == (18 * MS, 5 * MS)
    assert "background push" in explanation([first])[2]


def test_no_blocktime_in_the_trace() -> None:
    with pytest.raises(IncompleteData, match="postcopy-blocktime"):
        blocktimes(made([], {"status": "completed"}))


def test_initramfs_is_a_newc_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "postcopy")
    guests = importlib.import_module("guests")
    files = {"bin": None, "bin/a": b"12345", "init": b""}
    data = guests.cpio(files)
    found, at = {}, 0
    while not (name := data[at + 110 :].partition(b"\0")[0].decode()).startswith("TRAILER"):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        body = at + 110 + len(name) + 1
        body += -body % 4
        found[name] = None if fields[1] & 0o040000 else data[body : body + fields[6]]
        at = body + fields[6]
        at += -at % 4
    assert found == files


def test_qmp_speaks_to_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "postcopy")
    qmp = importlib.import_module("qmp")
    asked: list[dict[str, Any]] = []

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as stream:
            stream.write('{"QMP": {"version": {}}}\n')
            stream.flush()
            for line in stream:
                asked.append(json.loads(line))
                if asked[-1]["execute"] == "bad":
                    stream.write('{"error": {"desc": "no such thing"}}\n')
                else:
                    stream.write('{"event": "STOP"}\n' + json.dumps({"return": {"n": len(asked)}}) + "\n")
                stream.flush()

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "q"))
        server.listen()
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        client = qmp.Qmp(tmp_path / "q")
        assert client("migrate-set-parameters", max_bandwidth=5) == {"n": 2}  # events in between are passed over
        assert asked[-1] == {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 5}}
        assert client.until("query", lambda answer: answer["n"] >= 4, timeout_s=5) == {"n": 4}
        with pytest.raises(qmp.QmpError, match="bad: no such thing"):
            client("bad")
        with pytest.raises(qmp.QmpError, match="not within 0 s"):
            client.until("query", lambda answer: False, timeout_s=0)
        client.close()


def lacking() -> str:
    if os.geteuid() != 0:
        return "needs root"
    tools = [tool for tool in ("qemu-system-x86_64", "gcc", "ld", "busybox") if not shutil.which(tool)]
    return f"needs {', '.join(tools)}" if tools else ""


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("guest", ["kvm", "tcg"])
def test_a_real_migration(guest: str, tmp_path: Path) -> None:
    if why := lacking():
        pytest.skip(why)
    if guest == "kvm" and not os.access("/dev/kvm", os.W_OK):
        pytest.skip("needs /dev/kvm")
    out = tmp_path / "p.trace"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/postcopy/run.py", guest, "-o", out],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trace = open_trace(out, allow_incomplete=False)
    rows = blocktimes(trace)
    vcpus = [row for row in rows if row.vcpu >= 0]
    requests = trace.meta.extra["qemu"]["source"]["ram"]["postcopy-requests"]
    assert sum(row.faults for row in vcpus) >= 20
    # The destination asks once a page; faults on a page already asked for are not asked for again.
    assert requests <= trace.faults().filter(pl.col("cause") == "missing", pl.col("handler_tid") != 0).height
    for row in vcpus:
        assert row.queue_ns is not None and row.wake_ns is not None and row.qemu_ns is not None
        assert row.pushed_ns is not None
        assert row.stall_ns == row.queue_ns + row.service_ns + row.wake_ns + row.pushed_ns
        # A lower bound, up to what a clock of whole milliseconds adds (half a millisecond a fault at most).
        assert row.qemu_ns <= row.stall_ns + row.faults * MS // 2
        assert abs(row.service_ns - row.qemu_ns) <= max(0.5 * row.service_ns, 3 * MS)


def test_validate_shows_both_beside_each_other() -> None:
    """The shipped trace of a real migration: prediction against measurement, and QEMU's figures under it."""
    sample = ROOT / "sample-traces" / "qemu-postcopy.trace"
    code = "import sys; from faultreplay.cli.main import run; run(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "validate", str(sample)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stitched stalls beside QEMU's blocktime, a lower bound" in done.stdout
    assert "before QEMU's clock starts" in done.stdout and "measured" in done.stdout
    for row in blocktimes(open_trace(sample)):
        assert row.qemu_ns is not None and 0 < row.qemu_ns < row.stall_ns
