"""The trace format: columns, words, versions, ABI numbers. `docs/trace-format.md` explains it.

Kinds of event are in `faulttrace.kinds`, the columns of stitched faults in `faulttrace.fault_columns`; this module
re-exports both. Times are integer ns of CLOCK_MONOTONIC. "No value" is -1 in `fd` and `vcpu`, and 0 in other integers.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from faultreplay.faulttrace.fault_columns import (
    ACCESSORS,
    BACKINGS,
    CAUSES,
    FAULT_COLUMNS,
    FAULTS,
    RESOLUTIONS,
    FaultColumn,
)
from faultreplay.faulttrace.kinds import KINDS, Kind, KindInfo
from faultreplay.faulttrace.zap_causes import MIGRATE_REASONS, ZAP_MEANINGS, ZapCause

__all__ = [
    "ACCESSORS", "BACKINGS", "CAUSES", "EVENTS", "FAULTS", "FAULT_COLUMNS", "KINDS", "KVM_IOCTLS", "LOSSES",
    "MIGRATE_REASONS",
    "RESOLUTIONS", "SCHEMA_LOG", "SCHEMA_VERSION", "STITCH_LOG", "STITCH_VERSION", "TRUTH", "UFFD_EVENT_PAGEFAULT",
    "UFFD_IOCTLS", "UFFD_MODE_DONTWAKE", "UFFD_PAGEFAULT_FLAG_MINOR", "UFFD_PAGEFAULT_FLAG_WP",
    "UFFD_PAGEFAULT_FLAG_WRITE", "UFFD_WRITEPROTECT_MODE_WP", "ZAP_MEANINGS", "FaultColumn", "Kind", "KindInfo",
    "ZapCause",
]  # fmt: skip

SCHEMA_LOG: Final[dict[int, str]] = {
    1: "2026-11-22: the first. Since: kinds 63, 65 and 77 to 78 (zaps and their causes), 66 to 68 (port and fast MMIO "
    "accesses, stage-2 faults of arm64); KVM_MMU_FAST_PAGE_FAULT says in `size` whether the entry was changed; faults "
    "have the columns `rounds` and `ip`; kinds 80 to 83 (files' pages, counters of pages), `file` of mappings in "
    "meta.json, the faults' columns `backing` and `copied`",
}
"""What each version of the format changed. A reader refuses other versions. The version is not raised for additions
that old readers ignore (kinds, keys of meta.json), nor for nullable columns of derived files, which may be missing."""
SCHEMA_VERSION: Final = max(SCHEMA_LOG)

STITCH_LOG: Final[dict[int, str]] = {
    1: "2026-11-22: the first",
    2: "2026-11-22: a page fault ends at no release of mmap_lock after a sleep that was a system call's",
    3: "2026-11-22: an access that KVM retries begins with its first walk",
    4: "2026-11-24: what the scheduler did while a fault waited (columns read_run_ns to service_preempted_ns)",
    5: "2026-11-25: hardware KVM: emulated devices and time in userspace are in no stall; exits to userspace are told "
    "by kvm_userspace_exit where system calls were not recorded; stage-2 exits without kvm_page_fault are faults; an "
    "access that faults again and again is one fault with rounds; a fault whose end was not recorded is kept; arm64; "
    "VMX exit qualifications are read as such",
    6: "2026-11-25: what kvmmmu:fast_page_fault fixed is a page of 4 KiB (its `size` was taken for a level); a fault "
    "handed to the VMM goes on after an interrupt's exit at the same instruction",
    7: "2026-11-25: where the page of a mapped file was (`backing`), and whether a write copied it (`copied`); a "
    "process's fault in which a page was read is major-host also where the thread did not sleep; an access for which "
    "the vCPU's own thread copied a page, after which KVM walks once more, begins with the first walk; "
    "a process's fault that did not sleep ends where its page is counted (kmem:rss_stat)",
    8: "2026-11-25: a message belongs to one of its thread's last 8 accesses, and what ended its fault came before 8 "
    "more; two messages with another page fault of the thread between are of two faults; a large trace with userfaults "
    "is joined by stretches",
    9: "2026-11-25: a sleep whose switch-in was not recorded is over when its thread is next switched out; a waiter "
    "whose message was not read waits in one of the first 8 sleeps since its page fault; a page-table walk after a "
    "return to userspace is no retry of one before it, also where only kvm_userspace_exit or the next call of KVM_RUN "
    "tells of it; files' events of a page fault without an end stop at the thread's next walk or exit; by stretches, "
    "such waiters and accesses are told as those of the whole, also where a stretch ends within them, the walk that "
    "stands for a KVM_RUN call is handed on, and a placement that ended a process's page fault may end another one",
}
"""What each version of the stitcher finds differently in the same events."""
STITCH_VERSION: Final = max(STITCH_LOG)
"""Raised whenever `faulttrace.stitch` finds different faults in the same events: then kept faults.parquet files are
rebuilt."""

EVENTS: Final = pa.schema(
    [
        pa.field("ts_ns", pa.int64(), nullable=False),
        pa.field("cpu", pa.int16(), nullable=False),
        pa.field("tgid", pa.int32(), nullable=False),
        pa.field("tid", pa.int32(), nullable=False),
        pa.field("kind", pa.uint8(), nullable=False),
        pa.field("fd", pa.int32(), nullable=False),
        pa.field("vcpu", pa.int32(), nullable=False),
        pa.field("addr", pa.uint64(), nullable=False),
        pa.field("ip", pa.uint64(), nullable=False),
        pa.field("code", pa.uint64(), nullable=False),
        pa.field("size", pa.uint64(), nullable=False),
        pa.field("value", pa.int64(), nullable=False),
        pa.field("dur_ns", pa.int64(), nullable=False),
    ]
)
"""Raw events, one row per event, sorted by `ts_ns` inside a part. Which columns a kind fills: `KINDS`."""

LOSSES: Final = pa.schema(
    [
        pa.field("ts_ns", pa.int64(), nullable=False),
        pa.field("cpu", pa.int16(), nullable=False),
        pa.field("probe", pa.string(), nullable=False),
        pa.field("lost", pa.int64(), nullable=False),
    ]
)
"""Lost events: at most `lost` of `probe` between the previous row and `ts_ns`. cpu -1: not known."""

TRUTH: Final = pa.schema(
    [
        pa.field("accessor", pa.string(), nullable=False),
        pa.field("tid", pa.int32(), nullable=False),
        pa.field("vcpu", pa.int32(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),  # 0, 1, 2... per accessor
        pa.field("page", pa.uint64(), nullable=False),  # host virtual address of the page touched
        pa.field("access", pa.string(), nullable=False),
        pa.field("start_ns", pa.int64(), nullable=False),  # accessor's clock before the access, as CLOCK_MONOTONIC
        pa.field("end_ns", pa.int64(), nullable=False),
    ]
)
"""What the accessor itself measured, one row per access (lab only), sorted by (`accessor`, `vcpu`, `tid`, `seq`)."""

# ABI numbers (include/uapi/linux/userfaultfd.h, kvm.h), x86-64 and arm64.
UFFD_IOCTLS: Final[dict[int, Kind]] = {
    0xC028AA03: Kind.UFFD_COPY,
    0xC020AA04: Kind.UFFD_ZEROPAGE,
    0xC028AA05: Kind.UFFD_MOVE,
    0xC018AA06: Kind.UFFD_WRITEPROTECT,
    0xC020AA07: Kind.UFFD_CONTINUE,
    0xC020AA08: Kind.UFFD_POISON,
    0x8010AA02: Kind.UFFD_WAKE,
    0xC020AA00: Kind.UFFD_REGISTER,
    0x8010AA01: Kind.UFFD_UNREGISTER,
    0xC018AA3F: Kind.UFFD_API,
}
KVM_IOCTLS: Final[dict[int, Kind]] = {
    0x0000AE80: Kind.KVM_RUN_EXIT,
    0x4020AE46: Kind.KVM_SET_MEMSLOT,
    0x40A0AE49: Kind.KVM_SET_MEMSLOT,
    0x4010AE42: Kind.KVM_GET_DIRTY_LOG,
    0xC018AEC0: Kind.KVM_CLEAR_DIRTY_LOG,
    0x0000AEC7: Kind.KVM_RESET_DIRTY_RINGS,
}
UFFD_EVENT_PAGEFAULT: Final = 0x12
UFFD_PAGEFAULT_FLAG_WRITE: Final = 1
UFFD_PAGEFAULT_FLAG_WP: Final = 2
UFFD_PAGEFAULT_FLAG_MINOR: Final = 4
UFFD_MODE_DONTWAKE: Final = 1  # COPY, ZEROPAGE, CONTINUE, MOVE; for WRITEPROTECT it is 2
UFFD_WRITEPROTECT_MODE_WP: Final = 1
