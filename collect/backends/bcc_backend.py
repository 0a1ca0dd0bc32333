"""The BCC backend: compile, attach probe by probe, ring and counters by file descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faultreplay.collect.backends.backend import Key, Lost, find_probes
from faultreplay.collect.backends.bcc_loader import check_headers, load_bcc
from faultreplay.collect.backends.btf import member_offset
from faultreplay.collect.backends.probes import PROBES, select
from faultreplay.collect.backends.program import (
    GROUP_BITS,
    MAX_RANGES,
    MAX_TASKS,
    RAW_WITH_BTF,
    Available,
    function_name,
    generate,
)
from faultreplay.collect.backends.ring import Records, RingReader
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.ranges import VmRanges
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.meta import Probe

_PAGE = 4096
_PAUSED = 1 << 31  # GROUP_PAUSED of collect/bpf/common.h
_CFLAGS = ["-w", "-Wno-macro-redefined"]
_IN_READ = 1  # enum of collect/bpf/common.h
_COUNTS_WORDS = 66  # struct counts: lost[64], unfollowed, kept


class BccBackend:
    """Probes compiled by BCC.

    Args:
        groups: probe groups that are on.
        ring_bytes: size of the ring, a power of two.
        wanted: which processes become targets by themselves.

    Raises:
        MissingFeature: no BCC, headers, tracefs or BPF on this host.
    """

    name = "bcc"
    skew_ns = 1_000_000
    reusable = True
    why = ""

    def __init__(self, groups: Collection[str], ring_bytes: int, wanted: Filter = NAMED_ONLY) -> None:
        bcc = load_bcc()
        check_headers(platform.release())
        self.key: Key = (self.name, tuple(groups), ring_bytes, wanted)
        self.ring_bytes = ring_bytes
        self._available, self.probes = find_probes(select(groups))
        self._lib: Any = bcc.libbcc.lib
        pid_offset = member_offset("task_struct", "pid")
        self._raw = RAW_WITH_BTF if pid_offset is not None else ()
        text = generate(self._available, groups, ring_bytes // _PAGE, wanted, pid_offset)
        with _quiet_stderr() as said:
            try:
                self._bpf: Any = bcc.BPF(text=text.encode(), cflags=_CFLAGS)
            except Exception as error:  # BCC raises bare Exception
                raise MissingFeature(f"the BPF programs cannot be compiled: {_first_error(said(), error)}") from None
        self._programs: dict[str, int] = {}
        self._misses: dict[str, int] = {}
        for item in self._available:
            self._attach(bcc, item)
        self._maps = {
            name: self._bpf.get_table(name.encode()).get_fd()
            for name in ("tasks", "targets", "uffds", "vcpus", "counts", "shed", "ranges", "events")
        }
        if wanted.cgroup:
            self._bpf.get_table(b"cgroup")[ctypes.c_int(0)] = str(wanted.cgroup)
        self.ring = RingReader.of_map(self._maps["events"], ring_bytes)
        self._ranges = VmRanges()
        self._told = 0  # ranges that the kernel side was told of
        cpus = _possible_cpus()
        self._counts = np.zeros((cpus, _COUNTS_WORDS), np.uint64)
        self._reported = np.zeros_like(self._counts)

    def _attach(self, bcc: Any, item: Available) -> None:
        row = item.probe
        with _quiet_stderr() as said:
            try:
                function = function_name(row).encode()
                if row.tracepoint in self._raw:
                    program = self._bpf.load_func(function, bcc.BPF.RAW_TRACEPOINT)
                    self._bpf.attach_raw_tracepoint(tp=row.tracepoint.partition(":")[2].encode(), fn_name=function)
                elif row.tracepoint.startswith("kprobe:"):
                    program = self._bpf.load_func(function, bcc.BPF.KPROBE)
                    self._bpf.attach_kprobe(event=row.tracepoint.partition(":")[2].encode(), fn_name=function)
                else:
                    program = self._bpf.load_func(function, bcc.BPF.TRACEPOINT)
                    self._bpf.attach_tracepoint(tp=row.tracepoint.encode(), fn_name=function)
            except Exception as error:  # BCC raises bare Exception
                reason = _first_error(said(), error)
                self.probes.append(Probe(row.tracepoint, row.groups[0], "missing", reason))
                return
        self._programs[row.tracepoint] = program.fd
        self._misses[row.tracepoint] = 0
        self.probes.append(Probe(row.tracepoint, row.groups[0], "attached", item.note))

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

    def take_into(self, out: Records) -> int:
        """Events that are ready in the ring."""
        return self.ring.take_into(out)

    def poll_losses(self) -> list[Lost]:
        """Records that found the ring full, or a program that could not run because another one did."""
        key = ctypes.c_uint32(0)
        if self._lib.bpf_lookup_elem(self._maps["counts"], ctypes.byref(key), self._counts.ctypes.data) != 0:
            return []
        fresh = self._counts - self._reported
        self._reported[:] = self._counts
        lost = [
            Lost(PROBES[index].tracepoint, int(cpu), int(fresh[cpu, index]))
            for cpu, index in np.argwhere(fresh[:, : len(PROBES)])
        ]
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

    def resume(self) -> None:
        """Undo `pause`, with no target and nothing left of the recording before."""
        for table in ("targets", "tasks", "uffds", "vcpus"):
            self._clear(table)
        self._ranges.clear()
        self._told = 2 * MAX_RANGES  # also those that the kernel side found
        self._tell_ranges()
        self.ring.take()
        self.poll_losses()
        self.shed(())

    def free(self) -> None:
        """Detach all probes (about 50 ms each) and give everything back to the kernel; the end of this object."""
        self._programs.clear()
        self._bpf.cleanup()

    def _keys(self, table: str, size: int) -> list[bytes]:
        keys: list[bytes] = []
        here, following = (ctypes.c_uint8 * size)(), (ctypes.c_uint8 * size)()
        status = self._lib.bpf_get_first_key(self._maps[table], ctypes.byref(following), size)
        while status == 0 and len(keys) < MAX_TASKS:
            keys.append(bytes(following))
            here, following = following, (ctypes.c_uint8 * size)()
            status = self._lib.bpf_get_next_key(self._maps[table], ctypes.byref(here), ctypes.byref(following))
        return keys

    def _clear(self, table: str) -> None:
        size = {"targets": 4, "tasks": 4, "uffds": 8, "vcpus": 8}[table]
        key = (ctypes.c_uint8 * size)()
        while self._lib.bpf_get_first_key(self._maps[table], ctypes.byref(key), size) == 0:
            self._lib.bpf_delete_elem(self._maps[table], ctypes.byref(key))

    def _update(self, table: str, key: Any, value: Any, *, only_new: bool = False) -> None:
        flags = 1 if only_new else 0  # BPF_NOEXIST
        self._lib.bpf_update_elem(self._maps[table], ctypes.byref(key), ctypes.byref(value), ctypes.c_ulonglong(flags))


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


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[Any]:
    """Keep what libbcc and LLVM print from the user; the body may ask for it."""
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)

        def said() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _first_error(text: str, error: Exception) -> str:
    """The most telling line of a compiler's or verifier's output."""
    for line in text.splitlines():
        if "error:" in line or "not permitted" in line or "nvalid" in line:
            return line.strip()[:200]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else str(error).replace("\n", " "))[:200]
