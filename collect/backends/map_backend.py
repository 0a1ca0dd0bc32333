"""What the backends share that keep their state in BPF maps: targets, losses, ring, by file descriptor."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faultreplay.collect.backends.backend import Key, Lost
from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.backends.program import GROUP_BITS, MAX_RANGES, MAX_TASKS
from faultreplay.collect.backends.ring import Block, RingReader
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.ranges import VmRanges
from faultreplay.faulttrace.meta import Probe

PAGE_BYTES = 4096
MAPS = ("tasks", "targets", "uffds", "vcpus", "counts", "shed", "ranges", "events")
_PAUSED = 1 << 31  # GROUP_PAUSED of collect/bpf/common.h
_IN_READ = 1  # enum of collect/bpf/common.h
_MISSES_AGE_S = 1.0
_COUNTS_WORDS = 66  # struct counts: lost[64], unfollowed, kept


class MapCalls:
    """The four operations on a map: each takes the map's descriptor first and gives 0 or an error."""

    def __init__(
        self,
        update: Callable[..., int],
        lookup: Callable[..., int],
        delete: Callable[..., int],
        next_key: Callable[..., int],
    ) -> None:
        self.update, self.lookup, self.delete, self.next_key = update, lookup, delete, next_key


class MapBackend:
    """Probes that are attached, with their maps; who compiled and loaded them is the subclass's matter.

    A subclass sets `probes`, `programs` (tracepoint -> program's descriptor), and then calls `use_maps`.
    """

    name = ""
    skew_ns = 1_000_000
    reusable = True
    why = ""

    key: Key
    ring_bytes: int
    probes: list[Probe]

    def use_maps(self, maps: dict[str, int], calls: MapCalls, programs: dict[str, int]) -> None:
        """`maps`: descriptors by name; `programs`: descriptors by tracepoint."""
        self._maps, self._calls, self._programs = maps, calls, programs
        self._misses = dict.fromkeys(programs, 0)
        self._misses_read = 0.0
        self._paused = False
        self.ring = RingReader.of_map(maps["events"], self.ring_bytes)
        self._ranges = VmRanges()
        self._told = 0  # ranges that the kernel side knows
        cpus = _possible_cpus()
        self._counts = np.zeros((cpus, _COUNTS_WORDS), np.uint64)
        self._reported = np.zeros_like(self._counts)

    def follow(self, tgid: int) -> None:
        """Make a process a target; its threads are found by the programs and in /proc."""
        self._update("targets", ctypes.c_uint32(tgid), ctypes.c_uint32(1))
        self.refresh(tgid)

    def refresh(self, tgid: int) -> None:
        """Enter threads and descriptors that the programs have not seen appear."""
        found = proc.descriptors(tgid)
        for fd in found.uffds:
            self._update("uffds", ctypes.c_uint64(tgid << 32 | fd), ctypes.c_uint32(1))
        for fd, vcpu in found.vcpus.items():
            self._update("vcpus", ctypes.c_uint64(tgid << 32 | fd), ctypes.c_uint32(vcpu))
        for tid in proc.thread_ids(tgid):
            task = _Task.fresh(tgid)
            waiting = proc.waiting_read(tgid, tid) if found.uffds else None
            if waiting is not None and waiting[0] in found.uffds:  # its entry into this read was before our time
                task.call, task.fd, task.arg[0], task.enter_ns = _IN_READ, *waiting, time.monotonic_ns()
            self._update("tasks", ctypes.c_uint32(tid), task, only_new=True)
        if found.vms:
            self._ranges.set(tgid, proc.mapped_ranges(tgid))
            self._tell_ranges()

    def _tell_ranges(self) -> None:
        rows = self._ranges.at_most(MAX_RANGES)
        blank = [(0, 0, 0)] * (self._told - len(rows))
        for i, (start, end, owner) in enumerate([*rows, *blank]):
            self._update("ranges", ctypes.c_uint32(i), _Range(start, end, owner))
        self._told = len(rows)

    def start(self) -> None:
        """Nothing to do: the probes are attached, and the targets are in a map."""

    def found(self) -> set[int]:
        """All targets, also those that the programs found."""
        return {int.from_bytes(key, "little") for key in self._keys("targets", 4)}

    def take_into(self, out: Block, at: int) -> int:
        """Events that are ready in the ring."""
        return self.ring.take_into(out, at)

    def maps_work(self) -> bool:
        """Whether this process may look at its maps: some kernels ask for CAP_BPF each time."""
        key = ctypes.c_uint32(0)
        return bool(self._calls.lookup(self._maps["counts"], ctypes.byref(key), self._counts.ctypes.data) == 0)

    def poll_losses(self) -> list[Lost]:
        """Records that found the ring full, or a program that could not run because another one did."""
        key = ctypes.c_uint32(0)
        if self._calls.lookup(self._maps["counts"], ctypes.byref(key), self._counts.ctypes.data) != 0:
            return []
        fresh = self._counts - self._reported
        self._reported[:] = self._counts
        lost = [
            Lost(PROBES[index].tracepoint, int(cpu), int(fresh[cpu, index]))
            for cpu, index in np.argwhere(fresh[:, : len(PROBES)])
        ]
        now = time.monotonic()
        if now - self._misses_read < _MISSES_AGE_S and not self._paused:  # a file of text for each program
            return lost
        self._misses_read = now
        for tracepoint, fd in self._programs.items():
            missed = _recursion_misses(fd)
            if missed > self._misses[tracepoint]:
                lost.append(Lost(tracepoint, -1, missed - self._misses[tracepoint]))
                self._misses[tracepoint] = missed
        return lost

    def helper_cpu_ns(self) -> int:
        """No other process helps."""
        return 0

    @property
    def unfollowed(self) -> int:
        """Threads that could not be followed because the table of threads was full."""
        return int(self._counts[:, 64].sum())

    def shed(self, groups: Sequence[str]) -> None:
        """Count the events of these groups as lost and keep none, until told otherwise."""
        mask = sum(GROUP_BITS[group] for group in groups)
        self._update("shed", ctypes.c_uint32(0), ctypes.c_uint32(mask))

    def pause(self) -> None:
        """Keep nothing and count nothing from now on; what was recorded can still be read."""
        self._update("shed", ctypes.c_uint32(0), ctypes.c_uint32(_PAUSED))
        self._paused = True

    def resume(self) -> None:
        """Undo `pause`, with no target and nothing left of the recording before."""
        for table in ("targets", "tasks", "uffds", "vcpus"):
            self._clear(table)
        self._ranges.clear()
        self._told = 2 * MAX_RANGES  # also those that the kernel side found
        self._tell_ranges()
        self.ring.drop()
        self.poll_losses()
        self._paused = False
        self.shed(())

    def _keys(self, table: str, size: int) -> list[bytes]:
        keys: list[bytes] = []
        here, following = (ctypes.c_uint8 * size)(), (ctypes.c_uint8 * size)()
        status = self._calls.next_key(self._maps[table], None, ctypes.byref(following))
        while status == 0 and len(keys) < MAX_TASKS:
            keys.append(bytes(following))
            here, following = following, (ctypes.c_uint8 * size)()
            status = self._calls.next_key(self._maps[table], ctypes.byref(here), ctypes.byref(following))
        return keys

    def _clear(self, table: str) -> None:
        size = {"targets": 4, "tasks": 4, "uffds": 8, "vcpus": 8}[table]
        key = (ctypes.c_uint8 * size)()
        while self._calls.next_key(self._maps[table], None, ctypes.byref(key)) == 0:
            self._calls.delete(self._maps[table], ctypes.byref(key))

    def _update(self, table: str, key: Any, value: Any, *, only_new: bool = False) -> None:
        flags = 1 if only_new else 0  # BPF_NOEXIST
        self._calls.update(self._maps[table], ctypes.byref(key), ctypes.byref(value), ctypes.c_ulonglong(flags))


class _Task(ctypes.Structure):
    """`struct task` of collect/bpf/common.h."""

    _fields_ = (
        ("enter_ns", ctypes.c_uint64),
        ("arg", ctypes.c_uint64 * 5),
        ("fd", ctypes.c_int32),
        ("tgid", ctypes.c_uint32),
        ("vcpu", ctypes.c_int32),
        ("vcpu_fd", ctypes.c_int32),
        ("call", ctypes.c_uint32),
        ("flags", ctypes.c_uint8 * 4),
    )

    @classmethod
    def fresh(cls, tgid: int) -> _Task:
        task = cls()
        task.tgid, task.vcpu, task.vcpu_fd = tgid, -1, -1
        return task


class _Range(ctypes.Structure):
    """`struct vm_range` of collect/bpf/common.h."""

    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def _recursion_misses(program_fd: int) -> int:
    """How often the program was skipped because another BPF program ran on that CPU (kernel 5.12 and later)."""
    try:
        text = Path(f"/proc/self/fdinfo/{program_fd}").read_text()
    except OSError:
        return 0
    match = re.search(r"^recursion_misses:\s*(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0


def _possible_cpus() -> int:
    """Length of a per-CPU map's value in CPUs."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1
