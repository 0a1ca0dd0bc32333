"""The engine's input: per accessor a stream of faults with the think time before each, as plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES

Ints = npt.NDArray[np.int64]
ACCESS_CODES: Final = {"r": 0, "w": 1, "x": 2}
UNKNOWN: Final = -1
_NONE: Final = np.zeros(0, np.int64)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)  # equal only if they are the same object: `derived` depends on it
class Workload:
    """Faults of `A` accessors, `F` in all, in compressed sparse rows: accessor a owns rows
    accessor_start[a]:accessor_start[a+1].

    Times are ns from the beginning of the recording. Rows of an accessor are in the order in which it faulted.
    """

    accessor_start: Ints
    """int64[A+1]"""
    think_ns: Ints
    """int64[F]: from the previous resume (or the beginning) to this fault"""
    page: npt.NDArray[Any]
    """int32 or int64[F]: which native page"""
    access: npt.NDArray[np.uint8]
    """uint8[F]: 0 read, 1 write, 2 execute"""
    cause: npt.NDArray[np.uint8]
    """uint8[F]: index in `fault_columns.CAUSES`"""
    recorded_stall_ns: Ints
    """int64[F], -1 unknown; or empty: all unknown"""
    recorded_start_ns: Ints
    """int64[F] from the beginning of the recording, -1 unknown; or empty: all unknown"""
    accessor_kind: npt.NDArray[np.uint8]
    """uint8[A]: 0 vcpu, 1 vmm, 2 kernel"""
    accessor_name: tuple[str, ...]
    tail_ns: Ints
    """int64[A]: from the last resume to the end of the recording"""
    asleep_ns: Ints = field(default_factory=lambda: _NONE)
    """int64[F], or empty (none): part of `think_ns` in which the accessor slept voluntarily, as a halted vCPU does"""
    preempted_ns: Ints = field(default_factory=lambda: _NONE)
    """int64[F], or empty (none): part of `think_ns` in which it waited for a CPU"""
    page_bytes: int = 4096
    clock_start_ns: int = 0
    """CLOCK_MONOTONIC at the beginning of the recording"""
    resume_ns: int = 0
    """when the guest began to run, from the beginning; threads of background streams begin then"""
    origin: str = "recorded"
    notes: tuple[str, ...] = ()
    vm_start: Ints = field(default_factory=lambda: _NONE)
    """int64[VMs]: the first page of each if several VMs form one workload (`several.together`); else empty"""

    @property
    def vms(self) -> int:
        """Number of VMs that the accessors belong to."""
        return max(self.vm_start.size, 1)

    def vm_of_page(self, page: npt.NDArray[np.integer]) -> Ints:
        """int64: the VM whose memory each page is."""
        if self.vms == 1:
            return np.zeros(page.size, np.int64)
        found: Ints = np.searchsorted(self.vm_start, page, side="right") - 1
        return found

    def vm_of_accessor(self) -> Ints:
        """int64[A]: the VM of each; the first VM for an accessor without faults."""
        found = np.zeros(self.accessors, np.int64)
        some = np.diff(self.accessor_start) > 0
        found[some] = self.vm_of_page(self.page[self.accessor_start[:-1][some]])
        return found

    @property
    def faults(self) -> int:
        """Number of faults."""
        return int(self.think_ns.size)

    @property
    def accessors(self) -> int:
        """Number of accessors."""
        return int(self.accessor_kind.size)

    @property
    def measured(self) -> bool:
        """Whether any stall was recorded: a synthetic trace has none."""
        return bool((self.recorded_stall_ns >= 0).any())

    def accessor_of_row(self) -> npt.NDArray[np.int32]:
        """int32[F]: which accessor a row belongs to; all callers share the array, so it is read-only."""

        def make() -> npt.NDArray[np.int32]:
            owner = np.repeat(np.arange(self.accessors, dtype=np.int32), np.diff(self.accessor_start))
            owner.setflags(write=False)
            return owner

        return derived(self, "accessor of row", make)

    def on_cpu_ns(self) -> Ints:
        """int64[F]: part of `think_ns` in which the accessor ran."""
        if not self.asleep_ns.size and not self.preempted_ns.size:
            return self.think_ns
        away = self.preempted_ns if not self.asleep_ns.size else self.asleep_ns
        if self.asleep_ns.size and self.preempted_ns.size:
            away = self.asleep_ns + self.preempted_ns
        ran: Ints = np.maximum(self.think_ns - away, 0)
        return ran

    def split(self, fraction: float) -> tuple[Workload, Workload]:
        """The first `fraction` of the faults in order of recorded time, and the rest.

        The second part begins when the first one ends: the think time of each accessor's first fault in it is what
        remained at that time.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"a split needs a fraction between 0 and 1, not {fraction:g}")
        if not self.recorded_start_ns.size:
            raise UsageError("a workload without recorded times cannot be split by time")
        order = np.argsort(self.recorded_start_ns, kind="stable")
        cut = round(self.faults * fraction)
        if not 0 < cut < self.faults:
            raise IncompleteData(f"{self.faults} faults are too few to split at {fraction:g}")
        first = np.zeros(self.faults, bool)
        first[order[:cut]] = True
        border = int(self.recorded_start_ns[order[cut]])
        return self._part(first, 0, border), self._part(~first, border, None)

    def _part(self, keep: npt.NDArray[np.bool_], begin: int, end: int | None) -> Workload:
        owner = self.accessor_of_row()
        counts = np.bincount(owner[keep], minlength=self.accessors)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        think = self.think_ns[keep].copy()
        tail = self.tail_ns.copy()
        recorded_end = self.recorded_start_ns + np.maximum(self.recorded_stall_ns, 0)
        for a in range(self.accessors):
            rows = np.flatnonzero(keep[self.accessor_start[a] : self.accessor_start[a + 1]]) + self.accessor_start[a]
            if rows.size and begin:
                before = recorded_end[rows[0] - 1] if rows[0] > self.accessor_start[a] else 0
                think[starts[a]] = max(int(self.recorded_start_ns[rows[0]]) - max(begin, int(before)), 0)
            if end is not None:
                resumed = int(recorded_end[rows[-1]]) if rows.size else begin
                tail[a] = max(end - resumed, 0)
            elif not rows.size:
                # The rest of a stall at the border is not work: it belongs to the fault, in the first part.
                tail[a] = max(int(self.tail_ns[a]) + min(self._last_resume(a) - begin, 0), 0)
        starts_ns = self.recorded_start_ns[keep] - begin
        return Workload(
            accessor_start=starts,
            think_ns=think,
            page=self.page[keep],
            access=self.access[keep],
            cause=self.cause[keep],
            recorded_stall_ns=self.recorded_stall_ns[keep] if self.recorded_stall_ns.size else self.recorded_stall_ns,
            recorded_start_ns=starts_ns,
            accessor_kind=self.accessor_kind,
            accessor_name=self.accessor_name,
            tail_ns=tail,
            asleep_ns=np.minimum(self.asleep_ns[keep], think) if self.asleep_ns.size else _NONE,
            preempted_ns=np.minimum(self.preempted_ns[keep], think) if self.preempted_ns.size else _NONE,
            page_bytes=self.page_bytes,
            clock_start_ns=self.clock_start_ns + begin,
            resume_ns=max(self.resume_ns - begin, 0),
            origin=self.origin,
            notes=self.notes,
        )

    def _last_resume(self, a: int) -> int:
        last = int(self.accessor_start[a + 1]) - 1
        if last < self.accessor_start[a]:
            return 0
        return int(self.recorded_start_ns[last] + max(int(self.recorded_stall_ns[last]), 0))


_DERIVED: Final[WeakKeyDictionary[Workload, dict[Hashable, Any]]] = WeakKeyDictionary()


def derived(workload: Workload, key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make` for `workload`: computed once, and freed with the workload.

    Replications over seeds and mechanisms share it. A changed workload is a new object, without these results.
    """
    known = _DERIVED.setdefault(workload, {})
    if key not in known:
        known[key] = make()
    found: T = known[key]
    return found


_STREAM_KEYS: Final = frozenset({"think_ns", "page", "access", "cause", "kind", "name", "recorded_stall_ns", "tail_ns"})


def make_workload(
    streams: list[dict[str, Any]], *, page_bytes: int = 4096, origin: str = "synthetic", notes: tuple[str, ...] = ()
) -> Workload:
    """A workload from one dict per accessor: think_ns, and optionally page, access, cause, kind, name,
    recorded_stall_ns, tail_ns.

    `access` and `cause` are arrays of codes or one name for all; `page` defaults to pages that no other accessor
    touches.
    """
    if unknown := {key for stream in streams for key in stream} - _STREAM_KEYS:
        raise TypeError(f"make_workload(): unknown key '{min(unknown)}', not one of {', '.join(sorted(_STREAM_KEYS))}")
    counts = [len(stream["think_ns"]) for stream in streams]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])

    def column(key: str, default: Any, codes: Any, dtype: Any) -> npt.NDArray[Any]:
        parts = []
        for stream, count in zip(streams, counts, strict=True):
            value = stream.get(key, default)
            value = codes[value] if isinstance(value, str) else value
            parts.append(np.full(count, value) if np.ndim(value) == 0 else np.asarray(value))
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    pages = [np.asarray(s.get("page", np.arange(starts[i], starts[i + 1]))) for i, s in enumerate(streams)]
    known = any("recorded_stall_ns" in stream for stream in streams)
    class_codes = {name: code for code, name in enumerate(CAUSES)}
    return Workload(
        accessor_start=starts,
        think_ns=np.concatenate([np.asarray(s["think_ns"], np.int64) for s in streams])
        if streams
        else np.zeros(0, np.int64),
        page=compact(np.concatenate(pages)) if pages else np.zeros(0, np.int32),
        access=column("access", "w", ACCESS_CODES, np.uint8),
        cause=column("cause", "missing", class_codes, np.uint8),
        recorded_stall_ns=(column("recorded_stall_ns", -1, {}, np.int64) if known else np.zeros(0, np.int64)),
        recorded_start_ns=np.zeros(0, np.int64),
        accessor_kind=np.array([ACCESSORS.index(s.get("kind", "vcpu")) for s in streams], np.uint8),
        accessor_name=tuple(str(s.get("name", f"vcpu{i}")) for i, s in enumerate(streams)),
        tail_ns=np.array([int(s.get("tail_ns", 0)) for s in streams], np.int64),
        page_bytes=page_bytes,
        origin=origin,
        notes=notes if total else (*notes, "no faults"),
    )


def compact(page: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pages as int32 if the range allows it: half the memory in a large replay."""
    if page.size and (page.min() < 0 or page.max() >= 1 << 31):
        return np.ascontiguousarray(page, dtype=np.int64)
    return np.ascontiguousarray(page, dtype=np.int32)
