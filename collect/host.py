"""The machine that is recorded: what `meta.json` says of it, and the one answer to "which KVM is this?".

Every function takes `root`, under which /proc, /sys, /dev and /etc are looked up: tests give a made-up one.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from faulttrace.meta import Host, KvmFlavour

_FLAVOURS: dict[str, KvmFlavour] = {"kvm_intel": "vmx", "kvm_amd": "svm", "kvm_pvm": "pvm"}


def kvm_flavour(root: Path = Path("/")) -> KvmFlavour:
    """Which vendor module serves /dev/kvm: ``vmx``, ``svm``, ``pvm`` (shadow paging), ``none`` or ``unknown``.

    Taken from the loaded module, not from the CPU's flags: a kernel may have KVM for a CPU without VMX or SVM.
    """
    for module, flavour in _FLAVOURS.items():
        if (root / "sys/module" / module).is_dir():
            return flavour
    return "unknown" if (root / "dev/kvm").exists() else "none"


def describe_host(root: Path = Path("/")) -> Host:
    """The `host` part of meta.json."""
    uname = platform.uname()
    return Host(
        kernel=_line(root / "proc/sys/kernel/osrelease") or uname.release,
        machine=uname.machine,
        cpu_model=_cpu_model(root),
        cpus=os.cpu_count() or 0,
        mem_bytes=_mem_bytes(root),
        distro=_distro(root),
        kvm_flavour=kvm_flavour(root),
    )


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _value(path: Path, key: str, separator: str) -> str:
    """The value of the first line of `path` that starts with `key`."""
    for line in _line(path).splitlines():
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip()
    return ""


def _cpu_model(root: Path) -> str:
    return _value(root / "proc/cpuinfo", "model name", ":")


def _mem_bytes(root: Path) -> int:
    words = _value(root / "proc/meminfo", "MemTotal", ":").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else 0


def _distro(root: Path) -> str:
    return _value(root / "etc/os-release", "PRETTY_NAME", "=").strip('"')
