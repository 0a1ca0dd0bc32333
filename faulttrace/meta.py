"""`meta.json`: where, when, how and how completely a trace was recorded.

Decoding is strict (msgspec): the error for a wrong type names its place. Unknown keys of newer versions are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from faultreplay.faulttrace import limits
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.lab_facts import LabFacts
from faultreplay.faulttrace.place import Location
from faultreplay.faulttrace.regular import read_bytes_file
from faultreplay.faulttrace.schema import SCHEMA_VERSION
from faultreplay.faulttrace.seal import digest_meta, seal_meta

MAX_META_BYTES: Final = 64 << 20
LOSSES_FILE: Final = "losses.parquet"
_MOST: Final = (1 << 63) - 1
_MOST_ADDRESS: Final = (1 << 64) - 1
_MOST_SLOT: Final = (1 << 32) - 1

Origin = Literal["recorded", "lab", "synthetic", "imported"]
KvmFlavour = Literal["vmx", "svm", "pvm", "arm64", "none", "unknown"]
Role = Literal["vcpu", "handler", "vmm", "kernel", "other"]


@dataclass
class Host:
    """The machine that was recorded."""

    kernel: str = ""
    machine: str = ""
    cpu_model: str = ""
    cpus: int = 0
    mem_bytes: int = 0
    distro: str = ""
    kvm_flavour: KvmFlavour = "unknown"
    cpu_id: str = ""  # family-model-stepping, microcode: the model name in a VM does not show them
    kvm_params: dict[str, str] = field(default_factory=dict)  # MODULE.PARAMETER -> value
    mitigations: dict[str, str] = field(default_factory=dict)  # of CPU vulnerabilities, as the kernel names them
    fingerprint: str = ""  # `fingerprint_of` when the trace was recorded; empty: not known


def fingerprint_of(host: Host) -> str:
    """Twelve hexadecimal digits, equal for hosts on which a fault should cost the same.

    A hash of the CPU, the kernel, the flavour of KVM with its modules' parameters, and the mitigations. Empty if the
    kernel or the CPU is not known.
    """
    if not host.kernel or not (host.cpu_model or host.cpu_id):
        return ""
    parts = (host.kernel, host.machine, host.cpu_model, host.cpu_id, host.kvm_flavour)
    tables = (sorted(table.items()) for table in (host.kvm_params, host.mitigations))
    return hashlib.sha256(msgspec.json.encode([*parts, *tables])).hexdigest()[:12]


@dataclass
class Clock:
    """The trace's time axis: integer ns of `name`, and the wall clock at its start."""

    name: str = "CLOCK_MONOTONIC"
    start_ns: int = 0
    end_ns: int = 0
    start_realtime: str = ""  # ISO 8601, UTC


@dataclass
class Thread:
    """A thread of a target and its observed role."""

    tid: int
    comm: str = ""
    role: Role = "other"
    vcpu: int = -1


@dataclass
class Memslot:
    """A KVM memory slot: guest physical [gpa, gpa + size_bytes) is host virtual [hva, ...)."""

    ts_ns: int
    slot: int
    gpa: int
    hva: int
    size_bytes: int
    flags: int = 0


@dataclass
class Target:
    """A recorded process."""

    tgid: int
    comm: str = ""
    cmdline: list[str] = field(default_factory=list)
    role: str = ""  # "vm" where it holds KVM file descriptors
    name: str = ""  # the VM's name or UUID where known
    threads: list[Thread] = field(default_factory=list)
    memslots: list[Memslot] = field(default_factory=list)


@dataclass
class MapEntry:
    """A mapping of a target at `ts_ns`: address range, page size, userfaultfd registration."""

    ts_ns: int
    tgid: int
    start: int
    end: int
    page_bytes: int = 4096
    uffd: str = ""  # any of "missing", "minor", "wp", joined by "+"
    name: str = ""
    file: str = ""  # "private" or "shared" mapping of a file; empty: no file, or not known


@dataclass
class Probe:
    """A probe that was requested and whether the kernel had it."""

    name: str
    group: str = ""
    status: Literal["attached", "missing", "shed", "off"] = "attached"
    reason: str = ""


@dataclass
class Losses:
    """Events that were produced but lost before they were stored, in total and by probe."""

    total: int = 0
    by_probe: dict[str, int] = field(default_factory=dict)


@dataclass
class RecorderCost:
    """Resources that the recorder used."""

    backend: str = ""
    cpu_ns: int = 0
    max_rss_bytes: int = 0
    ring_bytes: int = 0
    events: int = 0


@dataclass
class MechanismUsed:
    """The mechanism that served the faults during the recording, with its parameters."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class WindowSpan:
    """A window (pause, freeze, memslot-destroy, uffd-wp) as recorded: inside it, accesses are handled differently."""

    kind: str
    start_ns: int
    end_ns: int


@dataclass
class FileEntry:
    """A file of the trace as it was written."""

    rows: int
    bytes: int
    sha256: str  # of the file's bytes, see `faulttrace.seal`


@dataclass
class Integrity:
    """The files that belong to the trace; empty in older traces, which have no checksums."""

    recording: str = ""  # a random number, also in each file's footer
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether the writer finished: then every file of the trace is listed."""
        return LOSSES_FILE in self.files


@dataclass
class Tool:
    """Which program wrote the trace."""

    name: str = "faultreplay"
    version: str = ""


@dataclass
class Meta:
    """All of `meta.json`."""

    schema_version: int = SCHEMA_VERSION
    tool: Tool = field(default_factory=Tool)
    origin: Origin = "recorded"
    host: Host = field(default_factory=Host)
    clock: Clock = field(default_factory=Clock)
    command: list[str] = field(default_factory=list)
    mechanism: MechanismUsed | None = None
    targets: list[Target] = field(default_factory=list)
    memory_map: list[MapEntry] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    recorder: RecorderCost = field(default_factory=RecorderCost)
    windows: list[WindowSpan] = field(default_factory=list)
    lab: LabFacts = field(default_factory=LabFacts)
    extra: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    integrity: Integrity = field(default_factory=Integrity)

    def to_json(self) -> bytes:
        """The file's bytes, indented for people, with their digest in the last line."""
        return seal_meta(msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def from_json(cls, data: bytes, where: str = "meta.json") -> Meta:
        """Decode and check.

        Raises:
            IncompleteData: not JSON, a wrong type (named with its place), another schema version, an
                impossible number, or changed since it was written.
        """
        try:
            raw = msgspec.json.decode(data)
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if isinstance(version, int) and version != SCHEMA_VERSION:
                raise IncompleteData(
                    f"{where}: schema version {version}, this faultreplay reads {SCHEMA_VERSION}: "
                    "use the version that wrote the trace (its meta.json names it under tool)"
                )
            if version is None:
                raise IncompleteData(f"{where}: no schema_version: not a faultreplay trace")
            meta = msgspec.convert(raw, cls)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:300]
            raise IncompleteData(f"{where}: damaged: {reason}") from None
        digest = digest_meta(data)
        if not digest.holds and (digest.told or meta.integrity.recording):
            raise IncompleteData(
                f"{where}: changed since faultreplay wrote it (its last line holds a digest): copy the trace again"
            )
        check_bounds(meta, where)
        return meta

    @classmethod
    def read(cls, path: Location) -> Meta:
        """Read and check the file at `path`.

        Raises:
            IncompleteData: missing, oversized or damaged.
        """
        try:
            return cls.from_json(read_bytes_file(path, MAX_META_BYTES, IncompleteData), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise IncompleteData(f"{path}: missing: not a trace, or its recorder never started") from None


def check_bounds(meta: Meta, where: str) -> None:
    """Check that counts, times, thread ids and addresses are within their limits.

    Raises:
        IncompleteData: one is not; the message names its place and the limit.
    """
    for place, value, low, high in _bounded(meta):
        if not low <= value <= high:
            raise IncompleteData(f"{where}: $.{place} is {_short(value)}, it can be from {low} to {high}")


def _bounded(meta: Meta) -> Iterator[tuple[str, int, int, int]]:
    """Place, value, minimum and maximum of each number that sizes something or enters a computation."""
    yield "host.cpus", meta.host.cpus, 0, limits.MAX_CPUS
    yield "host.mem_bytes", meta.host.mem_bytes, 0, _MOST
    yield "clock.start_ns", meta.clock.start_ns, 0, limits.MAX_TIME_NS
    yield "clock.end_ns", meta.clock.end_ns, 0, limits.MAX_TIME_NS
    yield "losses.total", meta.losses.total, 0, _MOST
    for name, lost in meta.losses.by_probe.items():
        yield f"losses.by_probe[{name!r}]", lost, 0, _MOST
    for name in ("cpu_ns", "max_rss_bytes", "ring_bytes", "events"):
        yield f"recorder.{name}", getattr(meta.recorder, name), 0, _MOST
    yield "windows (their number)", len(meta.windows), 0, limits.MAX_WINDOWS
    for n, window in enumerate(meta.windows):
        yield f"windows[{n}].start_ns", window.start_ns, 0, limits.MAX_TIME_NS
        yield f"windows[{n}].end_ns", window.end_ns, 0, limits.MAX_TIME_NS
    yield "targets (their number)", len(meta.targets), 0, limits.MAX_TARGETS
    for n, target in enumerate(meta.targets):
        yield f"targets[{n}].tgid", target.tgid, 0, limits.MAX_TID
        yield f"targets[{n}].threads (their number)", len(target.threads), 0, limits.MAX_THREADS
        for m, thread in enumerate(target.threads):
            yield f"targets[{n}].threads[{m}].tid", thread.tid, 0, limits.MAX_TID
            yield f"targets[{n}].threads[{m}].vcpu", thread.vcpu, -1, limits.MAX_VCPUS
        for m, slot in enumerate(target.memslots):
            yield f"targets[{n}].memslots[{m}].ts_ns", slot.ts_ns, 0, limits.MAX_TIME_NS
            yield f"targets[{n}].memslots[{m}].slot", slot.slot, 0, _MOST_SLOT
            for name in ("gpa", "hva", "size_bytes"):
                yield f"targets[{n}].memslots[{m}].{name}", getattr(slot, name), 0, _MOST_ADDRESS
    for n, entry in enumerate(meta.memory_map):
        yield f"memory_map[{n}].ts_ns", entry.ts_ns, 0, limits.MAX_TIME_NS
        yield f"memory_map[{n}].tgid", entry.tgid, 0, limits.MAX_TID
        yield f"memory_map[{n}].start", entry.start, 0, _MOST_ADDRESS
        yield f"memory_map[{n}].end", entry.end, 0, _MOST_ADDRESS
        yield f"memory_map[{n}].page_bytes", entry.page_bytes, 1, 1 << 40


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
