"""The faults themselves, those that were chosen, with their time from the start of the recording."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from faultreplay.analysis.views.chosen import Choice, Chosen, chosen_faults
from faultreplay.faulttrace.schema import FAULTS

if TYPE_CHECKING:
    from faultreplay.faulttrace.kept import Progress
    from faultreplay.faulttrace.store import Trace


def faults_of(
    trace: Trace, choice: Choice | None = None, *, longest_first: bool = False, progress: Progress | None = None
) -> Chosen:
    """All columns of `FAULTS` of the faults that were chosen, and `at_ns`: their start from that of the recording.

    Args:
        trace: opened.
        choice: which faults.
        longest_first: in order of their stall (those without an end last), not of time.
        progress: told how much of a stitch is done.

    Raises:
        UsageError: a choice that the trace has not.
    """
    import polars as pl

    chosen = chosen_faults(trace, choice or Choice(), FAULTS.names, progress)
    columns = ["fault_id", (pl.col("start_ns") - chosen.base_ns).alias("at_ns"), *FAULTS.names[1:]]
    frame = chosen.frame.select(columns)
    if longest_first:
        frame = frame.sort("stall_ns", descending=True, nulls_last=True, maintain_order=True)
    return replace(chosen, frame=frame)
