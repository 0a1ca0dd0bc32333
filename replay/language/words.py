"""The words a mechanism file may use, and the check that a path makes sense. `docs/mechanism-language.md` is its
reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.replay.language.names import COST_NAMES

ACCESSOR_KINDS: Final = ("vcpu", "vmm", "kernel")
CLASSES: Final = (
    "missing",
    "minor",
    "stage2",
    "mmio",
    "exit",
    "minor-host",
    "major-host",
    "write-protect",
    "window",
)
"""Classes of recorded faults, in the order of `Workload.cls`; ``window`` is the last one."""
CONTENT_CLASSES: Final = ("missing", "minor", "exit", "minor-host", "major-host")
"""Classes whose fault brings a granule that stays: a second fault on it joins or finds it there."""
BUILT_IN_PATHS: Final = ("stage2", "refault", "rewrite")

RESOURCE_KEYS: Final[dict[str, dict[str, str]]] = {
    "servers": {"servers": "how many at once ($param or number; 0: no limit)", "per": "vm, accessor or shard"},
    "link": {"bandwidth": "bytes/s ($param or size; 0: no limit)", "per": "vm, accessor or shard"},
    "waitqueue": {"per": "vm, accessor or shard"},
}
PER: Final = ("vm", "accessor", "shard")


@dataclass(frozen=True)
class Verb:
    """One kind of stage."""

    operand: str
    """what stands behind the verb: cost, servers, link, waitqueue, label, true or join"""
    meaning: str
    options: Mapping[str, str] = field(default_factory=dict)


VERBS: Final[dict[str, Verb]] = {
    "delay": Verb(
        "cost",
        "takes this long",
        {
            "times": "waiters:QUEUE or idle:RESOURCE (counted then), granule_pages or further_pages",
            "asleep": "true: the thread that waits sleeps and holds no CPU; or a cost: it sleeps from so long on",
        },
    ),
    "acquire": Verb(
        "servers", "waits for a server, first come first served", {"idle": "cost, paid if a server was free"}
    ),
    "release": Verb("servers", "gives the server back; may stand behind the wake"),
    "transfer": Verb(
        "link",
        "the granule's bytes over a shared link, first come first served",
        {
            "latency": "cost, paid before",
            "bytes": "instead of the granule",
        },
    ),
    "sleep": Verb("waitqueue", "the accessor goes to sleep on a wait queue"),
    "coalesce": Verb("join", "a fault on a granule that is on its way joins it: it wakes when that one does"),
    "wake": Verb(
        "cost",
        "the accessor is woken and runs after this long; what follows happens while it runs",
        {
            "from": "the wait queue it slept on",
            "walk": "cost for each other sleeper on that queue, paid by the waker before",
            "awake": "true: the accessor's own thread did it all without a sleep, and this is its way back",
        },
    ),
    "recorded": Verb("true", "takes as long as the fault took in the recording"),
    "retry": Verb("label", "back to an earlier stage", {"chance": "0..1", "most": "times at most"}),
    "complete": Verb("true", "the content has reached whoever asked: ends the fault's latency, not the stall"),
}
COMMON_OPTIONS: Final = {
    "says": "who does what, in a line",
    "when": "only for these accesses (read, write, exec) or accessors (vcpu, vmm, kernel)",
    "label": "a name for retry",
}
CONDITIONS: Final = {"read": 1, "write": 2, "exec": 4, "vcpu": 8, "vmm": 16, "kernel": 32}
TIMES_COUNTED: Final = {"waiters": "waitqueue", "idle": "servers"}
TIMES_FIXED: Final = ("granule_pages", "further_pages")

WINDOW_KEYS: Final = {
    "stops": "accessor kinds that do not run inside",
    "blocks": "table of accessor kind -> all, write: these run, but such accesses wait for the end",
    "empties": "none or stage2: what is mapped in stage 2 is gone afterwards",
    "refill": "bytes that one fault maps again in a stage 2 that was emptied (default: one page)",
    "enter": "costs before the window's work begins",
    "leave": "costs after it",
    "resume": "cost for each stopped accessor before it runs again",
    "says": "what the operator does",
}
PUSH_KEYS: Final = {
    "link": "the link the stream shares",
    "order": "address or recorded",
    "backlog": "bytes the sender keeps queued on the link ahead of a request",
    "memory": "bytes to send in all; 0: what the trace touches",
    "latency": "cost from the link's end until the page is placed",
    "says": "who sends what",
}


@dataclass(frozen=True)
class Stage:
    """One step of a path."""

    verb: str
    operand: Any
    options: Mapping[str, Any]
    line: int

    @property
    def says(self) -> str:
        """The author's words for this step."""
        return str(self.options.get("says", ""))


def check_cost(value: Any, params: Sequence[str], place: str) -> None:
    """A cost operand is a cost name, a duration or ``$param``.

    Raises:
        UsageError: it is none of them, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{place}: {value!r} is not a cost: write a cost name, a duration as 5us, or $param")
    if isinstance(value, int | float):
        if value < 0:
            raise UsageError(f"{place}: negative cost {value}")
        if value > 0:
            raise UsageError(f"{place}: the cost {value} has no unit: write it as '{value}ns'")
        return
    if value.startswith("$"):
        check_param(value, params, place)
    elif value.lstrip().startswith("-"):
        raise UsageError(f"{place}: negative cost {value}")
    elif value not in COST_NAMES:
        try:
            parse_duration_ns(value)
        except UsageError:
            raise UsageError(f"{place}: unknown cost '{value}': the costs are {', '.join(COST_NAMES)}") from None


def check_param(value: str, params: Sequence[str], place: str) -> None:
    """``$name`` must be a declared parameter.

    Raises:
        UsageError: it is not.
    """
    if value[1:] not in params:
        raise UsageError(f"{place}: unknown parameter '{value}': declared are {', '.join(params) or 'none'}")


def check_path(  # noqa: PLR0912
    stages: Sequence[Stage], where: str
) -> None:
    """The grammar of a whole path: one wake; what is acquired is released; sleepers are woken; retries go back.

    Raises:
        UsageError: naming the place and the reason.
    """
    held: dict[str, Stage] = {}
    asleep: dict[str, Stage] = {}
    labels: set[str] = set()
    wakes: list[Stage] = []
    for stage in stages:
        place = f"{where.split(': ', maxsplit=1)[0]}:{stage.line}: {where.split(': ', 1)[1]}"
        if label := stage.options.get("label"):
            if label in labels:
                raise UsageError(f"{place}: label '{label}' stands twice")
            labels.add(label)
        if stage.verb == "acquire":
            if stage.operand in held:
                raise UsageError(f"{place}: '{stage.operand}' is acquired twice: it would wait for itself")
            held[stage.operand] = stage
        elif stage.verb == "release":
            taken = held.pop(stage.operand, None)
            if taken is None:
                raise UsageError(f"{place}: '{stage.operand}' is released but not held here")
            if taken.options.get("when") != stage.options.get("when"):
                raise UsageError(f"{place}: '{stage.operand}' is acquired and released under different conditions")
        elif stage.verb == "sleep":
            asleep[stage.operand] = stage
        elif stage.verb == "retry":
            if stage.operand not in labels:
                raise UsageError(f"{place}: retry goes to '{stage.operand}', which is no label above it")
            if wakes:
                raise UsageError(f"{place}: a retry after the wake would wake the accessor twice")
        elif stage.verb == "wake":
            wakes.append(stage)
            queue = stage.options.get("from")
            if queue is not None and asleep.pop(queue, None) is None:
                raise UsageError(f"{place}: wakes from '{queue}', on which nobody went to sleep here")
            if stage.options.get("awake") and (queue is not None or stage is not stages[-1]):
                raise UsageError(f"{place}: awake: an accessor that slept, or leaves others at work, was woken by them")
            if "when" in stage.options:
                raise UsageError(f"{place}: a wake cannot depend on 'when': the accessor would never run again")
        elif stage.verb == "coalesce" and wakes:
            raise UsageError(f"{place}: coalesce must stand before the wake")
    if not wakes:
        raise UsageError(f"{where}: missing wake: the accessor would stall for ever")
    if len(wakes) > 1:
        place = f"{where.split(': ', maxsplit=1)[0]}:{wakes[1].line}: {where.split(': ', 1)[1]}"
        raise UsageError(f"{place}: a second wake: the accessor runs already")
    for name, stage in held.items():
        place = f"{where.split(': ', maxsplit=1)[0]}:{stage.line}: {where.split(': ', 1)[1]}"
        raise UsageError(f"{place}: '{name}' is acquired and never released")
    for name, stage in asleep.items():
        place = f"{where.split(': ', maxsplit=1)[0]}:{stage.line}: {where.split(': ', 1)[1]}"
        raise UsageError(f"{place}: sleeps on '{name}', but the wake says no from = \"{name}\"")
