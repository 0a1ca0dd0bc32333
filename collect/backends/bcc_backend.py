"""The BCC backend: compile, attach probe by probe, ring and counters by file descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

from faultreplay.collect.backends.backend import find_probes
from faultreplay.collect.backends.bcc_loader import check_headers, load_bcc
from faultreplay.collect.backends.btf import member_offset
from faultreplay.collect.backends.map_backend import MAPS, PAGE_BYTES, MapBackend, MapCalls
from faultreplay.collect.backends.probes import select
from faultreplay.collect.backends.program import RAW_WITH_BTF, Available, function_name, generate
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.meta import Probe

_CFLAGS = ["-w", "-Wno-macro-redefined"]


class BccBackend(MapBackend):
    """Probes compiled by BCC.

    Args:
        groups: probe groups that are on.
        ring_bytes: size of the ring, a power of two.
        wanted: which processes become targets by themselves.

    Raises:
        MissingFeature: no BCC, headers, tracefs or BPF on this host.
    """

    name = "bcc"

    def __init__(self, groups: Collection[str], ring_bytes: int, wanted: Filter = NAMED_ONLY) -> None:
        bcc = load_bcc()
        check_headers(platform.release())
        self.key = (self.name, tuple(groups), ring_bytes, wanted)
        self.ring_bytes = ring_bytes
        self._available, self.probes = find_probes(select(groups))
        lib: Any = bcc.libbcc.lib
        pid_offset = member_offset("task_struct", "pid")
        self._raw = RAW_WITH_BTF if pid_offset is not None else ()
        text = generate(self._available, groups, ring_bytes // PAGE_BYTES, wanted, pid_offset)
        with _quiet_stderr() as said:
            try:
                self._bpf: Any = bcc.BPF(text=text.encode(), cflags=_CFLAGS)
            except Exception as error:  # BCC raises bare Exception
                raise MissingFeature(f"the BPF programs cannot be compiled: {_first_error(said(), error)}") from None
        programs: dict[str, int] = {}
        for item in self._available:
            self._attach(bcc, item, programs)
        maps = {name: self._bpf.get_table(name.encode()).get_fd() for name in MAPS}
        if wanted.cgroup:
            self._bpf.get_table(b"cgroup")[ctypes.c_int(0)] = str(wanted.cgroup)
        self.use_maps(maps, _calls(lib), programs)

    def _attach(self, bcc: Any, item: Available, programs: dict[str, int]) -> None:
        row = item.probe
        with _quiet_stderr() as said:
            try:
                function = function_name(row, raw=row.tracepoint in self._raw).encode()
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
        programs[row.tracepoint] = program.fd
        self.probes.append(Probe(row.tracepoint, row.groups[0], "attached", item.note))

    def free(self) -> None:
        """Detach all probes (about 50 ms each) and give everything back to the kernel; the end of this object."""
        self._programs.clear()
        self._bpf.cleanup()


def _calls(lib: Any) -> MapCalls:
    def next_key(fd: int, key: Any, following: Any) -> int:
        # libbcc has a call of its own for the first key; it wants to know how long keys are, and looks at no more
        found: int = lib.bpf_get_next_key(fd, key, following)
        return found

    return MapCalls(lib.bpf_update_elem, lib.bpf_lookup_elem, lib.bpf_delete_elem, next_key)


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
