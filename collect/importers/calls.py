"""System calls: an entry and its exit make one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from faultreplay.collect.importers.raw import Raw
from faultreplay.collect.importers.rows import Rows
from faultreplay.faulttrace.schema import KVM_IOCTLS, UFFD_IOCTLS, Kind

_KVM_RUN: Final = 0xAE80
# call -> (kind, event column -> field of sys_enter_*); mmap's and mremap's result is an address
_CALLS: Final[dict[str, tuple[Kind, dict[str, str]]]] = {
    "mmap": (Kind.MMAP, {"size": "len", "fd": "fd"}),
    "munmap": (Kind.MUNMAP, {"addr": "addr", "size": "len"}),
    "madvise": (Kind.MADVISE, {"addr": "start", "size": "len_in", "code": "behavior"}),
    "fallocate": (Kind.FALLOCATE, {"fd": "fd", "addr": "offset", "size": "len", "code": "mode"}),
    "mremap": (Kind.MREMAP, {"addr": "addr", "size": "new_len"}),
    "mprotect": (Kind.MPROTECT, {"addr": "start", "size": "len", "code": "prot"}),
}
REASONS: Final = {
    "syscalls:sys_exit_read": "the source shows the call, not the message: who faults on which page is not in it",
    "syscalls:sys_exit_ioctl": "the source shows a pointer, not what it points to: ranges and memslots are 0",
}
_STATE_ONLY: Final = ("read", "close", "userfaultfd")
_OTHER_IOCTL: Final = "ioctls of other devices, or of KVM that concern no fault"


class Calls:
    """Joins entries and exits of one file's system calls; rows go into `rows`, vCPU threads into `vcpu`."""

    def __init__(self, rows: Rows, vcpu: dict[int, int]) -> None:
        self._rows, self._vcpu = rows, vcpu
        self._calls: dict[tuple[int, str], Raw] = {}

    def add(self, raw: Raw) -> str:
        """Take an entry or an exit; why nothing is made of it, where that is so (unless a row came of it)."""
        phase, _, call = raw.name.removeprefix("syscalls:sys_").partition("_")
        if call in _STATE_ONLY:
            return REASONS.get(raw.name, "file descriptors are followed for userfaultfd messages only")
        if phase == "enter":
            self._calls[raw.tid, call] = raw
            if call != "ioctl":
                return ""
            command = raw.fields["cmd"] & 0xFFFFFFFF
            if command == _KVM_RUN:
                self._vcpu.setdefault(raw.tid, -1)
                self._rows.add(raw, Kind.KVM_RUN_ENTER, fd=_signed32(raw.fields["fd"]))
            return "" if command in KVM_IOCTLS or command in UFFD_IOCTLS else _OTHER_IOCTL
        entered = self._calls.pop((raw.tid, call), None)
        if entered is None:
            return "the call began before the recording did"
        if call == "ioctl":
            return self._ioctl(raw, entered)
        result = raw.fields["ret"]
        kind, wanted = _CALLS[call]
        columns = {column: entered.fields.get(name, 0) for column, name in wanted.items()}
        if "fd" in columns:
            columns["fd"] = _signed32(columns["fd"])
        if call == "mmap":
            columns["addr"] = result if result > 0 else 0
            columns["code"] = entered.fields.get("prot", 0) | entered.fields.get("flags", 0) << 32
        if call == "mremap":
            columns["ip"] = result if result > 0 else 0
        self._rows.add(raw, kind, value=min(result, 0), dur_ns=raw.ts_ns - entered.ts_ns, **columns)
        return ""

    def _ioctl(self, raw: Raw, entered: Raw) -> str:
        command = entered.fields["cmd"] & 0xFFFFFFFF
        kind = UFFD_IOCTLS.get(command) or KVM_IOCTLS.get(command)
        if kind is not None:
            fd, result = _signed32(entered.fields["fd"]), raw.fields["ret"]
            self._rows.add(raw, kind, fd=fd, value=min(result, 0), dur_ns=raw.ts_ns - entered.ts_ns)
        return _OTHER_IOCTL

    def finish(self, leave: Callable[[str, str, int], None]) -> None:
        """Tell `leave` the calls (event, why, line) that had not ended when the recording did."""
        for (_, call), raw in self._calls.items():
            command = raw.fields.get("cmd", 0) & 0xFFFFFFFF if call == "ioctl" else 0
            if command != _KVM_RUN and (call != "ioctl" or command in KVM_IOCTLS):
                leave(raw.name, "the call had not ended when the recording did", raw.line)
        self._calls.clear()


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
