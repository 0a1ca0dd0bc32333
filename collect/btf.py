"""The running kernel's own type information (BTF): just enough to find where a structure keeps a member."""

from __future__ import annotations

import struct
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_STRUCT, _UNION = 4, 5
# Bytes that follow a type's 12-byte header: fixed, and for each of its `vlen` entries (include/uapi/linux/btf.h).
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def member_offset(structure: str, member: str, path: Path = VMLINUX) -> int | None:
    """Byte offset of a direct member of a structure; None where the kernel has no BTF or no such member."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    magic, _, _, header = struct.unpack_from("<HBBI", data)
    if magic != 0xEB9F:
        return None
    type_off, type_len, str_off, str_len = struct.unpack_from("<4I", data, 8)
    strings = data[header + str_off : header + str_off + str_len]

    def name(offset: int) -> bytes:
        return strings[offset : strings.index(b"\0", offset)]

    wanted = strings.find(b"\0" + structure.encode() + b"\0") + 1
    if wanted == 0:
        return None
    at, end = header + type_off, header + type_off + type_len
    while at < end:
        name_off, info, _ = struct.unpack_from("<3I", data, at)
        kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        if kind == _STRUCT and name_off == wanted:
            for i in range(vlen):
                member_name, _, bits = struct.unpack_from("<3I", data, at + 12 * i)
                if name(member_name) == member.encode():
                    return int(bits & 0xFFFFFF if info >> 31 else bits) // 8
        at += _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * vlen
    return None
