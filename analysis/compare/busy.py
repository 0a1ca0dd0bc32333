"""Whether other processes held the CPUs while a trace was recorded: that load is in its stalls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import polars as pl

TOLD_FROM: Final = 0.1
"""Share of the stall from which on it is reported and included in intervals."""
MOST_SHARE: Final = 0.9
WORSE: Final = 3.0
"""In another run the waits may be absent, or longer by this factor."""


def others_share(faults: pl.DataFrame) -> float:
    """Share of all stall in which a woken accessor or handler waited for a CPU that a thread of neither kind had.

    `faults` has the columns of `FAULTS`; 0 where scheduling was not recorded.
    """
    import polars as pl

    total = faults["stall_ns"].sum()
    if not total:
        return 0.0
    own = pl.concat([faults["tid"], faults["handler_tid"].fill_null(0)]).unique().implode()
    waited = 0
    columns = (("read_after_tid", "queue_ns", "read_run_ns"), ("wake_after_tid", "wake_ns", "wake_run_ns"))
    for after, wait, ran in columns:
        foreign = (pl.col(after) > 0) & ~pl.col(after).is_in(own)
        spent = pl.col(wait).fill_null(0) - pl.col(ran).fill_null(0)
        waited += int(faults.filter(foreign).select(spent.clip(lower_bound=0).sum()).item() or 0)
    return min(waited / int(total), MOST_SHARE)
