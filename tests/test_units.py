"""Durations and sizes as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import (
    LONGEST_NS,
    MOST_BYTES,
    format_bytes,
    format_ns,
    parse_duration_ns,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [("200us", 200_000), ("1.5ms", 1_500_000), ("2s", 2 * 10**9), ("0", 0), ("7ns", 7), ("1 m", 60 * 10**9)],
)
def test_duration(text: str, ns: int) -> None:
    assert parse_duration_ns(text) == ns


@pytest.mark.parametrize("text", ["", "5", "us", "-3us", "1e3us", "5 parsecs", "0x10s"])
def test_bad_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration_ns(text)


@pytest.mark.parametrize(("text", "count"), [("4096", 4096), ("4K", 4096), ("64MiB", 64 << 20), ("1.5g", 3 << 29)])
def test_size(text: str, count: int) -> None:
    assert parse_size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "-1", "4X", "K"])
def test_bad_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (4720, "4.72 us"),
        (39_040, "39.0 us"),
        (1_692_000, "1.69 ms"),
        (999_999, "1.00 ms"),
    ],
)
def test_format_ns(ns: int, text: str) -> None:
    assert format_ns(ns) == text


@given(st.integers(1, 10**14))
def test_format_ns_keeps_three_digits(ns: int) -> None:
    number, unit = format_ns(ns).split()
    assert abs(parse_duration_ns(number + unit) - ns) <= max(ns * 0.0051, 0.5)


def test_format_bytes() -> None:
    assert format_bytes(812) == "812 B"
    assert format_bytes(2.5 * (1 << 20)) == "2.50 MiB"


@pytest.mark.parametrize("text", ["1000001s", "278h", "9" * 400 + "s"])
def test_times_that_64_bits_cannot_add_up_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the limit"):
        parse_duration_ns(text)
    assert parse_duration_ns("1000000s") == LONGEST_NS


@pytest.mark.parametrize("text", ["2097153T", "9" * 400])
def test_sizes_that_64_bits_cannot_add_up_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the limit"):
        parse_size_bytes(text)
    assert parse_size_bytes("1048576T") == MOST_BYTES


@pytest.mark.parametrize("parse", [parse_duration_ns, parse_size_bytes])
def test_what_would_be_rounded_to_the_special_0_is_refused(parse: Callable[[str], int]) -> None:
    with pytest.raises(UsageError, match="the least there is"):
        parse("0.4ns" if parse is parse_duration_ns else "0.5")
    assert parse("0") == 0
