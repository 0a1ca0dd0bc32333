"""Which rows answer the same question: what a mechanism stops, and whether it brings the content.

A total of stall is comparable with another one only if both are of the same faults and the same work. A mechanism that
lets reads pass (write tracking: memory is there) or maps pages without content (ordinary memory) has less stall because
it does less. Such a row keeps its numbers, but nothing may call it better: everything that names a best mechanism or
says by how much one is less asks `left_out` or `less_than`. It is found in the mechanism's file, for the classes,
accessors and accesses that the trace has; no mechanism is known by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from faultreplay.analysis.compare.predict import present
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.stage import Stage
from faultreplay.replay.workload.workload import Workload, derived

_ACCESSES: Final = ("read", "write", "exec")
"""in the order of `ACCESS_CODES`"""
_CHARGED: Final = frozenset({"acquire", "hold", "enter", "transfer", "read", "sleep", "recorded"})
"""Verbs that take time by themselves; `delay` and `wake` do if their cost is not 0."""


@dataclass(frozen=True)
class Question:
    """What a row's stall is the stall of."""

    passes: Mapping[str, int]
    """faults that the mechanism does not stop, by class, access and accessor: ``missing read by vcpu``"""
    faults: int
    """all faults of the trace"""
    brings: bool
    """content arrives; true, too, where all faults keep their recorded stall"""
    window: bool = False
    """it is a rule for windows on top of what was recorded"""

    def as_record(self) -> dict[str, object]:
        """Flat, for output."""
        return {"passes_faults": sum(self.passes.values()), "brings_content": self.brings}

    def as_text(self) -> str:
        """As JSON, for a file."""
        return json.dumps({**self.__dict__, "passes": dict(self.passes)}, sort_keys=True)

    @classmethod
    def of_text(cls, text: str) -> Self:
        """From `as_text`."""
        return cls(**json.loads(text))


def question_of(workload: Workload, mechanism: Mechanism) -> Question:
    """What `mechanism` does about the faults of `workload`."""
    counts = derived(workload, "classes by kind and access", lambda: _counts(workload))
    passes: dict[str, int] = {}
    simulated, brings, page = False, False, workload.page_bytes
    for (cause, kind), (cause_name, kind_name) in present(workload):
        answer = mechanism.answer(cause_name, kind_name)
        if answer.by == "nothing":
            continue
        server = answer.server or mechanism
        simulated |= answer.simulated
        for access, access_name in enumerate(_ACCESSES):
            if not counts[cause, kind, access]:
                continue
            stages = [stage for stage in answer.stages if _applies(stage, access_name, kind_name)]
            brings |= any(_brings(stage, server, page) for stage in stages)
            if not any(_takes_time(stage, server, page) for stage in stages):
                passes[f"{cause_name} {access_name} by {kind_name}"] = int(counts[cause, kind, access])
    streams = [stage for stream in mechanism.streams for stage in mechanism.paths[stream.path]]
    brings |= any(_brings(stage, mechanism, page) for stage in streams)
    return Question(passes, workload.faults, brings or not simulated, mechanism.window is not None)


def less_than(one: Question, other: Question, name: str) -> str:
    """What `one` leaves out that `other`, called `name`, does, in words behind a mechanism's name; empty: nothing.

    Where this says something, a smaller total of `one` is no gain over `other`.
    """
    found = []
    passed = {what: count for what, count in one.passes.items() if what not in other.passes}
    if passed:
        stopped = one.faults - sum(other.passes.values())
        which = ", ".join(passed)
        found.append(f"does not stop {sum(passed.values()):,} of the {stopped:,} faults that {name} stops ({which})")
    if other.brings and not one.brings:
        found.append(f"leaves out the content that {name} brings")
    if one.window and not other.window:
        found.append(f"only rules windows, unlike {name}")
    return " and ".join(found)


def left_out(questions: Mapping[str, Question], never: Collection[str] = ()) -> dict[str, str]:
    """Of mechanisms that are to be ranked, those that leave out what another of them pays for, and what that is.

    Args:
        questions: mechanism -> what it answers, in order.
        never: references, which are no choice: neither ranked nor a measure for others.
    """
    choices = {name: question for name, question in questions.items() if name not in never}
    found: dict[str, str] = {}
    for name, question in choices.items():
        words = (less_than(question, other, other_name) for other_name, other in choices.items())
        if first := next((word for word in words if word), ""):
            found[name] = first
    return found


def all_of(questions: Sequence[Question]) -> Question:
    """One question for several cells of a mechanism, whose parameters vary: it leaves out what any of them does."""
    first, *more = questions
    for other in more:
        passes = {**other.passes, **first.passes}
        first = replace(first, passes=passes, brings=first.brings and other.brings, window=first.window or other.window)
    return first


def _counts(workload: Workload) -> npt.NDArray[np.int64]:
    """int64[classes, accessor kinds, accesses]: faults of each."""
    kinds = workload.accessor_kind[workload.accessor_of_row()].astype(np.int64)
    place = (workload.cause.astype(np.int64) * len(ACCESSORS) + kinds) * len(_ACCESSES) + workload.access
    size = len(CAUSES) * len(ACCESSORS) * len(_ACCESSES)
    counts: npt.NDArray[np.int64] = np.bincount(place, minlength=size)
    return counts.reshape(len(CAUSES), len(ACCESSORS), len(_ACCESSES))


def _applies(stage: Stage, access: str, kind: str) -> bool:
    """As the engine's `machine.applies` decides it: one of the accesses named, and one of the accessors."""
    when = set(stage.options.when)
    accesses, kinds = when & set(_ACCESSES), when - set(_ACCESSES)
    return (not accesses or access in accesses) and (not kinds or kind in kinds)


def _takes_time(stage: Stage, mechanism: Mechanism, page_bytes: int) -> bool:
    return stage.verb in _CHARGED or (stage.verb in ("delay", "wake") and _charges(stage, mechanism, page_bytes))


def _brings(stage: Stage, mechanism: Mechanism, page_bytes: int) -> bool:
    """Whether content comes meanwhile: from storage, over a link, or with a cost that says so or is slept through."""
    if stage.verb == "transfer":
        return mechanism.value(mechanism.resources[stage.name].size) >= 1
    cost = COST_NAMES.get(stage.name)
    content = stage.verb == "delay" and (bool(stage.options.asleep) or (cost is not None and cost.brings_content))
    return stage.verb == "read" or (content and _charges(stage, mechanism, page_bytes))


def _charges(stage: Stage, mechanism: Mechanism, page_bytes: int) -> bool:
    """Whether a delay or a wake takes any time with the mechanism's parameters."""
    times, operand = stage.options.times, stage.operand
    if times == "further_pages" and mechanism.granule_bytes <= page_bytes:
        return False
    if is_expression(times) and int(mechanism.value(times)) == 0:
        return False
    if isinstance(operand, str) and not is_expression(operand):
        return operand in COST_NAMES or parse_duration_ns(operand) > 0
    return mechanism.value(operand) > 0
