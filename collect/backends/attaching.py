"""May this user attach to a tracepoint? It is tried, because capabilities alone do not show it.

Debian's 6.1 refuses each attachment to a process that has CAP_BPF and CAP_PERFMON (seen): it knows a
`kernel.perf_event_paranoid` of 3, its default, that the kernels of kernel.org do not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_TYPE_TRACEPOINT = 2
_ATTR_BYTES = 128
_FD_CLOEXEC = 8


def try_tracepoint(events: Path) -> str:
    """Open a perf event on a tracepoint below `events`; the error in words, empty when it opens or cannot be tried."""
    number = _SYSCALL.get(platform.machine())
    try:
        event_id = int((events / "sched/sched_switch/id").read_text())
    except (OSError, ValueError):
        return ""
    if number is None:
        return ""
    # struct perf_event_attr: type, size, config; sample_period 1 and PERF_SAMPLE_RAW as who attaches a program asks for
    attr = struct.pack("<IIQQQ", _TYPE_TRACEPOINT, _ATTR_BYTES, event_id, 1, 1 << 10).ljust(_ATTR_BYTES, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, ctypes.c_char_p(attr), -1, 0, -1, ctypes.c_ulong(_FD_CLOEXEC)))
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    os.close(fd)
    return ""
