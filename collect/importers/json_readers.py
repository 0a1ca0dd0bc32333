"""Readers of JSON: perf data convert --to-json, bpftrace -f json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from faultreplay.collect.importers.files import Progress, read_lines
from faultreplay.collect.importers.raw import BadLine, Item, LostEvents, Raw, Skipped, Source, number, short
from faultreplay.collect.importers.text import KNOWN
from faultreplay.faulttrace.errors import IncompleteData

# perf's JSON has no event names: where the fields that are read fit other events too, all fields and the function.
_ALL_FIELDS: Final = {
    "sched:sched_waking": {"comm", "pid", "prio", "target_cpu"},
    "sched:sched_process_exit": {"comm", "pid", "prio", "group_dead"},
    "task:task_newtask": {"pid", "comm", "clone_flags", "oom_score_adj"},
    "mmap_lock:mmap_lock_released": {"mm", "memcg_id", "write"},
    "kvm:kvm_entry": {"vcpu_id", "rip"},
}
_FIRED_BY: Final = {"sched:sched_waking": "try_to_wake_up", "mmap_lock:mmap_lock_released": "released"}
_CALLS: Final = {
    "0": "read", "3": "close", "9": "mmap", "11": "munmap", "16": "ioctl", "25": "mremap", "28": "madvise",
    "285": "fallocate", "323": "userfaultfd",
}  # fmt: skip

_BPFTRACE = re.compile(r"^(\d+) (\d+) (\d+) (\d+) (\w+:\w+)((?: \w+=-?(?:0x[0-9a-f]+|\d+))*)$")


def read_bpftrace(path: Path, source: Source, progress: Progress | None = None) -> Iterator[Item]:
    """``bpftrace -f json`` of a program that prints ``nsecs cpu pid tid category:name field=value ...`` a line."""
    source.clock = "CLOCK_MONOTONIC"  # what nsecs is
    tables, printed = 0, False
    for line_number, line in read_lines(path, source, progress):
        if not line.strip():
            continue
        try:
            item: Any = json.loads(line)
            kind, data = item["type"], item["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            # With -c the command's own output comes in between; only what begins as a record is damaged.
            if line.startswith('{"type"'):
                yield BadLine(line_number, line, "not whole JSON")
            continue
        if kind == "lost_events":
            yield LostEvents(int(data["events"]))
        elif kind == "printf":
            yield from (_bpftrace_event(line_number, text) for text in str(data).splitlines())
        else:
            if kind in ("map", "hist", "lhist", "stats"):
                tables += 1
            continue
        printed = True
    if tables and not printed:
        raise IncompleteData(
            f"{path}: bpftrace's maps and histograms only, which have no events: print the events, a line each: "
            "'nsecs cpu pid tid category:name field=value ...'"
        )


def _bpftrace_event(line_number: int, text: str) -> Item:
    found = _BPFTRACE.match(text.strip())
    if not found:
        return BadLine(line_number, text, "printed text is not 'nsecs cpu pid tid category:name field=value ...'")
    if found[5] not in KNOWN:
        return Skipped(found[5], line_number, why="nothing here is made of it")
    pairs = (pair.split("=") for pair in found[6].split())
    fields = {key: number(value) for key, value in pairs}
    return Raw(int(found[1]), int(found[2]), int(found[3]), int(found[4]), "", found[5], fields, line_number)


def read_perf_json(path: Path, source: Source, progress: Progress | None = None) -> Iterator[Item]:
    """``perf data convert --to-json`` of perf 6.2 or newer: its samples carry fields but no event name.

    The event is found from its set of fields, the `-e` options of the recording and, where two events look alike, the
    function that fired it.
    """
    text = "\n".join(line for _, line in read_lines(path, source, progress))
    try:
        # A field may bear the name of a sample's own key (pid, comm, ip): keep pairs, the sample's come first.
        document = json.loads(text, object_pairs_hook=lambda pairs: pairs)
        whole = dict(document)
        headers, samples = dict(whole["headers"]), whole["samples"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IncompleteData(f"{path}: not the JSON of perf data convert --to-json (truncated?)") from None
    source.kernel, source.machine = str(headers.get("os-release", "")), str(headers.get("arch", ""))
    source.cpu_model, source.cpus = str(headers.get("cpu-desc", "")), int(headers.get("nrcpus-online", 0))
    source.command = [str(word) for word in headers.get("cmdline", [])]
    if headers.get("clockid") == 1:
        source.clock = "CLOCK_MONOTONIC"
    candidates = _recorded(source.command)
    if samples and not any(_fields_of(sample) for sample in samples):
        raise IncompleteData(
            f"{path}: its samples have no tracepoint fields (perf {headers.get('perf-version', '')}): "
            "convert with perf 6.2 or newer, or import the text of perf script"
        )
    for index, sample in enumerate(samples, start=1):
        yield _json_event(index, sample, candidates)


def _recorded(command: list[str]) -> list[str]:
    """Tracepoints of the probe table that the recording's command line asked for; all when it names none."""
    words = [word for option in command for word in option.removeprefix("-e").split(",")]
    asked = {word for word in words if ":" in word}
    known = [name for name in KNOWN if name in asked or f"{name.partition(':')[0]}:*" in asked]
    return known or list(KNOWN)


def _fields_of(sample: list[tuple[str, Any]]) -> dict[str, str]:
    """The tracepoint's fields: what is not the sample's own, or bears such a name a second time."""
    own = {"timestamp", "pid", "tid", "cpu", "comm", "callchain"}
    fields = {}
    for key, value in sample:
        if key in own:
            own.remove(key)
        else:
            fields[key] = value
    return fields


def _json_event(index: int, sample: list[tuple[str, Any]], candidates: list[str]) -> Item:
    first: dict[str, Any] = {}
    for key, value in sample:
        first.setdefault(key, value)
    printed = _fields_of(sample)
    names = [name for name in candidates if _fits(name, printed)]
    names = _told_apart(names, printed, first)
    if len(names) != 1:
        what = f"({short(printed)})"
        if not names:
            return Skipped(what, index, why="fields of no event that is known")
        return BadLine(index, what, f"could be {' or '.join(names)}")
    fields = {}
    for key, value in printed.items():
        try:
            fields[key] = number(str(value)) if key != "clone_flags" else int(str(value), 16)
        except ValueError:
            continue  # names and texts
    return Raw(
        int(first["timestamp"]), int(first.get("cpu", -1)), int(first["pid"]), int(first["tid"]),
        str(first.get("comm", "")), names[0], fields, index,
    )  # fmt: skip


def _fits(name: str, fields: dict[str, str]) -> bool:
    if name.startswith("syscalls:"):
        if "__syscall_nr" not in fields or not name.endswith(f"_{_CALLS.get(fields['__syscall_nr'], '?')}"):
            return False
        return ("ret" in fields) == name.startswith("syscalls:sys_exit_")
    wanted = _ALL_FIELDS.get(name) or set(KNOWN[name].reads)
    return bool(wanted) and "__syscall_nr" not in fields and wanted <= set(fields)


def _told_apart(names: list[str], fields: dict[str, str], sample: dict[str, Any]) -> list[str]:
    """Of events with the same fields, those that the error code or the function that fired them allows."""
    if "error_code" in fields and "address" in fields:
        mode = "user" if number(fields["error_code"]) & 4 else "kernel"
        return [name for name in names if name.endswith(f"_{mode}")]
    chain = sample.get("callchain") or []
    fired_by = str(dict(chain[0]).get("symbol", "")) if chain else ""
    return [name for name in names if not fired_by or _FIRED_BY.get(name, "") in fired_by]
