"""The running kernel's own type information (BTF): just enough to find where a structure keeps a member."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_STRUCT, _UNION = 4, 5
_QUALIFIERS = (8, 9, 10, 11)  # typedef, volatile, const, restrict
# Bytes that follow a type's 12-byte header: fixed, and for each of its `vlen` entries (include/uapi/linux/btf.h).
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def member_offset(structure: str, member: str, path: Path = VMLINUX) -> int | None:
    """Byte offset of a member of a structure, also inside its anonymous members.

    None where the kernel has no BTF, no such structure or no such member.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < 24 or struct.unpack_from("<H", data)[0] != 0xEB9F:
        return None
    return _Btf(data).member_offset(structure.encode(), member.encode())


@dataclass
class _Btf:
    data: bytes
    positions: list[int] = field(default_factory=lambda: [0])  # of each type, by its id

    def __post_init__(self) -> None:
        (header,) = struct.unpack_from("<I", self.data, 4)
        type_off, type_len, str_off, str_len = struct.unpack_from("<4I", self.data, 8)
        self.at, self.end = header + type_off, header + type_off + type_len
        self.strings = self.data[header + str_off : header + str_off + str_len]

    def member_offset(self, structure: bytes, member: bytes) -> int | None:
        wanted = self.strings.find(b"\0" + structure + b"\0") + 1
        if wanted == 0:
            return None
        found = 0
        while self.at < self.end:
            name_off, info, _ = struct.unpack_from("<3I", self.data, self.at)
            if name_off == wanted and info >> 24 & 0x1F == _STRUCT:
                found = self.at
                if (offset := self._search(found, member, deep=False)) is not None:
                    return offset
            self._step()
        return self._search(found, member, deep=True) if found else None

    def _step(self) -> None:
        """Past one type."""
        (info,) = struct.unpack_from("<I", self.data, self.at + 4)
        kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
        self.positions.append(self.at)
        self.at += 12 + _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * vlen

    def _search(self, position: int, member: bytes, *, deep: bool) -> int | None:
        (info,) = struct.unpack_from("<I", self.data, position + 4)
        for i in range(info & 0xFFFF):
            name_off, type_id, bits = struct.unpack_from("<3I", self.data, position + 12 + 12 * i)
            offset = int(bits & 0xFFFFFF if info >> 31 else bits) // 8
            name = self.strings[name_off : self.strings.index(b"\0", name_off)]
            if name == member:
                return offset
            inner = self._record(type_id) if deep and not name else None
            if inner is not None and (below := self._search(inner, member, deep=True)) is not None:
                return offset + below
        return None

    def _record(self, type_id: int) -> int | None:
        """Position of the structure or union that a type is, behind its qualifiers."""
        position = self.positions[type_id]
        _, info, target = struct.unpack_from("<3I", self.data, position)
        kind = info >> 24 & 0x1F
        if kind in _QUALIFIERS:
            return self._record(target)
        return position if kind in (_STRUCT, _UNION) else None
