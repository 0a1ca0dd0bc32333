"""Run a workload through a mechanism. Nothing here prints, reads files or knows a mechanism by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine import checks
from faultreplay.replay.engine import kernel as k
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.engine.checks import histogram_edges_ns  # noqa: F401, offered here
from faultreplay.replay.engine.cpus import SLICE_NS
from faultreplay.replay.engine.windows import Window, bound_by, guarded, refill_bytes, window_rows
from faultreplay.replay.language.compiler import Compiler, Program, tracks_pages
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.time_words import TIME_WORDS
from faultreplay.replay.workload.pages import Pages, pages_of
from faultreplay.replay.workload.workload import Workload, derived

Ints = npt.NDArray[np.int64]
_EMPTY = np.zeros(0, np.int64)
_FOREVER = 1 << 61


@dataclass(frozen=True)
class ResourceUse:
    """What one resource did; `instances` of it are added up."""

    kind: str
    servers: int
    """per instance; 0: no limit"""
    instances: int
    busy_ns: int
    acquired: int
    wait_ns: int
    max_queue: int
    bytes_moved: int

    def busy_share(self, run_time_ns: int) -> float:
        """Share of the run time that its servers were busy; 0 where there is no limit."""
        capacity = self.servers * self.instances * run_time_ns
        return self.busy_ns / capacity if capacity else 0.0


@dataclass(frozen=True)
class Result:
    """One replay. Rows are in the workload's order; -1 in `start_ns`: not reached before `until_ns`."""

    mechanism: str
    params: Mapping[str, float]
    seed: int
    loop: str
    start_ns: Ints
    """int64[F] from the beginning; empty when rows were not kept"""
    stall_ns: Ints
    latency_ns: Ints
    """int64[F]: fault until its content was there, for mechanisms whose accessor does not wait for it; else empty"""
    cls: npt.NDArray[np.uint8]
    accessor: npt.NDArray[np.int32]
    accessor_name: tuple[str, ...]
    accessor_kind: npt.NDArray[np.uint8]
    accessor_stall_ns: Ints
    """int64[A]: sum over its faults, refaults included"""
    accessor_faults: Ints
    window_stall_ns: Ints
    """int64[A]: time an accessor was stopped by a window, which is no fault's stall"""
    refaults: Ints
    """int64[A]: faults on emptied stage 2 that are assumed, not recorded (retouch working-set)"""
    refault_stall_ns: Ints
    run_time_ns: int
    resources: Mapping[str, ResourceUse]
    bytes_moved: int
    hazards: Mapping[str, int]
    """accessor kind -> writes inside a window that its rule does not stop"""
    windows: tuple[tuple[int, int], ...]
    """(begin, end) as they came out, with the costs of entering and leaving"""
    costs_used: Mapping[str, str]
    stage_ns: Mapping[str, int]
    """word of `time_words.TIME_WORDS` -> ns of stall before accessors ran again; adds up exactly to the stalls of all
    simulated faults, refaults included. With CPUs ``queue`` holds the waiting for them. Empty for a run that
    `until_ns` stopped."""
    histogram: Ints
    """int64[classes, bins] when rows were not kept, else empty; bounds: `histogram_edges_ns`"""
    events: int
    warnings: tuple[str, ...]

    @property
    def end_ns(self) -> Ints:
        """int64[F]: when each accessor ran again; -1 where not reached."""
        return np.where(self.start_ns >= 0, self.start_ns + self.stall_ns, -1)

    @property
    def total_stall_ns(self) -> int:
        """Stall of all faults and of the windows."""
        return int(self.accessor_stall_ns.sum() + self.window_stall_ns.sum())


def simulate(
    workload: Workload,
    mechanism: Mechanism,
    costs: Mapping[str, Cost],
    *,
    seed: int = 0,
    loop: str = "closed",
    windows: Sequence[Window] = (),
    retouch: str = "recorded",
    cpus: int | None = None,
    pinned: bool = False,
    until_ns: int | None = None,
    rows: bool = True,
) -> Result:
    """Replay `workload` through `mechanism`.

    Args:
        workload: accessors and their faults
        mechanism: from `load_mechanism`, parameters set
        costs: cost name -> `Cost`; every name the mechanism charges must be there
        seed: of all randomness; the same seed gives the same rows on every machine
        loop: ``closed`` keeps think times, ``open`` keeps recorded start times
        windows: `Window`s in time from the beginning
        retouch: ``recorded`` or ``working-set``: what is touched again inside a window or after stage 2 was emptied, or
            written after it was read
        cpus: host CPUs that thinking accessors and working handlers need; None: as many as they want
        pinned: with `cpus`: accessor n has CPU n modulo `cpus`, then the handlers in the same way; else any
        until_ns: stop at this time
        rows: keep a row a fault; else only sums and a histogram, for traces larger than memory

    Raises:
        UsageError: options or costs do not fit the mechanism.
    """
    if loop not in ("closed", "open"):
        raise UsageError(f"loop is closed or open, not '{loop}'")
    if retouch not in ("recorded", "working-set"):
        raise UsageError(f"retouch is recorded or working-set, not '{retouch}'")
    if cpus is not None and cpus < 1:
        raise UsageError(f"a host has at least one CPU, not {cpus}")
    if cpus is not None and cpus > checks.MOST_CPUS:
        raise UsageError(f"a host has at most {checks.MOST_CPUS} CPUs, not {cpus}")
    if until_ns is not None and not 0 <= until_ns <= LONGEST_NS:
        raise UsageError(f"until must be from 0 to 1e15 ns (11 days), not {until_ns}")
    checks.check_workload(workload)
    counts = _counts(workload)
    bound = bound_by(mechanism, windows)
    refill = refill_bytes(bound, workload.page_bytes) if retouch == "working-set" else 0
    write_again = mechanism.write_after_read and retouch == "working-set" and loop == "closed"
    pages = pages_of(
        workload,
        mechanism.granule_bytes,
        track=tracks_pages(mechanism),
        everything=mechanism.push is not None,
        refill_bytes=refill,
    )
    program = Compiler(
        mechanism,
        costs,
        accessors=workload.accessors,
        page_bytes=workload.page_bytes,
        needed=[(int(c), int(kind)) for c, kind in zip(*np.nonzero(counts), strict=True)],
        refaults=refill > 0,
        rewrites=write_again,
        shared=pages.tracked > 0 or until_ns is not None,
        on_cpus=cpus is not None,
    ).program()
    rules_rows = window_rows(bound, costs, retouch, seed, program.costs_used)
    checks.check_windows(rules_rows, workload.faults * (mechanism.granule_bytes // workload.page_bytes))
    run = _Run(
        workload,
        mechanism,
        program,
        pages,
        rules_rows,
        seed,
        loop,
        until_ns,
        rows or bool(rules_rows.size),
        cpus or 0,
        pinned,
        write_again,
        _preempt_ns(costs, program) if cpus else 0,
    )
    run.execute()
    return run.result([rule for _, rule in bound], _warnings(workload, mechanism, program, counts))


def _preempt_ns(costs: Mapping[str, Cost], program: Program) -> int:
    """Charged where one thread takes another's CPU; notes that it is."""
    cost = costs.get("preempt")
    if cost is None:
        return 0
    program.costs_used["preempt"] = cost.provenance
    return round(cost.distribution.quantile(0.5))


class _Run:
    """Arrays for one call of the kernel."""

    def __init__(  # noqa: PLR0917
        self,
        workload: Workload,
        mechanism: Mechanism,
        program: Program,
        pages: Pages,
        windows: Ints,
        seed: int,
        loop: str,
        until_ns: int | None,
        rows: bool,
        cpus: int,
        pinned: bool,
        write_again: bool,
        preempt_ns: int,
    ) -> None:
        self.w, self.mechanism, self.program, self.pages = workload, mechanism, program, pages
        self.windows, self.seed, self.loop, self.until, self.rows = windows, seed, loop, until_ns, rows
        self.cpus, self.pinned, self.write_again, self.preempt_ns = cpus, pinned, write_again, preempt_ns
        faults = workload.faults
        self.start: Ints = np.full(faults if rows else 0, -1, np.int64)
        self.stall: Ints = np.full(faults if rows else 0, -1, np.int64)
        self.latency = np.full(faults if program.has_latency and rows else 0, -1, np.int64)
        self.histogram = np.zeros((len(CAUSES), o.HISTOGRAM_BINS if not rows else 1), np.int64)
        self.window_out = np.full((windows.shape[0], 2), -1, np.int64)

    def execute(self) -> None:
        """Run; with more slots when asynchronous tails outnumber those there are."""
        w = self.w
        accessors = w.accessors
        is_open = self.loop == "open"
        tails = accessors + 16 if is_open else self.program.tails
        order, times = _open_loop(w) if is_open else (_EMPTY, _EMPTY)
        stepwise = bool(self.windows.size or self.until is not None or self.cpus) or bool(_counts(w)[-1].any())
        uniform = -1
        if w.faults and not self.pages.tracked and not stepwise:
            seen = np.flatnonzero(_counts(w).sum(axis=1))
            uniform = int(seen[0]) if seen.size == 1 and CAUSES[seen[0]] != "window" else -1
        until = _FOREVER if self.until is None else int(self.until)
        push_order, push = self._push()
        special = o.SPECIAL_SLOTS if is_open or self.windows.size or push_order.size else 0
        while True:
            slots = special + (0 if is_open else accessors) + tails
            bits = max(1, (slots - 1).bit_length())
            latest = max(int(times.max(initial=0)), int(self.windows[:, o.W_START].max(initial=0)))
            if latest >= 1 << (62 - bits):
                raise self._too_late(latest, slots)
            present = np.full(self.pages.tracked, k.NEVER, np.int64)
            self.sums = np.zeros((accessors, o.A_COLUMNS), np.int64)
            self.sums[:, o.A_KIND] = w.accessor_kind
            self.sums[:, o.A_FIRST] = self.sums[:, o.A_NEXT] = w.accessor_start[:-1]
            self.sums[:, o.A_STOP] = w.accessor_start[1:]
            self.sums[:, o.A_LEFT] = -1
            self.sums[:, o.A_TAIL] = w.tail_ns
            self.resource_out = np.zeros((self.program.servers.size, o.R_COLUMNS), np.int64)
            self.resource_out[:, o.R_SERVERS] = self.program.servers
            self.histogram[:] = 0
            self.spent = np.zeros((len(self.program.ops), o.SPENT_COLUMNS), np.int64)
            status, self.last, self.events, self.cpu_work = k.run_program(
                self.program.ops,
                self.program.tables,
                self.program.path_pc,
                np.uint64(self.seed * 0x632BE59BD9B4E019 % 2**64),
                self.sums,
                w.on_cpu_ns() if self.cpus else w.think_ns,
                w.asleep_ns if self.cpus else _EMPTY,
                w.cls,
                w.access,
                w.recorded_stall_ns,
                self.pages.flags,
                self.pages.granule,
                self._shard(),
                uniform,
                present,
                np.zeros(self.pages.tracked, np.int64),
                np.full(self.pages.tracked, -1, np.int64),
                order,
                times,
                self.resource_out,
                self.windows,
                self.window_out,
                self.mechanism.granule_bytes // w.page_bytes,
                push_order,
                push,
                slots,
                special,
                bits,
                until,
                stepwise,
                self.cpus,
                self.pinned and self.cpus > 0,
                SLICE_NS,
                self.preempt_ns,
                self.write_again,
                self.program.sections,
                self.start,
                self.stall,
                self.latency,
                self.histogram,
                self.rows,
                self.spent,
            )
            if status in (o.STATUS_OK, o.STATUS_STOPPED):
                self._close(status == o.STATUS_STOPPED, until)
                return
            if status == o.STATUS_STUCK:
                raise checks.engine_error(
                    self.mechanism.name,
                    f"{self.events} events, and at {int(self.last)} ns no fault has ended for thousands of them",
                )
            if status == o.STATUS_TIME:
                raise self._too_late(int(self.last), slots)
            tails = max(4 * tails, 4)

    def _too_late(self, time_ns: int, slots: int) -> FaultreplayError:
        return FaultreplayError(
            f"{self.mechanism.name}: simulated time passes {time_ns / 1e9:.0f} s, more than can be counted with "
            f"{slots} faults under way: replay a part of the trace, or look for a cost that is too long"
        )

    def _close(self, stopped: bool, until: int) -> None:
        """Sums up to the end of the run, and whether they agree."""
        end = self.sums[:, o.S_END]
        ran = (end > 0) | ((np.diff(self.w.accessor_start) > 0) & (self.loop == "closed"))
        whole = max(int((end + self.w.tail_ns).max(initial=0, where=ran)), int(self.last))
        self.run_time = until if stopped else whole
        checks.close_resources(self.resource_out, self.run_time)
        checks.check_run(
            checks.Books(
                self.mechanism.name,
                self.program,
                self.sums,
                self.resource_out,
                self.start,
                self.stall,
                self.histogram,
                self.run_time,
                self.cpus,
                int(self.cpu_work),
                stopped,
            )
        )
        self._count_moved()
        self.stage_ns = {} if stopped else self._stages()

    def _stages(self) -> dict[str, int]:
        """Where the time went: what the kernel counted for each operation, summed by word."""
        found = dict.fromkeys(TIME_WORDS, 0)
        for pc, column, word, each_ns in self.program.shares:
            found[word] += int(self.spent[pc, column]) * (each_ns or 1)
        total = int(self.sums[:, [o.S_STALL, o.S_REFAULT_NS]].sum())
        rest = total - sum(found.values())
        # work that waits for a CPU is counted by nobody: it is what is left
        found["queue" if self.cpus else "other"] += rest
        if rest < 0:
            raise checks.engine_error(self.mechanism.name, f"the stages take {-rest} ns more than the stalls")
        return found

    def _count_moved(self) -> None:
        """Bytes over links without a limit: the kernel does not see them, so they are counted by class."""
        counts = _counts(self.w)
        for (name, kind), links in self.program.moved.items():
            faults = int(counts[CAUSES.index(name), ACCESSORS.index(kind)])
            for link, size in links:
                self.resource_out[link, o.R_ACQUIRED] += faults
                self.resource_out[link, o.R_BYTES] += faults * size

    def _shard(self) -> npt.NDArray[np.int32]:
        shards = self.program.shards
        if shards == 1 or not self.w.faults:
            return np.zeros(self.w.faults if shards > 1 else 1, np.int32)
        pages, place = np.unique(self.w.page, return_inverse=True)
        return (place.astype(np.int64) * shards // len(pages)).astype(np.int32)

    def _push(self) -> tuple[npt.NDArray[np.int32], Ints]:
        push = self.mechanism.push
        if push is None:
            return np.zeros(0, np.int32), np.zeros(5, np.int64)
        granule_bytes = self.mechanism.granule_bytes
        order = self.pages.order
        if push["order"] == "recorded":
            rows = np.argsort(_open_loop(self.w)[1], kind="stable")
            # Without a fault on missing content no granule is looked up.
            granules = self.pages.granule[rows] if self.pages.granule.size else self.pages.granule
            granules = granules[granules >= 0]
            order = granules[np.sort(np.unique(granules, return_index=True)[1])]
        total = int(self.mechanism.value(push["memory"])) // granule_bytes
        if total > order.size:
            # memory that the trace never touches is sent too: spread evenly between what it touches
            everything = np.full(total, -1, np.int32)
            everything[np.arange(order.size, dtype=np.int64) * total // max(order.size, 1)] = order
            order = everything
        link, ns = self.program.link_ns[push["link"]]
        if ns == 0:
            raise UsageError(f"{self.mechanism.name}: a background stream needs a link with a bandwidth")
        backlog = int(self.mechanism.value(push["backlog"]))
        latency = self.program.push_latency_ns
        return np.ascontiguousarray(order), np.array(
            [link, ns, latency, backlog * ns // granule_bytes, granule_bytes], np.int64
        )

    def result(self, rules: list[Mechanism], warnings: tuple[str, ...]) -> Result:
        """Everything a reader may ask for."""
        w = self.w
        resources = {}
        for item in self.program.resources:
            if item.kind == "waitqueue":
                continue
            part = self.resource_out[item.first : item.first + item.count]
            resources[item.name] = ResourceUse(
                item.kind,
                item.servers,
                item.count,
                int(part[:, o.R_BUSY].sum()),
                int(part[:, o.R_ACQUIRED].sum()),
                int(part[:, o.R_WAIT].sum()),
                int(part[:, o.R_MAX_QUEUE].max()),
                int(part[:, o.R_BYTES].sum()),
            )
        if self.cpus:
            resources["cpus"] = ResourceUse("servers", self.cpus, 1, int(self.cpu_work), 0, 0, 0, 0)
        spans = tuple((int(a), int(b)) for a, b in self.window_out if a >= 0)
        return Result(
            mechanism=self.mechanism.name,
            params=dict(self.mechanism.values),
            seed=self.seed,
            loop=self.loop,
            start_ns=self.start,
            stall_ns=self.stall,
            latency_ns=self.latency,
            cls=w.cls,
            accessor=w.accessor_of_row(),
            accessor_name=w.accessor_name,
            accessor_kind=w.accessor_kind,
            accessor_stall_ns=self.sums[:, o.S_STALL] + self.sums[:, o.S_REFAULT_NS],
            accessor_faults=self.sums[:, o.S_FAULTS],
            window_stall_ns=self.sums[:, o.S_STOPPED],
            refaults=self.sums[:, o.S_REFAULTED],
            refault_stall_ns=self.sums[:, o.S_REFAULT_NS],
            run_time_ns=self.run_time,
            resources=resources,
            bytes_moved=sum(r.bytes_moved for r in resources.values()),
            hazards=self._hazards(rules, spans),
            windows=spans,
            costs_used=dict(self.program.costs_used),
            stage_ns=self.stage_ns,
            histogram=self.histogram if not self.rows else np.zeros((0, 0), np.int64),
            events=int(self.events),
            warnings=warnings,
        )

    def _hazards(self, rules: list[Mechanism], spans: tuple[tuple[int, int], ...]) -> dict[str, int]:
        counts = dict.fromkeys(ACCESSORS[1:], 0) if spans else {}
        kind = self.w.accessor_kind[self.w.accessor_of_row()] if spans else None
        for rule, (begin, end) in zip(rules, spans, strict=False):
            inside = (self.start >= begin) & (self.start < end) & (self.w.access == 1)
            for code, name in enumerate(ACCESSORS):
                if name in counts and not guarded(rule, name):
                    counts[name] += int((inside & (kind == code)).sum())
        return counts


def _open_loop(w: Workload) -> tuple[Ints, Ints]:
    """(order of the rows in time, time of each row): recorded start times, or think times added up where they are
    unknown."""
    if w.recorded_start_ns.size and bool((w.recorded_start_ns >= 0).all()):
        times = w.recorded_start_ns
    else:
        total = np.cumsum(w.think_ns)
        before = np.concatenate([[0], total])[w.accessor_start[:-1]]
        times = total - np.repeat(before, np.diff(w.accessor_start))
    return np.argsort(times, kind="stable"), times


def _warnings(workload: Workload, mechanism: Mechanism, program: Program, counts: Ints) -> tuple[str, ...]:
    found: list[str] = []
    for name, kinds in program.recorded_classes.items():
        total = sum(int(counts[CAUSES.index(name), ACCESSORS.index(kind)]) for kind in kinds)
        if total:
            found.append(f"{total} faults of class {name} are not {mechanism.name}'s: replayed with the stall they had")
            if not workload.recorded_stall_ns.size:
                found[-1] += " (unknown here: 0)"
    return tuple(found)


def _counts(workload: Workload) -> Ints:
    """int64[classes, accessor kinds]: faults of each."""
    return derived(workload, "counts", lambda: _count(workload))


def _count(workload: Workload) -> Ints:
    counts = np.zeros((len(CAUSES), len(ACCESSORS)), np.int64)
    for a in range(workload.accessors):
        part = workload.cls[workload.accessor_start[a] : workload.accessor_start[a + 1]]
        counts[:, workload.accessor_kind[a]] += np.bincount(part, minlength=len(CAUSES))
    return counts
