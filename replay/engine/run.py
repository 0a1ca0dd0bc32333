"""One call of the compiled loop: the arrays it is given, how it ended, and what of it is told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine import checks, kernel
from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine.journal import begin_anew
from faultreplay.replay.engine.records import Arrivals, Code, Faults, Granules, HostCpus, Out, Rules
from faultreplay.replay.engine.result import ResourceUse, Result
from faultreplay.replay.engine.windows import guarded
from faultreplay.replay.language.compiler import Program
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.time_words import TIME_WORDS
from faultreplay.replay.workload.pages import Pages
from faultreplay.replay.workload.summary import counts_of, open_loop
from faultreplay.replay.workload.workload import Workload

Ints = npt.NDArray[np.int64]
_EMPTY = np.zeros(0, np.int64)
_FOREVER = 1 << 61


@dataclass(frozen=True)
class Setting:
    """How to run, as `engine.Options` say for this mechanism and these windows."""

    seed: int
    is_open: bool
    until_ns: int | None
    keep_rows: bool
    cpus: int
    """0: not counted"""
    pinned: bool
    preempt_ns: int
    write_again: bool
    """each read is followed by a write of its own"""


class Run:
    """Arrays for one call of the kernel, and what is made of them."""

    def __init__(  # noqa: PLR0917
        self,
        workload: Workload,
        mechanism: Mechanism,
        program: Program,
        pages: Pages,
        windows: Ints,
        setting: Setting,
    ) -> None:
        self.w, self.mechanism, self.program, self.pages = workload, mechanism, program, pages
        self.setting = setting
        self.until = _FOREVER if setting.until_ns is None else int(setting.until_ns)
        order, times = open_loop(workload) if setting.is_open else (_EMPTY, _EMPTY)
        self.arrivals = Arrivals(order, times, *self._push(), windows)
        self.faults = self._faults()
        self.log: Ints | None = None
        """where each operation is entered, see `journal`"""
        self.shape = [len(CAUSES), 1 if setting.keep_rows else at.HISTOGRAM_BINS]

    def execute(self) -> None:
        """Run; with more slots when what goes on behind wakes outnumbers those there are.

        Raises:
            FaultreplayError: simulated time passes what can be counted, or the run does not end.
        """
        w, arrivals = self.w, self.arrivals
        tails = w.accessors + 16 if self.setting.is_open else self.program.tails
        seed = np.uint64(self.setting.seed * 0x632BE59BD9B4E019 % 2**64)
        program = self.program
        code = Code(program.ops, program.tables, program.path_pc, seed, program.sections)
        host = HostCpus(self.setting.cpus, self.setting.pinned, self.setting.preempt_ns)
        while True:
            rules = self._rules(tails)
            latest = max(int(arrivals.time.max(initial=0)), int(arrivals.windows[:, at.W_START].max(initial=0)))
            if latest >= 1 << (62 - rules.slot_bits):
                raise self._too_late(latest, rules.slots)
            self._new_state()
            granules = Granules(
                np.full(self.pages.tracked, at.NEVER, np.int64),
                np.zeros(self.pages.tracked, np.int64),
                np.full(self.pages.tracked, -1, np.int64),
                self.mechanism.granule_bytes // w.page_bytes,
            )
            status, end, events = kernel.run_program(
                self.sums, self.resource_out, code, self.faults, granules, arrivals, rules, host, self.out, self.log
            )
            self.last, self.events = int(end), int(events)
            if status in (at.STATUS_OK, at.STATUS_STOPPED):
                self._close(status == at.STATUS_STOPPED)
                return
            if status == at.STATUS_STUCK:
                raise checks.engine_error(
                    self.mechanism.name,
                    f"{self.events} events, and at {self.last} ns no fault has ended for thousands of them",
                )
            if status == at.STATUS_TIME:
                raise self._too_late(self.last, rules.slots)
            tails = max(4 * tails, 4)

    def _rules(self, tails: int) -> Rules:
        setting, arrivals, w = self.setting, self.arrivals, self.w
        comes = setting.is_open or arrivals.windows.size or arrivals.pushed.size
        special = at.SPECIAL_SLOTS if comes else 0
        slots = special + (0 if setting.is_open else w.accessors) + tails
        counts = counts_of(w)
        stepwise = bool(arrivals.windows.size or setting.until_ns is not None or setting.cpus or counts[-1].any())
        uniform = -1
        if w.faults and not self.pages.tracked and not stepwise:
            seen = np.flatnonzero(counts.sum(axis=1))
            uniform = int(seen[0]) if seen.size == 1 and CAUSES[seen[0]] != "window" else -1
        return Rules(
            slots=slots,
            first=special,
            slot_bits=max(1, (slots - 1).bit_length()),
            until=self.until,
            stepwise=stepwise,
            uniform=uniform,
            write_again=setting.write_again,
            keep_rows=setting.keep_rows,
        )

    def _faults(self) -> Faults:
        w, on_cpus = self.w, self.setting.cpus > 0
        return Faults(
            think=w.on_cpu_ns() if on_cpus else w.think_ns,
            asleep=w.asleep_ns if on_cpus else _EMPTY,
            cls=w.cause,
            access=w.access,
            recorded=w.recorded_stall_ns,
            flags=self.pages.flags,
            granule=self.pages.granule,
            shard=self._shard(),
        )

    def _new_state(self) -> None:
        """Accessors, resources and what is written, as they are before anything happened."""
        if self.log is not None:
            begin_anew(self.log)
        w, program = self.w, self.program
        self.sums = np.zeros((w.accessors, at.A_COLUMNS), np.int64)
        self.sums[:, at.A_KIND] = w.accessor_kind
        self.sums[:, at.A_FIRST] = self.sums[:, at.A_NEXT] = w.accessor_start[:-1]
        self.sums[:, at.A_STOP] = w.accessor_start[1:]
        self.sums[:, at.A_LEFT] = -1
        self.sums[:, at.A_TAIL] = w.tail_ns
        self.resource_out = np.zeros((program.servers.size, at.R_COLUMNS), np.int64)
        self.resource_out[:, at.R_SERVERS] = program.servers
        rows = w.faults if self.setting.keep_rows else 0
        self.out = Out(
            start=np.full(rows, -1, np.int64),
            stall=np.full(rows, -1, np.int64),
            latency=np.full(rows if program.has_latency else 0, -1, np.int64),
            histogram=np.zeros(self.shape, np.int64),
            spent=np.zeros((len(program.ops), at.SPENT_COLUMNS), np.int64),
            windows=np.full((self.arrivals.windows.shape[0], 2), -1, np.int64),
            cpu_work=np.zeros(1, np.int64),
        )

    def _too_late(self, time_ns: int, slots: int) -> FaultreplayError:
        return FaultreplayError(
            f"{self.mechanism.name}: simulated time passes {time_ns / 1e9:.0f} s, more than can be counted with "
            f"{slots} faults under way: replay a part of the trace, or look for a cost that is too long"
        )

    def _close(self, stopped: bool) -> None:
        """Sums up to the end of the run, and whether they agree."""
        end = self.sums[:, at.S_END]
        ran = (end > 0) | ((np.diff(self.w.accessor_start) > 0) & (not self.setting.is_open))
        whole = max(int((end + self.w.tail_ns).max(initial=0, where=ran)), self.last)
        self.run_time = self.until if stopped else whole
        checks.close_resources(self.resource_out, self.run_time)
        checks.check_run(
            checks.Books(
                self.mechanism.name,
                self.program,
                self.sums,
                self.resource_out,
                self.out.start,
                self.out.stall,
                self.out.histogram,
                self.run_time,
                self.setting.cpus,
                int(self.out.cpu_work[0]),
                stopped,
            )
        )
        self._count_moved()
        self.stage_ns = {} if stopped else self._stages()

    def _stages(self) -> dict[str, int]:
        """Where the time went: what the kernel counted for each operation, summed by word."""
        found = dict.fromkeys(TIME_WORDS, 0)
        for share in self.program.shares:
            found[share.word] += int(self.out.spent[share.pc, share.column]) * (share.each_ns or 1)
        total = int(self.sums[:, [at.S_STALL, at.S_REFAULT_NS]].sum())
        rest = total - sum(found.values())
        # work that waits for a CPU is counted by nobody: it is what is left
        found["queue" if self.setting.cpus else "other"] += rest
        if rest < 0:
            raise checks.engine_error(self.mechanism.name, f"the stages take {-rest} ns more than the stalls")
        return found

    def _count_moved(self) -> None:
        """Bytes over links without a limit: the kernel does not see them, so they are counted by class."""
        counts = counts_of(self.w)
        for (name, kind), links in self.program.moved.items():
            faults = int(counts[CAUSES.index(name), ACCESSORS.index(kind)])
            for link, size in links:
                self.resource_out[link, at.R_ACQUIRED] += faults
                self.resource_out[link, at.R_BYTES] += faults * size

    def _shard(self) -> npt.NDArray[np.int32]:
        shards = self.program.shards
        if shards == 1 or not self.w.faults:
            return np.zeros(self.w.faults if shards > 1 else 1, np.int32)
        pages, place = np.unique(self.w.page, return_inverse=True)
        return (place.astype(np.int64) * shards // len(pages)).astype(np.int32)

    def _push(self) -> tuple[npt.NDArray[np.int32], Ints]:
        """Granules in the order of the background stream, and the stream: int64[P_COLUMNS]."""
        push = self.mechanism.push
        if push is None:
            return np.zeros(0, np.int32), np.zeros(at.P_COLUMNS, np.int64)
        granule_bytes = self.mechanism.granule_bytes
        order = self.pages.order
        if push.order == "recorded":
            rows = np.argsort(open_loop(self.w)[1], kind="stable")
            # Without a fault on missing content no granule is looked up.
            granules = self.pages.granule[rows] if self.pages.granule.size else self.pages.granule
            granules = granules[granules >= 0]
            order = granules[np.sort(np.unique(granules, return_index=True)[1])]
        total = int(self.mechanism.value(push.memory)) // granule_bytes
        if total > order.size:
            # memory that the trace never touches is sent too: spread evenly between what it touches
            everything = np.full(total, -1, np.int32)
            everything[np.arange(order.size, dtype=np.int64) * total // max(order.size, 1)] = order
            order = everything
        link, ns = self.program.link_ns[push.link]
        if ns == 0:
            raise UsageError(f"{self.mechanism.name}: a background stream needs a link with a bandwidth")
        stream = np.zeros(at.P_COLUMNS, np.int64)
        stream[at.P_LINK], stream[at.P_ON_LINK], stream[at.P_BYTES] = link, ns, granule_bytes
        stream[at.P_PLACED] = self.program.push_latency_ns
        stream[at.P_BACKLOG] = int(self.mechanism.value(push.backlog)) * ns // granule_bytes
        return np.ascontiguousarray(order), stream

    def result(self, rules: list[Mechanism], warnings: tuple[str, ...]) -> Result:
        """Everything a reader may ask for; `rules`: the mechanism of each window's rule."""
        w = self.w
        resources = self._resources()
        spans = tuple((int(a), int(b)) for a, b in self.out.windows if a >= 0)
        return Result(
            mechanism=self.mechanism.name,
            params=dict(self.mechanism.values),
            seed=self.setting.seed,
            loop="open" if self.setting.is_open else "closed",
            start_ns=self.out.start,
            stall_ns=self.out.stall,
            latency_ns=self.out.latency,
            cause=w.cause,
            accessor=w.accessor_of_row(),
            accessor_name=w.accessor_name,
            accessor_kind=w.accessor_kind,
            accessor_stall_ns=self.sums[:, at.S_STALL] + self.sums[:, at.S_REFAULT_NS],
            accessor_faults=self.sums[:, at.S_FAULTS],
            window_stall_ns=self.sums[:, at.S_STOPPED],
            refaults=self.sums[:, at.S_REFAULTED],
            refault_stall_ns=self.sums[:, at.S_REFAULT_NS],
            run_time_ns=self.run_time,
            resources=resources,
            bytes_moved=sum(r.bytes_moved for r in resources.values()),
            hazards=self._hazards(rules, spans),
            windows=spans,
            costs_used=dict(self.program.costs_used),
            stage_ns=self.stage_ns,
            histogram=self.out.histogram if not self.setting.keep_rows else np.zeros((0, 0), np.int64),
            events=self.events,
            warnings=warnings,
        )

    def _resources(self) -> dict[str, ResourceUse]:
        resources = {}
        for item in self.program.resources:
            if item.kind == "waitqueue":
                continue
            part = self.resource_out[item.first : item.first + item.count]
            resources[item.name] = ResourceUse(
                item.kind,
                item.servers,
                item.count,
                int(part[:, at.R_BUSY].sum()),
                int(part[:, at.R_ACQUIRED].sum()),
                int(part[:, at.R_WAIT].sum()),
                int(part[:, at.R_MAX_QUEUE].max()),
                int(part[:, at.R_BYTES].sum()),
            )
        if self.setting.cpus:
            work = int(self.out.cpu_work[0])
            resources["cpus"] = ResourceUse("servers", self.setting.cpus, 1, work, 0, 0, 0, 0)
        return resources

    def _hazards(self, rules: list[Mechanism], spans: tuple[tuple[int, int], ...]) -> dict[str, int]:
        counts = dict.fromkeys(ACCESSORS[1:], 0) if spans else {}
        kind = self.w.accessor_kind[self.w.accessor_of_row()] if spans else None
        for rule, (begin, end) in zip(rules, spans, strict=False):
            inside = (self.out.start >= begin) & (self.out.start < end) & (self.w.access == 1)
            for code, name in enumerate(ACCESSORS):
                if name in counts and not guarded(rule, name):
                    counts[name] += int((inside & (kind == code)).sum())
        return counts
