"""From a mechanism and its costs to the matrix of operations that `faultreplay.replay.engine.kernel` runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language import contention
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.distributions import TABLE_SIZE
from faultreplay.replay.language.emitter import Emitter
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Demand, Instances, Program, Share
from faultreplay.replay.language.stage import Stage
from faultreplay.replay.language.storage import emit_storage_stage
from faultreplay.replay.language.time_words import word_of
from faultreplay.replay.language.tracking import tracks_pages
from faultreplay.replay.language.words import BUILT_IN_PATHS, CONDITIONS

__all__ = ["Compiler", "Demand", "Instances", "Program", "Share"]


class Compiler(Emitter):
    """One mechanism with what it falls back to, against one cost table, for the faults and accessors that occur."""

    def __init__(self, mechanism: Mechanism, costs: Mapping[str, Cost], demand: Demand) -> None:
        super().__init__(mechanism, costs, demand)
        self.demand = demand
        self.shared = demand.shared
        if mechanism.granule_bytes % demand.page_bytes:
            raise UsageError(
                f"{mechanism.name}: granule {mechanism.granule_bytes} is not a multiple of the trace's page "
                f"of {demand.page_bytes} bytes"
            )
        self.has_latency = False
        self.tails = 0
        self.moved: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.unserved: dict[str, set[str]] = {}

    def program(self) -> Program:
        """Compile every path that these faults can take."""
        self.share(self.emit(o.ARRIVE), "other")
        self.emit(o.START)
        wake, tail = (o.WAKE_QUEUE, o.TAIL_AWAKE) if self.on_cpus else (o.WAKE, o.TAIL_NONE)
        self.emit(wake, (o.WAKE_FROM, -1), (o.WAKE_TAIL, tail))
        self.emit(o.END)
        self.emit(o.RESUME)
        self.emit(o.ENDED)
        self.done: dict[tuple[str, str], tuple[int, list[tuple[int, int]]]] = {}
        path_pc = np.full((o.PATH_STREAMS + len(self.top.streams), len(ACCESSORS)), o.PC_NOTHING, np.int64)
        kinds = set()
        for row, column in sorted(self.demand.needed):
            kinds.add(column)
            path_pc[row, column] = self.path_for(CAUSES[row], ACCESSORS[column])
        if 0 in kinds and self.shared and tracks_pages(self.top):  # only vCPUs go through stage 2
            path_pc[o.PATH_PRESENT, 0] = self.path_for("present", "vcpu")
        if 0 in kinds and self.demand.refaults:
            path_pc[o.PATH_REFAULT, 0] = self.path_for("refault", "vcpu")
        if self.demand.rewrites:
            for column in sorted(kinds):
                path_pc[o.PATH_REWRITE, column] = self.path_for("rewrite", ACCESSORS[column])
        for number, stream in enumerate(self.top.streams):
            path_pc[o.PATH_STREAMS + number, :] = self.stream_path(stream.path)
        links = {
            name: (self.resource(self.top, name).first, self.transfer_ns(self.top, name, self.top.granule_bytes))
            for name, resource in self.top.resources.items()
            if resource.kind == "link"
        }
        pushed = self.distribution(self.top, self.top.push.latency if self.top.push else None)
        tables = np.array(self.tables, np.int64) if self.tables else np.zeros((1, TABLE_SIZE), np.int64)
        return Program(
            ops=np.array(self.ops, np.int64),
            tables=tables,
            path_pc=path_pc,
            resources=list(self.instances.values()),
            servers=np.array(self.servers or [1], np.int64),
            costs_used=self.used,
            moved=self.moved,
            has_latency=self.has_latency,
            tails=self.tails,
            shards=self.shards,
            recorded_classes=self.unserved,
            link_ns=links,
            sections=len(self.sections),
            push_latency_ns=round(pushed.mean),
            storages=self.storages,
            shares=self.shares,
        )

    def path_for(self, name: str, kind: str) -> int:
        """pc of the path a class of fault takes for a kind of accessor; compiled once."""
        answer = self.top.answer(name, kind)
        if answer.by == "recorded":
            self.unserved.setdefault(name, set()).add(kind)
        key = (answer.server.name if answer.server else "", answer.path)
        if key not in self.done:
            self.unlimited: list[tuple[int, int]] = []
            # on a path that is taken twice, or is no class's, the loop counts bytes
            once = answer.path in CAUSES and answer.path not in BUILT_IN_PATHS
            self.counts_alike = once and not any(stage.verb == "retry" for stage in answer.stages)
            self.done[key] = (self.path(answer.server or self.top, answer.stages), self.unlimited)
        pc, unlimited = self.done[key]
        if unlimited:
            self.moved[name, kind] = unlimited
        return pc

    def stream_path(self, name: str) -> int:
        """pc of a stream's path; what it takes is nobody's stall."""
        shares, self.shares = self.shares, []
        self.counts_alike = False
        pc = self.path(self.top, self.top.paths[name])
        self.shares = shares
        return pc

    def path(self, mechanism: Mechanism, stages: tuple[Stage, ...]) -> int:
        """Append one path; the pc of its first operation."""
        self.mechanism = mechanism
        self.draws = 0
        first = len(self.ops)
        labels: dict[str, int] = {}
        wake_pc = -1
        awake = False
        slept = False
        waiting: list[int] = []
        barrier = first
        returned_to = {stage.name for stage in stages if stage.verb == "retry"}
        for stage in stages:
            skip = -1
            slept |= stage.verb == "sleep"
            if stage.options.label in returned_to:
                labels[stage.options.label] = barrier = len(self.ops)
            if stage.options.when:
                skip = self.emit(o.UNLESS, (o.UNLESS_MASK, sum(CONDITIONS[name] for name in set(stage.options.when))))
                barrier = len(self.ops)
            if stage.verb == "coalesce":
                if self.shared:
                    skips = (o.COALESCE_SKIPS, int(stage.operand == "skip"))
                    waiting.append(self.emit(o.COALESCE, (o.COALESCE_SLEEPS, int(slept)), skips))
                    self.share(waiting[-1], "queue")
            elif stage.verb == "wake":
                wake_pc = self.wake(mechanism, stage)
                awake = stage.options.awake
            elif stage.verb == "retry":
                chance, most = mechanism.value(stage.options.chance or 0), int(stage.options.most or 0)
                if chance > 0:
                    tries = ((o.RETRY_BELOW, round(chance * 65536)), (o.RETRY_DRAW, self.draw()), (o.RETRY_MOST, most))
                    self.emit(o.RETRY, (o.RETRY_TARGET, labels[stage.name]), *tries)
            elif stage.verb == "delay":
                self.delay(mechanism, stage, barrier)
            else:
                self.simple(mechanism, stage, barrier)
            if skip >= 0:
                self.ops[skip][o.UNLESS_TARGET] = barrier = len(self.ops)
        end = self.emit(o.END)
        for pc in waiting:
            self.ops[pc][o.COALESCE_WAKE] = wake_pc
        # behind it none is delayed
        self.shares = [share for share in self.shares if share.pc <= wake_pc]
        own = self.on_cpus and awake
        self.ops[wake_pc][o.WAKE_TAIL] = o.TAIL_AWAKE if own else self.tail_kind(wake_pc + 1, end)
        return first

    def tail_kind(self, first: int, end: int) -> int:
        """What follows a wake; notes how many such tails may be under way at once."""
        tail = self.ops[first:end]
        if not tail:
            return o.TAIL_NONE
        if all(op[0] in (o.DELAY, o.RELEASE_ONE) for op in tail):
            if self.on_cpus or not self.ops[first - 1][o.WAKE_WALKED]:  # else the waking slot goes on with it
                self.tails = max(self.tails, 1)
            return o.TAIL_SIMPLE
        held = [op[o.OF] for op in tail if op[0] in (o.RELEASE, o.RELEASE_ONE)]
        if any(op[0] == o.ACQUIRE for op in tail) or not held:
            self.tails = max(self.tails, self.accessors + 16)
        else:
            servers = sum(r.servers * r.count for r in self.instances.values() if r.first in held)
            self.tails = max(self.tails, min(servers, self.accessors + 16))
        return o.TAIL_ANY

    def simple(self, mechanism: Mechanism, stage: Stage, barrier: int) -> None:
        """Stages that are one operation."""
        if stage.verb in ("acquire", "release"):
            r = self.resource(mechanism, stage.name)
            at = (o.OF, *self.of(mechanism, stage.name))
            idle = stage.options.idle or 0
            single = r.servers == 1 and not self.on_cpus  # with CPUs its end is not known ahead
            if r.servers == 0:
                self.delay(mechanism, Stage("delay", idle if stage.verb == "acquire" else 0), len(self.ops))
            elif stage.verb == "acquire":
                cost = self.woken(mechanism, idle)
                pc = self.emit(o.ACQUIRE, at, (o.COST, *cost), (o.ACQUIRE_SINGLE, int(single)))
                self.share(pc, "queue")
                self.share(pc, word_of(idle), 1, of=idle)
            else:
                self.emit(o.RELEASE_ONE if single else o.RELEASE, at)
        elif stage.verb == "transfer":
            self.delay(mechanism, Stage("delay", stage.options.latency or 0), len(self.ops))
            size = stage.options.bytes
            count = mechanism.granule_bytes if size is None else int(mechanism.value(size))
            ns = self.transfer_ns(mechanism, stage.name, count)
            of = self.of(mechanism, stage.name)
            if ns == 0 and not self.shared and self.counts_alike and not stage.options.when:
                self.unlimited.append((of[0], count))
                return
            holds = ((o.OF, *of), (o.COST, ns), (o.HOLD_CONTENDED, ns, -1))
            pc = self.emit(o.TRANSFER, *holds, (o.TRANSFER_BYTES, count))
            self.share(pc, "queue")
            self.share(pc, "fetch", 1)
        elif stage.verb in ("read", "around"):
            emit_storage_stage(self, mechanism, stage)
        elif stage.verb in ("hold", "enter", "leave"):
            self.contended(mechanism, stage, barrier)
        elif stage.verb == "sleep":
            self.emit(o.SLEEP, (o.OF, *self.of(mechanism, stage.name)))
        elif stage.verb == "recorded":
            asleep = 1 << 62 if stage.options.awake else o.SLEEPS_FROM_NS
            op = o.CPU_RECORDED if self.on_cpus else o.RECORDED
            self.share(self.emit(op, (o.ASLEEP, asleep)), "other")
        else:
            self.has_latency = True
            self.emit(o.COMPLETE)

    def wake(self, mechanism: Mechanism, stage: Stage) -> int:
        """The wake with its walk over the other sleepers."""
        options = stage.options
        woken = self.cost if options.awake else self.woken
        cost = woken(mechanism, stage.operand)
        section, each, once = self.slowed(mechanism, stage, options.within)
        slower = ((o.WAKE_SECTION, section), (o.WAKE_EACH, each), (o.WAKE_ONCE, once))
        queue = (-1, 0)
        if options.queue:
            queue = self.of(mechanism, options.queue)
            walk = self.cost(mechanism, options.walk)
            if section and self.on_cpus:  # who is in the section is counted when the walk begins
                entered = ((o.SECTION, section - 1), (o.ENTER_EACH, each), (o.ENTER_ONCE, once))
                self.emit(o.ENTER, *entered, (o.ENTER_WAKES, 1))
            self.walk(mechanism, stage, queue, walk)
        walked = int(bool(options.queue))
        op = o.WAKE_QUEUE if self.on_cpus or (section and not walked) else o.WAKE
        pc = self.emit(op, (o.COST, *cost), (o.WAKE_FROM, *queue), (o.WAKE_WALKED, walked), *slower)
        self.share(pc, word_of(stage.operand, "wake"), 1, of=stage.operand)
        return pc

    def walk(self, mechanism: Mechanism, stage: Stage, queue: tuple[int, int], each: tuple[int, int, int]) -> None:
        """The way over the other sleepers of a queue, under a lock or none."""
        options = stage.options
        cold = self.mean(mechanism, options.cold)
        of, alone, contended = (-1, 0), 0, 0
        if contention.lock_matters(mechanism, options.under, self.mean):
            of = self.of(mechanism, options.under)
            alone = self.mean(mechanism, options.takes)
            contended = alone if options.contended is None else self.mean(mechanism, options.contended)
        pc = self.emit(
            o.WALK,
            (o.OF, *of),
            (o.COST, *each),
            (o.HOLD_CONTENDED, contended, -1),
            (o.WALK_QUEUE, *queue),
            (o.WALK_ALONE, alone),
            (o.WALK_COLD, cold),
            (o.WALK_READERS, self.readers(mechanism, stage) if cold else 1),
        )
        self.share(pc, "queue")
        self.share(pc, "contend", 1)

    def contended(self, mechanism: Mechanism, stage: Stage, barrier: int) -> None:
        """A lock held, a section entered or left; nothing where all its costs are zero."""
        if stage.verb == "hold":
            options = stage.options
            if not contention.lock_matters(mechanism, stage.name, self.mean):
                return
            alone = self.cost(mechanism, options.takes)
            contended = alone if options.contended is None else self.cost(mechanism, options.contended)
            also = self.mean(mechanism, options.also)
            if also and self.most(mechanism, stage):
                pc = self.counted(mechanism, stage, options.times, (also, -1, 0))
                self.ops[pc][o.TIMES_HELD] = 1
            at = (o.OF, *self.of(mechanism, stage.name))
            pc = self.emit(o.HOLD, at, (o.COST, *alone), (o.HOLD_CONTENDED, *contended))
            self.share(pc, "queue")
            self.share(pc, "contend", 1)
            return
        section, each, once = self.slowed(mechanism, stage, stage.name)
        if section and stage.verb == "enter":
            pc = self.emit(o.ENTER, (o.SECTION, section - 1), (o.ENTER_EACH, each), (o.ENTER_ONCE, once))
            self.share(pc, "contend", 1)
        elif section and self.on_cpus:
            self.emit(o.LEAVE_NOW, (o.SECTION, section - 1))
        elif section and not contention.left_at_once(self.ops, self.shares, section - 1, barrier):
            self.emit(o.LEAVE, (o.SECTION, section - 1))
