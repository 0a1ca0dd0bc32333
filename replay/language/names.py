"""Every cost the engine can charge: its name, its unit and the interval it stands for. One table, for all.

Mechanisms charge these names, cost files give them values, calibration fits them. A cost is always an interval
between two
events, so that what is fitted is what is charged.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class CostName:
    """What a cost stands for: the interval from event `begin` to event `end`, paid by `payer`."""

    meaning: str
    begin: str
    end: str
    payer: str
    unit: str = "ns"
    brings_content: bool = False
    """whether missing content arrives meanwhile: a fault without such a cost (or a read of storage) needs none"""


COST_NAMES: Final[dict[str, CostName]] = {
    "fault_entry": CostName(
        "the fault is taken until the waiter is queued and its message can be read (with KVM: the exit too)",
        "access faults",
        "message in the userfaultfd's pending queue, accessor asleep",
        "accessor",
    ),
    "reader_wakeup": CostName(
        "an idle reader is woken and its read returns; a reader that was busy does not pay this",
        "message in the pending queue",
        "read() returns in the handler",
        "handler",
    ),
    "fetch": CostName(
        "the content arrives: network, disk or a copy in memory; the environment's, the same for all mechanisms",
        "the handler asks for the content",
        "the handler has the content",
        "handler, asleep",
        brings_content=True,
    ),
    "resolve": CostName(
        "the ioctl that places one native page (UFFDIO_COPY, ZEROPAGE), without its walk over other sleepers",
        "the placing ioctl is called",
        "the placing ioctl has placed the page",
        "handler",
    ),
    "resolve_continue": CostName(
        "UFFDIO_CONTINUE of one native page that is in the page cache: its entry is installed, nothing is allocated or "
        "copied; without its walk over other sleepers",
        "the ioctl is called",
        "the ioctl has installed the entry",
        "handler",
    ),
    "resolve_per_page": CostName(
        "each further native page of a granule in the same placing ioctl (allocation, copy, entry)",
        "the page before it is placed",
        "this page is placed",
        "handler",
    ),
    "wake": CostName(
        "the page is placed until the accessor runs past the fault (with KVM: the re-entry to the guest too)",
        "the placing ioctl ends",
        "the accessor has done its access",
        "accessor",
    ),
    "preempt": CostName(
        "a running thread is made to leave its CPU for one that was woken (with KVM: the guest's exit too); charged "
        "by its median, and only where host CPUs are counted",
        "a thread is woken that is to be picked before the running one",
        "it has the CPU",
        "who was woken",
    ),
    "wake_per_waiter": CostName(
        "each other sleeper on the same userfaultfd that the wake walks over under the queue lock",
        "the walk reaches a sleeper",
        "the walk leaves it",
        "handler",
    ),
    "handler_loop": CostName(
        "the handler after the placing ioctl until it can read the next message",
        "the placing ioctl ends",
        "the handler calls read() again",
        "handler",
    ),
    "lock": CostName(
        "the wait-queue lock of a userfaultfd held once (a message queued, a message read, a wake) without "
        "contention, apart from the walk",
        "the lock is taken",
        "the lock is released",
        "whoever holds it",
    ),
    "lock_contended": CostName(
        "the same lock held once while another thread holds it or waits for it: its cache lines come from another CPU",
        "the lock is passed on",
        "the lock is released",
        "the holder, and all who wait",
    ),
    "wake_cold": CostName(
        "on top of wake_per_waiter, for a sleeper whose entry was renewed since this reader's last walk: another CPU "
        "has its cache lines",
        "the walk reaches a sleeper",
        "the walk leaves it",
        "handler, holding the queue lock",
    ),
    "herd_per_reader": CostName(
        "each idle reader of the same userfaultfd that a new message wakes needlessly (readers that poll())",
        "a message wakes the reader",
        "the reader finds the queue empty and sleeps",
        "accessor, holding the queue lock",
    ),
    "mm_once": CostName(
        "a fault while any other thread is in a fault on the same memory: "
        "cache lines of the address space come from another CPU",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "mm_share": CostName(
        "a fault, for each other thread that is in a fault on the same memory when it begins",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "mm_serial": CostName(
        "what is serial in the whole process when a thread sleeps in a fault and is woken, without contention",
        "the lock is taken",
        "the lock is released",
        "accessor",
    ),
    "mm_serial_contended": CostName(
        "the same with contention",
        "the lock is passed on",
        "the lock is released",
        "accessor, and all who wait",
    ),
    "exit_userspace": CostName(
        "the fault is taken until VMM code runs in the vCPU's own thread (KVM_RUN has returned)",
        "access faults",
        "KVM_RUN returned in the vCPU thread",
        "vCPU",
    ),
    "reenter": CostName(
        "KVM_RUN is called until the guest is past the fault, which is taken once more and finds the page placed",
        "KVM_RUN is called",
        "the accessor has done its access",
        "vCPU",
    ),
    "enter_guest": CostName(
        "KVM_RUN is called until the guest runs: the same without the fault that is taken once more",
        "KVM_RUN is called",
        "the guest runs",
        "vCPU",
    ),
    "stage2_fault": CostName(
        "the host has the page, stage 2 (or the shadow page table) does not: exit, look-up, entry, re-entry",
        "access faults",
        "the accessor has done its access",
        "vCPU",
    ),
    "host_fault_read": CostName(
        "the kernel alone resolves a read: of unwritten memory: the zero page is mapped in stage 2",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "host_fault": CostName(
        "the kernel alone resolves a write: the page is allocated or found in the host and mapped in stage 2",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "host_fault_minor": CostName(
        "the kernel alone resolves a fault on a page that is in the page cache: it is found and mapped",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "memfd_extra": CostName(
        "what a fault takes on top of host_fault where the page is allocated in a memfd (shmem), not anonymous",
        "access faults",
        "the accessor has done its access",
        "accessor",
    ),
    "swap_in": CostName(
        "the swap device brings one page in (the device and its driver alone)",
        "the read is submitted",
        "the page is up to date",
        "accessor, asleep",
        brings_content=True,
    ),
    "storage_read": CostName(
        "one read request at the storage device, without its bytes, its wait in the queue and the thread that sleeps",
        "the device takes the request",
        "the device reports its end",
        "device",
    ),
    "major_fault": CostName(
        "a read from storage beside the device: the request is made and submitted, the thread sleeps and is woken",
        "the page cache is found not to have the page",
        "the thread runs again, less the device's time and queue",
        "who reads",
    ),
    "copy_on_write": CostName(
        "a write to a private mapping of a page that the page cache has: a page is allocated and the content copied",
        "the page is found in the page cache",
        "the copy is mapped in its place",
        "accessor",
    ),
    "unshare": CostName(
        "a write to a page of the file that is mapped to be read: beside the copy, that mapping is taken out of stage "
        "2 and of all CPUs' TLBs, and KVM walks once more",
        "the copy is to be mapped in the page's place",
        "the accessor has done its access",
        "accessor",
    ),
    "map_around": CostName(
        "each further page of the page cache that a fault maps with its own (fault-around)",
        "the page before it is mapped",
        "this page is mapped",
        "accessor",
    ),
    "source_read": CostName(
        "a handler gets at one page of the snapshot file that the page cache has: its own fault, or pread()",
        "the handler asks for the content",
        "the content can be copied",
        "handler",
    ),
    "copy_per_page": CostName(
        "each native page of a snapshot that is read into fresh memory before the guest runs: allocated and copied "
        "from the page cache",
        "the page before it is copied",
        "this page is copied",
        "VMM",
    ),
    "sigbus": CostName(
        "the fault is taken until the SIGBUS handler, or the code after KVM_RUN's EFAULT, runs in the faulting thread",
        "access faults",
        "the signal handler runs",
        "accessor",
    ),
    "mark_present": CostName(
        "the bit of one page is set in a bitmap that KVM reads: an atomic operation, no system call",
        "the VMM sets the bit",
        "KVM sees it",
        "handler",
    ),
    "notify_ipc": CostName(
        "another process is notified of a fault: from the event fd or socket message until its code runs",
        "the notification is sent",
        "code runs in the other process",
        "other process",
    ),
    "apf_inject": CostName(
        "an asynchronous page fault is announced to the guest, which switches to another task",
        "access faults",
        "the other task runs",
        "vCPU",
    ),
    "apf_ready": CostName(
        "the guest is notified that the page has arrived, and the waiting task runs again",
        "the page is placed",
        "the waiting task runs",
        "guest",
    ),
    "protect_fixed": CostName(
        "one protecting call over the guest's memory (UFFDIO_WRITEPROTECT or a freeze), without its pages",
        "the call is made",
        "the call returns",
        "VMM",
    ),
    "protect_per_page": CostName(
        "each native page that the protecting call finds mapped",
        "the call reaches the page",
        "the page is protected",
        "VMM",
    ),
    "unprotect_fixed": CostName(
        "one call that ends the protection, without its pages", "the call is made", "the call returns", "VMM"
    ),
    "unprotect_per_page": CostName(
        "each native page that this call finds protected", "the call reaches the page", "the page is writable", "VMM"
    ),
    "memslot_delete": CostName(
        "KVM_SET_USER_MEMORY_REGION with size 0: stage 2 is emptied; its wait for SRCU before that stops no vCPU whose "
        "memory is mapped",
        "KVM empties stage 2 (where that is not recorded: the ioctl is called)",
        "the ioctl returns",
        "VMM",
    ),
    "memslot_add": CostName(
        "KVM_SET_USER_MEMORY_REGION that puts the slot back", "the ioctl is called", "it returns", "VMM"
    ),
    "kick": CostName(
        "all vCPUs are forced out of KVM_RUN", "the first vCPU is signalled", "the last one is out", "VMM"
    ),
    "resume": CostName(
        "a vCPU that was stopped runs guest code again", "the VMM releases the vCPUs", "the guest runs", "vCPU"
    ),
    "mmio_exit": CostName(
        "one exit for an access to an address without memslot, handled in userspace and re-entered",
        "the access traps",
        "the guest is past it",
        "vCPU",
    ),
}
"""Cost name -> what it is. Extend it here and nowhere else; `docs/mechanism-language.md` prints it."""

RENAMED: Final = {"trap": "fault_entry", "message": "reader_wakeup"}
"""Former cost name -> the name of today. Files and options may still use the former one."""


class FormerName(UserWarning):
    """A file or an option uses a former name."""


def current_name(name: str, place: str) -> str:
    """The name of today for a cost; warns with `FormerName` where `name` is a former one.

    Args:
        name: of a cost, or anything else, which comes back as it is.
        place: where it stands, for the warning.
    """
    if name not in RENAMED:
        return name
    warnings.warn(f"{place}: the cost '{name}' is now called '{RENAMED[name]}'", FormerName, stacklevel=2)
    return RENAMED[name]


CONTENTION: Final = (
    "lock",
    "lock_contended",
    "wake_cold",
    "herd_per_reader",
    "mm_once",
    "mm_share",
    "mm_serial",
    "mm_serial_contended",
)
"""Costs of contention between threads that fault at the same time. With all of them 0, threads delay each other only by
queueing for a server, a link or a page."""
