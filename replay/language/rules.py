"""What a mechanism file says besides its paths: the rule inside a window, and the background stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from faultreplay.faulttrace.fault_columns import ACCESSORS
from faultreplay.replay.language import words as lang
from faultreplay.replay.language.reading import TomlFile
from faultreplay.replay.language.stage import Amount
from faultreplay.replay.language.stages import Operands

MOST_WINDOW_COSTS: Final = 16
"""Of `enter` and of `leave`: each has a random number of its own."""


@dataclass(frozen=True)
class WindowCost:
    """One cost of the begin or end of a window."""

    cost: Amount
    per_touched_page: bool
    """charged once for each page touched before the window"""

    def __str__(self) -> str:
        return f"{self.cost} * touched_pages" if self.per_touched_page else str(self.cost)


@dataclass(frozen=True, kw_only=True)
class WindowRule:
    """What holds inside a window (`words.WINDOW_KEYS`)."""

    stops: tuple[str, ...]
    """accessor kinds"""
    blocks: Mapping[str, Literal["all", "write"]]
    """accessor kind -> which of its accesses wait for the end"""
    empties_stage2: bool
    refill: Amount | None
    """bytes; None: one page"""
    enter: tuple[WindowCost, ...]
    leave: tuple[WindowCost, ...]
    resume: Amount | None
    says: str


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Memory that is sent without a request (`words.PUSH_KEYS`)."""

    link: str
    order: Literal["address", "recorded"]
    backlog: Amount
    memory: Amount
    latency: Amount
    says: str


def read_window(file: TomlFile, operands: Operands, entry: Any) -> WindowRule:
    """The table ``[window]``.

    Raises:
        UsageError: it breaks the language; the message names file, line and reason.
    """
    window = file.known(entry, lang.WINDOW_KEYS, "window")
    says = file.words(window.get("says", ""), "window", "says")
    lists = {
        key: file.texts(window[key], "window", key) if window.get(key) not in (None, []) else []
        for key in ("stops", "enter", "leave")
    }
    for kind in lists["stops"]:
        if kind not in ACCESSORS:
            raise file.fail(f"'{kind}' is no accessor", "window", "stops")
    blocks = file.table(window.get("blocks", {}), "window", "blocks")
    for kind, which in blocks.items():
        if kind not in ACCESSORS or which not in ("all", "write"):
            raise file.fail("blocks maps vcpu, vmm or kernel to all or write", "window", "blocks")
    empties = window.get("empties", "none")
    if empties not in ("none", "stage2"):
        raise file.fail("empties is none or stage2", "window", "empties")
    return WindowRule(
        stops=tuple(lists["stops"]),
        blocks=blocks,
        empties_stage2=empties == "stage2",
        enter=_costs(file, operands, "enter", lists["enter"]),
        leave=_costs(file, operands, "leave", lists["leave"]),
        refill=operands.size(window["refill"], "window", "refill") if "refill" in window else None,
        resume=operands.cost(window["resume"], "window", "resume") if "resume" in window else None,
        says=says,
    )


def _costs(file: TomlFile, operands: Operands, key: str, items: list[str]) -> tuple[WindowCost, ...]:
    if len(items) > MOST_WINDOW_COSTS:
        raise file.fail(f"has {len(items)} costs: at most {MOST_WINDOW_COSTS}", "window", key)
    costs = []
    for item in items:
        name, star, times = item.partition(" * ")
        costs.append(WindowCost(operands.cost(name, "window", key), bool(star)))
        if star and times != "touched_pages":
            raise file.fail(f"'{item}': a cost may be multiplied by touched_pages only", "window", key)
    return tuple(costs)


def read_stream(file: TomlFile, operands: Operands, entry: Any) -> Stream:
    """The table ``[push]``.

    Raises:
        UsageError: it breaks the language; the message names file, line and reason.
    """
    push = file.known(entry, lang.PUSH_KEYS, "push")
    says = file.words(push.get("says", ""), "push", "says")
    for key in ("link", "order"):
        if key not in push:
            raise file.fail(f"missing '{key}'", "push")
    operands.resource("link", push["link"], "push", "link")
    if push["order"] not in ("address", "recorded"):
        raise file.fail("order is address or recorded", "push", "order")
    return Stream(
        link=push["link"],
        order=push["order"],
        backlog=operands.size(push.get("backlog", 0), "push", "backlog"),
        memory=operands.size(push.get("memory", 0), "push", "memory"),
        latency=operands.cost(push.get("latency", 0), "push", "latency"),
        says=says,
    )
