"""Which share of a trace a mechanism's own paths serve, which what it falls back to, which is replayed as recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.environment import lacks_link
from faultreplay.analysis.compare.predict import present, rows_of
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.reading import OF_HOST, OF_STAGE2
from faultreplay.replay.workload.workload import Workload

_PEOPLE = {"vcpu": "vCPU", "vmm": "VMM thread", "kernel": "kernel access"}


@dataclass(frozen=True)
class Served:
    """Faults, and ns of their stall, by whose path served them; without those that only a window caused."""

    own_faults: int = 0
    own_stall_ns: int = 0
    fallback_faults: int = 0
    fallback_stall_ns: int = 0
    recorded_faults: int = 0
    recorded_stall_ns: int = 0
    fallbacks: tuple[str, ...] = ()
    """names of the mechanisms that took the fall-back's share"""
    recorded_classes: tuple[str, ...] = ()
    """classes of fault that no path named"""
    by: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)
    """(class, accessor kind, ``own``, ``fall-back`` or ``recorded``) of every pair that occurs"""

    @property
    def faults(self) -> int:
        """All faults that somebody serves."""
        return self.own_faults + self.fallback_faults + self.recorded_faults

    @property
    def stall_ns(self) -> int:
        """Their stall."""
        return self.own_stall_ns + self.fallback_stall_ns + self.recorded_stall_ns

    @property
    def own_share(self) -> float:
        """Share of the faults that the mechanism's own paths serve; 1 of none."""
        return self.own_faults / self.faults if self.faults else 1.0

    @property
    def own_stall_share(self) -> float:
        """Share of the stall that they make; 1 of none."""
        return self.own_stall_ns / self.stall_ns if self.stall_ns else 1.0

    @property
    def whole(self) -> bool:
        """Whether its own paths serve every fault."""
        return self.own_faults == self.faults

    def as_record(self) -> dict[str, float | int]:
        """Flat numbers for output."""
        shares = {f"served_{who}_faults": getattr(self, f"{who}_faults") for who in ("own", "fallback", "recorded")}
        stalls = {f"served_{who}_stall_ns": getattr(self, f"{who}_stall_ns") for who in ("own", "fallback", "recorded")}
        return {**shares, **stalls, "served_percent": 100 * self.own_share, "served_stall_percent": self._percent}

    @property
    def _percent(self) -> float:
        return 100 * self.own_stall_share


def served(workload: Workload, mechanism: Mechanism, result: Result | None = None) -> Served:
    """Who serves the faults of `workload` under `mechanism`; stalls of `result`, where there is one."""
    stall = np.maximum(result.stall_ns, 0) if result is not None else np.zeros(workload.faults, np.int64)
    count = dict.fromkeys(("own", "fall-back", "recorded"), 0)
    ns = dict(count)
    fallbacks: set[str] = set()
    classes: set[str] = set()
    by = []
    for pair, (cause, kind) in present(workload):
        answer = mechanism.answer(cause, kind)
        if answer.by == "nothing":
            continue
        rows = rows_of(workload, [pair])
        count[answer.by] += int(rows.sum())
        ns[answer.by] += int(stall[rows].sum())
        by.append((cause, kind, answer.by))
        if answer.by == "fall-back" and answer.server:
            fallbacks.add(answer.server.name)
        if answer.by == "recorded":
            classes.add(cause)
    return Served(
        own_faults=count["own"],
        own_stall_ns=ns["own"],
        fallback_faults=count["fall-back"],
        fallback_stall_ns=ns["fall-back"],
        recorded_faults=count["recorded"],
        recorded_stall_ns=ns["recorded"],
        fallbacks=tuple(sorted(fallbacks)),
        recorded_classes=tuple(sorted(classes)),
        by=tuple(by),
    )


def why_no_row(case: Case, mechanism: Mechanism) -> str:
    """Why a mechanism has no numbers for a trace, in words; empty where it has some.

    It serves none of its faults, or what its faults bring depends on a link that is not known.
    """
    workload = case.read
    reason = why_none(workload, mechanism, served(workload, mechanism), case.emptied_ns is not None)
    recorded = case.used is not None and mechanism.name == case.used.name
    return reason or ("" if recorded else lacks_link(mechanism, case.brought))


def why_none(workload: Workload, mechanism: Mechanism, found: Served, emptied: bool = False) -> str:
    """Why a mechanism serves no fault of a trace, in words; empty where it serves one.

    `emptied`: the trace holds a window that emptied stage 2.
    """
    if found.own_faults or not found.faults:
        return ""
    kinds = {kind for _, kind, _ in found.by}
    if not kinds & set(mechanism.serves):
        wanted = " or ".join(_PEOPLE[kind] for kind in mechanism.serves)
        more = ": name them with --vcpu-threads if threads stand for some" if "vcpu" in mechanism.serves else ""
        return f"no {wanted} in this trace{more}"
    own = {cause for cause, kind, _ in found.by if kind in mechanism.serves}
    if emptied and own <= {*OF_STAGE2, *OF_HOST}:
        return "no memory was missing: the faults follow a recorded window that emptied stage 2 (see blackout)"
    return (
        f"it serves none of this trace's faults, which are {', '.join(sorted(own))}: "
        "--reading first-touch takes each page's first touch as missing"
    )
