"""A BTF file of a few names of types, for bpftrace inside the emulated kernel.

bpftrace 0.17 walks through all of the kernel's types, one by one, again and again: `btf__find_by_name` is 70 % of the
two minutes that the KVM probes take to compile in Debian's 6.1 there. All it needs are the integers in tracepoints'
fields. A name that lacks here is an error of bpftrace, "unknown type name" or "incomplete type".
"""

from __future__ import annotations

import struct
from pathlib import Path

INTEGERS = {"int": (4, True), "unsigned char": (1, False), "unsigned short": (2, False), "unsigned int": (4, False),
            "unsigned long": (8, False), "unsigned long long": (8, False), "_Bool": (1, False),
            "long": (8, True)}  # fmt: skip
TYPEDEFS = {
    "pid_t": "int", "bool": "_Bool", "u8": "unsigned char", "u16": "unsigned short", "u32": "unsigned int",
    "u64": "unsigned long long", "size_t": "unsigned long", "umode_t": "unsigned short", "gva_t": "unsigned long",
    "__u8": "unsigned char", "__u32": "unsigned int", "__u64": "unsigned long long", "loff_t": "long",
    "gpa_t": "unsigned long long", "gfn_t": "unsigned long long", "hva_t": "unsigned long",
    "dev_t": "unsigned int",
}  # fmt: skip
ENUMS = ("migrate_mode",)

_MAGIC, _INT, _ENUM, _TYPEDEF, _SIGNED = 0xEB9F, 1, 6, 8, 1


def write_btf(path: Path) -> Path:
    """Write the types to `path` in the format of include/uapi/linux/btf.h."""
    strings, types, ids = b"\0", b"", {}
    for name, (size_bytes, signed) in INTEGERS.items():
        ids[name] = len(ids) + 1
        types += struct.pack("<4I", len(strings), _INT << 24, size_bytes, signed * _SIGNED << 24 | size_bytes * 8)
        strings += name.encode() + b"\0"
    for name, meaning in TYPEDEFS.items():
        types += struct.pack("<3I", len(strings), _TYPEDEF << 24, ids[meaning])
        strings += name.encode() + b"\0"
    for name in ENUMS:  # with one value, named as the type is
        types += struct.pack("<3I", len(strings), _ENUM << 24 | 1, 4) + struct.pack("<Ii", len(strings), 0)
        strings += name.encode() + b"\0"
    header = struct.pack("<HBBI4I", _MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings))
    path.write_bytes(header + types + strings)
    return path
