"""What a trace is: columns, kinds of event, ABI numbers. Written once, here; `docs/trace-format.md` explains it.

Times are integer ns of CLOCK_MONOTONIC. Integers that stand for "no value": -1 in `fd` and `vcpu`, 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
STITCH_VERSION: Final = 4
"""Raised whenever `faulttrace.stitch` finds other faults in the same events: kept faults.parquet are then made anew."""


class Kind(IntEnum):
    """Kind of a raw event (column `kind`). Numbers are part of the format: never reuse one."""

    # userfaultfd messages and ioctls; tid is the handler's
    UFFD_MSG = 1
    UFFD_COPY = 2
    UFFD_ZEROPAGE = 3
    UFFD_CONTINUE = 4
    UFFD_WRITEPROTECT = 5
    UFFD_WAKE = 6
    UFFD_MOVE = 7
    UFFD_POISON = 8
    UFFD_REGISTER = 9
    UFFD_UNREGISTER = 10
    UFFD_API = 11
    # faults of processes (user or kernel mode); they never cover a guest's accesses
    PAGE_FAULT_USER = 20
    PAGE_FAULT_KERNEL = 21
    MMAP_LOCK_RELEASED = 22
    HANDLE_USERFAULT = 23
    # scheduling of the target's threads
    SCHED_OUT = 30
    SCHED_IN = 31
    SCHED_WAKING = 32
    THREAD_NEW = 33
    THREAD_EXIT = 34
    PROCESS_EXEC = 35
    # KVM: ioctls
    KVM_RUN_ENTER = 40
    KVM_RUN_EXIT = 41
    KVM_SET_MEMSLOT = 42
    KVM_GET_DIRTY_LOG = 43
    KVM_CLEAR_DIRTY_LOG = 44
    KVM_RESET_DIRTY_RINGS = 45
    # KVM: tracepoints
    KVM_EXIT = 50
    KVM_ENTRY = 51
    KVM_PAGE_FAULT = 52
    KVM_USERSPACE_EXIT = 53
    KVM_MMIO = 54
    KVM_MMU_WALK = 55
    KVM_MMU_SET_SPTE = 56
    KVM_MMU_FAST_PAGE_FAULT = 57
    KVM_ASYNC_PF_NOT_PRESENT = 58
    KVM_ASYNC_PF_READY = 59
    KVM_ASYNC_PF_COMPLETED = 60
    KVM_DIRTY_RING_PUSH = 61
    KVM_PML_FULL = 62
    KVM_UNMAP_HVA_RANGE = 63
    KVM_DIRTY_RING_EXIT = 64
    KVM_MMU_ZAP_ALL = 65
    # memory management of the host
    MMAP = 70
    MUNMAP = 71
    MADVISE = 72
    FALLOCATE = 73
    MREMAP = 74
    LOCK_CONTENTION_BEGIN = 75
    LOCK_CONTENTION_END = 76
    MM_CAUSE = 77
    MPROTECT = 78


class ZapCause(IntEnum):
    """Why a mmu notifier zapped guest memory (column `code` of MM_CAUSE). Numbers are part of the format.

    Tracepoints tell those up to THP_COLLAPSE; the others are told by the thread's own system call or fault, which
    `faulttrace.stitch.zaps` looks up.
    """

    UNKNOWN = 0
    MIGRATION = 1
    KSM = 2
    RECLAIM = 3
    THP_COLLAPSE = 4
    THP_SPLIT = 5
    PUNCH_HOLE = 6
    DISCARD = 7
    UNMAP = 8
    PROTECT = 9
    UFFD_WRITEPROTECT = 10
    UFFD_MOVE = 11
    PAGE_FAULT = 12

    @property
    def label(self) -> str:
        """For people: `thp-collapse`."""
        return self.name.lower().replace("_", "-")


ZAP_MEANINGS: Final[dict[ZapCause, str]] = {
    ZapCause.UNKNOWN: "nothing that was recorded tells",
    ZapCause.MIGRATION: "the page moved: compaction, NUMA, move_pages",
    ZapCause.KSM: "merged with an equal page",
    ZapCause.RECLAIM: "taken back to be swapped or written out",
    ZapCause.THP_COLLAPSE: "pages became a huge page",
    ZapCause.THP_SPLIT: "a part of a huge page changes, which splits it (where there is one)",
    ZapCause.PUNCH_HOLE: "fallocate or MADV_REMOVE freed the file's pages",
    ZapCause.DISCARD: "MADV_DONTNEED or MADV_FREE",
    ZapCause.UNMAP: "munmap, mremap or a new mapping over it",
    ZapCause.PROTECT: "mprotect",
    ZapCause.UFFD_WRITEPROTECT: "UFFDIO_WRITEPROTECT, or a registration with it ended",
    ZapCause.UFFD_MOVE: "UFFDIO_MOVE",
    ZapCause.PAGE_FAULT: "a fault of the VM's own thread: copy-on-write, mostly",
}

MIGRATE_REASONS: Final = (
    "compaction",
    "memory_failure",
    "memory_hotplug",
    "syscall_or_cpuset",
    "mempolicy_mbind",
    "numa_misplaced",
    "contig_range",
    "longterm_pin",
    "demotion",
    "damon",
)
"""`value` of MM_CAUSE for a migration (include/linux/migrate_mode.h); newer kernels only add to it."""


@dataclass(frozen=True)
class KindInfo:
    """What a kind means and which columns it fills. `columns` maps a column to its meaning and unit."""

    source: str
    meaning: str
    columns: dict[str, str]


_IOCTL = {
    "fd": "the userfaultfd",
    "addr": "start of the range (copy, move, continue: destination)",
    "size": "length of the range, bytes",
    "code": "mode flags",
    "value": "bytes done, or -errno",
    "dur_ns": "time in the ioctl; ts_ns is its end",
}
_RANGE = {"addr": "start", "size": "length, bytes", "value": "result, or -errno", "dur_ns": "time in the system call"}

KINDS: Final[dict[Kind, KindInfo]] = {
    Kind.UFFD_MSG: KindInfo(
        "syscalls:sys_exit_read",
        "one 32-byte userfaultfd message was read; ts_ns is the end of the read",
        {
            "fd": "the userfaultfd",
            "addr": "faulting address",
            "code": "UFFD_PAGEFAULT_FLAG_* (1 write, 2 write-protect, 4 minor)",
            "size": "messages returned by this read",
            "value": "faulting thread id when UFFD_FEATURE_THREAD_ID is on, else 0",
            "ip": "uffd_msg.event (0x12 page fault, 0x13 fork, 0x14 remap, 0x15 remove, 0x16 unmap)",
            "dur_ns": "time in the read, which may have slept",
        },
    ),
    Kind.UFFD_COPY: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_COPY ended", _IOCTL),
    Kind.UFFD_ZEROPAGE: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_ZEROPAGE ended", _IOCTL),
    Kind.UFFD_CONTINUE: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_CONTINUE ended", _IOCTL),
    Kind.UFFD_WRITEPROTECT: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_WRITEPROTECT ended (mode 1 protects)", _IOCTL),
    Kind.UFFD_WAKE: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_WAKE ended", _IOCTL),
    Kind.UFFD_MOVE: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_MOVE ended", _IOCTL),
    Kind.UFFD_POISON: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_POISON ended", _IOCTL),
    Kind.UFFD_REGISTER: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_REGISTER ended (code: register mode)", _IOCTL),
    Kind.UFFD_UNREGISTER: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_UNREGISTER ended", _IOCTL),
    Kind.UFFD_API: KindInfo("syscalls:sys_exit_ioctl", "UFFDIO_API ended (code: features granted)", _IOCTL),
    Kind.PAGE_FAULT_USER: KindInfo(
        "exceptions:page_fault_user",
        "a page fault taken in user mode",
        {"addr": "faulting address", "ip": "instruction pointer", "code": "x86 page-fault error code"},
    ),
    Kind.PAGE_FAULT_KERNEL: KindInfo(
        "exceptions:page_fault_kernel",
        "a page fault taken in kernel mode (uaccess)",
        {"addr": "faulting address", "ip": "instruction pointer", "code": "x86 page-fault error code"},
    ),
    Kind.MMAP_LOCK_RELEASED: KindInfo(
        "mmap_lock:mmap_lock_released",
        "the thread let go of mmap_lock: the end of a fault's retry",
        {"code": "1 for write"},
    ),
    Kind.HANDLE_USERFAULT: KindInfo(
        "kprobe:handle_userfault (where the kernel has kprobes or fentry)",
        "a fault entered handle_userfault(); twice per KVM fault (a no-wait try first)",
        {"addr": "faulting address", "code": "vm_fault flags", "value": "reason"},
    ),
    Kind.SCHED_OUT: KindInfo(
        "sched:sched_switch",
        "the thread left the CPU",
        {"code": "prev_state (0: preempted, still runnable)", "value": "thread that runs next"},
    ),
    Kind.SCHED_IN: KindInfo("sched:sched_switch", "the thread got the CPU", {"value": "thread that ran before"}),
    Kind.SCHED_WAKING: KindInfo(
        "sched:sched_waking", "the thread was woken; tid is the woken thread", {"value": "thread that woke it"}
    ),
    Kind.THREAD_NEW: KindInfo(
        "task:task_newtask", "the target made a thread or process", {"value": "new thread id", "code": "clone flags"}
    ),
    Kind.THREAD_EXIT: KindInfo("sched:sched_process_exit", "a thread of the target ended", {}),
    Kind.PROCESS_EXEC: KindInfo("sched:sched_process_exec", "the target executed a new program", {}),
    Kind.KVM_RUN_ENTER: KindInfo("syscalls:sys_enter_ioctl", "a vCPU thread calls KVM_RUN", {"fd": "vCPU fd"}),
    Kind.KVM_RUN_EXIT: KindInfo(
        "syscalls:sys_exit_ioctl",
        "KVM_RUN returned to userspace",
        {"fd": "vCPU fd", "value": "0, or -errno", "dur_ns": "time in KVM_RUN"},
    ),
    Kind.KVM_SET_MEMSLOT: KindInfo(
        "syscalls:sys_exit_ioctl",
        "KVM_SET_USER_MEMORY_REGION or ..._REGION2 ended",
        {
            "fd": "VM fd",
            "addr": "guest physical address",
            "ip": "userspace address",
            "size": "length, bytes (0: slot deleted)",
            "code": "slot | flags << 32",
            "value": "0, or -errno",
            "dur_ns": "time in the ioctl",
        },
    ),
    Kind.KVM_GET_DIRTY_LOG: KindInfo(
        "syscalls:sys_exit_ioctl",
        "KVM_GET_DIRTY_LOG ended",
        {"fd": "VM fd", "code": "slot", "value": "0, or -errno", "dur_ns": "time in the ioctl"},
    ),
    Kind.KVM_CLEAR_DIRTY_LOG: KindInfo(
        "syscalls:sys_exit_ioctl",
        "KVM_CLEAR_DIRTY_LOG ended",
        {"fd": "VM fd", "code": "slot", "value": "0, or -errno", "dur_ns": "time in the ioctl"},
    ),
    Kind.KVM_RESET_DIRTY_RINGS: KindInfo(
        "syscalls:sys_exit_ioctl",
        "KVM_RESET_DIRTY_RINGS ended",
        {"fd": "VM fd", "value": "pages reset, or -errno", "dur_ns": "time in the ioctl"},
    ),
    Kind.KVM_EXIT: KindInfo(
        "kvm:kvm_exit",
        "the guest left guest mode",
        {
            "code": "raw exit reason (VMX or SVM numbering, see host.kvm_flavour)",
            "ip": "guest rip",
            "addr": "info1",
            "size": "info2",
        },
    ),
    Kind.KVM_ENTRY: KindInfo("kvm:kvm_entry", "the guest enters guest mode", {"ip": "guest rip"}),
    Kind.KVM_PAGE_FAULT: KindInfo(
        "kvm:kvm_page_fault",
        "a stage-2 page fault",
        {"addr": "guest physical address", "ip": "guest rip", "code": "page-fault error code"},
    ),
    Kind.KVM_USERSPACE_EXIT: KindInfo(
        "kvm:kvm_userspace_exit", "KVM returns to userspace", {"code": "KVM_EXIT_* reason", "value": "errno"}
    ),
    Kind.KVM_MMIO: KindInfo(
        "kvm:kvm_mmio",
        "an MMIO access",
        {"addr": "guest physical address", "size": "length, bytes", "code": "0 unsatisfied read, 1 read, 2 write"},
    ),
    Kind.KVM_MMU_WALK: KindInfo(
        "kvmmmu:kvm_mmu_pagetable_walk",
        "KVM walks the guest's page table: a shadow-paging fault begins",
        {"addr": "guest virtual address", "code": "page-fault error code"},
    ),
    Kind.KVM_MMU_SET_SPTE: KindInfo(
        "kvmmmu:kvm_mmu_set_spte",
        "KVM installed a stage-2 or shadow entry",
        {
            "addr": "guest frame number << 12",
            "code": "1 readable, 2 writable, 4 executable",
            "size": "page level",
            "ip": "spte",
        },
    ),
    Kind.KVM_MMU_FAST_PAGE_FAULT: KindInfo(
        "kvmmmu:fast_page_fault",
        "KVM mended an entry without the mmu lock",
        {"addr": "guest address", "code": "page-fault error code", "value": "RET_PF_*"},
    ),
    Kind.KVM_ASYNC_PF_NOT_PRESENT: KindInfo(
        "kvm:kvm_async_pf_not_present", "the guest was told that a page is on its way", {"addr": "gva", "code": "token"}
    ),
    Kind.KVM_ASYNC_PF_READY: KindInfo(
        "kvm:kvm_async_pf_ready", "the guest was told that the page came", {"addr": "gva", "code": "token"}
    ),
    Kind.KVM_ASYNC_PF_COMPLETED: KindInfo(
        "kvm:kvm_async_pf_completed", "the worker has the page", {"addr": "gva", "ip": "userspace address"}
    ),
    Kind.KVM_DIRTY_RING_PUSH: KindInfo(
        "kvm:kvm_dirty_ring_push", "a dirty page entered the ring", {"addr": "offset", "code": "slot"}
    ),
    Kind.KVM_PML_FULL: KindInfo("kvm:kvm_pml_full", "the page-modification log is full", {}),
    Kind.KVM_UNMAP_HVA_RANGE: KindInfo(
        "kvm:kvm_unmap_hva_range",
        "a mmu notifier zaps stage-2 entries; tgid is the VM's process, tid whoever did it, perhaps an outsider",
        {"addr": "start", "size": "length, bytes"},
    ),
    Kind.KVM_DIRTY_RING_EXIT: KindInfo("kvm:kvm_dirty_ring_exit", "the vCPU exits: its dirty ring is full", {}),
    Kind.KVM_MMU_ZAP_ALL: KindInfo("kvmmmu:kvm_mmu_zap_all_fast", "KVM zaps all stage-2 entries", {}),
    Kind.MMAP: KindInfo(
        "syscalls:sys_exit_mmap",
        "mmap ended",
        {
            "fd": "mapped file, or -1",
            "addr": "address given out, or 0 on error",
            "size": "length, bytes",
            "code": "prot | flags << 32",
            "value": "0, or -errno",
            "dur_ns": "time in the system call",
        },
    ),
    Kind.MUNMAP: KindInfo("syscalls:sys_exit_munmap", "munmap ended", _RANGE),
    Kind.MADVISE: KindInfo("syscalls:sys_exit_madvise", "madvise ended", _RANGE | {"code": "advice"}),
    Kind.FALLOCATE: KindInfo(
        "syscalls:sys_exit_fallocate",
        "fallocate ended",
        {
            "fd": "file",
            "addr": "offset, bytes",
            "size": "length, bytes",
            "code": "mode",
            "value": "0, or -errno",
            "dur_ns": "time in the system call",
        },
    ),
    Kind.MREMAP: KindInfo(
        "syscalls:sys_exit_mremap",
        "mremap ended",
        _RANGE | {"addr": "old address", "ip": "new address", "size": "new length, bytes"},
    ),
    Kind.LOCK_CONTENTION_BEGIN: KindInfo(
        "lock:contention_begin", "the thread waits for a lock", {"addr": "lock", "code": "LCB_F_* flags"}
    ),
    Kind.LOCK_CONTENTION_END: KindInfo("lock:contention_end", "the wait ended", {"addr": "lock", "value": "result"}),
    Kind.MM_CAUSE: KindInfo(
        "migrate, thp, ksm, huge_memory and vmscan tracepoints",
        "why the same thread zapped memory of a VM just before",
        {
            "code": "ZapCause: 1 migration, 2 ksm, 3 reclaim, 4 thp-collapse",
            "addr": "start of what was migrated or collapsed, 0 where the tracepoint does not say or ends a batch",
            "size": "length, bytes, or 0",
            "value": "migration: reason (MIGRATE_REASONS), or -1; ksm: 0, or -errno; reclaim: pages reclaimed by the "
            "batch; collapse: the kernel's status (1: done)",
        },
    ),
    Kind.MPROTECT: KindInfo("syscalls:sys_exit_mprotect", "mprotect ended", _RANGE | {"code": "prot"}),
}

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
"""Raw events, one row an event, sorted by `ts_ns` inside a part. Which columns a kind fills: `KINDS`."""

LOSSES: Final = pa.schema(
    [
        pa.field("ts_ns", pa.int64(), nullable=False),
        pa.field("cpu", pa.int16(), nullable=False),
        pa.field("probe", pa.string(), nullable=False),
        pa.field("lost", pa.int64(), nullable=False),
    ]
)
"""Events that were not kept: at most `lost` of `probe` between the row before and `ts_ns`. cpu -1: not known."""

FAULTS: Final = pa.schema(
    [
        pa.field("fault_id", pa.int64(), nullable=False),
        pa.field("vm", pa.int32(), nullable=False),  # tgid of the process that owns the memory
        pa.field("accessor", pa.string(), nullable=False),  # vcpu | vmm | kernel
        pa.field("tid", pa.int32(), nullable=False),
        pa.field("vcpu", pa.int32(), nullable=False),  # -1: not a vCPU
        pa.field("start_ns", pa.int64(), nullable=False),
        pa.field("end_ns", pa.int64(), nullable=True),  # null: still stalled when the recording ended, or end unseen
        pa.field("stall_ns", pa.int64(), nullable=True),
        pa.field("think_ns", pa.int64(), nullable=True),  # null: first fault of this thread
        pa.field("think_asleep_ns", pa.int64(), nullable=True),  # part of think_ns: off the CPU of its own accord
        pa.field("think_preempted_ns", pa.int64(), nullable=True),  # part of think_ns: off the CPU, wanting one
        pa.field("page", pa.uint64(), nullable=False),  # address of the granule
        pa.field("granule", pa.int64(), nullable=False),  # bytes
        pa.field("access", pa.string(), nullable=False),  # r | w | x
        pa.field("cause", pa.string(), nullable=False),  # see CAUSES
        pa.field("resolution", pa.string(), nullable=False),  # see RESOLUTIONS
        pa.field("handler_tid", pa.int32(), nullable=False),  # 0: none
        pa.field("queue_ns", pa.int64(), nullable=True),  # fault taken -> message read
        pa.field("read_run_ns", pa.int64(), nullable=True),  # part of queue_ns: the woken handler on its CPU
        pa.field("read_after_tid", pa.int32(), nullable=True),  # who had that CPU before (0: it was idle)
        pa.field("read_preempts", pa.bool_(), nullable=True),  # and was preempted for the handler
        pa.field("read_preempted_ns", pa.int64(), nullable=True),  # part of queue_ns: handler off the CPU, wanting one
        pa.field("service_ns", pa.int64(), nullable=True),  # message read -> page placed (end of the ioctl)
        pa.field("resolve_ns", pa.int64(), nullable=True),  # part of service_ns: time in the placing ioctl
        pa.field("wake_ns", pa.int64(), nullable=True),  # page placed -> accessor running and past the fault
        pa.field("wake_run_ns", pa.int64(), nullable=True),  # part of wake_ns: the woken accessor on its CPU
        pa.field("wake_after_tid", pa.int32(), nullable=True),  # who had that CPU before (0: it was idle)
        pa.field("wake_preempts", pa.bool_(), nullable=True),  # and was preempted for the accessor
        pa.field("offcpu_ns", pa.int64(), nullable=True),
        pa.field("preempted_ns", pa.int64(), nullable=True),  # part of offcpu_ns: off the CPU, wanting one
        pa.field("service_preempted_ns", pa.int64(), nullable=True),  # part of service_ns, of the handler
        pa.field("join", pa.string(), nullable=False),  # how the end was found; "none": not joined
    ]
)
"""Stitched faults, one row a fault, sorted by (`start_ns`, `tid`)."""

CAUSES: Final = ("missing", "minor", "write-protect", "stage2", "mmio", "exit", "window", "minor-host", "major-host")
RESOLUTIONS: Final = (
    "copy",
    "zeropage",
    "continue",
    "move",
    "poison",
    "unprotect",
    "wake",
    "kernel",
    "userspace",
    "none",
)
ACCESSORS: Final = ("vcpu", "vmm", "kernel")

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
"""What the accessor itself measured, one row an access (lab only), sorted by (`accessor`, `vcpu`, `tid`, `seq`)."""

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
