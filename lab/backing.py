"""Host memory that a run will be given, touched once before it: on a host that is itself a guest, that counts."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Final

from faultreplay.lab.spec import PAGE_BYTES

_MOST_BYTES: Final = 1 << 30
_ALSO_TAKEN_BYTES: Final = 64 << 20
"""what recording a run takes of the same free pages"""


def back_free_memory(data_bytes: int) -> None:
    """Touch and free memory on each CPU, so that a run that places `data_bytes` gets pages that were used before.

    The kernel keeps the pages that a CPU freed for that CPU: touching on one would leave the others without. At most
    1 GiB, and a quarter of what is free.
    """
    cpus = sorted(os.sched_getaffinity(0))
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * PAGE_BYTES
    share = min(data_bytes + _ALSO_TAKEN_BYTES, min(_MOST_BYTES, free_bytes // 4) // len(cpus))
    pages = share // PAGE_BYTES
    if not pages:
        return
    held: list[mmap.mmap] = []
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            with contextlib.suppress(OSError):  # a limit on address space: then without
                held.append(_touched(pages))
        for cpu, memory in zip(cpus, held, strict=False):
            os.sched_setaffinity(0, {cpu})
            memory.close()
    finally:
        os.sched_setaffinity(0, cpus)


def _touched(pages: int) -> mmap.mmap:
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # single pages, as the run's
    memory[::PAGE_BYTES] = b"\1" * pages
    return memory
