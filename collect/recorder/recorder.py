"""Recording: targets found, probes attached, events into a trace, and what it cost."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from faultreplay.collect.backends.attaching import try_tracepoint
from faultreplay.collect.backends.backends import acquire_backend, release_backend
from faultreplay.collect.backends.probes import DEFAULT_GROUPS, group_of_kind
from faultreplay.collect.backends.tracefs import tracefs_root
from faultreplay.collect.recorder.drain import Columns, Drain
from faultreplay.collect.recorder.hints import children_of, serves_nobody, why_nothing
from faultreplay.collect.recorder.host import describe_host, memory_available_bytes, missing_capabilities
from faultreplay.collect.recorder.keep import Retention, Rotation, StallWatch, Trigger
from faultreplay.collect.recorder.limits import NO_LIMITS, Limits, Shedder
from faultreplay.collect.recorder.observe import Observer, add_map, complete_targets
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.launch import Launched
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter, cgroup_members, cgroup_path, find_vms, select_vms
from faultreplay.faulttrace.directory import check_free, remove_trace
from faultreplay.faulttrace.errors import NoPermission, UsageError
from faultreplay.faulttrace.meta import Meta, Tool
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.units import format_ns
from faultreplay.faulttrace.writer import TraceWriter

_STEP_S = 0.05
_STATUS_S = 0.5
_MAP_AGE_S = 1.0
_AFTER_TRIGGER_NS = 500_000_000
_SILENT_NS = 5_000_000_000
FAULT_KINDS = (Kind.UFFD_MSG, Kind.PAGE_FAULT_USER, Kind.PAGE_FAULT_KERNEL, Kind.KVM_PAGE_FAULT, Kind.KVM_MMU_WALK)
"""Events that each begin a fault: what the live line counts."""
_MIN_RING, _MAX_RING = 1 << 16, 1 << 30


@dataclass(frozen=True)
class RecordSpec:
    """What to record.

    Attributes:
        pids: processes (or any of their threads); several when faults and their handler live apart.
        children: also the processes below them that exist already; None: below those that hold neither a VM nor a
            userfaultfd. Processes that targets make later are followed in any case.
        vms: names or UUIDs of running VMs.
        all_vms: all VMs, also those that start later.
        cgroup: all processes of this cgroup (v2) and below, also later ones.
        command: run this and record it; held back until the probes are attached.
        duration_ns: end after this; None: when the targets end or `stop` says so.
        groups: probe groups, see `faultreplay.collect.backends.probes.GROUPS`.
        ring_bytes: size of the ring, a power of two; None: chosen from the memory that is free.
        backend: ``auto``, ``bcc`` or ``bpftrace``.
        force: replace an existing trace.
        limits: ceilings of cost, past which groups are shed.
        rotation: keep only the last segments.
        trigger: end at a long stall and keep only the last seconds.
        reserve_bytes: stop before the file system has less than this free.
        part_age_ns: write a part at this age at the latest; None: 5 s, and up to a minute in long recordings.
        vcpu_threads: names or ids of threads that are vCPUs though they never call KVM_RUN.
        meta_extra: fields of `Meta` to set (origin, mechanism, lab...); other keys go into `Meta.extra`.
    """

    pids: tuple[int, ...] = ()
    children: bool | None = None
    vms: tuple[str, ...] = ()
    all_vms: bool = False
    cgroup: str | None = None
    command: tuple[str, ...] = ()
    duration_ns: int | None = None
    groups: tuple[str, ...] = DEFAULT_GROUPS
    ring_bytes: int | None = None
    backend: str = "auto"
    force: bool = False
    limits: Limits = NO_LIMITS
    rotation: Rotation | None = None
    trigger: Trigger | None = None
    reserve_bytes: int = 256 << 20
    part_age_ns: int | None = None
    vcpu_threads: tuple[str, ...] = ()
    meta_extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordStatus:
    """A moment of a running recording."""

    elapsed_ns: int
    events: int
    events_per_s: float
    lost: int
    bytes_written: int
    faults: int = 0
    cpu_percent: float = 0.0
    """of one core, since recording began"""
    silent_because: tuple[str, ...] = ()
    """why no event has come yet, where none has for some seconds"""


@dataclass(frozen=True)
class RecordSummary:
    """What a recording came to."""

    path: Path
    events: int
    lost: dict[str, int]
    missing: dict[str, str]  # tracepoint -> why
    duration_ns: int
    ended_by: str
    cpu_ns: int
    max_rss_bytes: int
    bytes_written: int
    backend: str
    ring_bytes: int
    exit_status: int | None = None
    notes: tuple[str, ...] = ()
    nothing_because: tuple[str, ...] = ()
    """why the trace has no event, where it has none"""


class Recorder:
    """Records while the body of its `with` runs; probes are attached when the body starts.

    Leaving the body detaches, writes what is left and fills `summary`.

    Raises:
        NoPermission: not root and without the capabilities.
        MissingFeature: the host lacks what the backend needs.
        UsageError: nothing to record, bad options, or the trace exists.
        FaultreplayError: a process does not exist.
    """

    def __init__(self, spec: RecordSpec, out: Path) -> None:
        self.spec = spec
        self.out = Path(out)
        self.command: Launched | None = None
        self.summary: RecordSummary | None = None
        self._observer = Observer()
        self._ended_by = "request"
        self._notes: list[str] = []
        self._maps_read = 0.0
        self._ended: set[int] = set()
        self._kinds = np.zeros(256, np.int64)
        self._names: dict[int, str] = {}
        self._wanted = NAMED_ONLY
        self._silence: tuple[str, ...] = ()
        self._silence_told = False

    def __enter__(self) -> Recorder:
        spec = self.spec
        _check(spec, self.out)
        tgids = [proc.check_pid(pid) for pid in spec.pids]
        tgids += self._children_of(tgids)
        if spec.vms or spec.all_vms:
            vms = find_vms()
            tgids += [vm.tgid for vm in vms] if spec.all_vms else select_vms(spec.vms, vms)
            self._names = {vm.tgid: vm.name or vm.uuid for vm in vms}
        self._wanted = Filter(spec.all_vms, cgroup_path(spec.cgroup) if spec.cgroup else None)
        if self._wanted.cgroup:
            tgids += cgroup_members(self._wanted.cgroup)
        tgids = list(dict.fromkeys(tgids))
        if spec.command:
            self.command = Launched(spec.command)
            tgids.append(self.command.pid)
        try:
            self._start(tgids)
        except BaseException:
            if self.command is not None:
                self.command.stop()
            raise
        return self

    def _children_of(self, tgids: list[int]) -> list[int]:
        if self.spec.children is False:
            return []
        above = [tgid for tgid in tgids if self.spec.children or serves_nobody(tgid)]
        below = [tgid for tgid in children_of(above) if tgid not in tgids] if above else []
        if below:
            whose = ", ".join(map(str, above))
            self._notes.append(f"also recorded: {len(below)} processes below {whose} (--no-children leaves them out)")
        return below

    @property
    def _faults(self) -> int:
        return int(sum(self._kinds[kind] for kind in FAULT_KINDS))

    def why_nothing(self) -> list[str]:
        """Why no fault came so far; empty where some did."""
        if self._faults or self._wanted != NAMED_ONLY:
            return []
        return why_nothing(self._tgids)

    def _start(self, tgids: list[int]) -> None:
        spec = self.spec
        self._tgids = tgids
        self._backend = acquire_backend(
            (spec.backend, spec.groups, spec.ring_bytes or default_ring_bytes(), self._wanted)
        )
        try:
            self._writer = TraceWriter(self.out, self._first_meta(tgids), force=spec.force)
        except BaseException:
            release_backend(self._backend)
            raise
        queue_bytes = min(memory_available_bytes() // 8, 1 << 30)
        retention = Retention(spec.rotation, spec.trigger)
        keeps = spec.rotation is not None or spec.trigger is not None
        self._watch = StallWatch(spec.trigger.stall_ns) if spec.trigger is not None else None
        self._shedder = Shedder(self._backend, spec.limits, spec.groups)
        self._drain = Drain(
            self._backend,
            self._writer,
            queue_bytes,
            self._see,
            after_part=retention.after_part if keeps else None,
            part_age_ns=spec.part_age_ns or retention.part_age_ns,
            part_rows=retention.part_rows,
            reserve_bytes=spec.reserve_bytes,
        )
        self._observer.processes.update(tgids)
        self._cpu_start_ns = time.process_time_ns()
        for tgid in tgids:
            self._backend.follow(tgid)
            if proc.descriptors(tgid).denied:
                self._notes.append(
                    f"the descriptors of process {tgid} may not be read (that takes CAP_SYS_PTRACE): "
                    "vCPU numbers are not known, userfaultfds only by their first message, "
                    "and a read that was under way loses its own"
                )
        for tgid in tgids:  # threads born between the first look and the programs knowing their process
            self._backend.refresh(tgid)
            add_map(self._writer.meta, proc.memory_map(tgid, time.monotonic_ns()))
        try:
            self._backend.start()
        except BaseException:
            release_backend(self._backend)
            remove_trace(self.out)
            raise
        self._drain.start()
        self.start_ns = time.monotonic_ns()
        self._writer.meta.clock.start_ns = self.start_ns
        if self.command is not None:
            self.command.release()

    def _by_group(self) -> dict[str, int]:
        """Events so far by probe group."""
        totals: dict[str, int] = {}
        for kind in Kind:
            group = group_of_kind(kind)
            totals[group] = totals.get(group, 0) + int(self._kinds[kind])
        return totals

    def _see(self, columns: Columns) -> None:
        """In the writing thread, each batch."""
        self._observer.see(columns)
        self._kinds += np.bincount(columns["kind"], minlength=256)
        if self._watch is not None and self._watch.seen is None:
            self._watch.see(columns)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        end_ns = time.monotonic_ns()
        if self.command is not None:
            self.command.stop()
        self._backend.pause()
        self._drain.stop()
        meta = self._writer.meta
        meta.clock.end_ns = end_ns
        self._look_again()
        complete_targets(meta, self._observer, self.spec.vcpu_threads)
        cost = meta.recorder
        cost.cpu_ns = time.process_time_ns() - self._cpu_start_ns + self._backend.helper_cpu_ns()
        cost.max_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost.events = self._writer.rows
        self._shedder.end(end_ns)
        if self._shedder.spans:
            meta.extra["shed"] = self._shedder.spans
        for span in self._shedder.spans:
            self._notes.append(
                f"group {span['group']} was shed for {format_ns(span['end_ns'] - span['start_ns'])}: {span['reason']}"
            )
        for probe in meta.probes:
            if probe.status == "attached" and probe.group in self._shedder.shed_now:
                probe.status = "shed"
        if self._watch is not None and self._watch.seen is not None:
            stall = self._watch.seen
            meta.extra["trigger"] = dataclasses.asdict(stall)
            self._notes.append(f"trigger: thread {stall.tid} stalled for {format_ns(stall.stall_ns)}")
        if self._drain.disk_full:
            self._notes.append(f"stopped to leave the disk its reserve: {self._drain.disk_full}")
        unfollowed = getattr(self._backend, "unfollowed", 0)
        if unfollowed:
            self._notes.append(f"{unfollowed} threads were not followed: the table of threads was full")
        if self._notes:
            meta.extra["notes"] = list(self._notes)
        failed = self._drain.failed
        try:
            if failed is None:
                self._writer.close()
        finally:
            release_backend(self._backend)
        self.summary = self._summarise(end_ns)
        if failed is not None and exc_type is None:
            raise failed

    @property
    def own_end(self) -> str:
        """Why recording must end by itself; empty while it need not. An error is raised on leaving."""
        if self._drain.failed is not None:
            return "failure"
        if self._drain.disk_full:
            return "disk reserve"
        if self._watch is not None and self._watch.seen is not None:
            stall = self._watch.seen
            if time.monotonic_ns() > stall.start_ns + stall.stall_ns + _AFTER_TRIGGER_NS:
                return "trigger"
        return ""

    def targets_ended(self) -> bool:
        """Whether every target, with all processes it made, has ended and none can come."""
        if self.command is not None:
            _ = self.command.returncode  # reap
        if self._wanted != NAMED_ONLY:
            return False
        living = (self._observer.processes | set(self._tgids)) - self._ended
        self._ended |= {tgid for tgid in living if not proc.exists(tgid)}
        return living <= self._ended

    def tick(self) -> None:
        """Keep to the ceilings and the memory map up to date; call it now and then."""
        if self.spec.limits.any:
            self._shedder.step(time.monotonic_ns(), self._drain.events, time.process_time_ns(), self._by_group())
        if time.monotonic() - self._maps_read >= _MAP_AGE_S:
            self._look_again()

    def status(self) -> tuple[int, int, int]:
        """Events, lost events and bytes written so far."""
        return self._drain.events, self._drain.lost, self._writer.bytes_written

    def moment(self, now_ns: int, events_per_s: float) -> RecordStatus:
        """The status as people are shown it."""
        events, lost, size = self.status()
        elapsed_ns = now_ns - self.start_ns
        if elapsed_ns >= _SILENT_NS and not self._silence_told and not self._faults:
            self._silence = tuple(self.why_nothing())
            self._silence_told = True
        return RecordStatus(
            elapsed_ns,
            events,
            events_per_s,
            lost,
            size,
            faults=self._faults,
            cpu_percent=100 * (time.process_time_ns() - self._cpu_start_ns) / max(elapsed_ns, 1),
            silent_because=self._silence if not self._faults else (),
        )

    def ended_by(self, reason: str) -> None:
        """Note why recording ends, for the summary."""
        self._ended_by = reason

    def _look_again(self) -> None:
        self._maps_read = time.monotonic()
        if self._wanted != NAMED_ONLY:
            fresh = self._backend.found() - self._observer.processes
            self._observer.processes |= fresh
            self._observer.changed |= fresh
        while self._observer.changed:
            tgid = self._observer.changed.pop()
            if proc.exists(tgid):
                self._backend.refresh(tgid)
                add_map(self._writer.meta, proc.memory_map(tgid, time.monotonic_ns()))

    def _first_meta(self, tgids: list[int]) -> Meta:
        meta = Meta(
            tool=Tool(version=_version()),
            host=describe_host(),
            command=list(self.spec.command),
            targets=[proc.describe_target(tgid) for tgid in tgids],
            probes=self._backend.probes,
        )
        for target in meta.targets:
            target.name = self._names.get(target.tgid, "")
        if self.command is not None:
            meta.targets[-1].cmdline = list(self.spec.command)
            meta.targets[-1].comm = Path(self.spec.command[0]).name[:15]
            meta.targets[-1].threads = meta.targets[-1].threads[:1]
        meta.clock.start_ns = time.monotonic_ns()
        meta.clock.start_realtime = datetime.now(UTC).isoformat()
        meta.recorder.backend = self._backend.name
        if self._backend.why:
            self._notes.append(self._backend.why)
        meta.recorder.ring_bytes = self._backend.ring_bytes
        known = {f.name for f in fields(Meta)}
        for key, value in self.spec.meta_extra.items():
            if key in known:
                setattr(meta, key, value)
            else:
                meta.extra[key] = value
        return meta

    def _summarise(self, end_ns: int) -> RecordSummary:
        meta = self._writer.meta
        return RecordSummary(
            path=self.out,
            events=self._writer.rows,
            lost=dict(meta.losses.by_probe),
            missing={p.name: p.reason for p in meta.probes if p.status == "missing"},
            duration_ns=end_ns - self.start_ns,
            ended_by=self._ended_by,
            cpu_ns=meta.recorder.cpu_ns,
            max_rss_bytes=meta.recorder.max_rss_bytes,
            bytes_written=self._writer.bytes_written,
            backend=self._backend.name,
            ring_bytes=self._backend.ring_bytes,
            exit_status=self.command.returncode if self.command is not None else None,
            notes=tuple(self._notes),
            nothing_because=tuple(self.why_nothing()) if not self._writer.rows else (),
        )


def record(
    spec: RecordSpec,
    out: Path,
    stop: threading.Event | Callable[[], bool],
    on_status: Callable[[RecordStatus], None] | None = None,
) -> RecordSummary:
    """Record until the duration is over, the targets have ended or `stop` says so.

    Args:
        spec: what to record.
        out: the trace to make.
        stop: an event, or a function that is asked about 20 times a second.
        on_status: called about twice a second, and once at the end.
    """
    asked = stop.is_set if isinstance(stop, threading.Event) else stop
    recorder = Recorder(spec, out)
    with recorder:
        last_ns, last_events, told_ns = recorder.start_ns, 0, 0
        while True:
            now_ns = time.monotonic_ns()
            reason = _reason_to_end(recorder, spec, asked, now_ns)
            if on_status is not None and (reason or now_ns - told_ns >= _STATUS_S * 1e9):
                events, _, _ = recorder.status()
                rate = (events - last_events) / max(now_ns - last_ns, 1) * 1e9
                on_status(recorder.moment(now_ns, rate))
                last_ns, last_events, told_ns = now_ns, events, now_ns
            if reason:
                recorder.ended_by(reason)
                break
            recorder.tick()
            time.sleep(_STEP_S)
    assert recorder.summary is not None
    return recorder.summary


def _reason_to_end(recorder: Recorder, spec: RecordSpec, asked: Callable[[], bool], now_ns: int) -> str:
    if asked():
        return "request"
    if recorder.own_end:
        return recorder.own_end
    if spec.duration_ns is not None and now_ns - recorder.start_ns >= spec.duration_ns:
        return "duration"
    return "targets ended" if recorder.targets_ended() else ""


def _version() -> str:
    try:
        return importlib.metadata.version("faultreplay")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return ""


def default_ring_bytes() -> int:
    """64 MiB, or less where a sixty-fourth of the free memory is less."""
    ring = 64 << 20
    while ring > memory_available_bytes() // 64 and ring > 1 << 20:
        ring //= 2
    return ring


def _check(spec: RecordSpec, out: Path) -> None:
    if not (spec.pids or spec.vms or spec.all_vms or spec.cgroup or spec.command):
        raise UsageError("nothing to record: give -p PID, --vm NAME, --all-vms, --cgroup PATH or -- COMMAND")
    ring = spec.ring_bytes
    if ring is not None and (ring & (ring - 1) or not _MIN_RING <= ring <= _MAX_RING):
        raise UsageError(f"a ring of {ring} bytes: the size must be a power of two from 64K to 1G")
    if out.exists() and not spec.force:
        raise UsageError(f"{out}: exists: choose another name or give --force")
    check_free(out, force=spec.force)
    if spec.limits.any and spec.backend == "bpftrace":
        raise UsageError("bpftrace cannot shed groups while it runs: ceilings need --backend bcc")
    lacking = missing_capabilities()
    if lacking:
        raise NoPermission(f"recording needs {' and '.join(lacking)}: run as root or grant them")
    if refusal := try_tracepoint(tracefs_root() / "events"):
        level = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
        raise NoPermission(
            f"the kernel refuses to attach probes (perf_event_open: {refusal}; kernel.perf_event_paranoid is {level}): "
            "run as root, or where CAP_PERFMON is there: sysctl kernel.perf_event_paranoid=2"
        )
