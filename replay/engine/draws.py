"""Random costs: every draw depends on (seed, fault, attempt, number of the draw) alone, not on the order of events."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from faultreplay.replay.engine.jit import inline
from faultreplay.replay.language.distributions import FINE_BASE, FINE_FROM

_GOLD = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)
_U16, _UMASK = np.uint64(16), np.uint64(0xFFFF)
NO_WORD = -1
"""`drawn`: nothing is remembered."""


@inline
def draw_bits(seed: Any, row: Any, word: Any) -> Any:
    """64 bits that depend on (seed, row, word) alone: splitmix64 as a counter."""
    z = seed + (np.uint64(row) * np.uint64(16) + np.uint64(word)) * _GOLD
    z += np.uint64(z == 0) * _GOLD  # the mix leaves 0 as it is: seed 0's first fault would have the least of every cost
    z = (z ^ (z >> _U30)) * _MIX1
    z = (z ^ (z >> _U27)) * _MIX2
    return z ^ (z >> _U31)


def draw_bits_in_python(seed: Any, row: Any, word: Any) -> Any:
    """As `draw_bits`, without compiling: there numpy warns of each product that is cut to 64 bits, which is meant."""
    gold, mask = int(_GOLD), (1 << 64) - 1
    z = (int(seed) + (int(row) * 16 + int(word)) * gold) & mask
    z = gold if z == 0 else z
    z = ((z ^ (z >> 30)) * int(_MIX1)) & mask
    z = ((z ^ (z >> 27)) * int(_MIX2)) & mask
    return np.uint64(z ^ (z >> 31))


if numba.config.DISABLE_JIT:
    draw_bits = draw_bits_in_python


@inline
def sixteen(bits: Any, draw: Any) -> Any:
    """The 16 of a word's 64 bits that belong to a draw."""
    return np.int64((bits >> (np.uint64(draw & 3) * _U16)) & _UMASK)


@inline
def sample(tables: Any, table: Any, u: Any) -> Any:
    """One draw, ns, from a table of `Distribution.table_ns`, through 16 bits."""
    # steps of 1/256 up to 15/16, of 1/4096 above; written so that no branch is needed
    fine = np.int64(u >= FINE_FROM)
    shift = 8 - 4 * fine
    u -= FINE_FROM * fine
    index = (u >> shift) + FINE_BASE * fine
    rest = u & ((1 << shift) - 1)
    knots = tables[np.uintp(table)]
    at = np.uintp(index)
    low = knots[at]
    return low + (((knots[at + np.uintp(1)] - low) * (2 * rest + 1)) >> (shift + 1))


@inline
def drawn(tables: Any, table: Any, draw: Any, seed: Any, row: Any, word: Any, bits: Any) -> Any:  # noqa: PLR0917
    """(ns, word, bits): one draw from a table; `bits` are those of `word`, and kept where this draw has them too."""
    if (draw >> 2) != word:
        word = draw >> 2
        bits = draw_bits(seed, row, word)
    return sample(tables, table, sixteen(bits, draw)), word, bits
