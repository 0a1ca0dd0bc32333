"""Names and numbers of exit reasons."""

from __future__ import annotations

import pytest

from faultreplay.faulttrace.exits import (
    ARM_CLASSES,
    SVM_EXITS,
    UNNAMED_EXIT,
    VMX_EXITS,
    exit_name,
    exit_number,
    userspace_reason,
)


@pytest.mark.parametrize(("flavour", "table"), [("vmx", VMX_EXITS), ("svm", SVM_EXITS), ("arm64", ARM_CLASSES)])
def test_each_reason_has_one_name_and_one_number(flavour: str, table: dict[str, int]) -> None:
    assert len(set(table.values())) == len(table)
    for name, number in table.items():
        assert exit_name(flavour, number) == name
        if flavour != "arm64":
            assert exit_number(name) == number


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("EPT_VIOLATION", 48), ("EXIT_NPF", 0x400), ("npf", 0x400), ("HLT", 12), ("hlt", 0x78), ("EXIT_HLT", 0x78),
        ("EXIT_INTR", 0x60), ("interrupt", 0x60), ("EXIT_IOIO", 0x7B), ("io", 0x7B), ("EXIT_MSR", 0x7C),
        ("CPUID", 10), ("cpuid", 0x72), ("EXIT_CPUID", 0x72), ("EXTERNAL_INTERRUPT", 1), ("EXIT_VMMCALL", 0x81),
        ("EXIT_EXCP_GP", 0x4D), ("no_such_reason", UNNAMED_EXIT),
    ],
)  # fmt: skip
def test_names_as_kernels_and_plugins_print_them(printed: str, number: int) -> None:
    assert exit_number(printed) == number


def test_names_for_people() -> None:
    assert exit_name("vmx", 48 | 1 << 31) == "EPT_VIOLATION"  # the entry failed
    assert exit_name("arm64", 0x24) == "DABT_LOW"
    assert exit_name("arm64", 0, 0) == "IRQ"
    assert exit_name("unknown", 48) == "reason 0x30"
    assert userspace_reason(6) == "KVM_EXIT_MMIO"
    assert userspace_reason(39) == "KVM_EXIT_MEMORY_FAULT"
    assert userspace_reason(99) == "exit reason 99"
