"""Durations and sizes with suffixes, as integers. The only place that defines the suffixes."""

from __future__ import annotations

import re
from typing import Final

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
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m|h)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_RATE = re.compile(
    r"(?P<bits>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmMgGtT]?)(?:bit|bps|b)(?:/s)?"
    r"|(?P<bytes>\d+(?:\.\d+)?)\s*(?P<unit>[kKmMgGtT]?)i?B/s",
    re.ASCII,
)

LONGEST_NS: Final = 10**15
"""The longest time allowed (11 days): sums over millions of such times still fit in 64 bits."""
MOST_BYTES: Final = 1 << 60
"""The largest size, and the highest rate in bytes/s, allowed."""


def parse_duration_ns(text: str, *, default_unit: str | None = None) -> int:
    """Integer ns of ``200us``, ``1.5ms``, ``2s``; a bare number needs `default_unit` (or is 0).

    Raises:
        UsageError: not a duration, longer than `LONGEST_NS`, or so short that it would be rounded to 0.
    """
    match = _DURATION.fullmatch(text.strip())
    if match:
        unit = match[2] or default_unit
        if unit:
            return _whole(text.strip(), float(match[1]) * _NS[unit], LONGEST_NS, "ns", "1e15 ns (11 days)")
        if float(match[1]) == 0:
            return 0
    raise UsageError(f"'{_short(text)}' is not a duration: write a number and a unit, as 200us, 1.5ms or 2s")


def parse_size_bytes(text: str) -> int:
    """Integer bytes of ``4096``, ``4K``, ``64M``, ``1GiB`` (powers of 1024).

    Raises:
        UsageError: not a size, larger than `MOST_BYTES`, or so small that it would be rounded to 0.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{_short(text)}' is not a size: write a number and a unit, as 4K, 64M or 1G")
    return _whole(text.strip(), float(match[1]) * _BYTES[match[2].lower()], MOST_BYTES, "byte", f"{MOST_BYTES >> 40}T")


def parse_rate_bytes(text: str) -> int:
    """Integer bytes/s of ``10Gbit``, ``800Mbit/s`` (powers of 1000) or ``1.2GB/s``, ``512MiB/s`` (powers of 1024).

    Raises:
        UsageError: not a rate, or one of 0.
    """
    match = _RATE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"'{_short(text)}' is not a rate: write bits or bytes a second, as 10Gbit or 1.2GB/s")
    if match["bits"]:
        value = float(match["bits"]) * 1000 ** " kmgt".index(match["prefix"].lower() or " ") / 8
    else:
        value = float(match["bytes"]) * _BYTES[match["unit"].lower()]
    rate = _whole(text.strip(), value, MOST_BYTES, "byte", f"{MOST_BYTES >> 40}T")
    if rate == 0:
        raise UsageError(f"'{_short(text)}': a link needs a bandwidth above 0")
    return rate


def _whole(text: str, value: float, most: int, unit: str, most_text: str) -> int:
    """`value` rounded. Refused: more than `most`, or so little that it would become 0, which often means "no limit"."""
    if not value <= most:
        raise UsageError(f"'{_short(text)}' is more than {most_text}, the limit")
    if 0 < value < 1:
        raise UsageError(f"'{_short(text)}' is less than 1 {unit}, the least there is: write 0 or a whole number")
    return round(value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


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
