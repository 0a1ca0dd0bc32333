"""Stage-2 faults of hardware KVM as the events tell them: who, where, what kind of access."""

from __future__ import annotations

import numpy as np

from faultreplay.faulttrace.exits import ARM_CLASSES, ARM_EXCEPTIONS, EPT_VIOLATION, NPF
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.stitch.columns import Rows
from faultreplay.faulttrace.stitch.keys import I64, NEVER, U64, Bools, Index, take

_PF_WRITE, _PF_INSTR = 2, 16  # x86 page-fault error code
_EPT_FETCH, _EPT_LINEAR = 4, 0x80  # exit qualification of an EPT violation
_ARM_WRITE, _ARM_WALK = 1 << 6, 1 << 7  # ESR_EL2.ISS of a data abort: WnR, S1PTW
_ARM_STATUS, _ARM_PERMISSION = 0x3C, 0x0C  # DFSC without its level
_READ, _WRITE, _EXEC = 0, 1, 2


def access_of(error_code: U64) -> I64:
    """0 read, 1 write, 2 execute, from an x86 page-fault error code."""
    error = error_code.astype(np.int64)
    return np.where(error & _PF_WRITE != 0, _WRITE, np.where(error & _PF_INSTR != 0, _EXEC, _READ))


def access_of_violation(qualification: U64) -> I64:
    """The same from the exit qualification of an EPT violation, which VMX puts into kvm_page_fault."""
    told = qualification.astype(np.int64)
    return np.where(told & _PF_WRITE != 0, _WRITE, np.where(told & _EPT_FETCH != 0, _EXEC, _READ))


def access_of_abort(esr: U64) -> I64:
    """The same from arm64's ESR_EL2, as kvm_is_write_fault() reads it.

    The walk of the guest's own page table (S1PTW) writes only where it lacks a permission: it reads otherwise.
    """
    told = esr.astype(np.int64)
    wrote = np.where(told & _ARM_WALK != 0, told & _ARM_STATUS == _ARM_PERMISSION, told & _ARM_WRITE != 0)
    instruction = told >> 26 & 0x3F == ARM_CLASSES["IABT_LOW"]
    walks = told & _ARM_WALK != 0
    data = np.where(wrote, _WRITE, _READ)
    return np.where(instruction & ~walks, _EXEC, data)


class Stage2:
    """Every stage-2 fault, in order: those an event of their own tells, and exits for one whose event is missing.

    Attributes:
        thread, pos, ts_ns: who, place in the trace, when (of its own event, else of the exit).
        gpa: guest physical address; 0 where `known` is not set.
        access: 0 read, 1 write, 2 execute.
        ip: guest instruction pointer, 0: not told.
        told: it has an event of its own (kvm_page_fault, kvm_guest_fault).
    """

    def __init__(self, rows: Rows, exits: Rows, flavour: str) -> None:
        untold = _untold(exits, rows, flavour)
        svm = exits.code[untold] == np.uint64(NPF)
        # SVM: info1 is the error code, info2 the address; VMX: info1 is the exit qualification, no address.
        told_access = np.where(
            rows.kind == Kind.KVM_GUEST_FAULT,
            access_of_abort(rows.code),
            np.where(_is_violation(rows.code, flavour), access_of_violation(rows.code), access_of(rows.code)),
        )
        arm = flavour == "arm64"
        untold_access = np.where(svm, access_of(exits.addr[untold]), access_of_violation(exits.addr[untold]))
        fetch = exits.code[untold] == np.uint64(ARM_CLASSES["IABT_LOW"])
        untold_access = np.where(fetch, _EXEC, _READ) if arm else untold_access
        pos = np.concatenate([rows.pos, exits.pos[untold]])
        order = np.argsort(pos, kind="stable")
        self.pos: I64 = pos[order]
        self.thread: I64 = np.concatenate([rows.thread, exits.thread[untold]])[order]
        self.ts_ns: I64 = np.concatenate([rows.ts_ns, exits.ts_ns[untold]])[order]
        self.gpa: U64 = np.concatenate([rows.addr, np.where(svm, exits.size[untold], 0).astype(np.uint64)])[order]
        self.known: Bools = np.concatenate([np.ones(len(rows), bool), svm & (exits.size[untold] != 0)])[order]
        self.access: I64 = np.concatenate([told_access, untold_access])[order]
        self.ip: U64 = np.concatenate([rows.ip, exits.ip[untold]])[order]
        self.told: Bools = np.concatenate([np.ones(len(rows), bool), np.zeros(len(untold), bool)])[order]

    def __len__(self) -> int:
        return len(self.pos)


def _is_violation(code: U64, flavour: str) -> Bools:
    """Whether the code of kvm_page_fault is an exit qualification.

    Where nothing tells VMX from SVM: an EPT violation with a linear address sets bit 7, which no error code has; an
    error code of SVM says in bits 32 and 33 what it was for.
    """
    if flavour in ("vmx", "svm"):
        return np.full(len(code), flavour == "vmx")
    found: Bools = (code & np.uint64(_EPT_LINEAR) != 0) & (code >> np.uint64(32) == 0)
    return found


def is_stage2_exit(exits: Rows, flavour: str) -> Bools:
    """Whether each exit is one for a stage-2 fault."""
    if flavour == "arm64":
        aborts = np.isin(exits.code, np.array([ARM_CLASSES["IABT_LOW"], ARM_CLASSES["DABT_LOW"]], np.uint64))
        trapped: Bools = aborts & (exits.addr == np.uint64(ARM_EXCEPTIONS["TRAP"]))
        return trapped
    violation = (exits.code == np.uint64(EPT_VIOLATION)) & (flavour != "svm")
    found: Bools = violation | ((exits.code == np.uint64(NPF)) & (flavour != "vmx"))
    return found


def _untold(exits: Rows, faults: Rows, flavour: str) -> I64:
    """Exits for a stage-2 fault with no event of the fault before the same thread's next exit."""
    asked = np.flatnonzero(is_stage2_exit(exits, flavour) & (exits.thread >= 0))
    thread, pos = exits.thread[asked], exits.pos[asked]
    following = take(exits.pos, Index.by_place(exits).first_from(thread, pos + 1), NEVER)
    fault = take(faults.pos, Index.by_place(faults).first_from(thread, pos), NEVER)
    return asked[fault >= following]
