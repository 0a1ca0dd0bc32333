"""Giving away what recording needs no more once the probes are attached.

What stays: looking at the targets' memory maps and descriptors (CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH), ending a command
or bpftrace (CAP_KILL, where there is one), and CAP_BPF where this kernel asks for it for each look at a map. Loading
programs, attaching, tracing and mounting are over. Under sudo the process becomes the user who called it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from faultreplay.collect.backends.backend import Backend
from faultreplay.collect.recorder.drain import DRAIN_NICE

_CAPABILITIES: Final = {"CAP_DAC_READ_SEARCH": 2, "CAP_KILL": 5, "CAP_SYS_PTRACE": 19, "CAP_BPF": 39}
_VERSION_3: Final = 0x20080522
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_LOOK: Final = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Words(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def caller() -> tuple[int, int] | None:
    """User and group who called sudo; None: no sudo, or root."""
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (user.isdigit() and group.isdigit()) or int(user) == 0:
        return None
    return int(user), int(group)


def give_trace(path: Path) -> None:
    """The trace at `path`, made so far, belongs to who called sudo."""
    if (who := caller()) is None:
        return
    for entry in (path, *path.rglob("*")):
        os.chown(entry, *who, follow_symlinks=False)


def drop(maps_work: Callable[[], bool], *, kills: bool) -> str:
    """Give away all but what stays, in this thread and in those it starts; a line about it.

    Args:
        maps_work: whether a look at a BPF map succeeds; asked without CAP_BPF.
        kills: whether another user's process will have to be ended.

    Raises:
        OSError: the kernel refuses; nothing is as it was.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    have = _held()
    stays = [name for name in (*_LOOK, *(("CAP_KILL",) if kills else ())) if have >> _CAPABILITIES[name] & 1]
    who = caller()
    if who is not None:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(who[1], who[1], who[1])
        os.setresuid(who[0], who[0], who[0])
    bpf = ["CAP_BPF"] if have >> _CAPABILITIES["CAP_BPF"] & 1 else []
    _set(libc, stays, [*stays, *bpf])
    if bpf and not maps_work():
        stays += bpf
    _set(libc, stays, stays)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    whose = f"user {who[0]}, " if who is not None else ""
    return f"{whose}{', '.join(stays) or 'no capability'}"


def drop_after_attaching(backend: Backend, trace: Path, *, command: bool) -> str:
    """The trace so far becomes the caller's; what recording needs no more is given away. A line about what is left."""
    give_trace(trace)
    with contextlib.suppress(OSError):  # the draining thread inherits it; then it could not take it
        os.setpriority(os.PRIO_PROCESS, 0, DRAIN_NICE)
    maps_work = getattr(backend, "maps_work", lambda: True)
    return drop(maps_work, kills=command or backend.name == "bpftrace")


def _held() -> int:
    match = re.search(r"^CapPrm:\s*([0-9a-f]+)", Path("/proc/thread-self/status").read_text(), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _set(libc: ctypes.CDLL, effective: Iterable[str], permitted: Iterable[str]) -> None:
    words = (_Words * 2)()
    for field, names in (("effective", effective), ("permitted", permitted)):
        mask = sum(1 << _CAPABILITIES[name] for name in names)
        for half in (0, 1):
            setattr(words[half], field, mask >> 32 * half & 0xFFFFFFFF)
    if libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")
