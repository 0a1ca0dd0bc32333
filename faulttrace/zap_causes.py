"""Why guest memory is zapped, in words."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ZapCause(IntEnum):
    """Why a mmu notifier zapped guest memory (column `code` of MM_CAUSE). Numbers are part of the format.

    Tracepoints report those up to THP_COLLAPSE; `faulttrace.stitch.zaps` infers the others from the thread's own system
    call or fault.
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
        """The name to show: `thp-collapse`."""
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
