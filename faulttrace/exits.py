"""Why a guest leaves guest mode: exit reasons of VMX, SVM and arm64 by number and name, and KVM_EXIT_* for userspace.

Numbers and names are those of the kernel's own headers (arch/x86/include/uapi/asm/vmx.h and svm.h,
arch/arm64/include/asm/esr.h, include/uapi/linux/kvm.h).
"""

from __future__ import annotations

import contextlib
from typing import Final

VMX_EXITS: Final[dict[str, int]] = {
    "EXCEPTION_NMI": 0, "EXTERNAL_INTERRUPT": 1, "TRIPLE_FAULT": 2, "INIT_SIGNAL": 3, "SIPI_SIGNAL": 4,
    "INTERRUPT_WINDOW": 7, "NMI_WINDOW": 8, "TASK_SWITCH": 9, "CPUID": 10, "HLT": 12, "INVD": 13, "INVLPG": 14,
    "RDPMC": 15, "RDTSC": 16, "VMCALL": 18, "VMCLEAR": 19, "VMLAUNCH": 20, "VMPTRLD": 21, "VMPTRST": 22, "VMREAD": 23,
    "VMRESUME": 24, "VMWRITE": 25, "VMOFF": 26, "VMON": 27, "CR_ACCESS": 28, "DR_ACCESS": 29, "IO_INSTRUCTION": 30,
    "MSR_READ": 31, "MSR_WRITE": 32, "INVALID_STATE": 33, "MSR_LOAD_FAIL": 34, "MWAIT_INSTRUCTION": 36,
    "MONITOR_TRAP_FLAG": 37, "MONITOR_INSTRUCTION": 39, "PAUSE_INSTRUCTION": 40, "MCE_DURING_VMENTRY": 41,
    "TPR_BELOW_THRESHOLD": 43, "APIC_ACCESS": 44, "EOI_INDUCED": 45, "GDTR_IDTR": 46, "LDTR_TR": 47,
    "EPT_VIOLATION": 48, "EPT_MISCONFIG": 49, "INVEPT": 50, "RDTSCP": 51, "PREEMPTION_TIMER": 52, "INVVPID": 53,
    "WBINVD": 54, "XSETBV": 55, "APIC_WRITE": 56, "RDRAND": 57, "INVPCID": 58, "VMFUNC": 59, "ENCLS": 60,
    "RDSEED": 61, "PML_FULL": 62, "XSAVES": 63, "XRSTORS": 64, "UMWAIT": 67, "TPAUSE": 68, "BUS_LOCK": 74,
    "NOTIFY": 75, "TDCALL": 77, "MSR_READ_IMM": 84, "MSR_WRITE_IMM": 85,
}  # fmt: skip
SVM_EXITS: Final[dict[str, int]] = {
    "read_cr0": 0x0, "read_cr2": 0x2, "read_cr3": 0x3, "read_cr4": 0x4, "read_cr8": 0x8, "write_cr0": 0x10,
    "write_cr2": 0x12, "write_cr3": 0x13, "write_cr4": 0x14, "write_cr8": 0x18,
    **{f"read_dr{n}": 0x20 + n for n in range(8)}, **{f"write_dr{n}": 0x30 + n for n in range(8)},
    "DE excp": 0x40, "DB excp": 0x41, "BP excp": 0x43, "OF excp": 0x44, "BR excp": 0x45, "UD excp": 0x46,
    "NM excp": 0x47, "DF excp": 0x48, "TS excp": 0x4A, "NP excp": 0x4B, "SS excp": 0x4C, "GP excp": 0x4D,
    "PF excp": 0x4E, "MF excp": 0x50, "AC excp": 0x51, "MC excp": 0x52, "XM excp": 0x53,
    "interrupt": 0x60, "nmi": 0x61, "smi": 0x62, "init": 0x63, "vintr": 0x64, "cr0_sel_write": 0x65,
    "read_idtr": 0x66, "read_gdtr": 0x67, "read_ldtr": 0x68, "read_rt": 0x69, "write_idtr": 0x6A, "write_gdtr": 0x6B,
    "write_ldtr": 0x6C, "write_rt": 0x6D, "rdtsc": 0x6E, "rdpmc": 0x6F, "pushf": 0x70, "popf": 0x71, "cpuid": 0x72,
    "rsm": 0x73, "iret": 0x74, "swint": 0x75, "invd": 0x76, "pause": 0x77, "hlt": 0x78, "invlpg": 0x79,
    "invlpga": 0x7A, "io": 0x7B, "msr": 0x7C, "task_switch": 0x7D, "ferr_freeze": 0x7E, "shutdown": 0x7F,
    "vmrun": 0x80, "hypercall": 0x81, "vmload": 0x82, "vmsave": 0x83, "stgi": 0x84, "clgi": 0x85, "skinit": 0x86,
    "rdtscp": 0x87, "icebp": 0x88, "wbinvd": 0x89, "monitor": 0x8A, "mwait": 0x8B, "xsetbv": 0x8D,
    "write_efer_trap": 0x8F, "write_cr0_trap": 0x90, "write_cr4_trap": 0x94, "write_cr8_trap": 0x98, "invpcid": 0xA2,
    "buslock": 0xA5, "idle-halt": 0xA6, "npf": 0x400, "avic_incomplete_ipi": 0x401,
    "avic_unaccelerated_access": 0x402, "vmgexit": 0x403,
}  # fmt: skip
SVM_ALIASES: Final[dict[str, str]] = {
    "INTR": "interrupt", "IOIO": "io", "VMMCALL": "hypercall", "IDTR_READ": "read_idtr", "GDTR_READ": "read_gdtr",
    "LDTR_READ": "read_ldtr", "TR_READ": "read_rt", "IDTR_WRITE": "write_idtr", "GDTR_WRITE": "write_gdtr",
    "LDTR_WRITE": "write_ldtr", "TR_WRITE": "write_rt", "CR0_SEL_WRITE": "cr0_sel_write", "EXCP_PF": "PF excp",
    "PF_EXCP": "PF excp", "EXCP_GP": "GP excp", "EXCP_UD": "UD excp", "EXCP_DB": "DB excp", "EXCP_BP": "BP excp",
    "EXCP_NM": "NM excp", "EXCP_AC": "AC excp", "EXCP_MC": "MC excp", "EXCP_DE": "DE excp", "EXCP_DF": "DF excp",
    **{name: f"{name} excp" for name in ("DE", "DB", "BP", "UD", "NM", "DF", "GP", "PF", "AC", "MC")},
    **{f"READ_CR{n}": f"read_cr{n}" for n in (0, 2, 3, 4, 8)},
    **{f"WRITE_CR{n}": f"write_cr{n}" for n in (0, 2, 3, 4, 8)},
}  # fmt: skip
"""Names that libtraceevent's plugin prints (after ``EXIT_``) -> the kernel's."""

ARM_CLASSES: Final[dict[str, int]] = {
    "UNKNOWN": 0x00, "WFx": 0x01, "CP15_32": 0x03, "CP15_64": 0x04, "CP14_MR": 0x05, "CP14_LS": 0x06,
    "FP_ASIMD": 0x07, "CP10_ID": 0x08, "PAC": 0x09, "CP14_64": 0x0C, "BTI": 0x0D, "ILL": 0x0E, "SVC32": 0x11,
    "HVC32": 0x12, "SMC32": 0x13, "SVC64": 0x15, "HVC64": 0x16, "SMC64": 0x17, "SYS64": 0x18, "SVE": 0x19,
    "ERET": 0x1A, "FPAC": 0x1C, "SME": 0x1D, "IMP_DEF": 0x1F, "IABT_LOW": 0x20, "IABT_CUR": 0x21, "PC_ALIGN": 0x22,
    "DABT_LOW": 0x24, "DABT_CUR": 0x25, "SP_ALIGN": 0x26, "FP_EXC32": 0x28, "FP_EXC64": 0x2C, "SERROR": 0x2F,
    "BREAKPT_LOW": 0x30, "BREAKPT_CUR": 0x31, "SOFTSTP_LOW": 0x32, "SOFTSTP_CUR": 0x33, "WATCHPT_LOW": 0x34,
    "WATCHPT_CUR": 0x35, "BKPT32": 0x38, "VECTOR32": 0x3A, "BRK64": 0x3C,
}  # fmt: skip
"""Exception classes (ESR_EL2.EC)."""
ARM_EXCEPTIONS: Final[dict[str, int]] = {"IRQ": 0, "SERROR": 1, "TRAP": 2, "ILLEGAL": 3, "HYP_GONE": 0xBADCA11}
"""ARM_EXCEPTION_*: why the vCPU left guest mode."""

USERSPACE_EXITS: Final = (
    "UNKNOWN", "EXCEPTION", "IO", "HYPERCALL", "DEBUG", "HLT", "MMIO", "IRQ_WINDOW_OPEN", "SHUTDOWN", "FAIL_ENTRY",
    "INTR", "SET_TPR", "TPR_ACCESS", "S390_SIEIC", "S390_RESET", "DCR", "NMI", "INTERNAL_ERROR", "OSI", "PAPR_HCALL",
    "S390_UCONTROL", "WATCHDOG", "S390_TSCH", "EPR", "SYSTEM_EVENT", "S390_STSI", "IOAPIC_EOI", "HYPERV", "ARM_NISV",
    "X86_RDMSR", "X86_WRMSR", "DIRTY_RING_FULL", "AP_RESET_HOLD", "X86_BUS_LOCK", "XEN", "RISCV_SBI", "RISCV_CSR",
    "NOTIFY", "LOONGARCH_IOCSR", "MEMORY_FAULT", "TDX", "ARM_SEA",
)  # fmt: skip
"""KVM_EXIT_* by number."""
EXIT_MMIO: Final = USERSPACE_EXITS.index("MMIO")
EXIT_MEMORY_FAULT: Final = USERSPACE_EXITS.index("MEMORY_FAULT")

EPT_VIOLATION: Final = VMX_EXITS["EPT_VIOLATION"]
NPF: Final = SVM_EXITS["npf"]
UNNAMED_EXIT: Final = 0xFFFFFFFF
"""A reason whose name is in no table."""

_SVM_BY_NAME: Final = {name.upper(): number for name, number in SVM_EXITS.items()} | {
    alias: SVM_EXITS[name] for alias, name in SVM_ALIASES.items()
}
_NAMES: Final[dict[str, dict[int, str]]] = {
    "vmx": {number: name for name, number in VMX_EXITS.items()},
    "svm": {number: name for name, number in SVM_EXITS.items()},
    "arm64": {number: name for name, number in ARM_CLASSES.items()},
}
_ARM_TRAP: Final = ARM_EXCEPTIONS["TRAP"]


def exit_number(name: str) -> int:
    """The number of an exit reason as a kernel or libtraceevent's plugin prints it; `UNNAMED_EXIT` if it is unknown.

    CPUID, HLT and some others exist on both: VMX's are printed in capitals, SVM's in lower case or after ``EXIT_``.
    A hexadecimal number is returned unchanged.
    """
    if name.lower().startswith("0x"):
        with contextlib.suppress(ValueError):
            return int(name, 16)
    bare = name.removeprefix("EXIT_")
    if bare == name and bare in VMX_EXITS:
        return VMX_EXITS[bare]
    number = _SVM_BY_NAME.get(bare.upper(), VMX_EXITS.get(bare.upper(), UNNAMED_EXIT))
    return number


def exit_name(flavour: str, reason: int, exception: int = _ARM_TRAP) -> str:
    """The name to show: `EPT_VIOLATION`, `npf`, `DABT_LOW`; a number if the flavour or the reason is unknown.

    Args:
        flavour: `Host.kvm_flavour`.
        reason: `code` of a KVM_EXIT event.
        exception: its `addr` on arm64.
    """
    if flavour == "arm64" and exception != _ARM_TRAP:
        return next((word for word, number in ARM_EXCEPTIONS.items() if number == exception), f"exception {exception}")
    # VMX sets bit 31 where the entry itself failed.
    name = _NAMES.get(flavour, {}).get(reason & 0xFFFF if flavour == "vmx" else reason)
    if reason == UNNAMED_EXIT:
        return "(another)"
    return name if name is not None else f"reason {reason:#x}"


def userspace_reason(code: int) -> str:
    """The name of an exit to userspace: 6 is ``KVM_EXIT_MMIO``."""
    return f"KVM_EXIT_{USERSPACE_EXITS[code]}" if 0 <= code < len(USERSPACE_EXITS) else f"exit reason {code}"
