"""A replay that is followed: its rows, and what the loop did for some stretch of time, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Unpack

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Options, prepared
from faultreplay.replay.engine.journal import COLUMNS, entries_of, new_journal
from faultreplay.replay.engine.result import Result
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Program
from faultreplay.replay.workload.workload import Ints, Workload

FIRST_ENTRIES: Final = 1 << 16
MOST_ENTRIES: Final = 1 << 25
"""2.4 GB of them."""


@dataclass(frozen=True)
class Followed:
    """A replay and its journal."""

    result: Result
    """as of `simulate`"""
    entries: Ints
    """int64[n, journal.COLUMNS], in the order in which operations were begun"""
    program: Program
    granule: npt.NDArray[np.int32]
    """int32[F], or empty: which of the granules that several touch; -1: of a fault that looks at none"""
    shard: npt.NDArray[np.int32]
    """int32[F], or [1] where there is one shard"""
    from_ns: int
    """nothing is known of what was begun before"""


def follow(
    workload: Workload,
    mechanism: Mechanism,
    costs: Mapping[str, Cost],
    span_ns: tuple[int, int],
    **options: Unpack[Options],
) -> Followed:
    """As `simulate`, and what the loop did from the first to the last of `span_ns`, both included.

    Raises:
        UsageError: as `simulate`; or the stretch holds more than 33 million operations.
    """
    run, rules, warnings = prepared(workload, mechanism, costs, options)
    room = FIRST_ENTRIES
    while True:
        run.log = new_journal(room, *span_ns)
        run.execute()
        entries = entries_of(run.log, run.out.spent)
        if entries is not None:
            break
        room = int(run.log[0, 0])
        if room > MOST_ENTRIES:
            raise UsageError(f"{room:,} operations are more than can be followed: choose a shorter stretch of time")
    assert entries.shape[1] == COLUMNS
    return Followed(
        result=run.result(rules, warnings),
        entries=entries,
        program=run.program,
        granule=run.faults.granule,
        shard=run.faults.shard,
        from_ns=span_ns[0],
    )
