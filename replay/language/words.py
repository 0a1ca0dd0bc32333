"""The words a mechanism file may use, and the check that a path makes sense. `docs/mechanism-language.md` is its
reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError, nearest
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.path_rules import check_path
from faultreplay.replay.language.reading import shown
from faultreplay.replay.language.stage import Amount, Stage

__all__ = [
    "BUILT_IN_PATHS",
    "COMMON_OPTIONS",
    "CONDITIONS",
    "CONTENT_CAUSES",
    "ORDERS",
    "PER",
    "PUSH_KEYS",
    "RESOURCE_KEYS",
    "SETS",
    "STREAM_KEYS",
    "TIMES_COUNTED",
    "TIMES_FIXED",
    "VERBS",
    "WINDOW_KEYS",
    "Stage",
    "Verb",
    "check_cost",
    "check_param",
    "check_path",
]

CONTENT_CAUSES: Final = ("missing", "minor", "exit", "minor-host", "major-host")
"""Classes whose fault brings a granule that stays: a second fault on it joins the first or finds it present."""
BUILT_IN_PATHS: Final = ("stage2", "present", "refault", "rewrite")
RESOURCE_KEYS: Final[dict[str, dict[str, str]]] = {
    "servers": {"servers": "how many at once ($param or number; 0: no limit)", "per": "vm, accessor or shard"},
    "link": {"bandwidth": "bytes/s ($param or size; 0: no limit)", "per": "vm, accessor or shard"},
    "waitqueue": {"per": "vm, accessor or shard"},
    "lock": {"per": "vm, accessor or shard"},
    "section": {},
    "storage": {
        "latency": "cost of one request, without its bytes and its wait",
        "bandwidth": "bytes/s of all requests together ($param or size; 0: no limit)",
        "depth": "requests served at once, first come first served ($param or number; 0: no limit)",
        "readahead": "bytes around a page that is read, which one request brings ($param or size; 0: the page alone)",
        "onward": "true: a page near a window's end bears a mark; who finds it has the next one read, without waiting",
        "cached": "share of the file that the page cache has at the beginning ($param or 0..1)",
        "left": "1: and what earlier runs (--working-set) touched, with its readahead ($param or 0, 1)",
    },
}
PER: Final = ("vm", "accessor", "shard")


@dataclass(frozen=True)
class Verb:
    """One kind of stage."""

    operand: str
    """what stands behind the verb: cost, servers, link, waitqueue, storage, size, label, true or join"""
    meaning: str
    options: Mapping[str, str] = field(default_factory=dict)


VERBS: Final[dict[str, Verb]] = {
    "delay": Verb(
        "cost",
        "takes this long",
        {
            "times": "waiters:QUEUE, idle:SERVERS, spare:SERVERS (counted then), granule_pages, further_pages, $param",
            "most": "no more times than this: a number or $param",
            "asleep": "true: the waiting thread sleeps and needs no CPU; or a cost: it sleeps if it waits as long",
        },
    ),
    "acquire": Verb(
        "servers", "waits for a server, first come first served", {"idle": "cost, charged if a server was free"}
    ),
    "release": Verb("servers", "releases the server; may follow the wake"),
    "transfer": Verb(
        "link",
        "the granule's bytes over a shared link, first come first served",
        {
            "latency": "cost, paid before",
            "bytes": "instead of the granule",
        },
    ),
    "hold": Verb(
        "lock",
        "takes a lock, holds it and releases it, first come first served; waiters spin",
        {
            "takes": "cost: how long it is held without contention",
            "contended": "cost instead of takes, if another thread holds it or waits for it when it is requested",
            "also": "additional cost for each one counted by times, by its mean",
            "times": "waiters:QUEUE, idle:SERVERS or spare:SERVERS",
            "most": "no more times than this: a number or $param",
        },
    ),
    "enter": Verb(
        "section",
        "the thread is inside this section until it leaves; others there slow it down",
        {
            "each": "cost for each other thread inside, by its mean",
            "once": "cost if there is any, by its mean",
        },
    ),
    "leave": Verb("section", "the thread is outside again"),
    "sleep": Verb("waitqueue", "the accessor goes to sleep on a wait queue"),
    "coalesce": Verb(
        "join",
        '"join": a fault on a granule in transit joins the first one: it is woken with it; "skip" (streams): a '
        "granule that is present or in transit ends the path",
    ),
    "read": Verb(
        "storage",
        "the granule from storage: nothing where the page cache has it, else the device, or the wait for a read that "
        "is on its way",
        {
            "miss": "cost on top where it had to wait",
            "over": "bytes: all of the aligned range of so many, not the granule alone; 2M at most",
            "ahead": "bytes from there on that one request brings, in place of the readahead around it",
        },
    ),
    "around": Verb(
        "size",
        "the neighbours in the aligned range of so many bytes (2M at most) are placed too, one after the other, where "
        "nobody has asked for them",
        {"each": "cost for each one, by its mean", "cached": "true: only those that the page cache has"},
    ),
    "wake": Verb(
        "cost",
        "the accessor is woken and runs after this long; what follows happens while it runs",
        {
            "from": "the wait queue it slept on",
            "walk": "cost for each other sleeper on that queue, paid by the waker before",
            "cold": "additional cost for each entry renewed since its last walk: min(others, readers - 1); by its mean",
            "readers": "the servers that wake sleepers of this queue, for cold",
            "under": "the lock that the walk is made under",
            "takes": "cost, by its mean: that lock apart from the walk, without contention",
            "contended": "cost instead of takes, by its mean: if another thread holds it or waits for it",
            "within": "the section that the woken accessor goes through before it runs",
            "each": "cost for each other thread in that section when the wake begins, by its mean",
            "once": "cost if there is any, by its mean",
            "awake": "true: the accessor's own thread did everything without sleeping, and this is its return",
        },
    ),
    "recorded": Verb("true", "takes as long as the fault took in the recording"),
    "retry": Verb("label", "back to an earlier stage", {"chance": "0..1", "most": "times at most"}),
    "complete": Verb("true", "the content has reached the task that needs it: ends the fault's latency, not the stall"),
}
COMMON_OPTIONS: Final = {
    "says": "who does what, in a line",
    "when": "only for these accesses (read, write, exec) or accessors (vcpu, vmm, kernel)",
    "label": "a name for retry",
}
CONDITIONS: Final = {"read": 1, "write": 2, "exec": 4, "vcpu": 8, "vmm": 16, "kernel": 32}
TIMES_COUNTED: Final = {"waiters": "waitqueue", "idle": "servers", "spare": "servers"}
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
STREAM_KEYS: Final = {
    "path": "the path, below [paths], that each piece goes through",
    "set": "which pages: working-set (what earlier runs touched, else what this trace does), touched (what this trace "
    "does) or all (of guest memory)",
    "order": "address, or recorded: in the order of their first touch",
    "servers": "threads of the stream ($param or number); each takes the next batch in turn",
    "chunk": "bytes of one piece, aligned, 2M at most ($param or size); default: a granule",
    "packed": "true: the pieces lie one behind the other in a file of their own",
    "before": "true: done before the VM resumes: start-up delay, in no stall",
    "says": "who brings what",
}
SETS: Final = ("working-set", "touched", "all")
ORDERS: Final = ("address", "recorded")


def check_cost(value: Any, params: Sequence[str], place: str) -> Amount:
    """`value`, where it is a cost operand: a cost name, a duration or ``$param``.

    Raises:
        UsageError: it is none of them, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{place}: {shown(value)} is not a cost: write a cost name, a duration as 5us, or $param")
    if isinstance(value, int | float):
        if value < 0:
            raise UsageError(f"{place}: negative cost {shown(value)}")
        if value != 0:
            raise UsageError(f"{place}: the cost {shown(value)} has no unit: write it as '{shown(value)}ns'")
        return value
    if value.startswith("$"):
        check_param(value, params, place)
    elif value.lstrip().startswith("-"):
        raise UsageError(f"{place}: negative cost {value}")
    elif value not in COST_NAMES:
        try:
            parse_duration_ns(value)
        except UsageError as error:
            known = f"unknown cost '{value}':{nearest(value, COST_NAMES)} the costs are {', '.join(COST_NAMES)}"
            raise UsageError(f"{place}: {error if value[:1].isdigit() else known}") from None
    return value


def check_param(value: str, params: Sequence[str], place: str) -> None:
    """``$name`` must be a declared parameter.

    Raises:
        UsageError: it is not.
    """
    if value[1:] not in params:
        declared = f"{nearest(value[1:], params)} declared are {', '.join(params) or 'none'}"
        raise UsageError(f"{place}: unknown parameter '{value}':{declared}")
