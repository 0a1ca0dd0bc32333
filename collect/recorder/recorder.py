"""Recording: targets found, probes attached, events into a trace, and what it cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from faultreplay.collect.backends.backends import acquire_backend, release_backend
from faultreplay.collect.backends.probes import group_of_kind
from faultreplay.collect.recorder.chosen import Chosen, choose
from faultreplay.collect.recorder.drain import Columns, Drain
from faultreplay.collect.recorder.hints import why_nothing
from faultreplay.collect.recorder.host import memory_available_bytes, peak_memory_bytes
from faultreplay.collect.recorder.keep import Retention, StallWatch
from faultreplay.collect.recorder.limits import Shedder
from faultreplay.collect.recorder.observe import Observer, add_map, complete_targets
from faultreplay.collect.recorder.privilege import drop_after_attaching
from faultreplay.collect.recorder.slowing import Slowing
from faultreplay.collect.recorder.spec import RecordSpec, RecordStatus, RecordSummary, check_spec, default_ring_bytes
from faultreplay.collect.recorder.telling import first_meta, loss_causes, tell_shed, tell_trigger
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.targets import NAMED_ONLY
from faultreplay.faulttrace.directory import remove_trace
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.slowed import SLOWED, slowed_words
from faultreplay.faulttrace.writer import TraceWriter

FAULT_KINDS: Final = (
    Kind.UFFD_MSG,
    Kind.PAGE_FAULT_USER,
    Kind.PAGE_FAULT_KERNEL,
    Kind.KVM_PAGE_FAULT,
    Kind.KVM_MMU_WALK,
)
"""Events that each begin a fault: what the live line counts."""
_MAP_AGE_S: Final = 1.0
_AFTER_TRIGGER_NS: Final = 500_000_000
_SILENT_NS: Final = 5_000_000_000


class Recorder:
    """Records while the body of its `with` runs; probes are attached when the body starts.

    Leaving the body detaches, writes what is left and fills `summary`.

    Raises:
        NoPermission: not root and without the capabilities.
        MissingFeature: the host lacks what the backend needs.
        UsageError: nothing to record, bad options, or the trace exists.
        FaultreplayError: a process does not exist.
    """

    def __init__(self, spec: RecordSpec, out: Path, on_step: Callable[[str], None] | None = None) -> None:
        self._step: Callable[[str], None] = on_step or (lambda _: None)
        self.spec = spec
        self.out = Path(out)
        self.summary: RecordSummary | None = None
        self._chosen = Chosen()
        self._observer = Observer()
        self._ended_by = "request"
        self._notes: list[str] = []
        self._maps_read = 0.0
        self._ended: set[int] = set()
        self._kinds = np.zeros(256, np.int64)
        self._silence: tuple[str, ...] = ()
        self._silence_told = False

    def __enter__(self) -> Recorder:
        check_spec(self.spec, self.out)
        self._step("looking for the targets")
        self._chosen = choose(self.spec)
        self._notes += self._chosen.notes
        try:
            self._start()
        except BaseException:
            if self._chosen.command is not None:
                self._chosen.command.stop()
            raise
        return self

    @property
    def _faults(self) -> int:
        return int(sum(self._kinds[kind] for kind in FAULT_KINDS))

    def why_nothing(self) -> list[str]:
        """Why no fault came so far; empty where some did."""
        if self._faults or self._chosen.wanted != NAMED_ONLY:
            return []
        return why_nothing(self._chosen.tgids)

    def _start(self) -> None:
        spec, tgids = self.spec, self._chosen.tgids
        self._backend = acquire_backend(
            (spec.backend, spec.groups, spec.ring_bytes or default_ring_bytes(), self._chosen.wanted), self._step
        )
        try:
            self._writer = TraceWriter(self.out, first_meta(spec, self._chosen, self._backend), force=spec.force)
        except BaseException:
            release_backend(self._backend)
            raise
        if self._backend.why:
            self._notes.append(self._backend.why)
        queue_bytes = min(memory_available_bytes() // 8, 1 << 30)
        retention = Retention(spec.rotation, spec.trigger)
        keeps = spec.rotation is not None or spec.trigger is not None
        self._watch = StallWatch(spec.trigger.stall_ns if spec.trigger is not None else None)
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
        self._step(f"reading threads, descriptors and memory maps of {len(tgids)} processes")
        self._follow(tgids)
        if self._backend.name == "bpftrace":
            self._step("starting bpftrace (3 to 10 s)")
        try:
            self._backend.start()
        except BaseException:
            release_backend(self._backend)
            remove_trace(self.out)
            raise
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        if spec.drop_privileges:  # before the threads start: they inherit what is left
            left = drop_after_attaching(self._backend, self.out, command=self._chosen.command is not None)
            self._writer.meta.extra["privileges"] = left
        self._drain.start()
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        self._slowing = Slowing(self._backend, tgids)
        self.start_ns = time.monotonic_ns()
        self._writer.meta.clock.start_ns = self.start_ns
        if self._chosen.command is not None:
            self._chosen.command.release()

    def _follow(self, tgids: list[int]) -> None:
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
        if self._watch.seen is None:
            self._watch.see(columns)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        end_ns = time.monotonic_ns()
        if self._chosen.command is not None:
            self._chosen.command.stop()
        self._slowing.look(self._observer.processes)
        meta = self._writer.meta
        if (slowed := self._slowing.told()) is not None:
            meta.extra[SLOWED] = slowed
            self._notes += [words] if (words := slowed_words(meta)) else []
        self._backend.pause()
        self._step(f"writing the last of {self._drain.events:,} events")
        self._drain.stop()
        meta.clock.end_ns = end_ns
        self._look_again()
        complete_targets(meta, self._observer, self.spec.vcpu_threads)
        cost = meta.recorder
        cost.cpu_ns = time.process_time_ns() - self._cpu_start_ns + self._backend.helper_cpu_ns()
        cost.max_rss_bytes = peak_memory_bytes()
        cost.events = self._writer.rows
        self._shedder.end(end_ns)
        self._notes += tell_shed(meta, self._shedder)
        if self._watch.seen is not None:
            self._notes.append(tell_trigger(meta, self._watch.seen))
        if self._drain.disk_full:
            self._notes.append(f"stopped to keep the disk reserve: {self._drain.disk_full}")
        unfollowed = getattr(self._backend, "unfollowed", 0)
        if unfollowed:
            self._notes.append(f"{unfollowed} threads were not followed: the table of threads was full")
        if self._notes:
            meta.extra["notes"] = list(self._notes)
        failed = self._drain.failed
        try:
            if failed is None:
                self._step("sealing the trace")
                self._writer.close()
            else:
                self._writer.give_up()
        finally:
            self._step("detaching the probes")
            release_backend(self._backend)
        self.summary = self._summarise(end_ns)
        if failed is not None and exc_type is None:
            raise failed

    @property
    def own_end(self) -> str:
        """Why recording must end by itself; empty if it need not. An error is raised at the end."""
        if self._drain.failed is not None:
            return "failure"
        if self._drain.disk_full:
            return "disk reserve"
        if self._watch.seen is not None:
            stall = self._watch.seen
            if time.monotonic_ns() > stall.start_ns + stall.stall_ns + _AFTER_TRIGGER_NS:
                return "trigger"
        return ""

    def targets_ended(self) -> bool:
        """Whether every target, with all processes it made, has ended and none can come."""
        if self._chosen.command is not None:
            _ = self._chosen.command.returncode  # reap
        if self._chosen.wanted != NAMED_ONLY:
            return False
        living = (self._observer.processes | set(self._chosen.tgids)) - self._ended
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
            p99_stall_ns=self._watch.lengths.quantile_ns(0.99),
            dropped=self._writer.dropped_rows,
            cpu_percent=100 * (time.process_time_ns() - self._cpu_start_ns) / max(elapsed_ns, 1),
            silent_because=self._silence if not self._faults else (),
        )

    def ended_by(self, reason: str) -> None:
        """Note why recording ends, for the summary."""
        self._ended_by = reason

    def _look_again(self) -> None:
        self._maps_read = time.monotonic()
        self._slowing.look(self._observer.processes)
        if self._chosen.wanted != NAMED_ONLY:
            fresh = self._backend.found() - self._observer.processes
            self._observer.processes |= fresh
            self._observer.changed |= fresh
        while self._observer.changed:
            tgid = self._observer.changed.pop()
            if proc.exists(tgid):
                self._backend.refresh(tgid)
                add_map(self._writer.meta, proc.memory_map(tgid, time.monotonic_ns()))

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
            exit_status=self._chosen.command.returncode if self._chosen.command is not None else None,
            notes=tuple(self._notes),
            loss_causes=loss_causes(self._writer.losses, meta),
            dropped=self._writer.dropped_rows,
            nothing_because=tuple(self.why_nothing()) if not self._writer.rows else (),
        )
