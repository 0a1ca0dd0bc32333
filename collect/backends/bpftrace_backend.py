"""The bpftrace backend: a generated program, its text output read and parsed in bulk."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import csv

from faultreplay.collect.backends.backend import Key, Lost, find_probes
from faultreplay.collect.backends.bpftrace_columns import Owners, clock_offset_ns
from faultreplay.collect.backends.bpftrace_event import COLUMNS, CREATE_VCPU
from faultreplay.collect.backends.bpftrace_program import generate
from faultreplay.collect.backends.probes import select
from faultreplay.collect.backends.program_time import ProgramTime
from faultreplay.collect.backends.ring import EVENT_DTYPE, Block, Events
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter
from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature, UsageError
from faultreplay.faulttrace.meta import Probe
from faultreplay.faulttrace.schema import EVENTS, Kind

_START_TIMEOUT_S = 300.0  # seconds on a host, minutes on an emulated or very busy one
_STOP_TIMEOUT_NS = 10_000_000_000
_QUIET_NS = 400_000_000
_PIPE_BYTES = 1 << 20
_READ_BYTES = 4 << 20
_MORE_BYTES = 1 << 16
_LOST = re.compile(rb"Lost (\d+) events")
_LOST_NAME = "bpftrace"
_COLUMN_TYPES = {name: EVENTS.field(name).type for name in COLUMNS}


class BpftraceBackend:
    """Probes run by bpftrace. Everything it must know of the targets goes into its program: `start` is the last step.

    Args:
        groups: probe groups that are on.
        ring_bytes: memory of its per-CPU buffers together.
        wanted: which processes become targets by themselves.

    Raises:
        MissingFeature: no bpftrace or tracefs on this host.
    """

    name = "bpftrace"
    skew_ns = 500_000_000  # bpftrace hands over one CPU's buffer after another
    reusable = False
    why = ""

    def __init__(self, groups: Collection[str], ring_bytes: int, wanted: Filter = NAMED_ONLY) -> None:
        program = shutil.which("bpftrace")
        if program is None:
            raise MissingFeature("bpftrace is not installed: apt install bpftrace (or --backend bcc)")
        self._program = program
        self.key: Key = (self.name, tuple(groups), ring_bytes, wanted)
        self._groups = tuple(groups)
        self._wanted = wanted
        self._pages = max(ring_bytes // (os.cpu_count() or 1) // 4096, 64)
        self.ring_bytes = self._pages * 4096 * (os.cpu_count() or 1)
        self._available, self.probes = find_probes(select(groups))
        self.probes += [Probe(a.probe.tracepoint, a.probe.groups[0], "attached", a.note) for a in self._available]
        self._tgids: list[int] = []
        self._vcpu_of_fd: dict[tuple[int, int], int] = {}
        self._vcpu_of_tid: dict[int, int] = {}
        self._owners = Owners()
        self._process: subprocess.Popen[bytes] | None = None
        self._time = ProgramTime()
        self._before = (0, 0)
        self._rest = b""
        self._ready: deque[Events] = deque()
        self._lost = 0
        self._read_ns = self._newest_ns = 0
        self._end_ns: int | None = None
        self._helper_cpu_ns = self._compile_cpu_ns = 0
        self._lock = threading.Lock()
        self._offset_ns: int | None = None

    def follow(self, tgid: int) -> None:
        """Make a process a target.

        Raises:
            UsageError: it has started.
        """
        if self._process is not None:
            raise UsageError("bpftrace cannot take another target while it runs: use --backend bcc")
        self._tgids.append(tgid)

    def refresh(self, tgid: int) -> None:
        """Learn the vCPU file descriptors and the memory of a target; its threads are found by the program itself."""
        found = proc.descriptors(tgid)
        for fd, vcpu in found.vcpus.items():
            self._vcpu_of_fd[tgid, fd] = vcpu
        if found.vms:
            self._owners.ranges.set(tgid, proc.mapped_ranges(tgid))

    def start(self) -> None:
        """Attach.

        Raises:
            MissingFeature: bpftrace refuses the program.
        """
        tasks = {tid: tgid for tgid in self._tgids for tid in proc.thread_ids(tgid)}
        uffds = [(tgid, fd) for tgid in self._tgids for fd in proc.descriptors(tgid).uffds]
        waiting = [(tid, proc.waiting_read(tgid, tid)) for tid, tgid in tasks.items()]
        reads = [(tid, *read) for tid, read in waiting if read is not None and (tasks[tid], read[0]) in uffds]
        text = generate(
            self._available,
            self._groups,
            wanted=self._wanted,
            tasks=tasks,
            uffds=uffds,
            reads=reads,
            cgroup_ids=self._cgroup_ids(),
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._source = tempfile.NamedTemporaryFile(suffix=".bt")  # noqa: SIM115
        self._source.write(text.encode())
        self._source.flush()
        environment = os.environ | {"BPFTRACE_PERF_RB_PAGES": str(self._pages), "BPFTRACE_MAP_KEYS_MAX": "65536"}
        self._process = subprocess.Popen(
            [self._program, "-B", "line", self._source.name],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the recorder, which ends it in order
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._offset_ns is None:
            late = time.monotonic() > deadline
            if self._process.poll() is not None or late:
                complaint = f"not within {_START_TIMEOUT_S:.0f} s" if late else self._complaint()
                self.free()
                raise MissingFeature(f"bpftrace cannot run the probes: {complaint}")
            self._pump()
            time.sleep(0.01)
        self._compile_cpu_ns = self.helper_cpu_ns()
        self._before = ProgramTime.of_process(self._process.pid)

    def program_time(self) -> tuple[int, int] | None:
        """Time in ns that the programs took since `start`, and how often they ran; None: the kernel does not count."""
        if self._process is None or not self._time.counts:
            return None
        now = ProgramTime.of_process(self._process.pid)
        return now[0] - self._before[0], now[1] - self._before[1]

    def found(self) -> set[int]:
        """Targets that were named: bpftrace does not tell which others it found, the events do."""
        return set(self._tgids)

    def take_into(self, out: Block, at: int) -> int:
        """Events that were printed since."""
        self._pump()
        used = 0
        while self._ready and at + used < out.rows:
            rows = self._ready.popleft()
            n = min(len(rows), out.rows - at - used)
            out.put(at + used, rows[:n])
            used += n
            if n < len(rows):
                self._ready.appendleft(rows[n:])
        return used

    def poll_losses(self) -> list[Lost]:
        """What bpftrace says it lost; it does not say of which probe."""
        lost, self._lost = self._lost, 0
        return [Lost(_LOST_NAME, -1, lost)] if lost else []

    def shed(self, groups: Sequence[str]) -> None:
        """Not possible: bpftrace takes no orders while it runs.

        Raises:
            UsageError: always, unless there is nothing to shed.
        """
        if groups:
            raise UsageError("bpftrace cannot drop groups while it runs: use --backend bcc")

    def pause(self) -> None:
        """Take what happened until now; what comes after is dropped.

        bpftrace 0.17 throws away what is in its buffers when it ends, so it is left running until it has printed
        something newer, or nothing for a while.
        """
        self._end_ns = time.monotonic_ns()
        deadline = self._end_ns + _STOP_TIMEOUT_NS
        while time.monotonic_ns() < min(deadline, self._read_ns + _QUIET_NS) and (
            self._newest_ns < self._end_ns + _QUIET_NS
        ):
            self._pump()
            time.sleep(0.01)

    def resume(self) -> None:
        """Not possible.

        Raises:
            FaultreplayError: always.
        """
        raise FaultreplayError("bpftrace was ended and cannot go on: start another recording")

    def free(self) -> None:
        """End bpftrace if it still runs; the kernel takes seconds to detach its probes; do not wait for that."""
        self._time.close()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                threading.Thread(target=self._process.wait, name="faultreplay-reap").start()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._source.close()
            self._errors.close()

    def helper_cpu_ns(self) -> int:
        """CPU time of bpftrace itself since it started."""
        if self._process is None or self._process.poll() is not None:
            return self._helper_cpu_ns
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self._helper_cpu_ns
        ticks = int(fields[11]) + int(fields[12])
        self._helper_cpu_ns = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK") - self._compile_cpu_ns
        return self._helper_cpu_ns

    def _cgroup_ids(self) -> list[int]:
        """Ids of the wanted cgroup and of those that are below it now."""
        if self._wanted.cgroup is None:
            return []
        return [Path(directory).stat().st_ino for directory, _, _ in os.walk(self._wanted.cgroup)]

    def _complaint(self) -> str:
        """The line in which bpftrace says what is wrong."""
        self._errors.seek(0)
        lines = [line.decode(errors="replace").strip() for line in self._errors.read().splitlines()]
        wrong = [line for line in lines if "ERROR" in line and "RLIMIT_MEMLOCK" not in line]
        return (wrong or lines or ["it says nothing"])[0][:200]

    def _pump(self) -> None:
        """Read what there is and parse whole lines. Called while draining and, at the end, by who pauses."""
        with self._lock:
            self._read_and_parse()

    def _read_and_parse(self) -> None:
        assert self._process is not None
        chunks = [self._rest]
        size = 0
        while size < _READ_BYTES and self._process.stdout is not None and not self._process.stdout.closed:
            try:
                data = os.read(self._pipe, _PIPE_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            chunks.append(data)
            size += len(data)
            if len(data) < _MORE_BYTES:  # what is written meanwhile, line by line, is for the next turn
                break
        if not size:
            return
        self._read_ns = time.monotonic_ns()
        text = b"".join(chunks)
        whole, newline, self._rest = text.rpartition(b"\n")
        if newline and (rows := self._parse(whole)) is not None and len(rows):
            self._ready.append(rows)

    def _parse(self, text: bytes) -> Events | None:
        if b"\n0," in text or b"\n\n" in text or not text[:1].isdigit() or text[:2] == b"0," or b"Lost" in text:
            text = self._without_words(text)
        if not text:
            return None
        table = csv.read_csv(
            io.BytesIO(text),
            csv.ReadOptions(column_names=list(COLUMNS), use_threads=False),
            convert_options=csv.ConvertOptions(column_types=_COLUMN_TYPES),
        )
        columns = {name: table[name].to_numpy() for name in COLUMNS}
        columns["tgid"] = columns["tgid"].copy()  # Arrow's own memory is read-only
        columns["ts_ns"] = columns["ts_ns"] - (self._offset_ns or 0)
        self._newest_ns = max(self._newest_ns, int(columns["ts_ns"].max()))
        return self._records(columns)

    def _without_words(self, text: bytes) -> bytes:
        """Take out what is not an event: the start, the end, lost events, empty lines."""
        lines = []
        for line in text.split(b"\n"):
            if match := _LOST.search(line):
                self._lost += int(match[1])
            elif line.startswith(b"0,"):
                if line.endswith(b",READY"):
                    self._offset_ns = clock_offset_ns(int(line.split(b",")[1]))
            elif line[:1].isdigit():
                lines.append(line)
        return b"\n".join(lines)

    def _records(self, columns: dict[str, npt.NDArray[Any]]) -> Events:
        """As events, with the vCPU numbers that bpftrace cannot know."""
        kind, tid, fd, tgid = (columns[name] for name in ("kind", "tid", "fd", "tgid"))
        for i in np.flatnonzero(kind == CREATE_VCPU).tolist():
            self._vcpu_of_fd[int(tgid[i]), int(fd[i])] = int(columns["code"][i])
        vcpu = np.full(len(kind), -1, np.int32)
        for known, number in self._vcpu_of_tid.items():
            vcpu[tid == known] = number
        runs = np.flatnonzero(kind == Kind.KVM_RUN_ENTER)
        threads, first = np.unique(tid[runs], return_index=True)
        for thread, at in zip(threads.tolist(), runs[first].tolist(), strict=True):
            if thread not in self._vcpu_of_tid:
                number = self._number_of(int(tgid[at]), int(fd[at]))
                self._vcpu_of_tid[thread] = number
                mine = tid == thread
                mine &= columns["ts_ns"] >= columns["ts_ns"][at]
                vcpu[mine] = number
        kept = kind != CREATE_VCPU
        self._owners.find(columns)
        kept &= (tgid != 0) | ((kind != Kind.KVM_UNMAP_HVA_RANGE) & (kind != Kind.MM_CAUSE))
        if self._end_ns is not None:
            kept &= columns["ts_ns"] <= np.int64(self._end_ns)
        rows = np.zeros(int(kept.sum()), EVENT_DTYPE)
        for name in COLUMNS:
            rows[name] = columns[name][kept]
        rows["vcpu"] = vcpu[kept]
        return rows

    def _number_of(self, tgid: int, fd: int) -> int:
        if (tgid, fd) not in self._vcpu_of_fd:
            self.refresh(tgid)
        return self._vcpu_of_fd.get((tgid, fd), -1)
