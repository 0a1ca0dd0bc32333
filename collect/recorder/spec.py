"""What to record, and what is reported while it runs and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faultreplay.collect.backends.attaching import try_tracepoint
from faultreplay.collect.backends.probes import DEFAULT_GROUPS
from faultreplay.collect.backends.tracefs import tracefs_root
from faultreplay.collect.recorder.host import memory_available_bytes, missing_capabilities
from faultreplay.collect.recorder.keep import Rotation, Trigger
from faultreplay.collect.recorder.limits import NO_LIMITS, Limits
from faultreplay.faulttrace.directory import check_free
from faultreplay.faulttrace.errors import NoPermission, UsageError

_MIN_RING, _MAX_RING = 1 << 16, 1 << 30


@dataclass(frozen=True)
class RecordSpec:
    """What to record.

    Attributes:
        pids: processes (or any of their threads); several when faults and their handler live apart.
        children: also the processes below them that exist already; None: below those that hold neither a VM nor a
            userfaultfd. Processes that targets make later are followed in any case.
        with_handler: also processes outside that take the targets' userfaults; None: of `vms` and `all_vms`.
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
        drop_privileges: once the probes are attached, give away what is needed no more (`collect.recorder.privilege`).
            It cannot be undone: for a process that does nothing else after.
        meta_extra: fields of `Meta` to set (origin, mechanism, lab...); other keys go into `Meta.extra`.
    """

    pids: tuple[int, ...] = ()
    children: bool | None = None
    with_handler: bool | None = None
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
    drop_privileges: bool = False
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
    p99_stall_ns: int | None = None
    """of the last seconds' stalls, to an eighth of a doubling; None: there was none"""
    dropped: int = 0
    """events of parts that rotation, or waiting for a trigger, has deleted again"""
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
    loss_causes: Mapping[str, int] = field(default_factory=dict)
    """cause -> lost events: ``ring`` (full), ``shed``, ``nested`` (a probe inside a probe), ``printing`` (bpftrace)"""
    dropped: int = 0
    """events of parts that were deleted again"""
    nothing_because: tuple[str, ...] = ()
    """why the trace has no event, where it has none"""


def default_ring_bytes() -> int:
    """64 MiB, or less where a sixty-fourth of the free memory is less."""
    ring = 64 << 20
    while ring > memory_available_bytes() // 64 and ring > 1 << 20:
        ring //= 2
    return ring


def check_spec(spec: RecordSpec, out: Path) -> None:
    """See that `spec` can be recorded into `out`, before anything is done.

    Raises:
        UsageError: nothing to record, options that exclude each other, or the trace exists.
        NoPermission: the kernel would refuse.
    """
    if not (spec.pids or spec.vms or spec.all_vms or spec.cgroup or spec.command):
        raise UsageError("nothing to record: give -p PID, --vm NAME, --all-vms, --cgroup PATH or -- COMMAND")
    ring = spec.ring_bytes
    if ring is not None and (ring & (ring - 1) or not _MIN_RING <= ring <= _MAX_RING):
        raise UsageError(f"a ring of {ring} bytes: the size must be a power of two from 64K to 1G")
    if out.exists() and not spec.force:
        raise UsageError(f"{out}: exists: choose another name or give --force")
    check_free(out, force=spec.force)
    if spec.limits.any and spec.backend == "bpftrace":
        raise UsageError("bpftrace cannot drop groups while it runs: ceilings need --backend bcc")
    lacking = missing_capabilities()
    if lacking:
        raise NoPermission(f"recording needs {' and '.join(lacking)}: run as root or grant them")
    if refusal := try_tracepoint(tracefs_root() / "events"):
        level = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
        raise NoPermission(
            f"the kernel refuses to attach probes (perf_event_open: {refusal}; kernel.perf_event_paranoid is {level}): "
            "run as root, or where CAP_PERFMON is there: sysctl kernel.perf_event_paranoid=2"
        )
