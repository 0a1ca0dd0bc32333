"""The mechanism language once more, as a simpy model: slow, obvious, and written without a look at the kernel.

Costs must be constants; only `retry` is random, by the documented bits (splitmix64 of seed, fault and draw).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import simpy

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.words import CONTENT_CAUSES
from faultreplay.replay.workload.workload import Workload

MASK = (1 << 64) - 1


def bits16(seed: int, row: int, draw: int, attempt: int = 0) -> int:
    z = (seed * 0x632BE59BD9B4E019 + ((row + (attempt << 40)) * 16 + (draw >> 2)) * 0x9E3779B97F4A7C15) & MASK
    z = z or 0x9E3779B97F4A7C15
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return (z >> (16 * (draw & 3))) & 0xFFFF


def looks_up(mechanism: Mechanism) -> bool:
    """Whether a fault on a page that is there ends at once: where this mechanism coalesces, or one it falls back to."""
    stages = (stage for path in mechanism.paths.values() for stage in path)
    return any(stage.verb == "coalesce" for stage in stages) or any(map(looks_up, mechanism.fallback.values()))


class Model:
    def __init__(self, workload: Workload, mechanism: Mechanism, costs: Any, seed: int = 0) -> None:
        self.w, self.m, self.costs, self.seed = workload, mechanism, costs, seed
        self.env = simpy.Environment()
        self.resources: dict[tuple[str, int], simpy.Resource] = {}
        self.sleepers: dict[tuple[str, int], int] = {}
        self.inside: dict[str, set[Any]] = {}
        self.lock_users: dict[tuple[str, int], int] = {}
        self.lock_free: dict[tuple[str, int], int] = {}
        self.pages: dict[int, Any] = {}
        """granule -> those that wait for it, True where it is there, or when it will be"""
        self.mapped: set[int] = set()
        """granules that a vCPU has mapped in stage 2"""
        self.link_free: dict[tuple[str, str], int] = {}
        """when all that was put on a link is through"""
        self.levels: dict[str, Model] = {}
        self.start = np.full(workload.faults, -1, np.int64)
        self.stall = np.full(workload.faults, -1, np.int64)
        self.latency = np.full(workload.faults, -1, np.int64)
        self.native = mechanism.granule_bytes // workload.page_bytes
        granules = workload.page.astype(np.int64) // self.native
        _, self.granule = np.unique(granules, return_inverse=True)
        self.granule = granules if not workload.faults else self.granule
        counts = np.bincount(self.granule) if workload.faults else np.zeros(0)
        self.shared = counts > 1
        page = workload.page.astype(np.int64)
        shards = max(1, int(mechanism.value(mechanism.shards)))
        pages, place = np.unique(page, return_inverse=True)
        self.shard = place * shards // max(len(pages), 1)

    def run(self, loop: str = "closed") -> Model:
        if self.m.push:
            self.env.process(self.stream(self.m.push))
        for a in range(self.w.accessors if loop == "closed" else 0):
            self.env.process(self.accessor(a))
        for a in range(self.w.accessors if loop == "open" else 0):
            begin, end = (int(row) for row in self.w.accessor_start[a : a + 2])
            for row, time in zip(range(begin, end), np.cumsum(self.w.think_ns[begin:end]), strict=True):
                self.env.process(self.one(a, row, int(time)))
        self.env.run()
        return self

    def stream(self, push: Any) -> Any:
        """Granules go over the link by themselves, no more of them ahead than the backlog."""
        rate, latency = int(self.m.value(self.m.resources[push.link].size)), self.cost(push.latency)
        on_link = -(-self.m.granule_bytes * 10**9 // rate)
        backlog = int(self.m.value(push.backlog)) * on_link // self.m.granule_bytes
        order = dict.fromkeys(sorted(self.granule.tolist()))
        if push.order == "recorded":
            times = np.concatenate([np.cumsum(part) for part in np.split(self.w.think_ns, self.w.accessor_start[1:-1])])
            order = dict.fromkeys(self.granule[np.argsort(times, kind="stable")].tolist())
        for granule in order:
            while (ahead := self.link_free.get((self.m.name, push.link), 0) - self.env.now) > backlog:
                yield self.env.timeout(max(ahead - backlog, 1))
            if granule not in self.pages:
                self.pages[granule] = self.on_link(push.link, on_link) + latency
                self.env.process(self.occupies(self.resource(push.link, 0, 0), on_link))

    def on_link(self, link: str, ns: int) -> int:
        """So much more is put on a link: when it will be through."""
        key = self.m.name, link
        self.link_free[key] = max(self.link_free.get(key, 0), self.env.now) + ns
        return self.link_free[key]

    def occupies(self, link: simpy.Resource, ns: int) -> Any:
        with link.request() as turn:
            yield turn
            yield self.env.timeout(ns)

    def cost(self, operand: Any) -> int:
        if not isinstance(operand, str):
            return int(operand or 0)
        if operand.startswith("$"):
            return int(self.m.values[operand[1:]])
        if operand in self.costs:
            return round(self.costs[operand].distribution.mean)
        return int(operand.removesuffix("ns"))

    def index(self, name: str, a: int, row: int) -> tuple[str, int]:
        return name, {"vm": 0, "accessor": a, "shard": int(self.shard[row])}[self.m.resources[name].per]

    def resource(self, name: str, a: int, row: int) -> simpy.Resource:
        key = self.index(name, a, row)
        if key not in self.resources:
            size = self.m.value(self.m.resources[name].size) if self.m.resources[name].kind == "servers" else 1
            self.resources[key] = simpy.Resource(self.env, int(size) or 1 << 30)
        return self.resources[key]

    def level(self, a: int, row: int) -> Model:
        """Whoever serves this fault: the mechanism, or one that it falls back to, with resources of its own."""
        server = self.m.answer(CAUSES[self.w.cause[row]], ACCESSORS[self.w.accessor_kind[a]]).server
        if server is None or server.name == self.m.name:
            return self
        if server.name not in self.levels:
            other = self.levels[server.name] = copy.copy(self)
            other.m, other.resources, other.sleepers, other.inside = server, {}, {}, {}
            other.lock_users, other.lock_free = {}, {}
        return self.levels[server.name]

    def accessor(self, a: int) -> Any:
        for row in range(int(self.w.accessor_start[a]), int(self.w.accessor_start[a + 1])):
            yield from self.one(a, row, int(self.w.think_ns[row]))

    def one(self, a: int, row: int, after_ns: int) -> Any:
        yield self.env.timeout(after_ns)
        self.start[row] = self.env.now
        awake = self.env.event()
        self.env.process(self.level(a, row).fault(a, row, awake))
        yield awake
        self.stall[row] = self.env.now - self.start[row]

    def fault(self, a: int, row: int, awake: Any) -> Any:  # noqa: PLR0912
        env = self.env
        name = CAUSES[self.w.cause[row]]
        path = self.m.paths[self.m.classes.get(name, name)]
        looks = looks_up(self.m) and name in CONTENT_CAUSES
        page = int(self.granule[row])
        tracked = looks and (self.shared[page] or self.m.push is not None)
        state = self.pages.get(page) if tracked else None
        vcpu = self.w.accessor_kind[a] == 0
        if state is True or (isinstance(state, int) and state <= env.now):
            if vcpu and page not in self.mapped:
                self.mapped.add(page)
                yield env.timeout(self.cost("stage2_fault"))
            awake.succeed()
            return
        held: dict[str, Any] = {}
        queue = next((s.options.queue for s in path if s.verb == "wake"), None)
        pc = draw = attempt = 0
        draws: dict[int, int] = {}
        for number, stage in enumerate(path):
            if stage.verb == "retry" and self.m.value(stage.options.chance) > 0:
                draws[number] = draw
                draw += 1
        while pc < len(path):
            stage = path[pc]
            number = pc
            pc += 1
            conditions = stage.options.when
            if conditions and not self.holds(conditions, a, row):
                continue
            if stage.verb == "delay":
                factor = self.factor(stage.options.times, a, row, stage)
                yield env.timeout(self.cost(stage.operand) * factor)
            elif stage.verb == "acquire":
                resource = self.resource(stage.operand, a, row)
                free = resource.count < resource.capacity and not resource.queue
                held[stage.operand] = resource.request()
                yield held[stage.operand]
                if free:
                    yield env.timeout(self.cost(stage.options.idle))
            elif stage.verb == "release":
                self.resource(stage.operand, a, row).release(held[stage.operand])
            elif stage.verb == "hold":
                counted = 0
                if stage.options.times:
                    counted = self.cost(stage.options.also) * self.factor(stage.options.times, a, row, stage)
                yield from self.held(stage.operand, stage.options, a, row, counted)
            elif stage.verb == "enter":
                within = self.inside.setdefault(stage.operand, set())
                slower = self.slower(stage, len(within))
                within.add((a, row))
                yield env.timeout(slower)
            elif stage.verb == "leave":
                self.inside[stage.operand].discard((a, row))
            elif stage.verb == "transfer":
                yield env.timeout(self.cost(stage.options.latency))
                size = self.m.granule_bytes if stage.options.bytes is None else int(stage.options.bytes)
                rate = int(self.m.value(self.m.resources[stage.operand].size))
                took = -(-size * 10**9 // rate) if rate else 0
                self.on_link(stage.operand, took)
                yield from self.occupies(self.resource(stage.operand, a, row), took)
            elif stage.verb == "sleep":
                key = self.index(stage.operand, a, row)
                self.sleepers[key] = self.sleepers.get(key, 0) + 1
            elif stage.verb == "coalesce":
                if not tracked:
                    continue
                state = self.pages.get(page)
                if state is None:
                    self.pages[page] = []
                    continue
                if vcpu:
                    self.mapped.add(page)
                slower = 0
                if isinstance(state, list):
                    placed = env.event()
                    state.append((placed, self.index(queue, a, row) if queue else None))
                    after, slower = yield placed
                    yield env.timeout(after)
                else:
                    if queue:
                        self.sleepers[self.index(queue, a, row)] -= 1
                    yield env.timeout(max(state - env.now, 0) if state is not True else 0)
                wake = next(s for s in path if s.verb == "wake")
                yield env.timeout(self.cost(wake.operand) + slower * bool(wake.options.within))
                awake.succeed()
                return
            elif stage.verb == "wake":
                section = stage.options.within
                within = self.inside.setdefault(section, set()) if section else set()
                slower = self.slower(stage, len(within))
                within.add((a, row))  # from when the wake begins
                if queue:
                    key = self.index(queue, a, row)
                    self.sleepers[key] -= 1
                    others = self.sleepers[key]
                    walked = others * self.cost(stage.options.walk)
                    if stage.options.cold is not None:
                        readers = int(self.m.value(self.m.resources[stage.options.readers].size))
                        walked += min(others, readers - 1) * self.cost(stage.options.cold)
                    under = stage.options.under
                    ends = self.lock_ends(under, stage.options, a, row, walked) if under else env.now + walked
                    if tracked:
                        self.told(page, ends, slower)
                    if under:
                        yield from self.held(under, stage.options, a, row, walked)
                    elif walked:
                        yield env.timeout(walked)
                elif tracked:
                    self.told(page, int(env.now), slower)
                if section:
                    env.process(self.leaves(within, (a, row), slower + self.cost(stage.operand)))
                self.mapped |= {page} if tracked and vcpu else set()
                env.process(self.later(slower + self.cost(stage.operand), awake))
            elif stage.verb == "recorded":
                yield env.timeout(max(int(self.w.recorded_stall_ns[row]), 0))
            elif stage.verb == "retry":
                chance = round(self.m.value(stage.options.chance) * 65536)
                more = number in draws and attempt < stage.options.most
                if more and bits16(self.seed, row, draws[number], attempt) < chance:
                    attempt += 1
                    pc = next(i for i, s in enumerate(path) if s.options.label == stage.operand)
            else:
                self.latency[row] = env.now - self.start[row]

    def told(self, page: int, ends: int, slower: int) -> None:
        """The wake has begun, and `page` will be there at `ends`: all who joined know, and whoever comes now."""
        joined = self.pages.get(page)
        if joined is None or isinstance(joined, list):
            self.pages[page] = ends
        for placed, where in joined if isinstance(joined, list) else []:
            if where:
                self.sleepers[where] -= 1
            placed.succeed((ends - self.env.now, slower))

    def slower(self, stage: Any, others: int) -> int:
        return self.cost(stage.options.each) * others + self.cost(stage.options.once) * (others > 0)

    def leaves(self, within: set[Any], who: Any, ns: int) -> Any:
        yield self.env.timeout(ns)
        within.discard(who)

    def held(self, lock: str, options: Any, a: int, row: int, longer: int) -> Any:
        """A lock asked for, had, held and given back; dearer where anybody had it or waited when it was asked for."""
        key = self.index(lock, a, row)
        took = self.hold_ns(key, options) + longer
        self.lock_free[key] = self.lock_ends(lock, options, a, row, longer)
        self.lock_users[key] = self.lock_users.get(key, 0) + 1
        with self.resource(lock, a, row).request() as turn:
            yield turn
            yield self.env.timeout(took)
        self.lock_users[key] -= 1

    def hold_ns(self, key: tuple[str, int], options: Any) -> int:
        dearer = options.contended is not None and self.lock_users.get(key, 0)
        return self.cost(options.contended if dearer else options.takes)

    def lock_ends(self, lock: str, options: Any, a: int, row: int, longer: int) -> int:
        """When a lock asked for now will be given back."""
        key = self.index(lock, a, row)
        return max(self.lock_free.get(key, 0), int(self.env.now)) + self.hold_ns(key, options) + longer

    def later(self, ns: int, event: Any) -> Any:
        yield self.env.timeout(ns)
        event.succeed()

    def holds(self, conditions: Any, a: int, row: int) -> bool:
        access = [c for c in conditions if c in ("read", "write", "exec")]
        kinds = [c for c in conditions if c not in access]
        fits = ("read", "write", "exec")[self.w.access[row]] in access or not access
        return fits and (("vcpu", "vmm", "kernel")[self.w.accessor_kind[a]] in kinds or not kinds)

    def factor(self, times: str, a: int, row: int, stage: Any) -> int:
        if not times:
            return 1
        if times in ("granule_pages", "further_pages"):
            return self.native - (times == "further_pages")
        if times.startswith("$"):
            return int(self.m.value(times))
        what, _, name = times.partition(":")
        most = 1 << 40 if stage.options.most is None else int(self.m.value(stage.options.most))
        if what == "waiters":
            return min(max(self.sleepers.get(self.index(name, a, row), 0) - 1, 0), most)
        resource = self.resource(name, a, row)
        return min(max(resource.capacity - resource.count - (what == "spare"), 0), most)
