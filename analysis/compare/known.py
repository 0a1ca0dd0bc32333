"""What an absence means: "nothing faulted" is known only where the events that open a fault were recorded."""

from __future__ import annotations

from typing import Final

from faultreplay.faulttrace.meta import Meta

_OF_GUESTS: Final = (
    "kvm:kvm_exit",
    "kvm:kvm_page_fault",
    "kvm:kvm_guest_fault",
    "kvmmmu:kvm_mmu_pagetable_walk",
    "syscalls:sys_exit_read",
)
_OF_PROCESSES: Final = ("exceptions:page_fault_user", "exceptions:page_fault_kernel", "syscalls:sys_exit_read")


def why_no_faults(meta: Meta) -> str:
    """Why a trace has no fault, as far as its probes show."""
    if meta.origin == "synthetic":
        return "it has none"
    on = {probe.name for probe in meta.probes if probe.status == "attached"}
    if not on & {*_OF_GUESTS, *_OF_PROCESSES}:
        return f"whether anything faulted is not known: no event that opens a fault was recorded ({_OF_GUESTS[0]}, ...)"
    if any(target.role == "vm" for target in meta.targets) and not on & {*_OF_GUESTS}:
        return f"whether the guest faulted is not known: none of {', '.join(_OF_GUESTS)} was recorded"
    return "nothing faulted while it was recorded"
