"""The same programs, compiled once: C for clang, and what is filled in on each host when the object is loaded.

BCC compiles on the host, with the tracepoints' records laid out as its tracefs says. Here the records are structures
whose members libbpf relocates (CO-RE); `host_btf` describes this host's layouts to it, made from the same tracefs. So
neither a compiler nor headers nor the kernel's own BTF is needed on the host.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from faultreplay.collect.backends.probes import PROBES, Probe, fields_of
from faultreplay.collect.backends.program import (
    GROUP_BITS,
    HUGE_PAGE_BYTES,
    MAX_RANGES,
    MAX_TASKS,
    RAW_WITH_BTF,
    SOURCES,
    Available,
    function_name,
    plain_body,
    source,
)
from faultreplay.collect.targets.targets import Filter
from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.schema import Kind, ZapCause

_RESERVE: Final = "bpf_ringbuf_reserve(&events, sizeof(struct event), 0)"
_DIGEST_MARK: Final = "faultreplay sources "
OBJECT_NAME: Final = "faultreplay.bpf.o"

# Fields of which the sign counts, with their size in bytes; all others are read as unsigned, whatever their size.
SIGNED: Final[Mapping[str, Mapping[str, int]]] = {
    "task:task_newtask": {"pid": 4},
    "sched:sched_process_exit": {"pid": 4},
    "sched:sched_process_exec": {"pid": 4, "old_pid": 4},
    "sched:sched_switch": {"prev_pid": 4, "prev_state": 8, "next_pid": 4},
    "sched:sched_waking": {"pid": 4},
    "kvm:kvm_userspace_exit": {"errno": 4},
    "kvmmmu:fast_page_fault": {"ret": 4},
    "migrate:mm_migrate_pages_start": {"reason": 4},
    "migrate:mm_migrate_pages": {"reason": 4},
    "migrate:set_migration_pte": {"order": 4},
    "kmem:rss_stat": {"member": 4, "size": 8},
    "ksm:ksm_merge_one_page": {"err": 4},
    "ksm:ksm_merge_with_ksm_page": {"err": 4},
    "huge_memory:mm_collapse_huge_page": {"status": 4},
    "huge_memory:mm_khugepaged_collapse_file": {"result": 4},
    "lock:contention_end": {"ret": 4},
}
_SYSCALL_EXIT: Final = {"ret": 8}


def object_path() -> Path:
    """Where the precompiled object lies.

    Raises:
        MissingFeature: this installation has none.
    """
    path = Path(str(resources.files("faultreplay.collect").joinpath("bpf", OBJECT_NAME)))
    if not path.is_file():
        raise MissingFeature(f"this installation has no precompiled programs: make bpf ({OBJECT_NAME})")
    return path


def has_object() -> bool:
    """Whether this installation has the precompiled object."""
    try:
        return object_path().is_file()
    except MissingFeature:
        return False


class HostValues(ctypes.Structure):
    """`struct host_values` of collect/bpf/core.h."""

    _fields_ = (
        ("task_pid_offset", ctypes.c_uint64),
        ("host_page_bytes", ctypes.c_uint64),
        ("huge_page_bytes", ctypes.c_uint64),
        ("wanted_groups", ctypes.c_uint32),
        ("follow_all_vms", ctypes.c_uint32),
        ("follow_cgroup", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def host_values(groups: Collection[str], wanted: Filter, task_pid_offset: int | None) -> HostValues:
    """Settings of the object for this host and this recording."""
    return HostValues(
        task_pid_offset=task_pid_offset or 0,
        host_page_bytes=mmap.PAGESIZE,
        huge_page_bytes=HUGE_PAGE_BYTES,
        wanted_groups=sum(GROUP_BITS[name] for name in groups),
        follow_all_vms=int(wanted.all_vms),
        follow_cgroup=int(bool(wanted.cgroup)),
    )


def signed_bytes(probe: Probe, field: str) -> int:
    """Size of a field whose sign counts; 0: it is read as unsigned."""
    known = _SYSCALL_EXIT if probe.tracepoint.startswith("syscalls:sys_exit_") else SIGNED.get(probe.tracepoint, {})
    return known.get(field, 0)


def generate_precompiled() -> str:
    """The C text of the object: all probes of the table, for any host."""
    lines = [f"#define KIND_{kind.name} {kind.value}" for kind in Kind]
    lines += [f"#define ZAP_{cause.name} {cause.value}" for cause in ZapCause]
    lines += [f"#define GROUP_{name.upper()} {bit}" for name, bit in GROUP_BITS.items()]
    lines += [f"#define WANTED_{name.upper()} (host_values.wanted_groups & {bit})" for name, bit in GROUP_BITS.items()]
    lines += [f"#define PROBE_{probe.ident} {i}" for i, probe in enumerate(PROBES)]
    lines += [f"#define RING_PAGES 1\n#define MAX_TASKS {MAX_TASKS}\n#define RANGES {MAX_RANGES}"]
    lines += [f"#define TP_{probe.ident} 1\n{_record(probe)}" for probe in PROBES]
    parts = [source("core.h"), "\n".join(lines), source("common.h")]
    parts += [source(name) for name in SOURCES]
    parts += [plain_body(probe, _fills(probe)) for probe in PROBES if not probe.by_hand]
    text = _sections(_map_calls("\n\n".join(parts) + "\n"))
    return f'{text}\nchar built_from_sources[] SEC("sources") = "{_DIGEST_MARK}{_digest(text)}";\n'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_object(path: Path) -> None:
    """The object must be of this version's sources: numbers of probes and kinds are folded into it.

    Raises:
        MissingFeature: it was built from others.
    """
    text = generate_precompiled()
    built_from = text[text.rindex(_DIGEST_MARK) :].split('"')[0]
    if built_from.encode() not in path.read_bytes():
        raise MissingFeature("the precompiled programs are of another version of faultreplay: make bpf")


def _record(probe: Probe) -> str:
    fields = []
    for name in probe.reads_anywhere:
        size = signed_bytes(probe, name)
        fields.append(f"\t{f's{8 * size}' if size else 'u64'} {name};")
    body = "\n".join(fields) or "\tu64 common;"
    return f"struct tp_{probe.ident} {{\n{body}\n}} __attribute__((preserve_access_index));"


def _fills(probe: Probe) -> list[str]:
    """A column whose fields the host's record lacks stays 0, as with BCC."""
    fills = []
    for column, expression in (*probe.columns.items(), *probe.arm64.items()):
        exist = " && ".join(f"bpf_core_field_exists(args->{name})" for name in dict.fromkeys(fields_of(expression)))
        fills.append(f"if ({exist or 1})\n\t\te->{column} = {expression};")
    return fills


def _map_calls(text: str) -> str:
    """BCC's methods of maps as libbpf's helpers."""
    text = text.replace("events.ringbuf_reserve(sizeof(struct event))", _RESERVE)
    text = text.replace("events.ringbuf_submit(", "bpf_ringbuf_submit(")
    text = re.sub(r"\b(\w+)\.lookup\(", r"bpf_map_lookup_elem(&\1, ", text)
    text = re.sub(r"\b(\w+)\.delete\(", r"bpf_map_delete_elem(&\1, ", text)
    text = re.sub(r"\b(\w+)\.update\(([^;]*)\);", r"bpf_map_update_elem(&\1, \2, BPF_ANY);", text)
    return re.sub(r"\b(\w+)\.check_current_task\(", r"bpf_current_task_under_cgroup(&\1, ", text)


def _sections(text: str) -> str:
    """Each program in the section that says what it is attached to."""
    places = {}
    for probe in PROBES:
        category, _, name = probe.tracepoint.partition(":")
        kind = f"kprobe/{name}" if category == "kprobe" else f"tp/{category}/{name}"
        places[function_name(probe)] = kind
        places[function_name(probe, raw=True)] = f"raw_tp/{name}"
    return re.sub(
        r"^int (on_\w+)\(", lambda match: f'SEC("{places[match[1]]}")\nint {match[1]}(', text, flags=re.MULTILINE
    )


def unfit(item: Available) -> str:
    """Why the precompiled program cannot read this host's record; empty: it can.

    libbpf widens and narrows unsigned fields; of signed ones the size must be what the object was built for.
    """
    for name in item.probe.reads:
        field, size = item.format.fields.get(name), signed_bytes(item.probe, name)
        if field and size and field.size_bytes != size:
            return f"this kernel's field {name} has {field.size_bytes} bytes, the precompiled program reads {size}"
    return ""


def raw_probes(task_pid_offset: int | None) -> tuple[str, ...]:
    """Tracepoints whose raw program is used: it needs to know where the kernel keeps a task's pid."""
    return RAW_WITH_BTF if task_pid_offset is not None else ()


_BTF_MAGIC: Final = 0xEB9F
_BTF_INT, _BTF_STRUCT = 1, 4
_BTF_SIGNED: Final = 1


def host_btf(available: Sequence[Available]) -> bytes:
    """BTF of this host's records: a structure ``tp_IDENT`` a probe, its members where tracefs says.

    Layout: include/uapi/linux/btf.h.
    """
    names = bytearray(b"\0")
    types = bytearray()
    ints: dict[tuple[int, bool], int] = {}
    count = 0

    def name(text: str) -> int:
        names.extend(text.encode() + b"\0")
        return len(names) - len(text) - 1

    def integer(size: int, signed: bool) -> int:
        nonlocal count
        if (size, signed) not in ints:
            types.extend(struct.pack("<IIII", name(f"{'s' if signed else 'u'}{8 * size}"), _BTF_INT << 24, size,
                                     (_BTF_SIGNED if signed else 0) << 24 | 8 * size))  # fmt: skip
            count += 1
            ints[size, signed] = count
        return ints[size, signed]

    for item in available:
        members = []
        for field_name in item.probe.reads:
            field = item.format.fields.get(field_name)
            if field:
                is_signed = bool(signed_bytes(item.probe, field_name))
                members.append((name(field_name), integer(field.size_bytes, is_signed), 8 * field.offset))
        fields = [item.format.fields[n] for n in item.probe.reads if n in item.format.fields]
        size = max((f.offset + f.size_bytes for f in fields), default=8)
        types.extend(struct.pack("<III", name(f"tp_{item.probe.ident}"), _BTF_STRUCT << 24 | len(members), size))
        types.extend(b"".join(struct.pack("<III", *member) for member in members))
        count += 1
    header = struct.pack("<HBBIIIII", _BTF_MAGIC, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + bytes(types) + bytes(names)
