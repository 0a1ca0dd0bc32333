"""The precompiled backend: one object for all hosts, loaded by the system's libbpf. No compiler, no headers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from faultreplay.collect.backends.backend import find_probes
from faultreplay.collect.backends.btf import member_offset
from faultreplay.collect.backends.libbpf import Libbpf, OpenOptions
from faultreplay.collect.backends.map_backend import MAPS, MapBackend, MapCalls
from faultreplay.collect.backends.precompiled_program import (
    check_object,
    host_btf,
    host_values,
    object_path,
    raw_probes,
    unfit,
)
from faultreplay.collect.backends.probes import PROBES, select
from faultreplay.collect.backends.probes import Probe as ProbeRow
from faultreplay.collect.backends.program import Available, function_name
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter
from faultreplay.faulttrace.meta import Probe

_THREADS: Final = 16
"""Attaching mostly waits for the kernel, so this many are attached in parallel."""
_HANDED_OVER_S: Final = 0.5
"""So long the child keeps the descriptors: the parent must have closed its own."""


class PrecompiledBackend(MapBackend):
    """Probes of the precompiled object.

    Args:
        groups: probe groups that are on.
        ring_bytes: size of the ring, a power of two.
        wanted: which processes become targets by themselves.

    Raises:
        MissingFeature: no object, no libbpf, no tracefs, or the kernel refuses the programs.
    """

    name = "precompiled"

    def __init__(self, groups: Collection[str], ring_bytes: int, wanted: Filter = NAMED_ONLY) -> None:
        self._lib = Libbpf()
        path = object_path()
        check_object(path)
        self.key = (self.name, tuple(groups), ring_bytes, wanted)
        self.ring_bytes = ring_bytes
        found, self.probes = find_probes(select(groups))
        available = [item for item in found if not self._refuses(item)]
        pid_offset = member_offset("task_struct", "pid")
        self._raw = raw_probes(pid_offset)
        self._links: list[int] = []
        with tempfile.NamedTemporaryFile(suffix=".btf") as layouts:
            layouts.write(host_btf(available))
            layouts.flush()
            options = OpenOptions(sz=ctypes.sizeof(OpenOptions), btf_custom_path=layouts.name.encode())
            self._object = self._lib.checked("bpf_object__open_file", str(path).encode(), ctypes.byref(options))
            try:
                self._load(available, host_values(groups, wanted, pid_offset))
                if wanted.cgroup:
                    self._watch(wanted.cgroup)
                programs = self._attach(available)
                self.use_maps({name: self._map_fd(name) for name in MAPS}, self._map_calls(), programs)
            except BaseException:
                self._close()
                raise

    def _refuses(self, item: Available) -> bool:
        reason = unfit(item)
        if reason:
            self.probes.append(Probe(item.probe.tracepoint, item.probe.groups[0], "missing", reason))
        return bool(reason)

    def _load(self, available: Iterable[Available], values: ctypes.Structure) -> None:
        wanted = {self._function(item.probe) for item in available}
        for probe in PROBES:
            for function in {function_name(probe), function_name(probe, raw=True)}:
                program = self._lib.bpf_object__find_program_by_name(self._object, function.encode())
                if program:
                    self._lib.bpf_program__set_autoload(program, function in wanted)
        constants = self._lib.checked("bpf_object__find_map_by_name", self._object, b".rodata")
        self._lib.checked("bpf_map__set_initial_value", constants, ctypes.addressof(values), ctypes.sizeof(values))
        ring = self._lib.checked("bpf_object__find_map_by_name", self._object, b"events")
        self._lib.checked("bpf_map__set_max_entries", ring, self.ring_bytes)
        self._lib.checked("bpf_object__load", self._object)

    def _function(self, probe: ProbeRow) -> str:
        return function_name(probe, raw=probe.tracepoint in self._raw)

    def _attach(self, available: list[Available]) -> dict[str, int]:
        functions = [self._function(item.probe).encode() for item in available]
        found = [self._lib.bpf_object__find_program_by_name(self._object, name) for name in functions]
        with ThreadPoolExecutor(_THREADS) as pool:
            links = list(pool.map(self._lib.bpf_program__attach, found))
        programs = {}
        for item, program, link in zip(available, found, links, strict=True):
            row = item.probe
            if not link:
                reason = self._lib.reason("the kernel refused to attach the program")
                self.probes.append(Probe(row.tracepoint, row.groups[0], "missing", reason))
                continue
            self._links.append(link)
            programs[row.tracepoint] = int(self._lib.bpf_program__fd(program))
            self.probes.append(Probe(row.tracepoint, row.groups[0], "attached", item.note))
        return programs

    def _map_fd(self, name: str) -> int:
        found = self._lib.checked("bpf_object__find_map_by_name", self._object, name.encode())
        return int(self._lib.bpf_map__fd(found))

    def _map_calls(self) -> MapCalls:
        lib = self._lib
        return MapCalls(
            lib.bpf_map_update_elem, lib.bpf_map_lookup_elem, lib.bpf_map_delete_elem, lib.bpf_map_get_next_key
        )

    def _watch(self, cgroup: Path) -> None:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lib.checked(
                "bpf_map_update_elem",
                self._map_fd("cgroup"),
                ctypes.byref(ctypes.c_uint32(0)),
                ctypes.byref(ctypes.c_uint32(fd)),
                0,
            )
        finally:
            os.close(fd)

    def free(self) -> None:
        """Detach all probes and give everything back to the kernel; the end of this object."""
        self.pause()
        _hand_descriptors_over()
        self._close()

    def _close(self) -> None:
        links, self._links = self._links, []
        for link in links:
            self._lib.bpf_link__destroy(link)
        self._lib.bpf_object__close(self._object)


def _hand_descriptors_over() -> None:
    """Leave the waiting to another process.

    Detaching takes the kernel 2 to 3 s: it waits for all CPUs, probe after probe, in the process that closes the last
    descriptor. A helper process keeps the descriptors open until ours are closed, so that the command returns at once.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.chdir("/")  # nothing else is held: no directory, no file, above all no end of a pipe that others wait on
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("anon_inode:"):
                os.close(int(entry.name))
    if os.fork() == 0:
        os.setsid()
        time.sleep(_HANDED_OVER_S)
    os._exit(0)
