"""How long BPF programs of a process ran: the kernel counts it while somebody asks for it (Linux 5.8 and later)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
_BPF_ENABLE_STATS: Final = 32
_RUN_TIME: Final = 0


class ProgramTime:
    """The kernel counts the programs' time as long as this is open; it costs each run of a program about 25 ns."""

    def __init__(self) -> None:
        self._fd = -1
        number = _SYSCALL.get(os.uname().machine)
        if number is not None:
            attributes = (ctypes.c_uint32 * 32)(_RUN_TIME)
            self._fd = ctypes.CDLL(None, use_errno=True).syscall(
                number, _BPF_ENABLE_STATS, ctypes.byref(attributes), ctypes.sizeof(ctypes.c_uint32)
            )

    @property
    def counts(self) -> bool:
        """Whether the kernel counts."""
        return self._fd >= 0

    @staticmethod
    def of_process(pid: int) -> tuple[int, int]:
        """Time in ns of all programs that a process holds, and how often they ran."""
        total = {"run_time_ns": 0, "run_cnt": 0}
        seen: set[str] = set()
        for entry in _entries(Path(f"/proc/{pid}/fdinfo")):
            with contextlib.suppress(OSError):
                told = dict(line.split(":\t", 1) for line in entry.read_text().splitlines() if ":\t" in line)
                number = told.get("prog_id", "")
                if "run_time_ns" in told and number not in seen:
                    seen.add(number)
                    for key in total:
                        total[key] += int(told[key])
        return total["run_time_ns"], total["run_cnt"]

    def close(self) -> None:
        """Let the kernel stop counting."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
