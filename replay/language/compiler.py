"""From a mechanism and its costs to the matrix of operations that `faultreplay.replay.engine.kernel` runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language import contention
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.distributions import TABLE_SIZE
from faultreplay.replay.language.emitter import TIMES, Emitter
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Instances, Program, Share
from faultreplay.replay.language.time_words import word_of
from faultreplay.replay.language.words import BUILT_IN_PATHS, CONDITIONS, Stage

__all__ = ["Compiler", "Instances", "Program", "Share", "tracks_pages"]


class Compiler(Emitter):
    """One mechanism with what it falls back to, against one cost table, for the faults and accessors that occur.

    Args of the constructor: `needed` are (index in CAUSES, index in ACCESSORS) of faults that occur, so that only
    costs that are charged must be known; `refaults`: stage 2 may be emptied and touched again; `shared`:
    some granule is looked up, so that paths must coalesce; `on_cpus`: delays take a host CPU unless asleep.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        costs: Mapping[str, Cost],
        *,
        accessors: int,
        page_bytes: int,
        needed: Iterable[tuple[int, int]],
        refaults: bool = False,
        rewrites: bool = False,
        shared: bool = True,
        on_cpus: bool = False,
    ) -> None:
        super().__init__(mechanism, costs, accessors=accessors, page_bytes=page_bytes, on_cpus=on_cpus)
        self.needed = sorted(needed)
        self.refaults, self.rewrites = refaults, rewrites
        self.shared = shared
        if mechanism.granule_bytes < page_bytes or mechanism.granule_bytes % page_bytes:
            raise UsageError(
                f"{mechanism.name}: granule {mechanism.granule_bytes} is not a multiple of the trace's page "
                f"of {page_bytes} bytes"
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
        self.emit(wake, 0, -1, 0, -1, 0, 0, -1, 0, tail)
        self.emit(o.END)
        self.emit(o.RESUME)
        self.emit(o.ENDED)
        self.done: dict[tuple[str, str], tuple[int, list[tuple[int, int]]]] = {}
        path_pc = np.full((len(CAUSES) + 3, len(ACCESSORS)), o.PC_NOTHING, np.int64)
        kinds = set()
        for row, column in self.needed:
            kinds.add(column)
            path_pc[row, column] = self.path_for(CAUSES[row], ACCESSORS[column])
        if 0 in kinds and self.shared and tracks_pages(self.top):  # only vCPUs go through stage 2
            path_pc[-2, 0] = self.path_for("present", "vcpu")
        if 0 in kinds and self.refaults:
            path_pc[-1, 0] = self.path_for("refault", "vcpu")
        if self.rewrites:
            for column in sorted(kinds):
                path_pc[-3, column] = self.path_for("rewrite", ACCESSORS[column])
        links = {
            name: (self.resource(self.top, name).first, self.transfer_ns(self.top, name, self.top.granule_bytes))
            for name, resource in self.top.resources.items()
            if resource.kind == "link"
        }
        pushed = self.distribution(self.top, (self.top.push or {}).get("latency", 0))
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
            # a path that some faults take twice, or that is no class's: the loop counts bytes
            once = answer.path in CAUSES and answer.path not in BUILT_IN_PATHS
            self.counts_alike = once and not any(stage.verb == "retry" for stage in answer.stages)
            self.done[key] = (self.path(answer.server or self.top, answer.stages), self.unlimited)
        pc, unlimited = self.done[key]
        if unlimited:
            self.moved[name, kind] = unlimited
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
        returned_to = {stage.operand for stage in stages if stage.verb == "retry"}
        for stage in stages:
            skip = -1
            slept |= stage.verb == "sleep"
            if stage.options.get("label") in returned_to:
                labels[stage.options["label"]] = barrier = len(self.ops)
            if "when" in stage.options:
                skip = self.emit(o.UNLESS, _mask(stage.options["when"]))
                barrier = len(self.ops)
            if stage.verb == "coalesce":
                if self.shared:
                    waiting.append(self.emit(o.COALESCE, -1, int(slept)))
                    self.share(waiting[-1], "queue")
            elif stage.verb == "wake":
                wake_pc = self.wake(mechanism, stage)
                awake = bool(stage.options.get("awake"))
            elif stage.verb == "retry":
                chance = mechanism.value(stage.options["chance"])
                if chance > 0:
                    draw = self.draw()
                    self.emit(o.RETRY, round(chance * 65536), labels[stage.operand], int(stage.options["most"]), draw)
            elif stage.verb == "delay":
                self.delay(mechanism, stage, barrier)
            else:
                self.simple(mechanism, stage)
            if skip >= 0:
                self.ops[skip][2] = barrier = len(self.ops)
        end = self.emit(o.END)
        for pc in waiting:
            self.ops[pc][1] = wake_pc
        # what comes behind the wake delays no accessor
        self.shares = [share for share in self.shares if share.pc <= wake_pc]
        own = self.on_cpus and awake
        self.ops[wake_pc][9] = o.TAIL_AWAKE if own else self.tail_kind(wake_pc + 1, end)
        return first

    def tail_kind(self, first: int, end: int) -> int:
        """What follows a wake; notes how many such tails may be under way at once."""
        tail = self.ops[first:end]
        if not tail:
            return o.TAIL_NONE
        if all(op[0] in (o.DELAY, o.RELEASE_ONE) for op in tail):
            if self.ops[first - 1][0] != o.WAKE_QUEUE:  # else the waking slot itself goes on with it
                self.tails = max(self.tails, 1)
            return o.TAIL_SIMPLE
        held = [op[1] for op in tail if op[0] in (o.RELEASE, o.RELEASE_ONE)]
        if any(op[0] == o.ACQUIRE for op in tail) or not held:
            self.tails = max(self.tails, self.accessors + 16)
        else:
            servers = sum(r.servers * r.count for r in self.instances.values() if r.first in held)
            self.tails = max(self.tails, min(servers, self.accessors + 16))
        return o.TAIL_ANY

    def simple(self, mechanism: Mechanism, stage: Stage) -> None:
        """Stages that are one operation."""
        if stage.verb in ("acquire", "release"):
            r = self.resource(mechanism, stage.operand)
            per = self.per(mechanism, stage.operand)
            if r.servers == 0:
                idle = stage.options.get("idle", 0) if stage.verb == "acquire" else 0
                self.delay(mechanism, Stage("delay", idle, {}, stage.line), len(self.ops))
            elif stage.verb == "acquire":
                const, table, draw = self.woken(mechanism, stage.options.get("idle", 0))
                # when work ends is not known ahead where CPUs are shared
                pc = self.emit(o.ACQUIRE, r.first, per, const, table, draw, int(r.servers == 1 and not self.on_cpus))
                self.share(pc, "queue")
                self.share(pc, word_of(stage.options.get("idle")), 1)
            else:
                single = r.servers == 1 and not self.on_cpus
                self.emit(o.RELEASE_ONE if single else o.RELEASE, r.first, per)
        elif stage.verb == "transfer":
            self.delay(mechanism, Stage("delay", stage.options.get("latency", 0), {}, stage.line), len(self.ops))
            count = int(mechanism.value(stage.options.get("bytes", mechanism.granule_bytes)))
            ns = self.transfer_ns(mechanism, stage.operand, count)
            if ns == 0 and not self.shared and self.counts_alike and "when" not in stage.options:
                r = self.resource(mechanism, stage.operand)
                self.unlimited.append((r.first, count))
                return
            r = self.resource(mechanism, stage.operand)
            pc = self.emit(o.TRANSFER, r.first, self.per(mechanism, stage.operand), ns, count)
            self.share(pc, "queue")
            self.share(pc, "fetch", 1)
        elif stage.verb in ("hold", "enter", "leave"):
            self.contended(mechanism, stage)
        elif stage.verb == "sleep":
            r = self.resource(mechanism, stage.operand)
            self.emit(o.SLEEP, r.first, self.per(mechanism, stage.operand))
        elif stage.verb == "recorded":
            self.share(self.emit(o.RECORDED, 1 << 62 if stage.options.get("awake") else o.SLEEPS_FROM_NS), "other")
        else:
            self.has_latency = True
            self.emit(o.COMPLETE)

    def wake(self, mechanism: Mechanism, stage: Stage) -> int:
        """The wake with its walk over the other sleepers."""
        sleeps = not stage.options.get("awake")
        const, table, draw = (self.woken if sleeps else self.cost)(mechanism, stage.operand)
        queue, per = -1, 0
        if name := stage.options.get("from"):
            queue = self.resource(mechanism, name).first
            per = self.per(mechanism, name)
        walk, walk_table, walk_draw = self.cost(mechanism, stage.options.get("walk", 0))
        held = contention.lock_matters(mechanism, stage.options.get("under"), self.mean)
        cold = self.mean(mechanism, stage.options.get("cold", 0))
        walked = queue >= 0 and (held or cold > 0)
        if walked:
            lock, lock_per, alone, contended = -1, 0, 0, 0
            if held:
                lock = self.resource(mechanism, stage.options["under"]).first
                lock_per = self.per(mechanism, stage.options["under"])
                alone = self.mean(mechanism, stage.options.get("takes", 0))
                contended = self.mean(mechanism, stage.options.get("contended", stage.options.get("takes", 0)))
            readers = self.readers(mechanism, stage) if cold else 1
            taken = (lock, lock_per, alone, contended)
            walking = self.emit(o.WALK, queue, per, *taken, walk, walk_table, walk_draw, cold, readers)
            self.share(walking, "queue")
            self.share(walking, "walk", 1)
            walk, walk_table, walk_draw = 0, -1, 0
        section, each, once = self.slowed(mechanism, stage, stage.options.get("within"))
        at_its_time = self.on_cpus or (not walked and (queue >= 0 or section > 0))
        op = o.WAKE_QUEUE if at_its_time else o.WAKE
        more = (0, int(walked), section, each, once)
        pc = self.emit(op, const, table, draw, queue, per, walk, walk_table, walk_draw, *more)
        self.share(pc, "walk")
        self.share(pc, word_of(stage.operand, "wake"), 1)
        return pc

    def contended(self, mechanism: Mechanism, stage: Stage) -> None:
        """A lock held, a section entered or left; nothing where all its costs are zero."""
        if stage.verb == "hold":
            if not contention.lock_matters(mechanism, stage.operand, self.mean):
                return
            r = self.resource(mechanism, stage.operand)
            alone = self.cost(mechanism, stage.options.get("takes", 0))
            contended = self.cost(mechanism, stage.options["contended"]) if "contended" in stage.options else alone
            counted = (0, 0, 0, 0, 0)
            if "also" in stage.options:
                what, _, name = stage.options["times"].partition(":")
                of = self.resource(mechanism, name)
                most = self.most(mechanism, stage)
                each = self.mean(mechanism, stage.options["also"])
                counted = (TIMES[what], of.first, self.per(mechanism, name), most, each)
            pc = self.emit(o.HOLD, r.first, self.per(mechanism, stage.operand), *alone, *contended, *counted)
            self.share(pc, "queue")
            self.share(pc, "walk", 1)
            return
        section, each, once = self.slowed(mechanism, stage, stage.operand)
        if section and stage.verb == "enter":
            self.share(self.emit(o.ENTER, section - 1, each, once), "walk", 1)
        elif section:
            self.emit(o.LEAVE_NOW if self.on_cpus else o.LEAVE, section - 1)


def tracks_pages(mechanism: Mechanism) -> bool:
    """True when it must be known which granules are there: some path coalesces, or a stream brings pages."""
    if mechanism.push is not None or any(
        stage.verb == "coalesce" for path in mechanism.paths.values() for stage in path
    ):
        return True
    return any(tracks_pages(other) for other in mechanism.fallback.values())


def _mask(when: str | list[str]) -> int:
    mask = 0
    for condition in [when] if isinstance(when, str) else when:
        mask |= CONDITIONS[condition]
    return mask
