"""The bpftrace statement that prints one event, and what its columns may be."""

from __future__ import annotations

from faultreplay.faulttrace.schema import Kind

COLUMNS = ("kind", "ts_ns", "cpu", "tgid", "tid", "fd", "addr", "ip", "code", "size", "value", "dur_ns")
CREATE_VCPU = 250
"""Not an event: fd and number of a new vCPU, for the `vcpu` column."""

_COMMON = {"ts_ns": "nsecs", "cpu": "cpu", "tgid": "pid", "tid": "tid", "fd": "-1"}
_SIGNED = ("fd", "value")


def print_event(kind: Kind | int, **columns: str) -> str:
    """The statement that prints one event; constants go into the format."""
    values = _COMMON | columns
    formats, arguments = [str(int(kind))], []
    for column in COLUMNS[1:]:
        value = values.get(column, "0")
        if value.lstrip("-").isdigit():
            formats.append(value)
        else:
            signed = column in _SIGNED
            formats.append("%lld" if signed else "%llu")
            arguments.append(f"({'int64' if signed else 'uint64'})({value})")
    return f'printf("{",".join(formats)}\\n", {", ".join(arguments)});'


def word(pointer: str, index: int, kind: str = "uint64") -> str:
    """The 8-byte word number `index` of a structure in user memory at `pointer`."""
    return f"({kind})*uptr((uint64*)({pointer} + {8 * index}))"
