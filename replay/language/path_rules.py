"""The grammar of a whole path: one wake; what is acquired is released; sleepers are woken; retries go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.stage import Stage


class _Pair(NamedTuple):
    """Two verbs, of which the second gives back what the first took, and the words of complaints about them."""

    begin: str
    end: str
    begun: str
    ended: str
    twice: str
    missing: str


_PAIRS: Final = (
    _Pair(
        "acquire",
        "release",
        "acquired",
        "released",
        "is acquired twice: it would wait for itself",
        "released but not held",
    ),
    _Pair("enter", "leave", "entered", "left", "is entered twice", "left but not entered"),
)
_PAIR_OF: Final = {verb: pair for pair in _PAIRS for verb in (pair.begin, pair.end)}


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
        self.held: dict[tuple[str, str], Stage] = {}
        """(verb that took it, name): servers held and sections the fault is in"""
        self.asleep: dict[str, Stage] = {}
        self.labels: dict[str, tuple[int, frozenset[tuple[str, str]]]] = {}
        """label -> its stage and what is held there"""
        self.once: dict[str, int] = {}
        """verbs that a fault may go through only once -> their stage"""
        self.woken = False

    def fail(self, stage: Stage, reason: str) -> UsageError:
        return UsageError(f"{stage.file or self.file}:{stage.line}: {self.where}: {reason}")

    def check(self, stages: Sequence[Stage]) -> None:
        for number, stage in enumerate(stages):
            if label := stage.options.label:
                if label in self.labels:
                    raise self.fail(stage, f"label '{label}' is used twice")
                self.labels[label] = number, frozenset(self.held)
            step = {
                "acquire": self.take,
                "release": self.give_back,
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
            raise UsageError(f"{self.file}: {self.where}: missing wake: the accessor would stall forever")
        for stage in self.held.values():
            pair = _PAIR_OF[stage.verb]
            raise self.fail(stage, f"'{stage.name}' is {pair.begun} and never {pair.ended}")
        for name, stage in self.asleep.items():
            raise self.fail(stage, f"sleeps on '{name}', but the wake has no from = \"{name}\"")

    def take(self, stage: Stage) -> None:
        if (stage.verb, stage.name) in self.held:
            raise self.fail(stage, f"'{stage.name}' {_PAIR_OF[stage.verb].twice}")
        self.held[stage.verb, stage.name] = stage

    def give_back(self, stage: Stage) -> None:
        pair = _PAIR_OF[stage.verb]
        taken = self.held.pop((pair.begin, stage.name), None)
        if taken is None:
            raise self.fail(stage, f"'{stage.name}' is {pair.missing} here")
        if taken.options.when != stage.options.when:
            raise self.fail(stage, f"'{stage.name}' is {pair.begun} and {pair.ended} under different conditions")

    def section(self, stage: Stage) -> None:
        if self.woken:
            raise self.fail(stage, "sections are entered and left before the wake")
        if stage.verb == "enter":
            self.take(stage)
        else:
            self.give_back(stage)

    def sleep(self, stage: Stage) -> None:
        if stage.options.when:
            raise self.fail(stage, "a sleep cannot depend on 'when': the wake does not")
        if stage.name in self.asleep:
            raise self.fail(stage, f"sleeps twice on '{stage.name}': it is not woken in between")
        self.asleep[stage.name] = stage

    def coalesce(self, stage: Stage) -> None:
        if self.woken:
            raise self.fail(stage, "coalesce must stand before the wake")
        if any(inside.verb == "enter" for inside in self.held.values()):
            raise self.fail(stage, "a fault that joins another would never leave the section it is in")
        if "coalesce" in self.once:
            raise self.fail(stage, "a second coalesce: the fault would wait for itself")
        if self.held:
            raise self.fail(
                stage, f"coalesce while '{next(iter(self.held))[1]}' is held: a fault that joins would never release it"
            )

    def retry(self, stage: Stage) -> None:
        if stage.name not in self.labels:
            raise self.fail(stage, f"retry goes to '{stage.name}', which is no label above it")
        if self.woken:
            raise self.fail(stage, "a retry after the wake would wake the accessor twice")
        back, held = self.labels[stage.name]
        if held != frozenset(self.held):
            raise self.fail(stage, f"a retry must hold the same servers as at '{stage.name}'")
        for verb, number in self.once.items():
            if number >= back:
                raise self.fail(stage, f"a retry back over '{verb}': the fault would do it twice")

    def wake(self, stage: Stage, *, last: bool) -> None:
        options = stage.options
        queue = options.queue
        if self.woken:
            raise self.fail(stage, "a second wake: the accessor runs already")
        if queue and self.asleep.pop(queue, None) is None:
            raise self.fail(stage, f"wakes from '{queue}', on which this path does not sleep")
        if not queue and (options.under or options.cold is not None or options.walk is not None):
            raise self.fail(stage, 'under, cold and walk need from = "QUEUE"')
        if (options.cold is not None) != bool(options.readers):
            raise self.fail(stage, "cold and readers must be given together")
        if (options.each is not None or options.once is not None) and not options.within:
            raise self.fail(stage, 'each and once need within = "SECTION"')
        if (options.takes is not None or options.contended is not None) and not options.under:
            raise self.fail(stage, 'takes and contended need under = "LOCK"')
        if ("enter", options.within) in self.held:
            raise self.fail(stage, f"'{options.within}' is entered twice")
        if options.awake and (queue or not last):
            raise self.fail(
                stage, "awake: only in a last stage without from; an accessor that slept is woken by another thread"
            )
        if options.when:
            raise self.fail(stage, "a wake cannot depend on 'when': the accessor would never run again")
        self.woken = True
