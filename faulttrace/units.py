"""Durations and sizes as people write them, as integers. The one place that knows the suffixes."""

from __future__ import annotations

import re

from faultreplay.faulttrace.errors import UsageError

_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m|h)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_duration_ns(text: str, *, default_unit: str | None = None) -> int:
    """Integer ns of ``200us``, ``1.5ms``, ``2s``; a bare number needs `default_unit` (or is 0).

    Raises:
        UsageError: not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match:
        unit = match[2] or default_unit
        if unit:
            return round(float(match[1]) * _NS[unit])
        if float(match[1]) == 0:
            return 0
    raise UsageError(f"'{text}' is not a duration: write a number and a unit, as 200us, 1.5ms or 2s")


def parse_size_bytes(text: str) -> int:
    """Integer bytes of ``4096``, ``4K``, ``64M``, ``1GiB`` (powers of 1024).

    Raises:
        UsageError: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{text}' is not a size: write a number and a unit, as 4K, 64M or 1G")
    return round(float(match[1]) * _BYTES[match[2].lower()])


def format_ns(ns: float) -> str:
    """`ns` in the unit that leaves three significant digits: ``4.72 us``, ``1.69 ms``, ``12.3 s``."""
    size = abs(ns)
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if size >= scale * 0.9995:
            return f"{_three_digits(ns / scale)} {unit}"
    return f"{ns:.0f} ns"


def format_bytes(count: float) -> str:
    """`count` bytes in powers of 1024: ``812 B``, ``2.41 MiB``."""
    size = abs(count)
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count:.0f} B"


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
