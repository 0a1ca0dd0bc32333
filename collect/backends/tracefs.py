"""The kernel's own description of its tracepoints: `events/CATEGORY/NAME/format` in tracefs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from faultreplay.collect.backends.btf import member_offset
from faultreplay.faulttrace.errors import MissingFeature, NoPermission

ROOTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_FIELD = re.compile(
    r"\s*field:(?P<type>.+?)(?P<name>\w+)(?P<array>\[\w*\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d);"
)


@dataclass(frozen=True)
class Field:
    """One field of a tracepoint's record."""

    name: str
    offset: int
    size_bytes: int
    signed: bool
    array: bool


@dataclass(frozen=True)
class Format:
    """A tracepoint's record as this kernel lays it out."""

    name: str
    fields: dict[str, Field]


def tracefs_root() -> Path:
    """Where tracefs is mounted.

    Raises:
        MissingFeature: nowhere.
        NoPermission: mounted, but this user may not look inside.
    """
    for root in ROOTS:
        try:
            if (root / "events" / "header_page").exists():
                return root
        except PermissionError:
            raise NoPermission(
                f"{root} may not be read: record as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"
            ) from None
    raise MissingFeature("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing")


def read_format(root: Path, tracepoint: str) -> Format | None:
    """The layout of ``category:name``; None where this kernel has no such tracepoint."""
    category, _, name = tracepoint.partition(":")
    try:
        text = (root / "events" / category / name / "format").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_format(tracepoint, text)


def kprobe_format(root: Path, function: str, structure: str, members: tuple[str, ...]) -> Format | str:
    """Where a kernel function's first argument, a `structure`, keeps `members`; or why it cannot be probed."""
    if not (root / "kprobe_events").exists():
        return "this kernel has no kprobes"
    known = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines() if function in line}
    if function not in known:
        return f"this kernel has no function {function}"
    fields = {}
    for name, size_bytes in (member.split(":") for member in members):
        offset = member_offset(structure, name)
        if offset is None:
            return f"this kernel's BTF does not say where {structure} keeps {name}"
        fields[name] = Field(name, offset, int(size_bytes), False, False)
    return Format(f"kprobe:{function}", fields)


def parse_format(tracepoint: str, text: str) -> Format:
    """Parse the text of a `format` file."""
    fields = {}
    for line in text.splitlines():
        if match := _FIELD.match(line):
            offset, size, signed = (int(match[i]) for i in (4, 5, 6))
            array = bool(match["array"]) or "[" in match["type"]
            fields[match["name"]] = Field(match["name"], offset, size, bool(signed), array)
    return Format(tracepoint, fields)
