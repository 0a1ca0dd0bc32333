"""Upper limits for what a trace may claim: memory, counts, times, numbers of threads and CPUs.

A damaged file can claim anything. Each claim is checked against these limits before memory is allocated.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.units import LONGEST_NS, format_bytes, parse_size_bytes

if TYPE_CHECKING:
    import pyarrow as pa

MEMORY_VARIABLE: Final = "FAULTREPLAY_MEMORY"
"""Environment variable: memory that reading a trace may use, such as 64G. Default: that of the machine or cgroup."""

MAX_TIME_NS: Final = 10**18
"""The latest time in a trace: 31 years since boot."""
MAX_SPAN_NS: Final = LONGEST_NS
"""The longest interval between the first and the last time of one trace."""
MAX_AT_ONCE: Final = 1 << 16
"""Most events with the same timestamp: one CPU can record only a few."""
MAX_PART_NUMBER: Final = 10**9
MAX_TID: Final = (1 << 31) - 1
MAX_CPUS: Final = 1 << 16
MAX_VCPUS: Final = 1 << 16
MAX_WINDOWS: Final = 10_000
MAX_TARGETS: Final = 100_000
MAX_THREADS: Final = 1_000_000

_COPIES: Final = 3
"""Copies of a table of events that are in memory at the same time while it is read, joined and sorted."""
_STRING_BYTES: Final = 16


def check_memory(what: str, rows: int, schema: pa.Schema) -> None:
    """Check that `rows` rows of `schema` fit in memory.

    Raises:
        IncompleteData: they need more than this machine has, or than the environment allows.
    """
    needed = rows * row_bytes(schema) * _COPIES
    allowed, why = allowed_bytes()
    if needed > allowed:
        raise IncompleteData(
            f"{what}: {rows} rows need about {format_bytes(needed)} of memory, {why}: "
            f"damaged, or take a larger machine; {MEMORY_VARIABLE}=64G allows more"
        )


def at_once(what: object, ts_ns: int) -> IncompleteData:
    """The error for more than `MAX_AT_ONCE` events with one timestamp: they cannot be processed in pieces."""
    return IncompleteData(f"{what}: more than {MAX_AT_ONCE} events at {ts_ns} ns, one instant: damaged")


def row_bytes(schema: pa.Schema) -> int:
    """Bytes in memory of one row."""
    import pyarrow as pa

    return sum(_STRING_BYTES if pa.types.is_string(f.type) else max(f.type.bit_width // 8, 1) for f in schema)


def allowed_bytes() -> tuple[int, str]:
    """The memory that reading a trace may use, in bytes, and where that limit comes from.

    Raises:
        UsageError: the environment variable is not a size.
    """
    if text := os.environ.get(MEMORY_VARIABLE, ""):
        try:
            return parse_size_bytes(text), f"{MEMORY_VARIABLE} allows {text}"
        except UsageError as error:
            raise UsageError(f"{MEMORY_VARIABLE}: {error}") from None
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2 here, or "max"
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there, f"this machine has {format_bytes(there)}"
