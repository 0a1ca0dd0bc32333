"""How well a stitch went: every event that could have been joined and was not is counted here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Repeat:
    """One access that faulted again and again before it got past, or never did.

    Attributes:
        vcpu: number of the vCPU, -1: not told.
        tid: its thread.
        ip: guest instruction pointer.
        gpa: guest physical page.
        rounds: how often it faulted.
        spurious: of these, how often KVM found nothing to do.
        start_ns: the first time.
        duration_ns: until it got past, or until its last fault that was seen.
        ended: it got past.
    """

    vcpu: int
    tid: int
    ip: int
    gpa: int
    rounds: int
    spurious: int
    start_ns: int
    duration_ns: int
    ended: bool


@dataclass
class StitchReport:
    """Counts of one stitch."""

    messages: int = 0
    """Page-fault messages read from userfaultfds."""
    messages_other: int = 0
    """Messages of other kinds: fork, remap, remove, unmap."""
    messages_joined: int = 0
    messages_unjoined: dict[str, int] = field(default_factory=dict)
    """By reason."""
    messages_repeated: int = 0
    """Second and later messages of one fault (it was woken with its page still missing); their fault counts once."""
    messages_late: int = 0
    """Read after the page had been placed: delivered while the waiter was returning."""
    messages_without_thread: int = 0
    """With no thread id, or an unrecorded one: the waiter was looked for by page and by who was woken."""
    waiters_without_message: int = 0
    """Faults whose page came before their own message was read (coalesced with another's fault)."""
    wakes_unexplained: int = 0
    """Threads woken inside a placing ioctl that were not seen to fault on its range (lock waiters, readers)."""
    placements: int = 0
    """Ioctls that placed or released pages."""
    placements_unasked: int = 0
    """Of these, the ones no fault waited for: prefetch, push, thaw with nobody waiting."""
    placements_failed: dict[int, int] = field(default_factory=dict)
    """Failed ones by errno (17 EEXIST: the page was there already)."""
    exits: int = 0
    """KVM_RUN returned EFAULT."""
    exits_unjoined: int = 0
    exits_untimed: int = 0
    """Of `exits`, those that only kvm_userspace_exit shows: service and re-entry cannot be distinguished."""
    mmio_of_devices: int = 0
    """MMIO exits at addresses that no memory slot ever held: emulated devices, left out."""
    walks: int = 0
    """Walks of a guest's page table under shadow paging."""
    walks_without_entry: int = 0
    """Of these, the ones after which nothing was mapped: the guest's own page faults, emulation, retries. Meaningless
    where `mappings_told` is false."""
    mappings_told: bool = True
    """New stage-2 or shadow entries were recorded (kvmmmu:kvm_mmu_set_spte), or there was no guest to make one."""
    guest_faults: int = 0
    """Stage-2 faults of hardware KVM, those of emulated devices included."""
    guest_faults_untold: int = 0
    """Of these, exits for a fault whose kvm_page_fault is not in the trace."""
    guest_faults_page_unknown: int = 0
    """Of these, the ones whose address is not known either (VMX, arm64)."""
    guest_faults_of_devices: int = 0
    """Of `guest_faults`, accesses to emulated devices: no memory faults, left out."""
    guest_faults_spurious: int = 0
    """Of `guest_faults`, those in which KVM found nothing to do."""
    guest_faults_unended: dict[str, int] = field(default_factory=dict)
    """Accesses whose end was not recorded, by reason."""
    device_exits: int = 0
    """Guest exits in which a device was emulated, by KVM or the VMM."""
    device_ns: int = 0
    """Time in these, until the guest ran again: in no stall."""
    device_unended: int = 0
    """Of `device_exits`, those whose kvm_entry is not in the trace."""
    repeated: int = 0
    """Accesses that faulted again with nothing mapped between."""
    retries: int = 0
    """Faults of these beyond the first."""
    worst_repeats: list[Repeat] = field(default_factory=list)
    """The ten of these that faulted most often."""
    doubled: int = 0
    """Guest exits, entries and faults that stand twice in the trace: the second is passed over."""
    page_faults: int = 0
    """Page faults of processes."""
    page_faults_unjoined: int = 0
    """Of these, the ones whose end has no event (the per-VMA lock leaves none) and that no userfault explains."""
    faults_by_cause: dict[str, int] = field(default_factory=dict)
    unjoined_by_cause: dict[str, int] = field(default_factory=dict)
    unjoined_shed_by_cause: dict[str, int] = field(default_factory=dict)
    """Of these, the ones explained by a group of probes that was switched off."""
    joins: dict[str, int] = field(default_factory=dict)
    """Faults by the markers their start and end were taken from."""

    @property
    def unjoined(self) -> int:
        """Userspace-resolved faults whose end was not found."""
        return sum(self.messages_unjoined.values()) + self.exits_unjoined
