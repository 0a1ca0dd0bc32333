"""Really open a userfaultfd, in both ways there are, and ask what it can do."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SYSCALL: Final = {"x86_64": 323, "aarch64": 282}
_UFFD_API: Final = 0xAA
_UFFDIO_API: Final = 0xC018AA3F
_USERFAULTFD_IOC_NEW: Final = 0x0000AA00
_FEATURES: Final = (
    "pagefault-flag-wp", "event-fork", "event-remap", "event-remove", "missing-hugetlbfs", "missing-shmem",
    "event-unmap", "sigbus", "thread-id", "minor-hugetlbfs", "minor-shmem", "exact-address", "wp-hugetlbfs-shmem",
    "wp-unpopulated", "poison", "wp-async", "move",
)  # fmt: skip


@dataclass(frozen=True)
class UffdTrial:
    """`how`: ``system call`` or ``/dev/userfaultfd``; empty when both failed, then `error` is an errno name."""

    how: str = ""
    features: tuple[str, ...] = ()
    error: str = ""


def try_userfaultfd(root: Path) -> UffdTrial:
    """Open one that handles kernel-mode faults too (no UFFD_USER_MODE_ONLY), as a VMM must; then close it."""
    failed = ""
    for how, opener in (("system call", _by_syscall), ("/dev/userfaultfd", lambda: _by_device(root))):
        try:
            fd = opener()
        except OSError as error:
            # Of two refusals the one that is not "no such thing" says more.
            if not failed or failed in ("ENOENT", "ENOSYS"):
                failed = errno.errorcode.get(error.errno or 0, str(error))
            continue
        try:
            answer = bytearray(struct.pack("=QQQ", _UFFD_API, 0, 0))
            fcntl.ioctl(fd, _UFFDIO_API, answer)
        except OSError as error:
            failed = errno.errorcode.get(error.errno or 0, str(error))
            continue
        finally:
            os.close(fd)
        return UffdTrial(how, feature_names(struct.unpack("=QQQ", answer)[1]))
    return UffdTrial(error=failed)


def feature_names(bits: int) -> tuple[str, ...]:
    """Names of UFFD_FEATURE_* bits; what is newer than this list as a number."""
    known = tuple(name for bit, name in enumerate(_FEATURES) if bits >> bit & 1)
    rest = bits >> len(_FEATURES) << len(_FEATURES)
    return (*known, hex(rest)) if rest else known


def _by_syscall() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "unknown machine")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd


def _by_device(root: Path) -> int:
    device = os.open(root / "dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)
