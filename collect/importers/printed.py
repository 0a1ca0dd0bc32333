"""Fields from the text that the kernel's print formats (and libtraceevent's plugins) make of an event.

perf script and trace-cmd report share them. A number that stands for a name (exit reasons, task states) is turned
back into the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from faultreplay.collect.importers.printed_kvm import PRINTED, arm_entry, arm_exit
from faultreplay.collect.importers.raw import number
from faultreplay.faulttrace.exits import exit_number

_PAIRS = re.compile(r"(\w+)(?:=|: )(-?0x[0-9a-fA-F]+|-?\d+)\b")
_RAW = re.compile(r"^\s*(?:\[FAILED TO PARSE\]\s*)?\w+=")
_SPTE_HEX = re.compile(r"^\s*gfn=[0-9a-f]+ spte=([0-9a-f]+) sptep=([0-9a-f]+) ")
_FAST_HEX = re.compile(
    r"^\s*vcpu_id=\d+ (cr2_or_gpa)=([0-9a-f]+) .*\bold_spte=0x[0-9a-f]+ (new_spte)=(?:0x)?([0-9a-f]+)"
)
_HEX_PAIRS = re.compile(r"(\w+)=([0-9a-f]+)\b")
_PRINTED_AS_PAIRS: Final = (
    "sched_switch", "page_fault_user", "page_fault_kernel", "task_newtask", "mmap_lock_released", *PRINTED,
)  # fmt: skip
_STATES: Final = {"R": 0, "S": 1, "D": 2, "T": 4, "t": 8, "X": 16, "Z": 32, "P": 64, "I": 128, "K": 2, "W": 2}
_MMIO: Final = {"unsatisfied-read": 0, "read": 1, "write": 2}


def parse_fields(name: str, text: str) -> dict[str, int]:
    """Fields of event `name` (without category) from its printed text.

    Raises:
        ValueError: the text does not have the form this event is printed in.
    """
    raw = _raw_form(text)
    if raw is not None and name not in _PRINTED_AS_PAIRS:
        return raw
    if special := _SPECIAL.get(name):
        try:
            return special(text)
        except ValueError:
            if raw is None:
                raise
            return raw
    if name.startswith("sys_exit_"):
        return {"ret": _return_value(text)}
    return {key: number(value) for key, value in _PAIRS.findall(text)}


def _raw_form(text: str) -> dict[str, int] | None:
    """Fields of ``field=number ...``: trace-cmd report -R, or what libtraceevent prints of a format it cannot parse."""
    if not _RAW.match(text):
        return None
    if (spte := _SPTE_HEX.match(text)) and not _is_decimal(*spte.groups()):
        fields = {key: int(value, 16) for key, value in _HEX_PAIRS.findall(text)}
    else:
        fields = {key: number(value) for key, value in _PAIRS.findall(text)}
    if fast := _FAST_HEX.match(text):
        fields |= {fast[1]: int(fast[2], 16), fast[3]: int(fast[4], 16)}
    if "isa" in fields:  # 1: VMX, 2: SVM; the reason is the number already
        fields.pop("isa")
    if "ret" in fields:
        fields["ret"] = _signed(fields["ret"])
    return fields


def _is_decimal(spte: str, sptep: str) -> bool:
    """Whether an entry and its address are printed in decimal: one that is present, at a multiple of 8.

    libtraceevent 1.7 prints them as the kernel's format says, hexadecimal without 0x; older ones in decimal.
    """
    return spte.isdecimal() and sptep.isdecimal() and int(spte) % 2 == 1 and int(sptep) % 8 == 0


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError("not in the form in which this event is printed")
    return found


def _return_value(text: str) -> int:
    found = _match(r"^\s*(?:ret=)?(-?0x[0-9a-fA-F]+|-?\d+)", text)
    return _signed(number(found[1]))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _kvm_exit(text: str) -> dict[str, int]:
    if (arm := arm_exit(text)) is not None:
        return arm
    found = _match(r"reason (\S+)(?: .*)? rip (0x[0-9a-f]+)(?= |$)", text)
    fields = {"exit_reason": exit_number(found[1]), "guest_rip": number(found[2])}
    if "info" not in text:
        return fields | _vcpu(text)  # before Linux 3.1
    info = re.search(r" info1? (?:0x)?([0-9a-f]+)(?: info2)? (?:0x)?([0-9a-f]+)(?: |$)", text)
    if info is None or ("info2" in text and len(info[1]) == 16 > len(info[2])):
        raise ValueError("cut, or not in the form in which this event is printed")
    return fields | {"info1": int(info[1], 16), "info2": int(info[2], 16)} | _vcpu(text)


def _kvm_entry(text: str) -> dict[str, int]:
    if (arm := arm_entry(text)) is not None:
        return arm
    found = _match(r"^(?:vcpu \d+)?,?\s*(?:rip (0x[0-9a-f]+))?(?: .*)?$", text)
    if not text.strip():
        raise ValueError("not in the form in which this event is printed")
    return ({"rip": number(found[1])} if found[1] else {}) | _vcpu(text)


def _kvm_page_fault(text: str) -> dict[str, int]:
    found = _match(r"(?:rip (0x[0-9a-f]+) )?address (?:0x)?([0-9a-f]+) error_code (?:0x)?([0-9a-f]+)", text)
    fields = {"fault_address": int(found[2], 16), "error_code": int(found[3], 16)}
    if found[1]:
        fields["guest_rip"] = number(found[1])
    return fields | _vcpu(text)


def _kvm_userspace_exit(text: str) -> dict[str, int]:
    found = _match(r"reason (\S+)(?: \((-?\d+)\))?", text)
    if found[1] == "restart":
        return {"reason": 0, "errno": -4}  # EINTR
    if found[1] == "error":
        return {"reason": 0, "errno": -abs(int(found[2] or 0))}
    return {"reason": int(found[2] or 0), "errno": 0}


def _kvm_mmio(text: str) -> dict[str, int]:
    found = _match(r"mmio (\S+) len (\d+) gpa (0x[0-9a-f]+)", text)
    return {"type": _MMIO.get(found[1], 0), "len": int(found[2]), "gpa": number(found[3])}


def _walk(text: str) -> dict[str, int]:
    found = _match(r"addr ([0-9a-f]+) pferr ([0-9a-f]+)", text)
    return {"addr": int(found[1], 16), "pferr": int(found[2], 16)}


def _set_spte(text: str) -> dict[str, int]:
    found = _match(r"gfn (?:0x)?([0-9a-f]+) spte (?:0x)?([0-9a-f]+) \((\S*)\) level (\d+)", text)
    return {
        "gfn": int(found[1], 16), "spte": int(found[2], 16), "r": int("r" in found[3]), "x": int("x" in found[3]),
        "level": int(found[4]),
    }  # fmt: skip


def _unmap(text: str) -> dict[str, int]:
    found = _match(r"range: (0x[0-9a-f]+) -- (0x[0-9a-f]+)", text)
    return {"start": number(found[1]), "end": number(found[2])}


def _async_fault(text: str) -> dict[str, int]:
    found = _match(r"token (\S+) gva (\S+)", text)
    return {"token": number(found[1]), "gva": number(found[2])}


def _async_completed(text: str) -> dict[str, int]:
    found = _match(r"gva (\S+) address (\S+)", text)
    return {"gva": number(found[1]), "address": number(found[2])}


def _async_try(text: str) -> dict[str, int]:
    return {"gva": number(_match(r"gva = ([^,\s]+)", text)[1])}


def _ring_push(text: str) -> dict[str, int]:
    found = _match(r"slot (\d+) offset (\S+)", text)
    return {"slot": int(found[1]), "offset": number(found[2])}


def _vcpu(text: str) -> dict[str, int]:
    found = re.search(r"vcpu (\d+)", text)
    return {"vcpu_id": int(found[1])} if found else {}


def task_state(letters: str) -> int:
    """`prev_state` of sched_switch from its letters."""
    bits = 0
    for letter in letters.replace("+", "").split("|"):
        bits |= _STATES.get(letter, 0)
    return bits


def _sched_switch(text: str) -> dict[str, int]:
    found = re.search(r".* prev_pid=(\d+) .*prev_state=(\S+) ==> .*next_pid=(\d+)", text)
    if not found:  # as libtraceevent's plugin prints it
        found = _match(r":(\d+) \[-?\d+\] (\S+) ==> .*:(\d+) \[-?\d+\]", text)
    state = int(found[2], 0) if found[2].isdigit() or found[2].startswith("0x") else task_state(found[2])
    return {"prev_pid": int(found[1]), "prev_state": state, "next_pid": int(found[3])}


def _sched_waking(text: str) -> dict[str, int]:
    found = re.search(r"^(?:.* )?pid=(\d+)", text) or _match(r":(\d+) \[-?\d+\]", text)
    return {"pid": int(found[1])}


def _newtask(text: str) -> dict[str, int]:
    found = _match(r"pid=(\d+) .*clone_flags=(?:0x)?([0-9a-f]+)", text)
    return {"pid": int(found[1]), "clone_flags": int(found[2], 16)}


def _page_fault(text: str) -> dict[str, int]:
    found = _match(r"address=(\S+) ip=(\S+) error_code=(0x[0-9a-f]+)", text)
    fields = {"error_code": number(found[3])}
    for key, word in (("address", found[1]), ("ip", found[2])):  # a kernel address may be printed as a symbol
        if re.fullmatch(r"0x[0-9a-f]+", word):
            fields[key] = number(word)
    if "address" not in fields:
        raise ValueError("the faulting address is no number")
    return fields


def _released(text: str) -> dict[str, int]:
    found = _match(r"write=(true|false|[01])", text)
    return {"write": int(found[1] in ("true", "1"))}


_SPECIAL: Final[dict[str, Callable[[str], dict[str, int]]]] = {
    "kvm_exit": _kvm_exit,
    "kvm_entry": _kvm_entry,
    "kvm_page_fault": _kvm_page_fault,
    "kvm_userspace_exit": _kvm_userspace_exit,
    "kvm_mmio": _kvm_mmio,
    "kvm_mmu_pagetable_walk": _walk,
    "kvm_mmu_set_spte": _set_spte,
    "kvm_unmap_hva_range": _unmap,
    "kvm_async_pf_not_present": _async_fault,
    "kvm_async_pf_ready": _async_fault,
    "kvm_async_pf_completed": _async_completed,
    "kvm_try_async_get_page": _async_try,
    "kvm_dirty_ring_push": _ring_push,
    "kvm_dirty_ring_exit": _vcpu,
    "kvm_pml_full": _vcpu,
    "sched_switch": _sched_switch,
    "sched_waking": _sched_waking,
    "task_newtask": _newtask,
    "page_fault_user": _page_fault,
    "page_fault_kernel": _page_fault,
    "mmap_lock_released": _released,
    **PRINTED,
}
