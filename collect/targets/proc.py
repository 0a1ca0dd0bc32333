"""What /proc says of a target: threads, file descriptors, mappings."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.meta import MapEntry, Target, Thread

_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")
_UFFD_FLAGS = {"um": "missing", "ui": "minor", "uw": "wp"}
_PF_KTHREAD = 0x00200000
_VCPU = "anon_inode:kvm-vcpu:"


@dataclass
class Descriptors:
    """The file descriptors of a process that matter here."""

    uffds: list[int] = field(default_factory=list)
    vcpus: dict[int, int] = field(default_factory=dict)  # fd -> vCPU number
    vms: list[int] = field(default_factory=list)
    denied: bool = False  # /proc/PID/fd may not be read: all else is empty


def exists(tgid: int) -> bool:
    """Whether the process is there (and not only a zombie)."""
    try:
        stat = Path(f"/proc/{tgid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def check_pid(pid: int) -> int:
    """The thread group of `pid`.

    Raises:
        FaultreplayError: no such process.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise FaultreplayError(f"no process has the id {pid}: it may have ended; see ps -e") from None
    match = re.search(r"^Tgid:\s*(\d+)", status, re.MULTILINE)
    return int(match[1]) if match else pid


def parent(tgid: int) -> int:
    """The process that a process is a child of; 0: none, or it has ended."""
    try:
        return int(Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def cpu_ns(tgid: int) -> int:
    """CPU time of a process so far; 0: it has ended."""
    try:
        words = Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(words[11]) + int(words[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def thread_ids(tgid: int) -> list[int]:
    """Threads of a process, in order; empty when it ended."""
    try:
        return sorted(int(path.name) for path in Path(f"/proc/{tgid}/task").iterdir())
    except OSError:
        return []


def descriptors(tgid: int) -> Descriptors:
    """The userfaultfds, VM and vCPU file descriptors of a process."""
    found = Descriptors()
    try:
        entries = list(Path(f"/proc/{tgid}/fd").iterdir())
    except FileNotFoundError:
        return found
    except PermissionError:
        found.denied = True
        return found
    for entry in entries:
        try:
            target = str(entry.readlink())
        except PermissionError:
            found.denied = True
            continue
        except OSError:
            continue
        if target.startswith("anon_inode:[userfaultfd]"):
            found.uffds.append(int(entry.name))
        elif target.startswith(_VCPU):
            found.vcpus[int(entry.name)] = int(target.removeprefix(_VCPU).split(":")[0])
        elif target.startswith("anon_inode:kvm-vm"):
            found.vms.append(int(entry.name))
    return found


def describe_target(tgid: int) -> Target:
    """Name, command line and threads of a process as it is now."""
    base = Path(f"/proc/{tgid}")
    try:
        comm = (base / "comm").read_text().strip()
        cmdline = [part.decode(errors="replace") for part in (base / "cmdline").read_bytes().split(b"\0") if part]
    except OSError:
        return Target(tgid)
    threads = []
    for tid in thread_ids(tgid):
        try:
            threads.append(Thread(tid, (base / "task" / str(tid) / "comm").read_text().strip()))
        except OSError:
            continue
    is_vm = bool(descriptors(tgid).vms)
    return Target(tgid, comm, cmdline, role="vm" if is_vm else "", threads=threads)


def mapped_ranges(tgid: int) -> list[tuple[int, int]]:
    """Start and end of every mapping of a process."""
    try:
        lines = Path(f"/proc/{tgid}/maps").read_text().splitlines()
    except OSError:
        return []
    matches = (_HEADER.match(line) for line in lines if not line.endswith("[vsyscall]"))
    return [(int(match[1], 16), int(match[2], 16)) for match in matches if match]


def waiting_read(tgid: int, tid: int) -> tuple[int, int] | None:
    """File descriptor and buffer of the `read` that a thread sleeps in; None: it is elsewhere, or may not be seen."""
    number = {"x86_64": "0", "aarch64": "63"}.get(os.uname().machine)
    try:
        words = Path(f"/proc/{tgid}/task/{tid}/syscall").read_text().split()
    except OSError:
        return None
    if len(words) < 4 or words[0] != number:
        return None
    return int(words[1], 16), int(words[2], 16)


def outsider(tgid: int, tid: int) -> tuple[str, bool] | None:
    """Name of a thread that is none of the process's, and whether it is the kernel's own; None: it is the process's."""
    if Path(f"/proc/{tgid}/task/{tid}").exists():
        return None
    try:
        text = Path(f"/proc/{tid}/stat").read_text()
    except OSError:
        return "", False  # it has ended
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, bool(int(rest.split()[6]) & _PF_KTHREAD)


def memory_map(tgid: int, ts_ns: int) -> list[MapEntry]:
    """The mappings of a process from smaps: page size, userfaultfd registration, name. Never their contents."""
    try:
        lines = Path(f"/proc/{tgid}/smaps").read_text().splitlines()
    except OSError:
        return []
    entries: list[MapEntry] = []
    for line in lines:
        if match := _HEADER.match(line):
            entries.append(MapEntry(ts_ns, tgid, int(match[1], 16), int(match[2], 16), name=match[3], file=_file(line)))
        elif entries and line.startswith("KernelPageSize:"):
            entries[-1].page_bytes = int(line.split()[1]) * 1024
        elif entries and line.startswith("VmFlags:"):
            flags = line.split()[1:]
            entries[-1].uffd = "+".join(name for flag, name in _UFFD_FLAGS.items() if flag in flags)
    return entries


def _file(header: str) -> str:
    """Of a line of maps: how its file is mapped; an inode of 0 is no file."""
    words = header.split()
    if len(words) < 5 or words[4] == "0" or len(words[1]) != 4:
        return ""
    return "private" if words[1].endswith("p") else "shared"
