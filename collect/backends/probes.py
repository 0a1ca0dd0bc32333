"""The one table of probes: which tracepoint gives which kind of event, and which field fills which column.

Both backends are generated from it. A column's expression is written in the common subset of C and bpftrace
(`args->field`, integer operators). A probe without expressions needs state or user memory: its body is written by
hand in `collect/bpf/*.c` and, for bpftrace, in `collect/backends/bpftrace_program.py`; `fields` says what it reads.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import Kind

GROUPS: Final = {
    "faults": "userfaultfd messages and ioctls, page faults, ends of fault retries",
    "kvm": "KVM ioctls, exits, entries, stage-2 and shadow faults, memslots, zaps and their causes",
    "sched": "the targets' threads on and off the CPU, and who wakes them",
    "mm": "mmap, munmap, madvise, fallocate, mremap and mprotect of the targets",
    "locks": "lock contention (many events: only on request)",
}
DEFAULT_GROUPS: Final = ("faults", "kvm", "sched", "mm")
BASE: Final = "base"
"""Group of the probes that follow targets: always on, never dropped."""


@dataclass(frozen=True)
class Probe:
    """One tracepoint.

    Attributes:
        tracepoint: ``category:name``.
        groups: on when any of these is asked for.
        kinds: kinds of event it gives; none for a probe that only keeps state.
        columns: event column -> expression over the tracepoint's fields; empty for a hand-written body.
        fields: fields a hand-written body reads.
        by_hand: the body is written by hand.
        arm64: the columns where the tracepoint has arm64's fields, which share a name with x86's and nothing else.
        in_fault: "only" while the thread is in a page fault, as far as is seen, "or in KVM_RUN"; empty: at any time.
        machines: only on these (`platform.machine()`); everywhere when empty.
    """

    tracepoint: str
    groups: tuple[str, ...]
    kinds: tuple[Kind, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    by_hand: bool = False
    in_fault: str = ""
    arm64: dict[str, str] = field(default_factory=dict)
    machines: tuple[str, ...] = ()

    @property
    def ident(self) -> str:
        """The tracepoint as a C identifier."""
        return self.tracepoint.replace(":", "__")

    @property
    def reads(self) -> tuple[str, ...]:
        """All fields of the tracepoint that the probe reads (of x86's where arm64 has others)."""
        return self._reads(self.columns)

    @property
    def reads_anywhere(self) -> tuple[str, ...]:
        """The fields that it reads on some machine."""
        return tuple(dict.fromkeys((*self.reads, *self._reads(self.arm64))))

    def reads_of(self, fields: Container[str]) -> tuple[str, ...]:
        """What it reads of a tracepoint that has these `fields`: x86's columns, or arm64's where those fit instead."""
        others = [name for name in self._reads(self.arm64) if name in fields]
        return self._reads(self.arm64 if others and not any(name in fields for name in self.reads) else self.columns)

    def filled(self, fields: Container[str]) -> dict[str, str]:
        """The columns that a tracepoint with these `fields` can fill, with their expressions."""
        wanted = self.columns if self.reads_of(fields) == self.reads else self.arm64
        return {c: text for c, text in wanted.items() if all(name in fields for name in fields_of(text))}

    def _reads(self, columns: dict[str, str]) -> tuple[str, ...]:
        found = dict.fromkeys(self.fields)
        for expression in columns.values():
            found |= dict.fromkeys(fields_of(expression))
        return tuple(found)


def fields_of(expression: str) -> tuple[str, ...]:
    """The fields of the tracepoint that an expression reads."""
    return tuple(re.findall(r"args->(\w+)", expression))


def _by_hand(tracepoint: str, groups: str, kinds: Iterable[Kind], *fields: str) -> Probe:
    return Probe(tracepoint, tuple(groups.split()), tuple(kinds), fields=fields, by_hand=True)


def _plain(tracepoint: str, group: str, kind: Kind, **columns: str) -> Probe:
    return Probe(tracepoint, (group,), (kind,), columns)


_UFFD_IOCTL_KINDS = tuple(kind for kind in Kind if Kind.UFFD_COPY <= kind <= Kind.UFFD_API)
_KVM_IOCTL_KINDS = tuple(kind for kind in Kind if Kind.KVM_RUN_ENTER <= kind <= Kind.KVM_RESET_DIRTY_RINGS)

PROBES: Final[tuple[Probe, ...]] = (
    # following the targets
    _by_hand("task:task_newtask", BASE, [Kind.THREAD_NEW], "pid", "clone_flags"),
    _by_hand("sched:sched_process_exit", BASE, [Kind.THREAD_EXIT], "pid"),
    _by_hand("sched:sched_process_exec", BASE, [Kind.PROCESS_EXEC], "pid", "old_pid"),
    # userfaultfd: which file descriptors, what was read from them, what was done to them
    _by_hand("syscalls:sys_exit_userfaultfd", "faults", [], "ret"),
    _by_hand("syscalls:sys_enter_close", "faults kvm", [], "fd"),
    _by_hand("syscalls:sys_enter_read", "faults", [], "fd", "buf", "count"),
    _by_hand("syscalls:sys_exit_read", "faults", [Kind.UFFD_MSG], "ret"),
    _by_hand("syscalls:sys_enter_ioctl", "faults kvm", [Kind.KVM_RUN_ENTER], "fd", "cmd", "arg"),
    _by_hand("syscalls:sys_exit_ioctl", "faults kvm", _UFFD_IOCTL_KINDS + _KVM_IOCTL_KINDS[1:], "ret"),
    # faults of processes; x86 only, a guest's accesses never raise them
    _by_hand("exceptions:page_fault_user", "faults", [Kind.PAGE_FAULT_USER], "address", "ip", "error_code"),
    _by_hand("exceptions:page_fault_kernel", "faults", [Kind.PAGE_FAULT_KERNEL], "address", "ip", "error_code"),
    _by_hand("mmap_lock:mmap_lock_released", "faults", [Kind.MMAP_LOCK_RELEASED], "write"),
    # sharpens the above where the kernel has kprobes; nothing depends on it
    _by_hand("kprobe:handle_userfault", "faults", [Kind.HANDLE_USERFAULT], "address", "flags"),
    # a file's pages: found in the page cache, or read
    _plain(
        "filemap:mm_filemap_fault",
        "faults",
        Kind.FILE_FAULT,
        addr="args->index << 12",
        code="args->i_ino",
        value="args->s_dev",
    ),
    _plain(
        "filemap:mm_filemap_map_pages",
        "faults",
        Kind.FILE_MAP,
        addr="args->index << 12",
        size="(args->last_index - args->index + 1) << 12",
        code="args->i_ino",
        value="args->s_dev",
    ),
    Probe(
        "filemap:mm_filemap_add_to_page_cache",
        ("faults",),
        (Kind.FILE_ADD,),
        {"addr": "args->index << 12", "size": "4096 << args->order", "code": "args->i_ino", "value": "args->s_dev"},
        in_fault="or in KVM_RUN",  # reading and writing files makes many more
    ),
    Probe(
        "kmem:rss_stat",
        ("faults",),
        (Kind.RSS_STAT,),
        {"code": "args->member", "size": "args->curr", "value": "args->size"},
        in_fault="only",
    ),
    # scheduling
    _by_hand(
        "sched:sched_switch", "sched faults", [Kind.SCHED_OUT, Kind.SCHED_IN], "prev_pid", "prev_state", "next_pid"
    ),
    _by_hand("sched:sched_waking", "sched", [Kind.SCHED_WAKING], "pid"),
    # KVM
    Probe(
        "kvm:kvm_exit",
        ("kvm",),
        (Kind.KVM_EXIT,),
        {"code": "args->exit_reason", "ip": "args->guest_rip", "addr": "args->info1", "size": "args->info2"},
        arm64={"code": "args->esr_ec", "ip": "args->vcpu_pc", "addr": "args->ret"},
    ),
    Probe("kvm:kvm_entry", ("kvm",), (Kind.KVM_ENTRY,), {"ip": "args->rip"}, arm64={"ip": "args->vcpu_pc"}),
    _plain(
        "kvm:kvm_page_fault",
        "kvm",
        Kind.KVM_PAGE_FAULT,
        addr="args->fault_address",
        ip="args->guest_rip",
        code="args->error_code",
    ),
    Probe(
        "kvm:kvm_guest_fault",
        ("kvm",),
        (Kind.KVM_GUEST_FAULT,),
        {"addr": "args->ipa", "ip": "args->vcpu_pc", "code": "args->hsr", "size": "args->hxfar"},
        machines=("aarch64",),
    ),
    _plain("kvm:kvm_userspace_exit", "kvm", Kind.KVM_USERSPACE_EXIT, code="args->reason", value="args->errno"),
    _plain("kvm:kvm_mmio", "kvm", Kind.KVM_MMIO, addr="args->gpa", size="args->len", code="args->type"),
    _plain(
        "kvm:kvm_pio",
        "kvm",
        Kind.KVM_PIO,
        addr="args->port",
        size="args->size",
        code="args->rw",
        value="args->count",
    ),
    _plain("kvm:kvm_fast_mmio", "kvm", Kind.KVM_FAST_MMIO, addr="args->gpa"),
    _plain("kvmmmu:kvm_mmu_pagetable_walk", "kvm", Kind.KVM_MMU_WALK, addr="args->addr", code="args->pferr"),
    _plain(
        "kvmmmu:kvm_mmu_set_spte",
        "kvm",
        Kind.KVM_MMU_SET_SPTE,
        addr="args->gfn << 12",
        code="args->r | (args->spte & 2) | (args->x << 2)",
        size="args->level",
        ip="args->spte",
    ),
    _plain(
        "kvmmmu:fast_page_fault",
        "kvm",
        Kind.KVM_MMU_FAST_PAGE_FAULT,
        addr="args->cr2_or_gpa",
        code="args->error_code",
        value="args->ret",
        size="1 + (args->old_spte != args->new_spte)",
    ),
    _plain("kvmmmu:kvm_mmu_zap_all_fast", "kvm", Kind.KVM_MMU_ZAP_ALL),
    _plain("kvm:kvm_async_pf_not_present", "kvm", Kind.KVM_ASYNC_PF_NOT_PRESENT, addr="args->gva", code="args->token"),
    _plain("kvm:kvm_async_pf_ready", "kvm", Kind.KVM_ASYNC_PF_READY, addr="args->gva", code="args->token"),
    _by_hand("kvm:kvm_try_async_get_page", "kvm", [], "gva"),
    _by_hand("kvm:kvm_async_pf_completed", "kvm", [Kind.KVM_ASYNC_PF_COMPLETED], "gva", "address"),
    _plain("kvm:kvm_dirty_ring_push", "kvm", Kind.KVM_DIRTY_RING_PUSH, addr="args->offset", code="args->slot"),
    _plain("kvm:kvm_dirty_ring_exit", "kvm", Kind.KVM_DIRTY_RING_EXIT),
    _plain("kvm:kvm_pml_full", "kvm", Kind.KVM_PML_FULL),
    # zaps of guest memory by whatever thread; and why: each of these fires in the thread that has just zapped
    _by_hand("kvm:kvm_unmap_hva_range", "kvm", [Kind.KVM_UNMAP_HVA_RANGE], "start", "end"),
    _by_hand("migrate:mm_migrate_pages_start", "kvm", [], "reason"),
    _by_hand("migrate:mm_migrate_pages", "kvm", [Kind.MM_CAUSE], "reason"),
    _by_hand("migrate:set_migration_pte", "kvm", [Kind.MM_CAUSE], "addr", "order"),
    _by_hand("thp:set_migration_pmd", "kvm", [Kind.MM_CAUSE], "addr"),
    _by_hand("ksm:ksm_merge_one_page", "kvm", [Kind.MM_CAUSE], "err"),
    _by_hand("ksm:ksm_merge_with_ksm_page", "kvm", [Kind.MM_CAUSE], "err"),
    _by_hand("vmscan:mm_vmscan_lru_shrink_inactive", "kvm", [Kind.MM_CAUSE], "nr_reclaimed"),
    _by_hand("vmscan:mm_vmscan_reclaim_pages", "kvm", [Kind.MM_CAUSE], "nr_reclaimed"),
    _by_hand("huge_memory:mm_collapse_huge_page", "kvm", [Kind.MM_CAUSE], "status"),
    _by_hand("huge_memory:mm_khugepaged_collapse_file", "kvm", [Kind.MM_CAUSE], "addr", "result"),
    # address space of the targets
    _by_hand("syscalls:sys_enter_mmap", "mm", [], "addr", "len", "prot", "flags", "fd"),
    _by_hand("syscalls:sys_exit_mmap", "mm", [Kind.MMAP], "ret"),
    _by_hand("syscalls:sys_enter_munmap", "mm", [], "addr", "len"),
    _by_hand("syscalls:sys_exit_munmap", "mm", [Kind.MUNMAP], "ret"),
    _by_hand("syscalls:sys_enter_madvise", "mm", [], "start", "len_in", "behavior"),
    _by_hand("syscalls:sys_exit_madvise", "mm", [Kind.MADVISE], "ret"),
    _by_hand("syscalls:sys_enter_fallocate", "mm", [], "fd", "mode", "offset", "len"),
    _by_hand("syscalls:sys_exit_fallocate", "mm", [Kind.FALLOCATE], "ret"),
    _by_hand("syscalls:sys_enter_mremap", "mm", [], "addr", "new_len"),
    _by_hand("syscalls:sys_exit_mremap", "mm", [Kind.MREMAP], "ret"),
    _by_hand("syscalls:sys_enter_mprotect", "mm", [], "start", "len", "prot"),
    _by_hand("syscalls:sys_exit_mprotect", "mm", [Kind.MPROTECT], "ret"),
    # locks
    _plain("lock:contention_begin", "locks", Kind.LOCK_CONTENTION_BEGIN, addr="args->lock_addr", code="args->flags"),
    _plain("lock:contention_end", "locks", Kind.LOCK_CONTENTION_END, addr="args->lock_addr", value="args->ret"),
)

assert len(PROBES) <= 64, "the kernel side counts losses in an array of 64"


def select(groups: Iterable[str], machine: str = "") -> tuple[Probe, ...]:
    """The probes of `groups` and those always on that `machine` (default: this one) can have, in table order.

    Raises:
        UsageError: a group that does not exist.
    """
    wanted = set(groups)
    unknown = sorted(wanted - set(GROUPS))
    if unknown:
        raise UsageError(f"no probe group '{unknown[0]}': choose from {', '.join(GROUPS)}")
    here = on_machine(machine)
    return tuple(p for p in here if BASE in p.groups or wanted & set(p.groups))


def on_machine(machine: str = "") -> tuple[Probe, ...]:
    """The probes that a kernel of `machine` (default: this one) can have."""
    machine = machine or platform.machine()
    return tuple(p for p in PROBES if not p.machines or machine in p.machines)


def group_of_kind(kind: Kind) -> str:
    """The group with which events of `kind` are dropped."""
    if kind.name.startswith("KVM_"):
        return "kvm"
    return next((p.groups[0] for p in PROBES if kind in p.kinds), BASE)
