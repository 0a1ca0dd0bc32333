"""Some of a trace's faults: by vCPU, cause, length and time. What a choice cannot judge is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.schema import CAUSES
from faultreplay.faulttrace.units import format_ns

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.kept import Progress
    from faultreplay.faulttrace.store import Trace

_JUDGED: Final = ("vcpu", "cause", "stall_ns", "start_ns")


@dataclass(frozen=True)
class Choice:
    """Which faults; all of them by default."""

    vcpus: Sequence[int] = ()
    """numbers of vCPUs, of each VM; empty: every thread"""
    causes: Sequence[str] = ()
    """words of `CAUSES`; empty: all"""
    longer_ns: int | None = None
    """only stalls longer than this; None: faults without an end, too"""
    from_ns: int = 0
    """that began at this time or later, from the start of the recording"""
    until_ns: int | None = None
    """and before this; None: to its end"""

    def words(self) -> list[str]:
        """What was chosen, for people; empty where nothing was left out."""
        found = []
        if self.vcpus:
            found.append(f"vCPU{'s' * (len(self.vcpus) > 1)} {', '.join(map(str, self.vcpus))}")
        if self.causes:
            found.append(f"cause {' or '.join(self.causes)}")
        if self.longer_ns is not None:
            found.append(f"longer than {format_ns(self.longer_ns)}")
        if self.from_ns or self.until_ns is not None:
            end = "the end" if self.until_ns is None else format_ns(self.until_ns)
            found.append(f"from {format_ns(self.from_ns)} to {end}")
        return found


@dataclass(frozen=True)
class Chosen:
    """Faults that were chosen, sorted by `start_ns`."""

    frame: pl.DataFrame
    """the columns that were asked for"""
    base_ns: int
    """time 0 of what is shown: when the recording began, or its first fault where that is not told"""
    of: int
    """faults of the whole trace"""
    unjudged: int
    """faults without an end, which --longer cannot judge: left out"""


def chosen_faults(
    trace: Trace, choice: Choice, columns: Sequence[str], progress: Progress | None = None, *, by_start: bool = True
) -> Chosen:
    """Read `columns` of the faults that `choice` names, and nothing else.

    Args:
        trace: opened; stitched where its faults are not kept.
        choice: which faults.
        columns: of `FAULTS`; `start_ns` comes with them.
        progress: told how much of a stitch is done.
        by_start: leave out what began outside the choice's time; else the caller judges time.

    Raises:
        UsageError: no such cause or vCPU, or the time begins after the trace's end.
    """
    import polars as pl

    for cause in choice.causes:
        if cause not in CAUSES:
            raise UsageError(f"--cause {cause}: no such cause:{nearest(cause, CAUSES)} they are {', '.join(CAUSES)}")
    needed = list(dict.fromkeys(["start_ns", *columns, *(name for name in _JUDGED if _judges(choice, name))]))
    frame = trace.faults(columns=needed, progress=progress)
    of = frame.height
    base_ns = trace.meta.clock.start_ns or int(frame["start_ns"].min() or 0)  # type: ignore[arg-type]
    if choice.vcpus:
        there = sorted(set(frame["vcpu"].unique()) - {-1})
        if unknown := sorted(set(choice.vcpus) - set(there)):
            known = ", ".join(map(str, there)) or "none is known"
            raise UsageError(f"--vcpu {unknown[0]}: no vCPU of this number faulted: those that did: {known}")
        frame = frame.filter(pl.col("vcpu").is_in(list(choice.vcpus)))
    if choice.causes:
        frame = frame.filter(pl.col("cause").is_in(list(choice.causes)))
    last_ns = max(trace.end_ns - base_ns, int(frame["start_ns"].max() or 0) - base_ns, 0)  # type: ignore[arg-type]
    if choice.from_ns > last_ns:
        ends = f"{trace.path} ends after {format_ns(last_ns)}"
        raise UsageError(f"--time: {ends}, before {format_ns(choice.from_ns)}")
    if by_start:
        frame = frame.filter(pl.col("start_ns") >= base_ns + choice.from_ns) if choice.from_ns else frame
        until_ns = choice.until_ns
        frame = frame if until_ns is None else frame.filter(pl.col("start_ns") < base_ns + until_ns)
    unjudged = 0
    if choice.longer_ns is not None:
        unjudged = frame["stall_ns"].null_count()
        frame = frame.filter(pl.col("stall_ns") > choice.longer_ns)
    return Chosen(frame.select(list(dict.fromkeys(["start_ns", *columns]))), base_ns, of, unjudged)


def _judges(choice: Choice, column: str) -> bool:
    return {"vcpu": bool(choice.vcpus), "cause": bool(choice.causes), "stall_ns": choice.longer_ns is not None}.get(
        column, False
    )
