"""The operations of one stage: what its operands cost, which instances of a resource it means, and a delay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS, parse_duration_ns
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language import contention
from faultreplay.replay.language.costs import Cost, Distribution
from faultreplay.replay.language.expressions import is_expression
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.names import COST_NAMES
from faultreplay.replay.language.program import Demand, Instances, Share, Storage
from faultreplay.replay.language.stage import Amount, Stage
from faultreplay.replay.language.time_words import word_of

_PER = {"vm": o.PER_VM, "accessor": o.PER_ACCESSOR, "shard": o.PER_SHARD}
TIMES = {"waiters": o.TIMES_WAITERS, "idle": o.TIMES_IDLE, "spare": o.TIMES_SPARE}
NO_LIMIT = 1 << 40
MOST_READAHEAD_BYTES = 64 << 20
_MOST_DRAWS = 60
_DRAWS_PER_DELAY = 3


class Emitter:
    """Appends operations to a program and looks up what they need: costs as tables and draws, resources as instances.

    Args of the constructor: `demand`: the accessors and faults that occur.
    """

    def __init__(self, mechanism: Mechanism, costs: Mapping[str, Cost], demand: Demand) -> None:
        self.top = self.mechanism = mechanism
        """the mechanism of the replay, and the one whose path is compiled"""
        self.costs = costs
        self.accessors = demand.accessors
        self.page_bytes = demand.page_bytes
        self.on_cpus, self.vms = demand.on_cpus, demand.vms
        self.draws = 0
        """random draws of the path so far"""
        self.ops: list[list[int]] = []
        self.tables: list[npt.NDArray[np.int64]] = []
        self.table_ids: dict[Distribution, int] = {}
        self.instances: dict[tuple[str, str], Instances] = {}
        self.servers: list[int] = []
        self.sections: dict[tuple[str, str], int] = {}
        self.used: dict[str, str] = {}
        self.shards = 1
        self.storages: list[Storage] = []
        self.devices: dict[tuple[str, str], int] = {}
        self.shares: list[Share] = []

    def emit(self, op: int, *operands: tuple[int, ...]) -> int:
        """Append an operation; its pc. An operand: its first column (`opcodes`), then what stands there and behind."""
        row = [op] + [0] * (o.WIDTH - 1)
        row[o.COST_TABLE] = -1
        for column, *values in operands:
            row[column : column + len(values)] = values
        self.ops.append(row)
        return len(self.ops) - 1

    def of(self, mechanism: Mechanism, name: str) -> tuple[int, int]:
        """The first instance of a resource, and which one a fault meets."""
        return self.resource(mechanism, name).first, self.per(mechanism, name)

    def share(self, pc: int, word: str, column: int = 0, each_ns: int = 0, *, of: object = "") -> None:
        """What the kernel counts in a column for the operation at `pc` belongs to `word`; `of`: the cost's operand."""
        self.shares.append(Share(pc, column, word, each_ns, of if isinstance(of, str) else ""))

    def readers(self, mechanism: Mechanism, stage: Stage) -> int:
        """How many threads wake sleepers of the queue: the servers that a wake names."""
        r = self.resource(mechanism, stage.options.readers)
        return r.servers or NO_LIMIT

    def slowed(self, mechanism: Mechanism, stage: Stage, section: str) -> tuple[int, int, int]:
        """(section from 1 or 0, ns for each other thread inside, ns once) of a stage that enters a section."""
        if not section or not contention.section_matters(mechanism, section, self.mean):
            return 0, 0, 0
        each, once = self.mean(mechanism, stage.options.each), self.mean(mechanism, stage.options.once)
        number = self.sections.setdefault((mechanism.name, section), len(self.sections))
        return number + 1, each, once

    def mean(self, mechanism: Mechanism, operand: Amount | None) -> int:
        """A cost that is charged by its mean, whole ns."""
        return round(self.distribution(mechanism, operand).mean)

    def most(self, mechanism: Mechanism, stage: Stage) -> int:
        """The cap of a count."""
        most = stage.options.most
        return NO_LIMIT if most is None else min(int(mechanism.value(most)), NO_LIMIT)

    def delay(self, mechanism: Mechanism, stage: Stage, barrier: int) -> None:
        """A delay, joined with a constant one before it when nothing can jump between them."""
        times = stage.options.times
        factor = 1
        if times in ("granule_pages", "further_pages"):
            factor = mechanism.granule_bytes // self.page_bytes - (times == "further_pages")
            times = ""
        elif is_expression(times):
            factor, times = int(mechanism.value(times)), ""
        const, table, draw = self.cost(mechanism, stage.operand, factor)
        if times:
            pc = self.counted(mechanism, stage, times, (const, table, draw))
            self.share(pc, word_of(stage.operand), 1, of=stage.operand)
        elif const or table >= 0:
            before = self.ops[-1]
            op = o.CPU_DELAY if self.on_cpus else o.DELAY
            asleep_ns = self.asleep_from_ns(mechanism, stage) if self.on_cpus else 0
            draws = (before[o.COST_TABLE] >= 0) + before[o.DELAY_MORE]
            same = before[0] == op and before[o.ASLEEP] == asleep_ns
            if len(self.ops) <= barrier or not same or draws + (table >= 0) > _DRAWS_PER_DELAY:
                self.emit(op, (o.ASLEEP, asleep_ns))
                before, draws = self.ops[-1], 0
            before[o.COST] += const
            if const:
                self.share(len(self.ops) - 1, word_of(stage.operand), 0, const, of=stage.operand)
            if table >= 0:
                self.share(len(self.ops) - 1, word_of(stage.operand), 1 + draws, of=stage.operand)
                at = o.DELAY_DRAWN + 2 * draws - 2 if draws else o.COST_TABLE
                before[at : at + 2] = [table, draw]
                before[o.DELAY_MORE] = draws

    def counted(self, mechanism: Mechanism, stage: Stage, times: str, cost: tuple[int, int, int]) -> int:
        """A cost for each of those that `times` counts, at most `most`; its pc."""
        what, _, name = times.partition(":")
        most = self.most(mechanism, stage)
        of = self.of(mechanism, name)
        return self.emit(o.DELAY_TIMES, (o.OF, *of), (o.COST, *cost), (o.TIMES_WHAT, TIMES[what]), (o.TIMES_MOST, most))

    def asleep_from_ns(self, mechanism: Mechanism, stage: Stage) -> int:
        """From which length on a delay is slept through; 0: never."""
        asleep = stage.options.asleep
        if asleep is None or asleep is True or asleep is False:
            return o.SLEEPS_FROM_NS if asleep else 0
        return max(round(self.distribution(mechanism, asleep).mean), 1)

    def woken(self, mechanism: Mechanism, operand: Amount | None) -> tuple[int, int, int]:
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

    def cost(self, mechanism: Mechanism, operand: Amount | None, factor: int = 1) -> tuple[int, int, int]:
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

    def distribution(self, mechanism: Mechanism, operand: Amount | None) -> Distribution:
        """What a cost operand stands for (None: nothing); notes the provenance of named costs."""
        if not isinstance(operand, str):
            return Distribution.constant(operand or 0)
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
        """Which instance of a resource a fault meets.

        With one shard, use the per-VM instance and skip the look-up.
        """
        resource = mechanism.resources[name]
        whole = resource.per == "vm" or (resource.per == "shard" and int(mechanism.value(mechanism.shards)) <= 1)
        if whole and self.vms > 1 and resource.kind != "storage":
            return o.PER_SHARD  # of several VMs each fault's shard is its VM
        return o.PER_VM if whole else _PER[resource.per]

    def device(self, mechanism: Mechanism, name: str) -> int:
        """The number of a storage; noted at its first use."""
        key = (mechanism.name, name)
        if key not in self.devices:
            keys = mechanism.resources[name].storage
            assert keys is not None  # a storage has them
            readahead = int(mechanism.value(keys.readahead)) // self.page_bytes
            if readahead * self.page_bytes > MOST_READAHEAD_BYTES:
                raise UsageError(f"{mechanism.name}: a readahead of more than {MOST_READAHEAD_BYTES:,} bytes")
            self.devices[key] = len(self.storages)
            depth, cached = int(mechanism.value(keys.depth)), mechanism.value(keys.cached)
            left, instance = mechanism.value(keys.left) > 0, self.resource(mechanism, name).first
            self.storages.append(Storage(name, depth, readahead, cached, left, instance))
        return self.devices[key]

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
                if shards > 1 and self.vms > 1:
                    raise UsageError(f"{mechanism.name}: {self.vms} VMs, and {shards} shards each: say shards=1")
            vms = self.vms if resource.kind != "storage" else 1
            count = {"vm": vms, "accessor": self.accessors, "shard": max(shards, vms)}[resource.per]
            servers = int(mechanism.value(resource.size)) if resource.kind == "servers" else 1
            label = name if mechanism is self.top else f"{mechanism.name}.{name}"
            self.instances[key] = Instances(label, resource.kind, len(self.servers), count, servers)
            self.servers += [servers] * count
        return self.instances[key]
