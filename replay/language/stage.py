"""One step of a path, and what may stand beside its verb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Amount = str | int | float
"""A number, a text with a unit, a cost's name, ``$param`` or arithmetic; `Mechanism.value` and the compiler read it."""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What stands beside a stage's verb (`words.VERBS` says what each means there); None or empty: not written."""

    says: str = ""
    when: tuple[str, ...] = ()
    label: str = ""
    times: str = ""
    most: Amount | None = None
    asleep: Amount | None = None
    """true, false, or the cost from whose length on the thread sleeps"""
    awake: bool = False
    idle: Amount | None = None
    latency: Amount | None = None
    bytes: Amount | None = None
    takes: Amount | None = None
    contended: Amount | None = None
    also: Amount | None = None
    each: Amount | None = None
    once: Amount | None = None
    queue: str = ""
    """``from`` in the file: the wait queue on which the accessor slept"""
    walk: Amount | None = None
    cold: Amount | None = None
    readers: str = ""
    under: str = ""
    within: str = ""
    chance: Amount | None = None
    miss: Amount | None = None
    over: Amount | None = None
    """bytes"""
    ahead: Amount | None = None
    """bytes"""
    cached: bool = False

    @property
    def costs(self) -> tuple[Amount | None, ...]:
        """What this stage charges besides its operand."""
        return (
            self.idle,
            self.latency,
            self.takes,
            self.contended,
            self.also,
            self.each,
            self.once,
            self.walk,
            self.cold,
            self.miss,
        )


FIELD_OF: Final = {"from": "queue"}
"""key of the file -> field of `StageOptions`, where they differ (``from`` is a keyword)"""
NO_OPTIONS: Final = StageOptions()


@dataclass(frozen=True)
class Stage:
    """One step of a path."""

    verb: str
    operand: Amount
    """a cost, or the name of a resource or label; true for verbs without one"""
    options: StageOptions = NO_OPTIONS
    line: int = 0
    file: str = ""
    """where the line is: of an inherited stage, the file that it comes from"""

    @property
    def says(self) -> str:
        """The author's words for this step."""
        return self.options.says

    @property
    def name(self) -> str:
        """The resource or label behind the verb."""
        return str(self.operand)
