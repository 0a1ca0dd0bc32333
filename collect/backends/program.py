"""The C text that BCC compiles: generated from the probe table and the kernel's own record layouts."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources

from faultreplay.collect.backends.probes import GROUPS, PROBES, Probe
from faultreplay.collect.backends.tracefs import Format
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter
from faultreplay.faulttrace.schema import Kind, ZapCause

SOURCES = ("tasks.c", "sched.c", "faults.c", "uffd.c", "kvm.c", "mm.c", "zaps.c")
GROUP_BITS = {name: 1 << i for i, name in enumerate([*GROUPS, "base"])}
MAX_TASKS = 16384
MAX_RANGES = 64
"""Ranges of VM memory that the kernel side gets; it learns as many again by itself."""
HUGE_PAGE_BYTES = mmap.PAGESIZE * mmap.PAGESIZE // 8
"""What a page-table page of eight-byte entries spans: 2 MiB with pages of 4 KiB."""
RAW_WITH_BTF = ("sched:sched_waking",)


@dataclass(frozen=True)
class Available:
    """A probe this kernel has, with its layout; `note` says which optional fields it lacks."""

    probe: Probe
    format: Format
    note: str = ""


def function_name(probe: Probe, raw: bool = False) -> str:
    """Name of the probe's program; `raw`: of its raw tracepoint program."""
    return f"on_{'raw_' if raw else ''}{probe.ident}"


def generate(
    available: Sequence[Available],
    groups: Collection[str],
    ring_pages: int,
    wanted: Filter = NAMED_ONLY,
    task_pid_offset: int | None = None,
) -> str:
    """The whole C text for BCC. With `task_pid_offset`, programs of `RAW_WITH_BTF` are there as raw ones too."""
    parts = ["#include <linux/types.h>\n#include <uapi/linux/ptrace.h>", _constants(groups, ring_pages, wanted)]
    if task_pid_offset is not None:
        parts.append(f"#define TASK_PID_OFFSET {task_pid_offset}")
    for item in available:
        parts.append(f"#define TP_{item.probe.ident} 1\n{_struct(item)}")
    parts.append(source("common.h"))
    parts += [source(name) for name in SOURCES]
    parts += [plain_body(item.probe, _fills(item)) for item in available if not item.probe.by_hand]
    return "\n\n".join(parts) + "\n"


def source(name: str) -> str:
    """A file of collect/bpf."""
    return resources.files("faultreplay.collect").joinpath("bpf", name).read_text()


def _constants(groups: Collection[str], ring_pages: int, wanted: Filter) -> str:
    lines = [f"#define KIND_{kind.name} {kind.value}" for kind in Kind]
    lines += [f"#define ZAP_{cause.name} {cause.value}" for cause in ZapCause]
    lines += [f"#define GROUP_{name.upper()} {bit}" for name, bit in GROUP_BITS.items()]
    lines += [f"#define WANTED_{name.upper()} {int(name in groups)}" for name in GROUPS]
    lines += [f"#define PROBE_{probe.ident} {i}" for i, probe in enumerate(PROBES)]
    lines += [f"#define FOLLOW_ALL_VMS {int(wanted.all_vms)}", f"#define FOLLOW_CGROUP {int(bool(wanted.cgroup))}"]
    lines += ["#define FILTER_CGROUP 1"] if wanted.cgroup else []
    lines += [f"#define RING_PAGES {ring_pages}", f"#define MAX_TASKS {MAX_TASKS}"]
    lines += [f"#define RANGES {MAX_RANGES}"]
    lines += [f"#define HOST_PAGE_BYTES {mmap.PAGESIZE}", f"#define HUGE_PAGE_BYTES {HUGE_PAGE_BYTES}"]
    return "\n".join(lines)


def _struct(item: Available) -> str:
    """The tracepoint's record up to the last field that is read, laid out as tracefs says."""
    lines, offset, pads = [], 0, 0
    wanted = [f for f in item.format.fields.values() if f.name in item.probe.reads_of(item.format.fields)]
    for field in sorted(wanted, key=lambda f: f.offset):
        if field.offset > offset:
            lines.append(f"\tchar pad{pads}[{field.offset - offset}];")
            pads += 1
        sign = "s" if field.signed else "u"
        lines.append(f"\t{sign}{field.size_bytes * 8} {field.name};")
        offset = field.offset + field.size_bytes
    body = "\n".join(lines) or "\tu64 common;"
    return f"struct tp_{item.probe.ident} {{\n{body}\n}};"


def _fills(item: Available) -> list[str]:
    """Assignments of the columns whose fields this kernel's record has."""
    return [f"e->{column} = {text};" for column, text in item.probe.filled(item.format.fields).items()]


def plain_body(probe: Probe, fills: Sequence[str]) -> str:
    """The program of a probe whose columns are plain expressions."""
    (kind,) = probe.kinds
    unwanted = {
        "": "!task",
        "only": "!task || !task->faulting",
        "or in KVM_RUN": "!task || !(task->faulting || task->call == IN_KVM_RUN)",
    }[probe.in_fault]
    lines = "".join(f"\t{line}\n" for line in fills)
    return (
        f"int {function_name(probe)}(struct tp_{probe.ident} *args)\n{{\n"
        "\tstruct task *task = current_task();\n\tstruct event *e;\n\n"
        f"\tif ({unwanted})\n\t\treturn 0;\n"
        f"\te = reserve(PROBE_{probe.ident}, GROUP_{probe.groups[0].upper()}, task, bpf_get_current_pid_tgid(), "
        f"KIND_{kind.name});\n"
        "\tif (!e)\n\t\treturn 0;\n"
        f"{lines}"
        "\tevents.ringbuf_submit(e, RINGBUF_NO_WAKEUP);\n\treturn 0;\n}"
    )
