"""Recording inside real kernels with hardware-style KVM (nested SVM under QEMU's TCG): every number exact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def lacking() -> str:
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("apt-get"):
        return "needs Debian's apt-get to fetch a kernel"
    tools = [tool for tool in ("qemu-system-x86_64", "busybox", "cc") if not shutil.which(tool)]
    return f"needs {', '.join(tools)}" if tools else ""


@pytest.mark.live
@pytest.mark.slow
def test_debian_kernel_under_nested_svm(tmp_path: Path) -> None:
    if why := lacking():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/kernels/run.py", "--kernel", "6.1", "--out", tmp_path],
        capture_output=True, text=True, timeout=420, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BAD" not in done.stdout
    assert "ok  lazy: kvm_page_fault on data pages: 1009" in done.stdout
    assert "ok  uffd: joined to the copy of the handler: 1009" in done.stdout
