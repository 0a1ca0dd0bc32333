"""Who takes the faults of a process from outside: the processes that its userfaultfd was sent to.

A VMM (Firecracker, vhost-user) makes the userfaultfd and sends it over a Unix socket. Where it keeps
its own descriptor, the kernel says which other descriptors are the same file (kcmp). Where it does not, its memory is
registered with a userfaultfd it does not hold; then the handler is who holds one and is the other end of its socket.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from faultreplay.collect.targets import proc

_KCMP: Final = {"x86_64": 312, "aarch64": 272}
_KCMP_FILE: Final = 0
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_UDIAG_SHOW_PEER: Final = 4
_UNIX_DIAG_PEER: Final = 2
_DONE, _ERROR = 3, 2


def handlers_of(tgid: int) -> list[int]:
    """Processes other than `tgid` that may read the messages of its userfaultfds; in order of their ids."""
    held = proc.descriptors(tgid).uffds
    others = {pid: fds for pid in _processes() if pid != tgid and (fds := proc.descriptors(pid).uffds)}
    if not others:
        return []
    if held:
        return sorted(pid for pid, fds in others.items() if any(_same(tgid, fd, pid, fds) for fd in held))
    if not any(entry.uffd for entry in proc.memory_map(tgid, 0)):
        return []
    peers = _peers()
    ends = {peers[inode] for inode in _sockets(tgid) if inode in peers}
    return sorted(pid for pid in others if ends & _sockets(pid))


def _same(tgid: int, fd: int, pid: int, fds: Iterable[int]) -> bool:
    number = _KCMP.get(os.uname().machine)
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return any(libc.syscall(number, tgid, pid, _KCMP_FILE, ctypes.c_ulong(fd), ctypes.c_ulong(o)) == 0 for o in fds)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _sockets(tgid: int) -> set[int]:
    """Inodes of a process's sockets."""
    found = set()
    try:
        entries = list(Path(f"/proc/{tgid}/fd").iterdir())
    except OSError:
        return set()
    for entry in entries:
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def _peers() -> dict[int, int]:
    """Inode of each connected Unix socket -> inode of its other end (this network namespace); empty: not known."""
    request = struct.pack("=BBHIII8s", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW_PEER, b"\xff" * 8)
    head = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    found: dict[int, int] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
            link.settimeout(2)
            link.send(head + request)
            while _take(link.recv(1 << 16), found):
                pass
    except OSError:
        pass
    return found


def _take(data: bytes, found: dict[int, int]) -> bool:
    """One answer's messages; whether more follow."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind in (_DONE, _ERROR) or length < 16:
            return False
        body = data[16:length]
        if len(body) >= 16:
            inode = struct.unpack_from("=I", body, 4)[0]
            at = 16
            while at + 4 <= len(body):
                size, name = struct.unpack_from("=HH", body, at)
                if name == _UNIX_DIAG_PEER and size >= 8:
                    found[inode] = struct.unpack_from("=I", body, at + 4)[0]
                at += max((size + 3) & ~3, 4)
        data = data[(length + 3) & ~3 :]
    return True
