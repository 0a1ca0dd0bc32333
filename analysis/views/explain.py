"""One fault's life, as it was recorded and as it is replayed: stage by stage, who had the server, who queued before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from faultreplay.analysis.compare.blackout import base_of, over, under_rule
from faultreplay.analysis.compare.predict import Setup, followed, run
from faultreplay.analysis.compare.served import why_no_row
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.steps import Step, Story, Use
from faultreplay.replay.workload.workload import derived

if TYPE_CHECKING:
    from faultreplay.analysis.compare.case import Case
    from faultreplay.replay.engine.engine import Result
    from faultreplay.replay.engine.windows import Window
    from faultreplay.replay.language.costs import CostTable
    from faultreplay.replay.language.mechanism import Mechanism
    from faultreplay.replay.workload.workload import Workload

MEASURED: Final = "measured"
WHOLE_FAULTS: Final = 100_000
"""Up to so many faults a replay is followed from its beginning to its end; of more, from some time before the fault."""
_BEFORE: Final = 50
"""That time, in stalls of the fault."""


@dataclass(frozen=True)
class Other:
    """Another fault that had what this one waited for, or waited for it before; times in ns from this one's start."""

    fault_id: int
    """-1: not one of the recording's"""
    who: str
    from_ns: int
    until_ns: int | None
    """None: it had it beyond what is known"""


@dataclass(frozen=True)
class Stage:
    """A part of a stall. The stages of a fault follow one another without a gap."""

    what: str
    word: str
    """of `time_words.TIME_WORDS`; of the recording `queue`, `service`, `wake`, or `other`"""
    at_ns: int
    """from the fault's start"""
    took_ns: int
    held_by: tuple[Other, ...] = ()
    """who had what it waited for, while it waited"""
    ahead: tuple[Other, ...] = ()
    """who waited for it already when this fault came, and got it before"""


@dataclass(frozen=True)
class Life:
    """One fault under one mechanism. `stages` add up to `stall_ns`, to the ns."""

    fault_id: int
    mechanism: str
    """`measured`: as it was recorded"""
    who: str
    cause: str
    access: str
    page: int | None
    start_ns: int
    """from the beginning of the recording, or of the replay"""
    stall_ns: int | None
    """None: its end was not seen, or the replay did not come to it"""
    stages: tuple[Stage, ...]
    note: str = ""


@dataclass(frozen=True)
class Situation:
    """How a mechanism is replayed on a case: that of its row in `compare`."""

    workload: Workload
    mechanism: Mechanism
    costs: CostTable
    setup: Setup
    windows: Sequence[Window]
    name: str

    def result(self) -> Result:
        """Its replay, with the first seed."""
        return run(self.workload, self.mechanism, self.costs, self.setup, self.windows)

    def story(self, from_ns: int, until_ns: int) -> Story:
        """The same replay, followed for a stretch of time."""
        span = (from_ns, until_ns)
        return Story(followed(self.workload, self.mechanism, self.costs, self.setup, self.windows, span))


def situation(case: Case, name: str) -> Situation:
    """How `name` is replayed.

    Raises:
        UsageError: no such mechanism, or it has no numbers for this trace.
    """
    mechanism = case.load(name)
    if mechanism.window is not None:
        workload, _ = under_rule(case, mechanism)
        whole = over(base_of(case), mechanism)
        return Situation(workload, whole, case.costs(), case.setup, case.windows, mechanism.name)
    if reason := why_no_row(case, mechanism):
        raise UsageError(f"{mechanism.name} has no numbers for this trace: {reason}")
    workload = case.workload if mechanism.name == "as-recorded" else case.read
    return Situation(workload, mechanism, case.costs(), case.setup, case.windows_of(mechanism.name), mechanism.name)


def explain(case: Case, faults: Sequence[int] = (), mechanisms: Sequence[str] = (), *, worst: int = 0) -> list[Life]:
    """The lives of some faults: of each first as measured, then under each of `mechanisms`.

    Args:
        case: from `open_case`.
        faults: their `fault_id`s.
        mechanisms: names or files.
        worst: besides, the faults with the longest measured stalls.

    Raises:
        UsageError: no such fault or mechanism; or a mechanism that has no numbers for this trace.
    """
    frame = case.faults
    if worst:
        longest = frame.filter(frame["stall_ns"].is_not_null()).sort("stall_ns", "fault_id", descending=[True, False])
        faults = [*faults, *longest["fault_id"].head(worst).to_list()]
    wanted = list(dict.fromkeys(faults))
    rows = {row["fault_id"]: row for row in frame.filter(frame["fault_id"].is_in(wanted)).iter_rows(named=True)}
    for fault in wanted:
        if fault not in rows:
            last = int(frame["fault_id"].max() or 0) if len(frame) else -1  # type: ignore[arg-type]
            raise UsageError(f"fault {fault}: this trace has none of this number (the last one is {last})")
    measured = {fault: _measured(case, rows[fault]) for fault in wanted}
    tellers = [_Replayed(case, situation(case, name)) for name in mechanisms]
    return [life for fault in wanted for life in (measured[fault], *(teller.life(rows[fault]) for teller in tellers))]


def _who(row: dict[str, Any]) -> str:
    return f"vCPU {row['vcpu']}" if row["vcpu"] >= 0 else f"{row['accessor']} {row['tid']}"


def _life(case: Case, row: dict[str, Any], mechanism: str, start_ns: int, stall_ns: int | None, *more: Any) -> Life:
    page = row["page"] if row["granule"] else None
    return Life(row["fault_id"], mechanism, _who(row), row["cause"], row["access"], page, start_ns, stall_ns, *more)


def _measured(case: Case, row: dict[str, Any]) -> Life:
    """A fault as it was recorded; what its markers do not tell apart is one stage."""
    start = row["start_ns"] - case.workload.clock_start_ns
    stall = row["stall_ns"]
    if stall is None:
        synthetic = case.trace.meta.origin == "synthetic" and not case.workload.measured
        why = "nothing was measured: the trace is synthetic" if synthetic else "its end was not seen"
        return _life(case, row, MEASURED, start, None, (), why)
    stages: list[Stage] = []
    at = 0
    for stage, what in (("queue", "until it was read"), ("service", "served"), ("wake", "wakes and goes on")):
        took = row[f"{stage}_ns"]
        if took is None or took < 0 or at + took > stall:
            break
        if stage == "queue":
            stages.append(_queued(case, row, took))
        elif stage == "service":
            by = f"served by thread {row['handler_tid']}" if row["handler_tid"] else what
            ioctl = row["resolve_ns"]
            inside = 0 < (ioctl or 0) <= took
            stages.append(Stage(by, stage, at, took - (ioctl if inside else 0)))
            if inside:
                stages.append(Stage(f"{row['resolution']}: in the ioctl", stage, at + took - ioctl, ioctl))
        else:
            stages.append(Stage(what, stage, at, took))
        at += took
    if at < stall:
        stages.append(Stage("not told apart", "other", at, stall - at))
    return _life(case, row, MEASURED, start, stall, tuple(stage for stage in stages if stage.took_ns))


def _queued(case: Case, row: dict[str, Any], took: int) -> Stage:
    """The wait for its handler: whose faults that was at, and which came before this one."""
    import polars as pl

    start, tid = row["start_ns"], row["handler_tid"]
    held: tuple[Other, ...] = ()
    ahead: tuple[Other, ...] = ()
    if tid:
        read = pl.col("start_ns") + pl.col("queue_ns")
        others = case.faults.filter(
            (pl.col("handler_tid") == tid)
            & (pl.col("fault_id") != row["fault_id"])
            & pl.col("service_ns").is_not_null()
        ).with_columns(read=read, placed=read + pl.col("service_ns"))
        busy = others.filter((pl.col("read") < start + took) & (pl.col("placed") > start)).sort("read")
        held = tuple(_other(one, one["read"] - start, one["placed"] - start) for one in busy.iter_rows(named=True))
        before = others.filter(
            (pl.col("start_ns") <= start) & (pl.col("read") > start) & (pl.col("read") < start + took)
        ).sort("start_ns")
        ahead = tuple(_other(one, one["start_ns"] - start, one["read"] - start) for one in before.iter_rows(named=True))
    what = f"until thread {tid} read it" if tid else "until it was read"
    return Stage(what, "queue", 0, took, held, ahead)


def _other(row: dict[str, Any], from_ns: int, until_ns: int) -> Other:
    return Other(row["fault_id"], _who(row), from_ns, until_ns)


class _Replayed:
    """Faults under one mechanism."""

    def __init__(self, case: Case, how: Situation) -> None:
        self._case, self._how = case, how
        self._result = how.result()
        self._ids = fault_ids(case, how.workload)
        self._stories: dict[tuple[int, int], Story] = {}

    def life(self, row: dict[str, Any]) -> Life:
        """The life of a fault of the recording."""
        where = np.flatnonzero(self._ids == row["fault_id"])
        if not where.size:
            why = "it is not replayed: its end was not seen, or it is not one that this mechanism would have"
            return _life(self._case, row, self._how.name, -1, None, (), why)
        number = int(where[0])
        start, stall = int(self._result.start_ns[number]), int(self._result.stall_ns[number])
        if start < 0:
            return _life(self._case, row, self._how.name, -1, None, (), "the replay does not come to it")
        story, steps = self._told(number, start, start + stall)
        stages = tuple(self._stage(story, step, number, start) for step in steps)
        return _life(self._case, row, self._how.name, start, stall, stages)

    def _told(self, number: int, start: int, end: int) -> tuple[Story, list[Step]]:
        """A story that knows who had what the fault waited for, as far back as that takes."""
        whole = self._how.workload.faults <= WHOLE_FAULTS
        back = _BEFORE * max(end - start, 1_000_000)
        while True:
            span = (0, max(self._result.run_time_ns, end)) if whole else (max(start - back, 0), end)
            if span not in self._stories:
                self._stories = {span: self._how.story(*span)}  # one is kept: they are large
            story = self._stories[span]
            steps = story.steps(number)
            if span[0] == 0 or all(_known(story, step, number) for step in steps):
                return story, steps
            back *= 8

    def _stage(self, story: Story, step: Step, number: int, start: int) -> Stage:
        held: tuple[Other, ...] = ()
        ahead: tuple[Other, ...] = ()
        if step.word == "queue" and step.resource >= 0:
            had = story.held_by(step.resource, step.at_ns, step.at_ns + step.took_ns, number)
            held = tuple(self._used(use, use.begin_ns - start, use.end_ns - start) for use in had)
            before = story.ahead_of(step.resource, step.at_ns, number)
            ahead = tuple(self._used(use, use.asked_ns - start, use.begin_ns - start) for use in before)
        return Stage(step.what, step.word, step.at_ns - start, step.took_ns, held, ahead)

    def _used(self, use: Use, from_ns: int, until_ns: int) -> Other:
        name = re.sub(r"^vcpu(\d+)$", r"vCPU \1", self._how.workload.accessor_name[use.who])
        fault = int(self._ids[use.row]) if use.row >= 0 else -1
        return Other(fault, name, from_ns, until_ns if use.end_ns >= 0 else None)


def _known(story: Story, step: Step, number: int) -> bool:
    """Whether it is known who had what a step waits for."""
    if step.word != "queue" or step.resource < 0:
        return True
    return bool(story.held_by(step.resource, step.at_ns, step.at_ns + step.took_ns, number))


def fault_ids(case: Case, workload: Workload) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64[F]: the `fault_id` of each row of a case's workload; -1: none is known."""
    return derived(workload, "fault ids", lambda: _ids(case, workload))


def _ids(case: Case, workload: Workload) -> np.ndarray[Any, np.dtype[np.int64]]:
    """By accessor and recorded start; of two that began at one instant the first."""
    import polars as pl

    vcpu = (pl.col("accessor") == "vcpu") & (pl.col("vcpu") >= 0)
    name = pl.when(vcpu).then(pl.format("vcpu{}", "vcpu")).otherwise(pl.format("{}:{}", "accessor", "tid"))
    known = (
        case.faults.filter(pl.col("end_ns").is_not_null())
        .select("fault_id", name=name, at=pl.col("start_ns") - workload.clock_start_ns)
        .unique(["name", "at"], keep="first", maintain_order=True)
    )
    rows = pl.DataFrame(
        {
            "name": pl.Series(workload.accessor_name, dtype=pl.String).gather(workload.accessor_of_row()),
            "at": workload.recorded_start_ns,
        }
    )
    found = rows.join(known, on=["name", "at"], how="left", maintain_order="left")["fault_id"].fill_null(-1)
    return found.to_numpy().astype(np.int64)
