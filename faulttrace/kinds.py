"""Kinds of event: what each means, its source and which columns it fills."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


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
    KVM_PIO = 66
    KVM_FAST_MMIO = 67
    KVM_GUEST_FAULT = 68
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
    # file mappings
    FILE_FAULT = 80
    FILE_MAP = 81
    FILE_ADD = 82
    RSS_STAT = 83


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
        "the thread released mmap_lock: the end of a fault's retry",
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
            "code": "raw exit reason (VMX or SVM numbering, see host.kvm_flavour; arm64: exception class of the ESR)",
            "ip": "guest instruction pointer",
            "addr": "info1 (arm64: ARM_EXCEPTION_*: 0 IRQ, 1 SError, 2 trap, 3 illegal)",
            "size": "info2",
        },
    ),
    Kind.KVM_ENTRY: KindInfo("kvm:kvm_entry", "the guest enters guest mode", {"ip": "guest instruction pointer"}),
    Kind.KVM_PAGE_FAULT: KindInfo(
        "kvm:kvm_page_fault",
        "a stage-2 page fault",
        {
            "addr": "guest physical address",
            "ip": "guest rip, 0 if the kernel does not report it",
            "code": "SVM: page-fault error code; VMX: exit qualification (1 read, 2 write, 4 fetch)",
        },
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
        "KVM tried to fix an entry without the mmu lock",
        {
            "addr": "guest address",
            "code": "page-fault error code",
            "value": "RET_PF_* (its numbers differ between kernels; 0 in imports)",
            "size": "1 the entry was left as it was (spurious, or not for the fast path), 2 it was changed (fixed), "
            "0 unknown",
        },
    ),
    Kind.KVM_ASYNC_PF_NOT_PRESENT: KindInfo(
        "kvm:kvm_async_pf_not_present", "the guest was told that a page will arrive", {"addr": "gva", "code": "token"}
    ),
    Kind.KVM_ASYNC_PF_READY: KindInfo(
        "kvm:kvm_async_pf_ready", "the guest was told that the page has arrived", {"addr": "gva", "code": "token"}
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
        "a mmu notifier zaps stage-2 entries; tgid is the VM's process, tid the thread that did it, of any process",
        {"addr": "start", "size": "length, bytes"},
    ),
    Kind.KVM_DIRTY_RING_EXIT: KindInfo("kvm:kvm_dirty_ring_exit", "the vCPU exits: its dirty ring is full", {}),
    Kind.KVM_MMU_ZAP_ALL: KindInfo("kvmmmu:kvm_mmu_zap_all_fast", "KVM zaps all stage-2 entries", {}),
    Kind.KVM_PIO: KindInfo(
        "kvm:kvm_pio",
        "an access to an I/O port",
        {"addr": "port", "size": "length, bytes", "code": "0 read, 1 write", "value": "how many of them"},
    ),
    Kind.KVM_FAST_MMIO: KindInfo(
        "kvm:kvm_fast_mmio",
        "an MMIO write that an ioeventfd took, without emulation",
        {"addr": "guest physical address"},
    ),
    Kind.KVM_GUEST_FAULT: KindInfo(
        "kvm:kvm_guest_fault",
        "a stage-2 fault of arm64",
        {
            "addr": "intermediate physical address (IPA)",
            "ip": "guest pc",
            "code": "ESR_EL2 (HSR)",
            "size": "guest virtual address (FAR_EL2)",
        },
    ),
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
    Kind.FILE_FAULT: KindInfo(
        "filemap:mm_filemap_fault",
        "a fault on a file's page that the neighbours' mapping below did not map; in the thread that faults",
        {"addr": "offset in the file, bytes", "code": "inode", "value": "device"},
    ),
    Kind.FILE_MAP: KindInfo(
        "filemap:mm_filemap_map_pages",
        "a fault on a file's page asks for the pages around it that are in the page cache to be mapped",
        {"addr": "offset in the file, bytes", "size": "length, bytes", "code": "inode", "value": "device"},
    ),
    Kind.FILE_ADD: KindInfo(
        "filemap:mm_filemap_add_to_page_cache",
        "a page enters the page cache, to be read or written",
        {
            "addr": "offset in the file, bytes",
            "size": "length, bytes; 0: unknown",
            "code": "inode",
            "value": "device",
        },
    ),
    Kind.RSS_STAT: KindInfo(
        "kmem:rss_stat",
        "in a process's page fault: the pages that it holds were counted anew, the last thing that a fault does",
        {
            "code": "what: 0 file, 1 anonymous, 2 swap, 3 shmem",
            "size": "1 its own memory, 0 another's",
            "value": "bytes",
        },
    ),
    Kind.MPROTECT: KindInfo("syscalls:sys_exit_mprotect", "mprotect ended", _RANGE | {"code": "prot"}),
}
