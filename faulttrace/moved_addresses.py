"""Move addresses so that the original ones are hidden and neighbours stay neighbours."""

from __future__ import annotations

import secrets
from typing import Final

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
GIANT_PAGE: Final = 1 << 30
_TOP_HALF: Final = 1 << 63


class Addresses:
    """Moves each range of nearby addresses by its own random amount.

    Args:
        pages: all addresses that occur, of all address spaces.
        granule: bytes; each amount is a multiple of it.
    """

    def __init__(self, pages: U64, granule: int) -> None:
        starts = np.unique(pages // np.uint64(granule))
        first = np.append(True, np.diff(starts) > np.uint64(GIANT_PAGE // granule))[: len(starts)]
        low = starts[first].astype(object)
        high = starts[np.append(first[1:], True)[: len(starts)]].astype(object)
        self._granule = granule
        self._low = np.array([int(x) * granule for x in low], np.uint64)
        lengths = [int(b) - int(a) + 1 for a, b in zip(low, high, strict=True)]
        self._moved = np.zeros(len(lengths), np.uint64)
        order = list(range(len(lengths)))
        secrets.SystemRandom().shuffle(order)
        at = {False: 1 + secrets.randbelow(GIANT_PAGE // granule * 64), True: _TOP_HALF // granule + 1}
        for i in order:  # kernel addresses stay in the upper half: readers may check for it
            half = int(self._low[i]) >= _TOP_HALF
            at[half] += GIANT_PAGE // granule + secrets.randbelow(GIANT_PAGE // granule * 16)
            self._moved[i] = at[half] * granule
            at[half] += lengths[i]

    def of(self, addresses: U64) -> U64:
        """The new addresses; each old one must be within a range."""
        if not len(addresses):
            return addresses
        at = np.searchsorted(self._low, addresses, "right") - 1
        return self._moved[at] + (addresses - self._low[at])

    def one(self, address: int) -> int:
        """The new address of one old one."""
        return int(self.of(np.array([address], np.uint64))[0])
