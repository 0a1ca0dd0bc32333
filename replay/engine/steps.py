"""A journal read: the steps of one fault, and who had which server, lock or link, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.engine.follow import Followed
from faultreplay.replay.engine.journal import E_AT, E_PC, E_ROW, E_SLOT, E_SPENT, E_WHO
from faultreplay.replay.language.program import Instances, Share
from faultreplay.replay.workload.workload import Ints

_WAKES: Final = (o.WAKE, o.WAKE_QUEUE)
_HOLDS: Final = (o.HOLD, o.TRANSFER, o.WALK)
_RELEASES: Final = (o.RELEASE, o.RELEASE_ONE)
_CPU: Final = "waits for a host CPU"
_PLAIN: Final = {
    o.ARRIVE: "a window blocks it",
    o.RECORDED: "as recorded",
    o.CPU_RECORDED: "as recorded",
    o.WALK: "walks over other sleepers",
    o.ENTER: "others in the same section",
}


class Step(NamedTuple):
    """A part of a fault's stall, ns; `at_ns` from the beginning of the run."""

    at_ns: int
    took_ns: int
    what: str
    word: str
    """of `time_words.TIME_WORDS`"""
    resource: int = -1
    """the instance that it waits for or has; -1: none"""


class Use(NamedTuple):
    """One use of one resource instance, ns from the beginning of the run."""

    resource: int
    row: int
    """of the fault; -1: one that is assumed"""
    who: int
    """accessor whose fault it is"""
    asked_ns: int
    begin_ns: int
    end_ns: int
    """-1: not given back in the stretch that was followed"""


@dataclass(frozen=True)
class Story:
    """What a journal tells."""

    followed: Followed

    @cached_property
    def following(self) -> Ints:
        """int64[n]: the next entry of the same slot; -1: none."""
        slot = self.followed.entries[:, E_SLOT]
        order = np.argsort(slot, kind="stable")
        found = np.full(len(slot), -1, np.int64)
        same = slot[order[1:]] == slot[order[:-1]]
        found[order[:-1][same]] = order[1:][same]
        return found

    @cached_property
    def shares(self) -> dict[int, list[Share]]:
        """Operation -> what its columns of `spent` stand for."""
        found: dict[int, list[Share]] = {}
        for share in self.followed.program.shares:
            found.setdefault(share.pc, []).append(share)
        return found

    @cached_property
    def of_row(self) -> dict[int, list[int]]:
        """Row -> its entries, in order."""
        found: dict[int, list[int]] = {}
        for entry, row in enumerate(self.followed.entries[:, E_ROW].tolist()):
            if row >= 0:
                found.setdefault(row, []).append(entry)
        return found

    def label(self, resource: int) -> str:
        """What a resource instance is called."""
        item = next(i for i in self.followed.program.resources if i.first <= resource < i.first + i.count)
        return f"{item.name} {resource - item.first}" if item.count > 1 else item.name

    def resource(self, resource: int) -> Instances:
        """The resource that an instance is one of."""
        return next(i for i in self.followed.program.resources if i.first <= resource < i.first + i.count)

    def steps(self, row: int) -> list[Step]:
        """The parts of a fault's stall, one after the other without a gap; empty where it was not followed.

        They add up to its row's `stall_ns`, to the ns.
        """
        result = self.followed.result
        start, stall = int(result.start_ns[row]), int(result.stall_ns[row])
        path = self._path(row, start, start + stall)
        if not path or start < self.followed.from_ns:
            return []
        entries = self.followed.entries
        times = [int(entries[entry, E_AT]) for entry in path] + [start + stall]
        found = [] if times[0] == start else [Step(start, times[0] - start, "not told", "other")]
        for entry, begin, end in zip(path, times[:-1], times[1:], strict=True):
            found += self._parts(entry, row, begin, end)
        return [step for step in found if step.took_ns]

    def _path(self, row: int, start: int, end: int) -> list[int]:
        """The entries of a fault before its accessor went on: what is done behind its wake is left out."""
        entries, ops = self.followed.entries, self.followed.program.ops
        mine = [entry for entry in self.of_row.get(row, []) if start <= entries[entry, E_AT] <= end]
        found: list[int] = []
        woken = False
        for entry in mine:
            op = ops[entries[entry, E_PC], 0]
            if entries[entry, E_SLOT] != entries[mine[0], E_SLOT] or (woken and op != o.RESUME and op not in _WAKES):
                continue
            woken = woken or op in _WAKES
            found.append(entry)
        return found

    def _parts(self, entry: int, row: int, begin: int, end: int) -> Iterator[Step]:
        """The parts of one operation, in order; what nothing was booked for is a wait."""
        pc = int(self.followed.entries[entry, E_PC])
        op = int(self.followed.program.ops[pc, 0])
        spent = self.followed.entries[entry, E_SPENT:]
        used = self._instance(entry)
        if op in _WAKES:
            # Those who joined are booked here, too: then its own time is what there is.
            alone = self._on_cpus and not (self.followed.granule.size and self.followed.granule[row] >= 0)
            took = min(int(spent[1]), end - begin) if alone else end - begin
            yield Step(begin, took, "wake", self._word(pc, 1, "wake"))
            yield Step(begin + took, end - begin - took, _CPU, "queue")
            return
        if op == o.COALESCE:
            yield from self._joined(pc, row, begin, end, int(spent[0]))
            return
        at = begin
        for share in self.shares.get(pc, []):
            took = min(int(spent[share.column]) * (share.each_ns or 1), end - at)
            if took > 0:
                yield Step(at, took, self._what(op, used, share), share.word, used)
                at += took
        if at < end:
            waits = op == o.ACQUIRE and at == begin
            what = f"waits for {self.label(used)}" if waits else _CPU if self._on_cpus else "not told"
            word = "queue" if waits or self._on_cpus else "other"
            yield Step(at, end - at, what, word, used if waits else -1)

    @cached_property
    def _on_cpus(self) -> bool:
        return "cpus" in self.followed.result.resources

    def _joined(self, pc: int, row: int, begin: int, end: int, waited: int) -> Iterator[Step]:
        """A fault on a page that another one has asked for: until it is there, then its own wake."""
        brought, at = self._bringer(row, begin, end)
        until = begin + waited if waited or brought < 0 else min(max(at, begin), end)
        wake = int(self.followed.program.ops[pc, o.COALESCE_WAKE])
        if until > begin:
            yield Step(begin, until - begin, "waits for another fault on its page", "queue")
        if end > until:
            yield Step(until, end - until, "wake", self._word(wake, 1, "wake"))

    def _bringer(self, row: int, begin: int, end: int) -> tuple[int, int]:
        """The entry and time of the wake of the fault that brought the page of `row`; -1: none was followed."""
        granule, entries = self.followed.granule, self.followed.entries
        if not granule.size:
            return -1, -1
        low = np.searchsorted(self._wakes[0], begin)
        for entry in self._wakes[1][low:]:
            at, other = int(entries[entry, E_AT]), int(entries[entry, E_ROW])
            if at > end:
                break
            if other >= 0 and other != row and granule[other] == granule[row]:
                return int(entry), at
        return -1, -1

    @cached_property
    def _wakes(self) -> tuple[Ints, Ints]:
        """Wakes in order of time: when, and which entry."""
        entries, ops = self.followed.entries, self.followed.program.ops
        which = np.flatnonzero(np.isin(ops[entries[:, E_PC], 0], _WAKES))
        order = np.argsort(entries[which, E_AT], kind="stable")
        return entries[which[order], E_AT], which[order]

    def _word(self, pc: int, column: int, default: str) -> str:
        return next((share.word for share in self.shares.get(pc, []) if share.column == column), default)

    def _what(self, op: int, used: int, share: Share) -> str:
        """A part of an operation in words."""
        if share.column == 0 and not share.each_ns and used >= 0:
            return f"waits for {self.label(used)}"
        if used >= 0 and op == o.ACQUIRE:
            return f"{self.label(used)} wakes" + (f" ({share.name})" if share.name else "")
        if used >= 0:
            return f"content over {self.label(used)}" if op == o.TRANSFER else f"holds {self.label(used)}"
        return share.name or _PLAIN.get(op, share.word)

    def _instance(self, entry: int) -> int:
        """Which instance an operation uses; -1: none."""
        row = self.followed.entries[entry]
        operands = self.followed.program.ops[row[E_PC]]
        if operands[0] not in (o.ACQUIRE, *_HOLDS, *_RELEASES) or operands[o.OF] < 0:
            return -1
        per, base = int(operands[o.OF + 1]), int(operands[o.OF])
        if per == o.PER_ACCESSOR:
            return base + int(row[E_WHO])
        shard = self.followed.shard
        return base + (int(shard[row[E_ROW]]) if per == o.PER_SHARD and row[E_ROW] >= 0 and shard.size > 1 else 0)

    @cached_property
    def uses(self) -> list[Use]:
        """Every use of a server, lock or link that was followed, in the order in which they were asked for."""
        entries, ops = self.followed.entries, self.followed.program.ops
        found: list[Use] = []
        open_: dict[tuple[int, int, int], int] = {}
        codes = ops[entries[:, E_PC], 0]
        for entry in np.flatnonzero(np.isin(codes, (o.ACQUIRE, *_HOLDS, *_RELEASES))).tolist():
            used = self._instance(entry)
            if used < 0:
                continue
            at, row, who = (int(entries[entry, column]) for column in (E_AT, E_ROW, E_WHO))
            after = self.following[entry]
            then = int(entries[after, E_AT]) if after >= 0 else -1
            if codes[entry] in _RELEASES:
                place = open_.pop((used, row, who), -1)
                if place >= 0:
                    found[place] = found[place]._replace(end_ns=at)
            elif codes[entry] == o.ACQUIRE:
                woken = entries[entry, E_SPENT + 1] > 0
                open_[used, row, who] = len(found)
                found.append(Use(used, row, who, at, at if woken or then < 0 else then, -1))
            elif then >= 0:
                waited, held = (int(entries[entry, E_SPENT + column]) for column in (0, 1))
                found.append(Use(used, row, who, at, at + waited, at + waited + held))
        return found

    def held_by(self, resource: int, from_ns: int, until_ns: int, row: int) -> list[Use]:
        """Who had `resource` in a stretch of time, `row` itself left out; in order of their begin."""
        mine = self._by_resource.get(resource, [])
        inside = [u for u in mine if u.begin_ns < until_ns and (u.end_ns < 0 or u.end_ns > from_ns) and u.row != row]
        return sorted(inside, key=lambda use: use.begin_ns)

    def ahead_of(self, resource: int, asked_ns: int, row: int) -> list[Use]:
        """Who had asked before and still waited when `row` asked."""
        mine = self._by_resource.get(resource, [])
        begin = max((u.begin_ns for u in mine if u.row == row and u.asked_ns == asked_ns), default=asked_ns)
        return [u for u in mine if u.row != row and u.asked_ns <= asked_ns < u.begin_ns < begin]

    @cached_property
    def _by_resource(self) -> dict[int, list[Use]]:
        found: dict[int, list[Use]] = {}
        for use in self.uses:
            found.setdefault(use.resource, []).append(use)
        return found
