"""Recording inside real kernels with hardware-style KVM (nested SVM under QEMU's TCG): every number exact."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from faultreplay.collect.backends.probes import PROBES
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace

ROOT = Path(__file__).resolve().parent.parent


def lacking() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("apt-get"):
        return "needs Debian's apt-get to fetch a kernel"
    tools = [tool for tool in ("qemu-system-x86_64", "busybox", "cc") if not shutil.which(tool)]
    return f"needs {', '.join(tools)}" if tools else ""


def test_every_number_of_the_shipped_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace that was recorded inside 6.1 under nested SVM is still stitched to the page."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    check = importlib.import_module("check").check
    trace = open_trace(ROOT / "sample-traces" / "kernel-6.1-svm.trace", allow_incomplete=False)
    assert trace.meta.host.kvm_flavour == "svm"
    (facts,) = trace.meta.extra["guests"]
    found = check(trace, facts)
    assert [item for item in found if not item.holds] == []
    assert {item.wanted for item in found} >= {0, 1, 1009, 1010, 2018}  # 2018: kprobe:handle_userfault
    # The shell that started the guest slept for seconds in wait(): that is no fault, though one came before it.
    host_faults = trace.faults().filter(pl.col("cause") == "major-host")
    assert host_faults["stall_ns"].max() < 1_000_000_000


def test_every_number_of_asynchronous_faults_and_the_dirty_ring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    check = importlib.import_module("check").check
    copy = shutil.copytree(ROOT / "tests/golden/kernel-6.1-apf-ring", tmp_path / "x.trace")  # stitching leaves a cache
    trace = open_trace(copy, allow_incomplete=False)
    asynchronous, ring = trace.meta.extra["guests"]
    assert (asynchronous["backing"], ring["backing"], ring["ring_exits"]) == ("apf", "ring", 1)
    for facts in (asynchronous, ring):
        assert [item for item in check(trace, facts) if not item.holds] == []
    # A halted vCPU's stall holds the whole wait for its page.
    stalls = trace.faults().filter(pl.col("tid") == asynchronous["vcpu_tid"], pl.col("cause") == "stage2")["stall_ns"]
    events = trace.events(tgid=asynchronous["vcpu_tid"]).filter(pl.col("tid") == asynchronous["vcpu_tid"])
    begun, over = (
        events.filter(pl.col("kind") == kind)["ts_ns"].cast(pl.Int64).sum()
        for kind in (Kind.KVM_ASYNC_PF_NOT_PRESENT, Kind.KVM_ASYNC_PF_READY)
    )
    assert stalls.sum() > over - begun > 0


def test_every_number_of_six_guests_in_one_recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Device writes, faults that fail and the page a full dirty ring holds back, too; by the precompiled programs."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    monkeypatch.delitem(sys.modules, "run", raising=False)  # other folders have one, too
    check, backings = importlib.import_module("check").check, importlib.import_module("run").BACKINGS
    monkeypatch.delitem(sys.modules, "run")
    copy = shutil.copytree(ROOT / "tests/golden/kernel-6.12-all", tmp_path / "x.trace")  # stitching leaves a cache
    trace = open_trace(copy, allow_incomplete=False)
    guests = trace.meta.extra["guests"]
    assert [facts["backing"] for facts in guests] == backings
    found = [item for facts in guests for item in check(trace, facts)]
    assert len(found) == 169 and [item for item in found if not item.holds] == []
    # Wrong facts are named: no failed fault is one of a full ring.
    failed = next(facts for facts in guests if facts["backing"] == "exit")
    wrong = failed | {"efault_exits": 0, "ring_exits": failed["efault_exits"]}
    named = [item.what for item in check(trace, wrong) if not item.holds]
    assert {"kvm_dirty_ring_exit", "handle_userfault in the vCPU"} <= set(named)


def test_a_number_that_is_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of the shipped trace compared with other facts: each wrong fact is named."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    check = importlib.import_module("check").check
    trace = open_trace(ROOT / "sample-traces" / "kernel-6.1-svm.trace", allow_incomplete=False)
    (facts,) = trace.meta.extra["guests"]
    for wrong, named in (
        ({"pages": 1008}, "kvm_page_fault in all"),
        ({"kvm_runs": 2}, "KVM_RUN calls"),
        ({"ring_exits": 1}, "kvm_dirty_ring_exit"),
        ({"harvested": 3}, "entries that the VMM found in the ring"),
        ({"backing": "apf"}, "kvm_async_pf_not_present"),
        ({"backing": "ring"}, "kvm_dirty_ring_push"),
    ):
        assert named in [item.what for item in check(trace, facts | wrong) if not item.holds]


def test_types_for_bpftrace_are_btf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is written is BTF as the kernel's own parser here reads it: names at their places, the sizes add up."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    types = importlib.import_module("types_btf")
    data = types.write_btf(tmp_path / "x.btf").read_bytes()
    header, type_off, type_bytes, str_off, str_bytes = struct.unpack_from("<5I", data, 4)
    assert len(data) == header + str_off + str_bytes and str_off == type_bytes and type_off == 0
    strings = data[header + str_off :]
    at, names = header, []
    while at < header + type_bytes:
        name_off, info, _ = struct.unpack_from("<3I", data, at)
        names.append(strings[name_off : strings.index(b"\0", name_off)].decode())
        at += 12 + {1: 4, 6: 8 * (info & 0xFFFF), 8: 0}[info >> 24]
    assert at == header + type_bytes
    assert names == [*types.INTEGERS, *types.TYPEDEFS, *types.ENUMS]


@pytest.mark.live
def test_types_for_bpftrace_cover_the_fields_of_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lacks ends bpftrace in the emulated kernel; pointers and strings need none."""
    events = Path("/sys/kernel/tracing/events")
    if not os.access(events, os.R_OK):
        pytest.skip("needs root: tracefs may not be read")
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    types = importlib.import_module("types_btf")
    known = {*types.INTEGERS, *types.TYPEDEFS, *(f"enum {name}" for name in types.ENUMS)}
    known |= {"char", "signed char", "short"}  # of C itself
    seen = 0
    for probe in PROBES:
        path = events / probe.tracepoint.replace(":", "/") / "format"
        if not path.exists():
            continue
        for kind in re.findall(r"^\tfield:([^;]*?)\s*\w+(?:\[\w*\])?;", path.read_text(), re.MULTILINE):
            seen += 1
            assert kind in known or kind.endswith("*") or kind.startswith("__data_loc"), (probe.tracepoint, kind)
    assert seen > 100


APT_SHOW = """Package: linux-image-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)

Package: linux-image-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)

Package: linux-image-amd64
Version: 6.1.176-1
Depends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)
"""


def test_newest_kernel_of_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    debian = importlib.import_module("debian")
    monkeypatch.setattr(debian, "_run", lambda argv, cwd=None: APT_SHOW)
    monkeypatch.setattr(debian, "_codename", lambda: "bookworm")
    assert debian._newest([], "6.12") == "6.12.95+deb12-amd64"
    assert debian._newest([], "6.1") == "6.1.0-56-amd64"  # not 6.12, and the newest of two
    with pytest.raises(debian.KernelUnavailable, match=r"no 5\.10 kernel for Debian bookworm; on offer: 6\.12"):
        debian._newest([], "5.10")


def test_a_boot_that_hangs_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "kernels")
    boot, debian = importlib.import_module("boot"), importlib.import_module("debian")
    vng = tmp_path / "vng"
    vng.write_text(f"#!/bin/sh\nsleep 300 & echo $! >{tmp_path}/child\necho booting\nwait\n")
    vng.chmod(0o755)
    monkeypatch.setattr(boot, "_path", lambda: f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(boot.BootFailed, match=r"6\.1\.0: not done within 1 s\nbooting"):
        boot.boot(debian.DebianKernel("6.1.0", tmp_path), tmp_path / "script", tmp_path, timeout_s=1)
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process that the boot started is still there")


@pytest.mark.live
@pytest.mark.slow
def test_debian_kernel_under_nested_svm(tmp_path: Path) -> None:
    if why := lacking():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/kernels/run.py", "--kernel", "6.1", "--pages", "503", "--out", tmp_path],
        capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout
    assert "ok  lazy: kvm_page_fault on data pages: 503" in done.stdout
    assert "ok  uffd: joined to the copy of the handler: 503" in done.stdout
    assert "ok  apf: kvm_async_pf_completed: 503" in done.stdout
    assert "ok  ring: kvm_dirty_ring_push: 505" in done.stdout  # two exits with a full ring, a page again after each
    assert "ok  devices: of these to userspace: 23" in done.stdout
    assert "ok  exit: faults handed to the VMM: 503" in done.stdout


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("group", ["faults", "kvm", "sched", "mm", "locks"])
def test_bpftrace_takes_each_group_alone(group: str, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("bpftrace"):
        pytest.skip("needs root and bpftrace")
    done = subprocess.run(
        [sys.executable, "-m", "faultreplay", "record", "-o", tmp_path / "x.trace", "--backend", "bpftrace",
         "--probes", group, "--", "/bin/true"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_bpftrace_never_prints_in_kvm_entry() -> None:
    """Its reader is woken by an interrupt to this CPU: the guest would never run (see docs/hosts.md)."""
    from faultreplay.collect.backends.bpftrace_program import generate
    from faultreplay.collect.backends.probes import PROBES
    from faultreplay.collect.backends.program import Available
    from faultreplay.collect.backends.tracefs import Field, Format
    from faultreplay.collect.targets.targets import Filter

    chosen = []
    for probe in PROBES:
        if probe.tracepoint in ("kvm:kvm_entry", "kvm:kvm_exit"):
            fields = {name: Field(name, 8, 8, False, False) for name in probe.reads}
            chosen.append(Available(probe, Format(probe.tracepoint, fields)))
    text = generate(chosen, ["kvm"], wanted=Filter(), tasks={}, uffds=[])
    bodies = {part.partition(" ")[0]: part for part in text.partition("\nEND")[0].split("tracepoint:")[1:]}
    assert "printf" not in bodies["kvm:kvm_entry"]
    assert bodies["kvm:kvm_exit"].count("printf") == 2
