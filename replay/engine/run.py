"""One call of the compiled loop: the arrays it is given, how it ended, and what of it is reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine import checks, kernel
from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine.cast import Cast, shard_of_row
from faultreplay.replay.engine.file_map import no_files
from faultreplay.replay.engine.journal import begin_anew
from faultreplay.replay.engine.push import push_of
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
        cast: Cast | None = None,
        known: Ints | None = None,
    ) -> None:
        self.cast = cast or Cast(workload.accessors, workload.faults, no_files())
        self.w, self.mechanism, self.program, self.pages = workload, mechanism, program, pages
        self.setting = setting
        self.until = _FOREVER if setting.until_ns is None else int(setting.until_ns)
        order, times = open_loop(self.cast.guest or workload) if setting.is_open else (_EMPTY, _EMPTY)
        self.arrivals = Arrivals(order, times, *push_of(mechanism, program, pages, workload, known), windows)
        self.faults = self._faults()
        self.log: Ints | None = None
        """where each operation is entered, see `journal`"""
        self.shape = [len(program.path_pc), 1 if setting.keep_rows else at.HISTOGRAM_BINS]

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
        while True:
            rules = self._rules(tails)
            latest = max(int(arrivals.time.max(initial=0)), int(arrivals.windows[:, at.W_START].max(initial=0)))
            if latest >= 1 << (62 - rules.slot_bits):
                raise self._too_late(latest, rules.slots)
            self._new_state()
            granules = Granules(
                self.cast.present(self.pages.tracked),
                np.zeros(self.pages.tracked, np.int64),
                np.full(self.pages.tracked, -1, np.int64),
                self.mechanism.granule_bytes // w.page_bytes,
                self.cast.fresh_files(),
            )
            status, end, events = kernel.run_program(
                self.sums, self.resource_out, code, self.faults, granules, arrivals, rules, self.out, self.log
            )
            self.last, self.events = int(end), int(events)
            self.present_at, self.files = granules.present_at, granules.files
            if status in (at.STATUS_OK, at.STATUS_STOPPED):
                self._close(status == at.STATUS_STOPPED)
                return
            if status == at.STATUS_STUCK:
                raise checks.engine_error(
                    self.mechanism.name,
                    f"{self.events} events, and at {self.last} ns no fault has ended for thousands of them",
                )
            if status == at.STATUS_SLICES:
                raise checks.too_many_slices(self.mechanism.name, self.setting.cpus, self.events, self.sums)
            if status == at.STATUS_TIME:
                raise self._too_late(self.last, rules.slots)
            tails = max(4 * tails, 4)

    def _rules(self, tails: int) -> Rules:
        setting, arrivals, w = self.setting, self.arrivals, self.w
        comes = setting.is_open or arrivals.windows.size or arrivals.pushed.size
        special = at.SPECIAL_SLOTS if comes else 0
        opened = self.cast.accessors if arrivals.order.size else 0
        slots = special + w.accessors - opened + tails
        counts = counts_of(w)
        stepwise = bool(arrivals.windows.size or setting.until_ns is not None or setting.cpus or counts[-1].any())
        uniform = -1
        if w.faults and not self.pages.tracked and not stepwise and not self.cast.has_streams(w):
            seen = np.flatnonzero(counts.sum(axis=1))
            uniform = int(seen[0]) if seen.size == 1 and CAUSES[seen[0]] != "window" else -1
        return Rules(
            slots=slots,
            first=special,
            opened=opened,
            slot_bits=max(1, (slots - 1).bit_length()),
            until=self.until,
            stepwise=stepwise,
            uniform=uniform,
            write_again=setting.write_again,
            keep_rows=setting.keep_rows,
            host=HostCpus(setting.cpus, setting.pinned, setting.preempt_ns, checks.most_events(w, arrivals.windows)),
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
            shard=shard_of_row(self.w, self.program.shards),
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
        self.sums[:, at.A_HOME] = self.cast.homes(w, program)
        self.sums[:, at.A_VM] = w.vm_of_accessor()
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
        self.span = self.run_time = self.until if stopped else whole
        if self.cast.has_streams(self.w) and not stopped:  # they may work on when the guest is through
            ends = self.out.start + self.out.stall  # rows are kept
            guest = int((end + self.w.tail_ns)[: self.cast.accessors].max(initial=0))
            self.run_time = max(guest, int(ends[: self.cast.faults].max(initial=0)))
        checks.close_resources(self.resource_out, self.span)
        checks.check_run(
            checks.Books(
                self.mechanism.name,
                self.program,
                self.sums,
                self.resource_out,
                self.out.start,
                self.out.stall,
                self.out.histogram,
                self.span,
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
        total = int(self.sums[: self.cast.accessors, [at.S_STALL, at.S_REFAULT_NS]].sum())
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

    def result(self, rules: list[Mechanism], warnings: tuple[str, ...]) -> Result:
        """Everything a reader may ask for; `rules`: the mechanism of each window's rule."""
        w, guest, rows = self.w, self.cast.accessors, self.cast.faults
        sums = self.sums[:guest]
        resources = self.resources()
        spans = tuple((int(a), int(b)) for a, b in self.out.windows if a >= 0)
        return Result(
            mechanism=self.mechanism.name,
            params=dict(self.mechanism.values),
            seed=self.setting.seed,
            loop="open" if self.setting.is_open else "closed",
            start_ns=self.out.start[:rows],
            stall_ns=self.out.stall[:rows],
            latency_ns=self.out.latency[:rows],
            cause=w.cause[:rows],
            accessor=w.accessor_of_row()[:rows],
            accessor_name=w.accessor_name[:guest],
            accessor_kind=w.accessor_kind[:guest],
            accessor_stall_ns=sums[:, at.S_STALL] + sums[:, at.S_REFAULT_NS],
            accessor_faults=sums[:, at.S_FAULTS],
            window_stall_ns=sums[:, at.S_STOPPED],
            refaults=sums[:, at.S_REFAULTED],
            refault_stall_ns=sums[:, at.S_REFAULT_NS],
            run_time_ns=self.run_time,
            span_ns=self.span,
            resources=resources,
            bytes_moved=sum(r.bytes_moved for r in resources.values()),
            hazards=self._hazards(rules, spans),
            windows=spans,
            costs_used=dict(self.program.costs_used),
            stage_ns=self.stage_ns,
            histogram=self.out.histogram[: len(CAUSES)] if not self.setting.keep_rows else np.zeros((0, 0), np.int64),
            events=self.events,
            warnings=warnings,
        )

    def resources(self) -> dict[str, ResourceUse]:
        """What each resource did."""
        resources = {}
        for item in self.program.resources:
            if item.kind == "waitqueue":
                continue
            part = self.resource_out[item.first : item.first + item.count]
            servers, busy_ns = item.servers, int(part[:, at.R_BUSY].sum())
            for number, storage in enumerate(self.program.storages):
                places = self.files.devices[number, 1 : 1 + storage.depth]  # when each is free
                taken = int(part[:, at.R_SLOTS].sum() - np.maximum(places - self.span, 0).sum())
                if storage.instance == item.first and storage.depth and taken > busy_ns * storage.depth:
                    servers, busy_ns = storage.depth, taken  # its places are busier than its bandwidth
            resources[item.name] = ResourceUse(
                item.kind,
                servers,
                item.count,
                busy_ns,
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
