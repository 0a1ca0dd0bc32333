"""Targets: VMs found by their VMM's command line, cgroups, and on this kernel VMs that appear while recording."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recording_host import LACKING

from faultreplay.collect.recorder.run import record
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.collect.targets.targets import Vm, cgroup_path, find_vms, select_vms, vm_identity
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import open_trace

UUID = "6e1c6b4e-3c7d-4e58-9d8e-0e5a7a0c1f11"


@pytest.mark.parametrize(
    ("cmdline", "identity"),
    [
        (f"/usr/bin/qemu-system-x86_64 -name guest=db1,debug-threads=on -uuid {UUID}", ("db1", UUID)),
        ("qemu-kvm -name web,process=x -m 512", ("web", "")),
        ("/usr/libexec/qemu-kvm -m 512", ("", "")),
        ("/srv/firecracker --id vm-7 --api-sock /run/f.sock", ("vm-7", "")),
        ("firecracker --id=vm-8", ("vm-8", "")),
        (f"cloud-hypervisor --api-socket path=/run/ch/blue.sock --platform x=1,uuid={UUID}", ("blue", UUID)),
        ("crosvm run --name arc --mem 4096", ("arc", "")),
        ("crosvm run -s /run/arcvm.sock", ("arcvm", "")),
        ("kvmtool run", ("", "")),
        ("", ("", "")),
    ],
)
def test_identity_of_a_vm(cmdline: str, identity: tuple[str, str]) -> None:
    assert vm_identity(cmdline.split()) == identity


VMS = [Vm(10, "qemu", "db1", UUID), Vm(11, "qemu", "web", ""), Vm(12, "firecracker", "web", "")]


def test_vms_are_chosen_by_name_or_uuid() -> None:
    assert select_vms(["db1"], VMS) == select_vms([UUID.upper()], VMS) == [10]


def test_an_unknown_vm_is_said_with_those_that_run() -> None:
    with pytest.raises(FaultreplayError, match=r"no VM has this name .*db1 \(qemu, pid 10\)"):
        select_vms(["db2"], VMS)
    with pytest.raises(FaultreplayError, match="running VMs: none"):
        select_vms(["db2"], [])


def test_an_ambiguous_name_is_refused() -> None:
    with pytest.raises(FaultreplayError, match=r"2 VMs .* use -p PID"):
        select_vms(["web"], VMS)


def test_cgroup_is_found_below_the_mount_or_as_a_directory(tmp_path: Path) -> None:
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("")
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    assert cgroup_path("/a/b", mounts) == cgroup_path("a/b", mounts) == cgroup_path(str(group), mounts) == group
    with pytest.raises(UsageError, match="no such cgroup"):
        cgroup_path("a/c", mounts)
    with pytest.raises(UsageError, match="version 2"):
        cgroup_path("a/b", "cgroup /x cgroup rw 0 0\n")


live = [
    pytest.mark.live,
    pytest.mark.skipif(bool(LACKING), reason=LACKING),
]
kvm = [*live, pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="needs /dev/kvm")]


def _live(marks: list[pytest.MarkDecorator]) -> object:
    def apply(function: object) -> object:
        for mark in marks:
            function = mark(function)  # type: ignore[operator]
        return function

    return apply


@_live(kvm)
def test_a_vm_that_starts_later_is_recorded_by_all_vms(tmp_path: Path) -> None:
    guest = [sys.executable, "-m", "faultreplay", "lab", "run", "--no-record", "--pages", "211", "--fetch", "0us"]
    started: list[subprocess.Popen[bytes]] = []

    def ended() -> bool:
        if not started:
            started.append(subprocess.Popen(guest, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[0].poll() is not None

    record(RecordSpec(all_vms=True), tmp_path / "a.trace", ended)
    assert started[0].returncode == 0
    trace = open_trace(tmp_path / "a.trace")
    messages = trace.events([Kind.UFFD_MSG])
    counts = dict(messages.group_by("tgid").len().iter_rows())
    (tgid,) = [tgid for tgid, count in counts.items() if count == 211]  # other VMs may run on this host too
    runs = trace.events([Kind.KVM_RUN_ENTER], tgid=tgid)
    assert runs["vcpu"].unique().to_list() == [0]
    (vm,) = [target for target in trace.meta.targets if target.tgid == tgid]
    assert vm.role == "vm"
    assert trace.events([Kind.KVM_SET_MEMSLOT], tgid=tgid).height >= 1
    address = messages.filter(messages["tgid"] == tgid)["addr"][0]
    assert any(slot.hva <= address < slot.hva + slot.size_bytes for slot in vm.memslots)


@_live(kvm)
def test_a_vm_is_found_by_the_name_its_vmm_was_given(tmp_path: Path) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("needs qemu-system-x86_64")
    options = ["-S", "-accel", "kvm", "-display", "none", "-nodefaults", "-name", "guest=faultreplay-test"]
    process = subprocess.Popen([qemu, *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not any(vm.tgid == process.pid for vm in find_vms()):
            assert process.poll() is None, "qemu ended early"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        spec = RecordSpec(vms=("faultreplay-test",), duration_ns=300_000_000)
        record(spec, tmp_path / "a.trace", threading.Event())
    finally:
        process.kill()
        process.wait()
    (target,) = open_trace(tmp_path / "a.trace").meta.targets
    assert (target.tgid, target.role, target.name) == (process.pid, "vm", "faultreplay-test")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    lines = Path("/proc/mounts").read_text().splitlines()
    roots = [line.split()[1] for line in lines if line.split()[2] == "cgroup2"]
    if not roots:
        pytest.skip("needs a mounted cgroup2")
    path = Path(roots[0]) / f"faultreplay-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


@_live(live)
def test_a_cgroup_is_followed_with_whoever_enters_it(tmp_path: Path, cgroup: Path) -> None:
    below = cgroup / "below"
    below.mkdir()
    inside = f"echo $$ > {below}/cgroup.procs; exec /bin/true"
    done = threading.Event()

    def workload() -> bool:
        if not done.is_set():
            subprocess.run(["/bin/true"], check=True)
            subprocess.run(["/bin/sh", "-c", inside], check=True)
            done.set()
        return done.is_set()

    record(RecordSpec(cgroup=cgroup.name, groups=("mm",)), tmp_path / "a.trace", workload)
    below.rmdir()
    trace = open_trace(tmp_path / "a.trace")
    assert trace.events()["tgid"].n_unique() == 1
    assert trace.events([Kind.PROCESS_EXEC]).height == 1
