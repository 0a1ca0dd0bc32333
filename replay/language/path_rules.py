"""The grammar of a whole path: one wake; what is acquired is released; sleepers are woken; retries go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faultreplay.faulttrace.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """One step of a path."""

    verb: str
    operand: Any
    options: Mapping[str, Any]
    line: int
    file: str = ""
    """where the line is: of an inherited stage, the file that it comes from"""

    @property
    def says(self) -> str:
        """The author's words for this step."""
        return str(self.options.get("says", ""))


def check_path(stages: Sequence[Stage], file: str, where: str) -> None:
    """The grammar of a whole path: one wake; what is acquired is released; sleepers are woken; retries go back.

    Args:
        stages: the path
        file: where it stands
        where: its dotted key

    Raises:
        UsageError: naming the place and the reason.
    """
    _Path(file, where).check(stages)


class _Path:
    """What a path has done so far, stage by stage."""

    def __init__(self, file: str, where: str) -> None:
        self.file, self.where = file, where
        self.held: dict[str, Stage] = {}
        self.asleep: dict[str, Stage] = {}
        self.labels: dict[str, tuple[int, frozenset[str]]] = {}
        """label -> its stage and what is held there"""
        self.once: dict[str, int] = {}
        """verbs that a fault may go through only once -> their stage"""
        self.woken = False

    def fail(self, stage: Stage, reason: str) -> UsageError:
        return UsageError(f"{stage.file or self.file}:{stage.line}: {self.where}: {reason}")

    def check(self, stages: Sequence[Stage]) -> None:
        for number, stage in enumerate(stages):
            if label := stage.options.get("label"):
                if label in self.labels:
                    raise self.fail(stage, f"label '{label}' stands twice")
                self.labels[label] = number, frozenset(self.held)
            step = {
                "acquire": self.server,
                "release": self.server,
                "enter": self.section,
                "leave": self.section,
                "sleep": self.sleep,
                "retry": self.retry,
                "coalesce": self.coalesce,
            }.get(stage.verb)
            if step:
                step(stage)
            elif stage.verb == "wake":
                self.wake(stage, last=stage is stages[-1])
            if stage.verb in ("sleep", "coalesce"):
                self.once[stage.verb] = number
        self.end()

    def end(self) -> None:
        if not self.woken:
            raise UsageError(f"{self.file}: {self.where}: missing wake: the accessor would stall for ever")
        for name, stage in self.held.items():
            done = "entered and never left" if stage.verb == "enter" else "acquired and never released"
            raise self.fail(stage, f"'{name.removeprefix('section ')}' is {done}")
        for name, stage in self.asleep.items():
            raise self.fail(stage, f"sleeps on '{name}', but the wake says no from = \"{name}\"")

    def server(self, stage: Stage) -> None:
        name = stage.operand
        if stage.verb == "acquire":
            if name in self.held:
                raise self.fail(stage, f"'{name}' is acquired twice: it would wait for itself")
            self.held[name] = stage
            return
        taken = self.held.pop(name, None)
        if taken is None:
            raise self.fail(stage, f"'{name}' is released but not held here")
        if taken.options.get("when") != stage.options.get("when"):
            raise self.fail(stage, f"'{name}' is acquired and released under different conditions")

    def section(self, stage: Stage) -> None:
        if self.woken:
            raise self.fail(stage, "sections are entered and left before the wake")
        name = f"section {stage.operand}"
        if stage.verb == "enter":
            if name in self.held:
                raise self.fail(stage, f"'{stage.operand}' is entered twice")
            self.held[name] = stage
            return
        entered = self.held.pop(name, None)
        if entered is None:
            raise self.fail(stage, f"'{stage.operand}' is left but not entered here")
        if entered.options.get("when") != stage.options.get("when"):
            raise self.fail(stage, f"'{stage.operand}' is entered and left under different conditions")

    def sleep(self, stage: Stage) -> None:
        if "when" in stage.options:
            raise self.fail(stage, "a sleep cannot depend on 'when': the wake does not")
        if stage.operand in self.asleep:
            raise self.fail(stage, f"sleeps twice on '{stage.operand}': nobody wakes it in between")
        self.asleep[stage.operand] = stage

    def coalesce(self, stage: Stage) -> None:
        if self.woken:
            raise self.fail(stage, "coalesce must stand before the wake")
        if any(inside.verb == "enter" for inside in self.held.values()):
            raise self.fail(stage, "a fault that joins another would never leave the section it is in")
        if "coalesce" in self.once:
            raise self.fail(stage, "a second coalesce: the fault would wait for itself")
        if self.held:
            raise self.fail(stage, f"coalesce while '{next(iter(self.held))}' is held: who joins never gives it back")

    def retry(self, stage: Stage) -> None:
        if stage.operand not in self.labels:
            raise self.fail(stage, f"retry goes to '{stage.operand}', which is no label above it")
        if self.woken:
            raise self.fail(stage, "a retry after the wake would wake the accessor twice")
        back, held = self.labels[stage.operand]
        if held != frozenset(self.held):
            raise self.fail(stage, f"a retry while other servers are held than at '{stage.operand}'")
        for verb, number in self.once.items():
            if number >= back:
                raise self.fail(stage, f"a retry back over '{verb}': the fault would do it twice")

    def wake(self, stage: Stage, *, last: bool) -> None:
        queue = stage.options.get("from")
        if self.woken:
            raise self.fail(stage, "a second wake: the accessor runs already")
        if queue is not None and self.asleep.pop(queue, None) is None:
            raise self.fail(stage, f"wakes from '{queue}', on which nobody went to sleep here")
        if queue is None and {"under", "cold", "walk"} & set(stage.options):
            raise self.fail(stage, 'nobody is walked over: say from = "QUEUE"')
        if ("cold" in stage.options) != ("readers" in stage.options):
            raise self.fail(stage, "cold and readers stand together")
        if ("each" in stage.options or "once" in stage.options) and "within" not in stage.options:
            raise self.fail(stage, 'slowed down by whom? Say within = "SECTION"')
        if ("takes" in stage.options or "contended" in stage.options) and "under" not in stage.options:
            raise self.fail(stage, 'which lock? Say under = "LOCK"')
        if f"section {stage.options.get('within')}" in self.held:
            raise self.fail(stage, f"'{stage.options['within']}' is entered twice")
        if stage.options.get("awake") and (queue is not None or not last):
            raise self.fail(stage, "awake: an accessor that slept, or leaves others at work, was woken by them")
        if "when" in stage.options:
            raise self.fail(stage, "a wake cannot depend on 'when': the accessor would never run again")
        self.woken = True
