"""From a mechanism and its costs to the matrix of operations that `faultreplay.replay.engine.kernel` runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import LONGEST_NS, parse_duration_ns
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language import contention
from faultreplay.replay.language.costs import Cost, Distribution
from faultreplay.replay.language.distributions import TABLE_SIZE
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.time_words import word_of
from faultreplay.replay.language.words import BUILT_IN_PATHS, CONDITIONS, Stage

_PER = {"vm": o.PER_VM, "accessor": o.PER_ACCESSOR, "shard": o.PER_SHARD}
_TIMES = {"waiters": o.TIMES_WAITERS, "idle": o.TIMES_IDLE, "spare": o.TIMES_SPARE}
_NO_LIMIT = 1 << 40
_MOST_DRAWS = 60
_DRAWS_PER_DELAY = 3


@dataclass(frozen=True)
class Instances:
    """The consecutive instances of one declared resource."""

    name: str
    kind: str
    first: int
    count: int
    servers: int


class Share(NamedTuple):
    """One column of what the kernel counts for an operation."""

    pc: int
    column: int
    """0: ns of waiting, or how often a delay was gone through; from 1: ns of the first cost and on"""
    word: str
    """of `time_words.TIME_WORDS`"""
    each_ns: int
    """0: the column holds ns; else it counts, so many ns each"""


@dataclass
class Program:
    """What the kernel needs to know of a mechanism."""

    ops: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int64]
    path_pc: npt.NDArray[np.int64]
    resources: list[Instances]
    servers: npt.NDArray[np.int64]
    costs_used: dict[str, str]
    moved: dict[tuple[str, str], list[tuple[int, int]]]
    """(class, accessor kind) -> (link instance, bytes) of each fault, where links have no limit"""
    has_latency: bool
    tails: int
    """slots for what goes on after a wake, as a first guess"""
    shards: int
    recorded_classes: dict[str, set[str]]
    """class of fault -> accessor kinds for which this mechanism has no path: they take what they took"""
    link_ns: dict[str, tuple[int, int]] = field(default_factory=dict)
    """link -> (first instance, ns for one granule)"""
    sections: int = 0
    push_latency_ns: int = 0
    """from the end of a pushed granule's transfer until it is placed"""
    shares: list[Share] = field(default_factory=list)
    """what the columns of the kernel's `spent` stand for"""


class Compiler:
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
        self.needed = sorted(needed)
        self.refaults, self.rewrites = refaults, rewrites
        self.shared = shared
        self.on_cpus = on_cpus
        self.top = mechanism
        self.costs = costs
        self.accessors = accessors
        self.page_bytes = page_bytes
        if mechanism.granule_bytes < page_bytes or mechanism.granule_bytes % page_bytes:
            raise UsageError(
                f"{mechanism.name}: granule {mechanism.granule_bytes} is not a multiple of the trace's page "
                f"of {page_bytes} bytes"
            )
        self.ops: list[list[int]] = []
        self.tables: list[npt.NDArray[np.int64]] = []
        self.table_ids: dict[Distribution, int] = {}
        self.instances: dict[tuple[str, str], Instances] = {}
        self.servers: list[int] = []
        self.sections: dict[tuple[str, str], int] = {}
        self.used: dict[str, str] = {}
        self.has_latency = False
        self.tails = 0
        self.shards = 1
        self.moved: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.unserved: dict[str, set[str]] = {}
        self.shares: list[Share] = []

    def program(self) -> Program:
        """Compile every path that these faults can take."""
        self.share(self.emit(o.ARRIVE), "other")
        self.emit(o.START)
        wake, tail = (o.WAKE_QUEUE, o.TAIL_AWAKE) if self.on_cpus else (o.WAKE, o.TAIL_NONE)
        self.emit(wake, 0, -1, 0, -1, 0, 0, -1, 0, tail)
        self.emit(o.END)
        self.emit(o.RESUME)
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
            # of a path that some faults take twice, or that is no class's, the kernel must count the bytes
            once = answer.path in CAUSES and answer.path not in BUILT_IN_PATHS
            self.counts_alike = once and not any(stage.verb == "retry" for stage in answer.stages)
            self.done[key] = (self.path(answer.server or self.top, answer.stages), self.unlimited)
        pc, unlimited = self.done[key]
        if unlimited:
            self.moved[name, kind] = unlimited
        return pc

    def emit(self, op: int, *operands: int) -> int:
        """Append an operation; its pc."""
        row = [op, *operands]
        self.ops.append(row + [0] * (o.WIDTH - len(row)))
        return len(self.ops) - 1

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

    def share(self, pc: int, word: str, column: int = 0, each_ns: int = 0) -> None:
        """What the kernel counts in a column for the operation at `pc` belongs to `word`."""
        self.shares.append(Share(pc, column, word, each_ns))

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

    def readers(self, mechanism: Mechanism, stage: Stage) -> int:
        """How many threads wake sleepers of the queue: the servers that a wake names."""
        r = self.resource(mechanism, stage.options["readers"])
        return r.servers or _NO_LIMIT

    def slowed(self, mechanism: Mechanism, stage: Stage, section: str | None) -> tuple[int, int, int]:
        """(section from 1 or 0, ns for each other thread inside, ns once) of a stage that enters a section."""
        if section is None or not contention.section_matters(mechanism, section, self.mean):
            return 0, 0, 0
        each, once = (self.mean(mechanism, stage.options.get(key, 0)) for key in ("each", "once"))
        number = self.sections.setdefault((mechanism.name, section), len(self.sections))
        return number + 1, each, once

    def mean(self, mechanism: Mechanism, operand: Any) -> int:
        """A cost that is charged by its mean, whole ns."""
        return round(self.distribution(mechanism, operand).mean)

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
                counted = (_TIMES[what], of.first, self.per(mechanism, name), most, each)
            pc = self.emit(o.HOLD, r.first, self.per(mechanism, stage.operand), *alone, *contended, *counted)
            self.share(pc, "queue")
            self.share(pc, "walk", 1)
            return
        section, each, once = self.slowed(mechanism, stage, stage.operand)
        if section and stage.verb == "enter":
            self.share(self.emit(o.ENTER, section - 1, each, once), "walk", 1)
        elif section:
            self.emit(o.LEAVE_NOW if self.on_cpus else o.LEAVE, section - 1)

    def most(self, mechanism: Mechanism, stage: Stage) -> int:
        """The cap of a count."""
        return min(int(mechanism.value(stage.options.get("most", _NO_LIMIT))), _NO_LIMIT)

    def delay(self, mechanism: Mechanism, stage: Stage, barrier: int) -> None:
        """A delay, joined with a constant one before it when nothing can jump between them."""
        times = str(stage.options.get("times", ""))
        factor = 1
        if times in ("granule_pages", "further_pages"):
            factor = mechanism.granule_bytes // self.page_bytes - (times == "further_pages")
            times = ""
        elif is_expression(times):
            factor, times = int(mechanism.value(times)), ""
        const, table, draw = self.cost(mechanism, stage.operand, factor)
        if times:
            what, _, name = times.partition(":")
            r = self.resource(mechanism, name)
            counted = (_TIMES[what], r.first, self.per(mechanism, name), self.most(mechanism, stage))
            pc = self.emit(o.DELAY_TIMES, const, table, draw, *counted)
            self.share(pc, word_of(stage.operand), 1)
        elif const or table >= 0:
            before = self.ops[-1]
            op = o.CPU_DELAY if self.on_cpus else o.DELAY
            asleep_ns = self.asleep_from_ns(mechanism, stage) if self.on_cpus else 0
            same = before[0] == op and before[9] == asleep_ns
            if len(self.ops) > barrier and same and before[2] + (table >= 0) <= _DRAWS_PER_DELAY:
                before[1] += const
            else:
                self.emit(op, const)
                before = self.ops[-1]
                before[9] = asleep_ns
            if const:
                self.share(len(self.ops) - 1, word_of(stage.operand), 0, const)
            if table >= 0:
                self.share(len(self.ops) - 1, word_of(stage.operand), 1 + before[2])
                before[3 + 2 * before[2] : 5 + 2 * before[2]] = [table, draw]
                before[2] += 1

    def asleep_from_ns(self, mechanism: Mechanism, stage: Stage) -> int:
        """From which length on a delay is slept through; 0: never."""
        asleep = stage.options.get("asleep", False)
        if asleep is True or asleep is False:
            return o.SLEEPS_FROM_NS if asleep else 0
        return max(round(self.distribution(mechanism, asleep).mean), 1)

    def woken(self, mechanism: Mechanism, operand: Any) -> tuple[int, int, int]:
        """As `cost`; where CPUs are counted two tables: of an idle CPU, and after another thread."""
        if not self.on_cpus or not operand:
            return self.cost(mechanism, operand)
        whole = self.distribution(mechanism, operand)
        cost = self.costs.get(operand) if isinstance(operand, str) else None
        idle = cost.on_idle_cpu if cost and cost.on_idle_cpu else whole
        busy = cost.on_busy_cpu if cost and cost.on_busy_cpu else whole
        self.tables += [idle.table_ns(), busy.table_ns()]
        # a draw where `cost` takes one, so that the draws behind it are the same
        drawn = not (whole.is_constant and idle.is_constant and busy.is_constant)
        return 0, len(self.tables) - 2, self.draw() if drawn else 0

    def cost(self, mechanism: Mechanism, operand: Any, factor: int = 1) -> tuple[int, int, int]:
        """(constant ns, table or -1, draw) of a cost operand."""
        if factor == 0:
            return 0, -1, 0
        distribution = self.distribution(mechanism, operand)
        try:
            distribution = distribution.scaled(factor) if factor != 1 else distribution
        except UsageError as error:
            raise UsageError(f"{mechanism.name} charges '{operand}' {factor:,} times: {error}") from None
        if distribution.is_constant:
            return round(distribution.mean), -1, 0
        table = self.table_ids.get(distribution)
        if table is None:
            table = self.table_ids[distribution] = len(self.tables)
            self.tables.append(distribution.table_ns())
        return 0, table, self.draw()

    def distribution(self, mechanism: Mechanism, operand: Any) -> Distribution:
        """What a cost operand stands for; notes the provenance of named costs."""
        if not isinstance(operand, str):
            return Distribution.constant(operand)
        if is_expression(operand):
            return Distribution.constant(mechanism.value(operand))
        if operand not in COST_NAMES:
            return Distribution.constant(parse_duration_ns(operand))
        cost = self.costs.get(operand)
        if cost is None:
            raise UsageError(f"{mechanism.name} charges '{operand}', for which the cost table has no value")
        self.used[operand] = cost.provenance
        return cost.distribution

    def draw(self) -> int:
        """The number of this random draw within its path."""
        self.draws += 1
        if self.draws > _MOST_DRAWS:
            raise UsageError(f"{self.mechanism.name}: a path with more than {_MOST_DRAWS} random costs")
        return self.draws - 1

    def transfer_ns(self, mechanism: Mechanism, link: str, count: int) -> int:
        """ns that `count` bytes occupy a link; 0 bandwidth is no limit."""
        bandwidth = mechanism.value(mechanism.resources[link].size)
        ns = -(-count * 1_000_000_000 // int(bandwidth)) if bandwidth >= 1 else 0
        if ns > LONGEST_NS:
            raise UsageError(
                f"{mechanism.name}: {count:,} bytes take {ns:,} ns over '{link}': at most {LONGEST_NS:g} ns (11 days)"
            )
        return ns

    def per(self, mechanism: Mechanism, name: str) -> int:
        """Which instance of a resource a fault meets; one shard is the whole machine, for which no row is looked up."""
        per = mechanism.resources[name].per
        whole = per == "shard" and int(mechanism.value(mechanism.shards)) <= 1
        return o.PER_VM if whole else _PER[per]

    def resource(self, mechanism: Mechanism, name: str) -> Instances:
        """The instances of a resource; made at its first use."""
        key = (mechanism.name, name)
        if key not in self.instances:
            resource = mechanism.resources[name]
            shards = max(1, int(mechanism.value(mechanism.shards)))
            if resource.per == "shard":
                if self.shards not in (1, shards):
                    raise UsageError(
                        f"{mechanism.name}: two mechanisms of one replay split memory into {self.shards} and {shards}"
                    )
                self.shards = shards
            count = {"vm": 1, "accessor": self.accessors, "shard": shards}[resource.per]
            servers = int(mechanism.value(resource.size)) if resource.kind == "servers" else 1
            label = name if mechanism is self.top else f"{mechanism.name}.{name}"
            self.instances[key] = Instances(label, resource.kind, len(self.servers), count, servers)
            self.servers += [servers] * count
        return self.instances[key]


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
