"""The engine's random bits: the same compiled and in Python's integers, which stand in where nothing is compiled."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from faultreplay.replay.engine.draws import draw_bits, draw_bits_in_python


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 62) - 1), st.integers(0, 15))
def test_both_ways_give_the_same_bits(seed: int, row: int, word: int) -> None:
    there = draw_bits(np.uint64(seed), np.int64(row), np.int64(word))
    assert int(there) == int(draw_bits_in_python(np.uint64(seed), np.int64(row), np.int64(word)))


def test_the_first_fault_of_seed_0_is_mixed_too() -> None:
    assert int(draw_bits_in_python(np.uint64(0), np.int64(0), np.int64(0))) != 0
