"""What the loop did, step by step, for one who asks: an array that it fills where it is given one.

Where it is given none, no trace of it is in the compiled loop. Entry 0 is the head, entries from 1 on are operations in
the order in which they were begun.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.replay.engine.jit import part
from faultreplay.replay.engine.layout import SPENT_COLUMNS

# ---- the head
J_COUNT: Final = 0  # operations, also those that found no room
J_FROM: Final = 1  # only those at this time or later, ns
J_UNTIL: Final = 2  # and not after this
J_LAST: Final = 3  # entry of the operation that was begun last; 0: it has none
J_SPENT: Final = 5  # what `spent` held for it then

# ---- an entry
E_SLOT: Final = 0
E_PC: Final = 1
E_AT: Final = 2  # the slot's clock when it was begun
E_ROW: Final = 3  # -1: a fault that is assumed
E_WHO: Final = 4  # accessor
E_SPENT: Final = 5  # what it added to `spent`, see `program.Share`
COLUMNS: Final = 5 + SPENT_COLUMNS


def new_journal(entries: int, from_ns: int, until_ns: int) -> npt.NDArray[np.int64]:
    """int64[entries + 1, COLUMNS]: an empty one."""
    log = np.zeros((entries + 1, COLUMNS), np.int64)
    log[0, J_FROM], log[0, J_UNTIL] = from_ns, until_ns
    return log


def begin_anew(log: npt.NDArray[np.int64]) -> None:
    """Forget what was entered: the run begins again."""
    log[0, J_COUNT] = log[0, J_LAST] = 0


@part
def note(log: Any, spent: Any, slot: Any, pc: Any, t: Any, row: Any, who: Any) -> None:  # noqa: PLR0917
    """The operation at `pc` begins: books what the one before it spent, and enters this one."""
    last = log[0, J_LAST]
    if last > 0:
        for column in range(SPENT_COLUMNS):
            log[last, E_SPENT + column] = spent[log[last, E_PC], column] - log[0, J_SPENT + column]
    log[0, J_LAST] = 0
    if t < log[0, J_FROM] or t > log[0, J_UNTIL]:
        return
    log[0, J_COUNT] += 1
    place = log[0, J_COUNT]
    if place >= log.shape[0]:
        return
    log[place, E_SLOT] = slot
    log[place, E_PC] = pc
    log[place, E_AT] = t
    log[place, E_ROW] = row
    log[place, E_WHO] = who
    log[0, J_LAST] = place
    for column in range(SPENT_COLUMNS):
        log[0, J_SPENT + column] = spent[pc, column]


def entries_of(log: npt.NDArray[np.int64], spent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """int64[n, COLUMNS]: the entries, the last one booked as well; None: some found no room."""
    count, last = int(log[0, J_COUNT]), int(log[0, J_LAST])
    if count >= len(log):
        return None
    if last > 0:
        log[last, E_SPENT:] = spent[log[last, E_PC]] - log[0, J_SPENT:]
    return log[1 : count + 1]
