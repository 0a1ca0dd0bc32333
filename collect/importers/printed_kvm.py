"""Fields from printed text of events that only some hosts have or that explain others: arm64's KVM, causes of zaps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from faultreplay.faulttrace.exits import ARM_EXCEPTIONS
from faultreplay.faulttrace.schema import MIGRATE_REASONS

_PAIRS: Final = re.compile(r"(\w+)=(-?0x[0-9a-fA-F]+|-?\d+)\b")
_REASON_ALIASES: Final = {"cma": MIGRATE_REASONS.index("contig_range")}  # its name until Linux 5.14
_COLLAPSED: Final = "succeeded"
# x86 page-fault error code as fast_page_fault prints it
_PFERR: Final = {"P": 1, "W": 2, "U": 4, "RSVD": 8, "F": 16, "PK": 32, "SS": 64, "SGX": 1 << 15}
_ARM: Final = re.compile(r"^(?P<ret>\S+): HSR_EC: 0x(?P<ec>[0-9a-f]+)(?: \(\w+\))?, PC: 0x(?P<pc>[0-9a-f]+)$")
_NOT_HERE: Final = "KVM events of {0}: not supported (of x86 and arm64 they are)"


def arm_exit(text: str) -> dict[str, int] | None:
    """kvm_exit as arm64 prints it; None: another machine's.

    Raises:
        ValueError: it is riscv's.
    """
    if text.startswith("SEPC:"):
        raise ValueError(_NOT_HERE.format("riscv"))
    found = _ARM.match(text)
    if found is None:
        return None
    ret = ARM_EXCEPTIONS.get(found["ret"])
    number = ret if ret is not None else int(found["ret"], 16) if found["ret"].startswith("0x") else -1
    if number < 0:
        return None
    return {"ret": number, "esr_ec": int(found["ec"], 16), "vcpu_pc": int(found["pc"], 16)}


def arm_entry(text: str) -> dict[str, int] | None:
    """kvm_entry as arm64 prints it; None: another machine's."""
    found = re.match(r"^PC: 0x([0-9a-f]+)$", text)
    return {"vcpu_pc": int(found[1], 16)} if found else None


def _guest_fault(text: str) -> dict[str, int]:
    found = _match(r"^ipa (\w+), hsr (\w+), hxfar (\w+), pc (\w+)$", text)
    ipa, hsr, hxfar, pc = (int(word, 16) for word in found.groups())
    return {"ipa": ipa, "hsr": hsr, "hxfar": hxfar, "vcpu_pc": pc}


def _pio(text: str) -> dict[str, int]:
    found = _match(r"^pio_(read|write) at 0x([0-9a-f]+) size (\d+) count (\d+)(?: |$)", text)
    return {
        "rw": int(found[1] == "write"), "port": int(found[2], 16), "size": int(found[3]), "count": int(found[4]),
    }  # fmt: skip


def _fast_mmio(text: str) -> dict[str, int]:
    return {"gpa": int(_match(r"^fast mmio at gpa 0x([0-9a-f]+)$", text)[1], 16)}


def _fast_page_fault(text: str) -> dict[str, int]:
    found = _match(
        r"^vcpu (\d+) gva (?:0x)?([0-9a-f]+) error_code (\S*) ?sptep \S+ old (?:0x)?([0-9a-f]+) new (?:0x)?([0-9a-f]+) "
        r"spurious ([01]) fixed ([01])$",
        text,
    )
    error = 0
    for word in found[3].split("|") if found[3] else ():
        error |= _PFERR[word] if word in _PFERR else int(word, 16)
    old = int(found[4], 16)
    # Another CPU may have changed the entry meanwhile: only what the kernel calls fixed is this fault's work.
    new = int(found[5], 16) if found[7] == "1" else old
    return {
        "vcpu_id": int(found[1]), "cr2_or_gpa": int(found[2], 16), "error_code": error, "old_spte": old,
        "new_spte": new if new != old or found[7] == "0" else old ^ 1, "ret": 0,
    }  # fmt: skip


def _migrated(text: str) -> dict[str, int]:
    word = _match(r"\breason=(\S+)$", text)[1]
    if word in MIGRATE_REASONS:
        return {"reason": MIGRATE_REASONS.index(word)}
    return {"reason": _REASON_ALIASES[word] if word in _REASON_ALIASES else int(word, 0)}


def _migration_entry(text: str) -> dict[str, int]:
    found = _match(r"^addr=(?:0x)?([0-9a-f]+), p[tm][ed]=\w+(?: order=(\d+))?$", text)
    return {"addr": int(found[1], 16), "order": int(found[2] or 0)}


def _merged(text: str) -> dict[str, int]:
    return {"err": int(_match(r"\berror (-?\d+)$", text)[1])}


def _reclaimed(text: str) -> dict[str, int]:
    return {"nr_reclaimed": int(_match(r"\bnr_reclaimed=(\d+)", text)[1])}


def _collapsed(text: str) -> dict[str, int]:
    """`status` 1: done; other words are 0: which of the many reasons it was does not matter here."""
    return {"status": int(_match(r"\bstatus=(\S+)$", text)[1] == _COLLAPSED)}


def _collapsed_file(text: str) -> dict[str, int]:
    found = _match(r"\baddr=(-?\w+), .*\bresult=(\S+)$", text)
    return {"addr": int(found[1], 16), "result": int(found[2] == _COLLAPSED)}


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text.strip())
    if found is None:
        raise ValueError("not in the form in which this event is printed")
    return found


PRINTED: Final[dict[str, Callable[[str], dict[str, int]]]] = {
    "kvm_guest_fault": _guest_fault,
    "kvm_pio": _pio,
    "kvm_fast_mmio": _fast_mmio,
    "fast_page_fault": _fast_page_fault,
    "mm_migrate_pages_start": _migrated,
    "mm_migrate_pages": _migrated,
    "set_migration_pte": _migration_entry,
    "set_migration_pmd": _migration_entry,
    "ksm_merge_one_page": _merged,
    "ksm_merge_with_ksm_page": _merged,
    "mm_vmscan_lru_shrink_inactive": _reclaimed,
    "mm_vmscan_reclaim_pages": _reclaimed,
    "mm_collapse_huge_page": _collapsed,
    "mm_khugepaged_collapse_file": _collapsed_file,
}
"""Event (without category) -> its fields."""
