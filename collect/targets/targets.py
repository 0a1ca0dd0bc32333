"""Finding what to record: VMs by name or UUID, all VMs, the processes of a cgroup."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from faultreplay.collect.targets import proc
from faultreplay.faulttrace.errors import FaultreplayError, UsageError


@dataclass(frozen=True)
class Filter:
    """Which processes become targets beyond those named one by one.

    Attributes:
        all_vms: every process that creates a VM or calls KVM_RUN.
        cgroup: every process that runs in this cgroup (v2) or below it.
    """

    all_vms: bool = False
    cgroup: Path | None = None


NAMED_ONLY = Filter()
"""No process becomes a target by itself."""


@dataclass(frozen=True)
class Vm:
    """A process that holds KVM VM file descriptors."""

    tgid: int
    comm: str
    name: str
    uuid: str

    @property
    def label(self) -> str:
        """For messages: `db1 (qemu-system-x86, pid 812)`."""
        return f"{self.name or self.uuid or 'unnamed'} ({self.comm}, pid {self.tgid})"


def find_vms() -> list[Vm]:
    """All VMs of this host, by process id."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        tgid = int(entry.name)
        try:
            if proc.descriptors(tgid).vms:
                target = proc.describe_target(tgid)
                found.append(Vm(tgid, target.comm, *vm_identity(target.cmdline)))
        except OSError:
            continue
    return sorted(found, key=lambda vm: vm.tgid)


def select_vms(wanted: Iterable[str], vms: list[Vm]) -> list[int]:
    """The processes of the VMs with these names or UUIDs.

    Raises:
        FaultreplayError: none or several have the name; the message lists what there is.
    """
    chosen = []
    for text in wanted:
        matching = [vm for vm in vms if text == vm.name or text.lower() == vm.uuid.lower()]
        if len(matching) == 1:
            chosen.append(matching[0].tgid)
            continue
        if matching:
            raise FaultreplayError(
                f"--vm {text}: {len(matching)} VMs have this name: {', '.join(vm.label for vm in matching)}: use -p PID"
            )
        here = ", ".join(vm.label for vm in vms) or "none"
        raise FaultreplayError(f"--vm {text}: no VM has this name or UUID; running VMs: {here}")
    return chosen


def vm_identity(cmdline: list[str]) -> tuple[str, str]:
    """Name and UUID as the VMM's command line gives them; empty where it does not.

    QEMU: ``-name [guest=]NAME,...`` and ``-uuid``. Firecracker and its jailer: ``--id``. Cloud Hypervisor:
    ``--platform uuid=``, and the name of its ``--api-socket``. crosvm: ``--name``, else the name of its ``--socket``.
    """
    program = Path(cmdline[0]).name if cmdline else ""
    options = _options(cmdline[1:])
    uuid = options.get("uuid", "")
    name = options.get("name", "")
    if "qemu" in program or "kvm" in program:
        parts = [part for part in name.split(",") if part]
        name = next((part.removeprefix("guest=") for part in parts if part.startswith("guest=")), "")
        name = name or next((part for part in parts if "=" not in part), "")
    elif "firecracker" in program or "jailer" in program:
        name = options.get("id", "")
    elif "cloud-hypervisor" in program:
        match = re.search(r"(?:^|,)uuid=([^,]+)", options.get("platform", ""))
        uuid = match[1] if match else ""
        name = name or _socket_name(options.get("api-socket", ""))
    elif "crosvm" in program:
        name = name or _socket_name(options.get("socket", "") or options.get("s", ""))
    return name, uuid


def cgroup_path(text: str, mounts: str | None = None) -> Path:
    """The directory of a cgroup (v2), given as a path below its root or as a directory.

    Raises:
        UsageError: no such cgroup, or it is of version 1, which the kernel cannot filter by.
    """
    lines = (Path("/proc/mounts").read_text() if mounts is None else mounts).splitlines()
    roots = [Path(line.split()[1]) for line in lines if line.split()[2] == "cgroup2"]
    if not roots:
        raise UsageError(f"--cgroup {text}: no cgroup2 file system is mounted; only version 2 can be filtered by")
    for root in roots:
        for path in (root / text.lstrip("/"), Path(text)):
            if (path / "cgroup.procs").is_file() and path.is_relative_to(root):
                return path
    raise UsageError(f"--cgroup {text}: no such cgroup below {roots[0]}")


def cgroup_members(path: Path) -> list[int]:
    """The processes of a cgroup and of those below it, now."""
    members: set[int] = set()
    for directory, _, files in os.walk(path):
        if "cgroup.procs" in files:
            members.update(int(line) for line in (Path(directory) / "cgroup.procs").read_text().split())
    return sorted(members - {0})


def _options(arguments: list[str]) -> dict[str, str]:
    """`-name x --id=y` as {name: x, id: y}; the first of each wins."""
    options: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        key, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
        options.setdefault(key, value)
    return options


def _socket_name(path: str) -> str:
    return Path(path.removeprefix("path=")).name.removesuffix(".sock").removesuffix(".socket") if path else ""
