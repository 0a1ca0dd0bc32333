"""The mechanism language as steps of `cpu_model`: any path without storage and streams, for a closed loop on host CPUs.

Written from `docs/mechanism-language.md` ("How the engine runs it"), without a look at the compiled code. What differs
from `replay_model` is who works while time passes: a wait for a lock is work (its thread spins), a wait for a link or a
server is sleep, and delays that follow each other are one piece of work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cpu_model import Flow, Replay, Steps, Thread
from replay_model import Model, looks_up

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.stage import Stage
from faultreplay.replay.language.words import CONTENT_CAUSES
from faultreplay.replay.workload.workload import Workload

ASLEEP_FROM_NS = 5_000
FOREVER = 1 << 62


@dataclass
class Lock:
    """Held one after the other, in the order in which it was asked for."""

    free_at: int = 0


@dataclass
class Granule:
    """A page that several faults need."""

    placed: bool = False
    joined: list[tuple[Flow, Any]] = field(default_factory=list)


class CpuPaths:
    """Every fault of a workload under one mechanism."""

    def __init__(self, work: Workload, mechanism: Mechanism, costs: Any, cpus: int, pinned: bool) -> None:
        self.w, self.m, self.costs = work, mechanism, costs
        think = [
            work.think_ns[a:b].tolist() for a, b in zip(work.accessor_start, work.accessor_start[1:], strict=False)
        ]
        preempt = round(costs["preempt"].distribution.mean) if "preempt" in costs else 0
        self.replay = Replay(think, cpus, pinned, preempt)
        self.host = self.replay.host
        self.plain = Model(work, mechanism, costs)
        """for what does not depend on CPUs: pages, shards and sizes"""
        self.servers: dict[tuple[str, int], Thread] = {}
        self.locks: dict[tuple[str, int], Lock] = {}
        self.sleepers: dict[tuple[str, int], int] = {}
        self.inside: dict[str, dict[int, int]] = {}
        self.granules: dict[int, Granule] = {}
        self.asked: set[int] = set()
        """granules that some fault brings"""
        self.latency = [-1] * work.faults
        self.rows = {a: int(first) for a, first in enumerate(work.accessor_start[:-1])}
        self.pools: dict[tuple[str, int], int] = {}
        for name, resource in mechanism.resources.items():
            if resource.kind == "servers":
                shards = max(1, int(mechanism.value(mechanism.shards)))
                for number in range({"vm": 1, "accessor": work.accessors, "shard": shards}[resource.per]):
                    self.pools[name, number] = int(mechanism.value(resource.size))

    def run(self) -> Replay:
        self.replay.pools = self.pools
        return self.replay.run(self.fault)

    # ---- small questions
    def ns(self, operand: Any) -> int:
        if not isinstance(operand, str):
            return int(operand or 0)
        if is_expression(operand):
            return int(self.m.value(operand))
        if operand in self.costs:
            return round(self.costs[operand].distribution.mean)
        return int(parse_duration_ns(operand))

    def waits(self, ns: int, bound: Any) -> Steps:
        """A delay of `ns`: asleep where it is that long, else at work."""
        least = ASLEEP_FROM_NS if bound is True else max(self.ns(bound), 1)
        if ns:
            yield ("sleep" if bound and ns >= least else "run"), ns

    def server(self, key: tuple[str, int]) -> Thread:
        """The thread of a pool: it is numbered behind the vCPUs."""
        if key not in self.servers:
            vcpus = int((self.w.accessor_kind == 0).sum()) or self.w.accessors
            self.servers[key] = self.replay.thread(vcpus + key[1])
            self.servers[key].serves = True
        return self.servers[key]

    def count(self, times: str, a: int, row: int, most: Any) -> int:
        what, _, name = times.partition(":")
        key = self.plain.index(name, a, row)
        cap = FOREVER if most is None else int(self.m.value(most))
        if what == "waiters":
            return min(max(self.sleepers.get(key, 0) - 1, 0), cap)
        return min(max(self.host.free[key] - (what == "spare"), 0), cap)

    def slower(self, section: str, who: int, options: Any) -> int:
        within = self.inside.setdefault(section, {})
        others = sum(until > self.host.now for other, until in within.items() if other != who)
        return self.ns(options.each) * others + self.ns(options.once) * (others > 0)

    def lock(self, key: tuple[str, int], options: Any, longer: int) -> int:
        """How long it takes to get and hold a lock that is asked for now."""
        lock, now = self.locks.setdefault(key, Lock()), self.host.now
        alone = self.ns(options.takes)
        contended = alone if options.contended is None else self.ns(options.contended)
        took = (contended if lock.free_at > now else alone) + longer
        lock.free_at = max(lock.free_at, now) + took
        return lock.free_at - now

    # ---- one fault
    def fault(self, a: int, own: Thread) -> Steps:
        row = self.rows[a]
        self.rows[a] = row + 1
        answer = self.m.answer(CAUSES[self.w.cause[row]], ACCESSORS[self.w.accessor_kind[a]])
        assert answer.server is None or answer.server.name == self.m.name
        stages = answer.stages
        looks = looks_up(self.m) and CAUSES[self.w.cause[row]] in CONTENT_CAUSES
        page = int(self.plain.granule[row])
        tracked = looks and bool(self.plain.shared[page])
        if tracked and self.granules.setdefault(page, Granule()).placed:
            return
        wake = next(number for number, stage in enumerate(stages) if stage.verb == "wake")
        if (yield from self.stages(stages[:wake], stages[wake], a, row, page if tracked else -1)):
            return
        yield from self.wake(stages[wake], stages[wake + 1 :], a, row, own, page if tracked else -1)

    def stages(self, stages: Sequence[Stage], wake: Stage | None, a: int, row: int, page: int) -> Steps:  # noqa: PLR0912
        """Stages in a row; returns whether the fault joined another one, and has ended."""
        ns, bound = 0, None
        for number, stage in enumerate(stages):
            options = stage.options
            if options.when:  # what is not always there separates what is before from what is behind it
                yield from self.waits(ns, bound)
                ns = 0
                if not self.plain.holds(options.when, a, row):
                    continue
            if stage.verb == "delay" and ":" not in options.times:
                more = self.ns(stage.operand) * self.plain.factor(options.times, a, row, stage)
                if more and ns and bool(bound) is not bool(options.asleep):
                    yield from self.waits(ns, bound)
                    ns = 0
                ns, bound = ns + more, options.asleep if more or not ns else bound
                if options.when:
                    yield from self.waits(ns, bound)
                    ns = 0
                continue
            key = self.plain.index(stage.name, a, row) if stage.name in self.m.resources else ("", 0)
            if not self.does_something(stage, key, page):
                continue
            yield from self.waits(ns, bound)
            ns = 0
            if self.pools.get(key) == 0:  # as many as are wanted: none is waited for
                ns, bound = self.ns(options.idle), None
            elif stage.verb == "delay":
                yield "run", self.ns(stage.operand) * self.count(options.times, a, row, options.most)
            elif stage.verb == "enter":
                slower = self.slower(stage.name, a, options)
                self.inside[stage.name][a] = FOREVER
                yield "run", slower
            elif stage.verb == "leave":
                self.inside[stage.name][a] = self.host.now
            elif stage.verb == "hold":
                longer = 0
                if options.times:
                    longer = self.ns(options.also) * self.count(options.times, a, row, options.most)
                yield "run", self.lock(key, options, longer)
            elif stage.verb == "sleep":
                self.sleepers[key] = self.sleepers.get(key, 0) + 1
            elif stage.verb == "acquire" and options.idle is not None:
                yield "get", key, self.server(key), self.ns(options.idle)
            elif stage.verb == "acquire":
                yield "get", key
            elif stage.verb == "release":
                yield "give", key, number == len(stages) - 1 and wake is None
            elif stage.verb == "recorded":
                stall = max(int(self.w.recorded_stall_ns[row]), 0)
                yield from self.waits(stall, not options.awake)
            elif stage.verb == "coalesce":
                assert wake
                granule = self.granules[page]
                queue = wake.options.queue
                asleep = any(before.verb == "sleep" for before in stages[:number])
                where = self.plain.index(queue, a, row) if asleep and queue else None
                if granule.placed:
                    if where:
                        self.sleepers[where] -= 1
                    yield "run", self.ns(wake.operand)
                    return True
                if page in self.asked:
                    yield "join", granule.joined, where
                    return True
                self.asked.add(page)
            elif stage.verb == "transfer":
                size = self.m.granule_bytes if stage.options.bytes is None else int(stage.options.bytes)
                link = self.locks.setdefault(key, Lock())
                took = -(-size * 10**9 // int(self.m.value(self.m.resources[stage.name].size)))
                link.free_at = max(link.free_at, self.host.now) + took
                yield "sleep", link.free_at - self.host.now
            elif stage.verb == "complete":
                self.latency[row] = self.host.now - self.replay.start[row]
            else:
                raise AssertionError(stage.verb)
        yield from self.waits(ns, bound)
        return False

    def does_something(self, stage: Stage, key: tuple[str, int], page: int) -> bool:
        """Whether a stage can take time or change anything: between two delays that it separates."""
        if stage.verb == "transfer":
            assert not stage.options.latency
            return int(self.m.value(self.m.resources[stage.name].size)) > 0
        if self.pools.get(key) == 0:
            return stage.verb == "acquire" and stage.options.idle is not None
        return stage.verb != "coalesce" or page >= 0

    def wake(self, stage: Stage, after: Sequence[Stage], a: int, row: int, own: Thread, page: int) -> Steps:  # noqa: PLR0917
        options, host = stage.options, self.host
        within = self.inside.setdefault(options.within, {})
        slower = 0
        if options.queue:
            key = self.plain.index(options.queue, a, row)
            if options.within:
                slower = self.slower(options.within, a, options)
                within[a] = FOREVER
            self.sleepers[key] -= 1
            others = self.sleepers[key]
            walked = others * self.ns(options.walk)
            if options.cold is not None:
                readers = int(self.m.value(self.m.resources[options.readers].size))
                walked += min(others, readers - 1) * self.ns(options.cold)
            if options.under:
                walked = self.lock(self.plain.index(options.under, a, row), options, walked)
            yield "run", walked
        elif options.within:
            slower = self.slower(options.within, a, options)
        took = self.ns(stage.operand) + slower
        if page >= 0:
            granule = self.granules[page]
            granule.placed = True
            yield "tell", granule.joined[::-1], self.ns(stage.operand) + slower * bool(options.within), self.sleepers
        if options.within:
            within[a] = host.now + took
        if options.awake:
            yield "run", took
        else:
            yield "wake", took, own, self.stages(after, None, a, row, -1) if after else None
