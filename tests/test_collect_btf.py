"""Offsets from BTF, compared with a structure whose layout is fixed by the ABI of the kernel's lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultreplay.collect.backends.btf import VMLINUX, member_offset


@pytest.mark.live
def test_known_and_unknown_members() -> None:
    if not VMLINUX.exists():
        pytest.skip("this kernel has no BTF")
    assert member_offset("list_head", "next") == 0
    assert member_offset("list_head", "prev") == 8
    assert member_offset("list_head", "middle") is None
    assert member_offset("no_such_structure", "next") is None
    pid = member_offset("task_struct", "pid")
    assert pid is not None
    assert member_offset("task_struct", "tgid") == pid + 4
    # inside an anonymous structure
    assert member_offset("vm_fault", "vma") == 0
    assert (member_offset("vm_fault", "address") or 0) % 8 == 0 < (member_offset("vm_fault", "address") or 0)


def test_no_btf_and_foreign_files_give_nothing(tmp_path: Path) -> None:
    assert member_offset("list_head", "next", tmp_path / "none") is None
    (tmp_path / "other").write_bytes(b"\x7fELF" + bytes(100))
    assert member_offset("list_head", "next", tmp_path / "other") is None
