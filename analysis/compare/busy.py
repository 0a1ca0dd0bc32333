"""Whether other processes held the CPUs while a trace was recorded: that load is in its stalls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl

TOLD_FROM: Final = 0.1
"""Share of the stall from which on it is reported and included in intervals."""
MOST_SHARE: Final = 0.9
WORSE: Final = 3.0
"""In another run the waits may be absent, or longer by this factor."""


_WAITS: Final = (("read_after_tid", "queue_ns", "read_run_ns"), ("wake_after_tid", "wake_ns", "wake_run_ns"))


def others_share(pieces: Callable[[Sequence[str]], Iterator[pl.DataFrame]]) -> float:
    """Share of all stall in which a woken accessor or handler waited for a CPU that a thread of neither kind had.

    `pieces` gives columns of `FAULTS`, a piece at a time; 0 where scheduling was not recorded.
    """
    import polars as pl

    total = waited = 0
    own = pl.Series(dtype=pl.Int32)
    for piece in pieces(("stall_ns", "tid", "handler_tid")):
        total += int(piece["stall_ns"].sum() or 0)
        own = pl.concat([own, piece["tid"].unique(), piece["handler_tid"].fill_null(0).unique()]).unique()
    if not total:
        return 0.0
    for piece in pieces(tuple(name for names in _WAITS for name in names)):
        for after, wait, ran in _WAITS:
            foreign = (pl.col(after) > 0) & ~pl.col(after).is_in(own.implode())
            spent = pl.col(wait).fill_null(0) - pl.col(ran).fill_null(0)
            waited += int(piece.filter(foreign).select(spent.clip(lower_bound=0).sum()).item() or 0)
    return min(waited / total, MOST_SHARE)
