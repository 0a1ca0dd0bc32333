"""The words under which a replay accounts for the time that accessors stall: the keys of `Result.stage_ns`."""

from __future__ import annotations

from typing import Final

TIME_WORDS: Final[dict[str, str]] = {
    "entry": "the fault is taken and reported to whoever serves it",
    "queue": "waiting: for a server, a link, a lock, a host CPU, or another fault that brings the same page",
    "fetch": "the content arrives",
    "resolve": "the page is placed, mapped or made writable",
    "contend": "locks held, other sleepers and readers walked over, and the slow-down by others in a fault",
    "wake": "the accessor is woken and gets back to where it was",
    "other": "recorded stalls that are kept, accesses that a window blocks, and costs without a name",
}
"""word -> what is counted under it"""

WORD_OF_COST: Final[dict[str, str]] = {
    "fault_entry": "entry",
    "exit_userspace": "entry",
    "sigbus": "entry",
    "reader_wakeup": "entry",
    "notify_ipc": "entry",
    "apf_inject": "entry",
    "mmio_exit": "entry",
    "preempt": "queue",
    "fetch": "fetch",
    "swap_in": "fetch",
    "storage_read": "fetch",
    "major_fault": "fetch",
    "source_read": "fetch",
    "copy_on_write": "resolve",
    "map_around": "resolve",
    "unshare": "resolve",
    "copy_per_page": "resolve",
    "resolve": "resolve",
    "resolve_continue": "resolve",
    "resolve_per_page": "resolve",
    "handler_loop": "resolve",
    "stage2_fault": "resolve",
    "host_fault_read": "resolve",
    "host_fault": "resolve",
    "host_fault_minor": "resolve",
    "memfd_extra": "resolve",
    "mark_present": "resolve",
    "protect_fixed": "resolve",
    "protect_per_page": "resolve",
    "unprotect_fixed": "resolve",
    "unprotect_per_page": "resolve",
    "memslot_delete": "resolve",
    "memslot_add": "resolve",
    "lock": "contend",
    "lock_contended": "contend",
    "mm_once": "contend",
    "mm_share": "contend",
    "mm_serial": "contend",
    "mm_serial_contended": "contend",
    "wake_cold": "contend",
    "wake_per_waiter": "contend",
    "herd_per_reader": "contend",
    "wake": "wake",
    "enter_guest": "wake",
    "reenter": "wake",
    "resume": "wake",
    "apf_ready": "wake",
    "kick": "other",
}
"""cost name (`names.COST_NAMES`) -> word, for costs paid before the accessor's wake"""


def word_of(operand: object, default: str = "other") -> str:
    """The word of a cost operand; `default`: of a duration or parameter, which has no name."""
    return WORD_OF_COST.get(operand, default) if isinstance(operand, str) else default
