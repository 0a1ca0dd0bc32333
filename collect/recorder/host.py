"""What this host is: for `meta.json` and for choosing what can be recorded."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from faultreplay.faulttrace.meta import Host, KvmFlavour, fingerprint_of

CAPABILITIES = {2: "CAP_DAC_READ_SEARCH", 21: "CAP_SYS_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}


def describe_host() -> Host:
    """The machine this runs on."""
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    distro = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    host = Host(
        kernel=platform.release(),
        machine=platform.machine(),
        cpu_model=model[1] if model else "",
        cpus=os.cpu_count() or 0,
        mem_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        distro=distro[1] if distro else "",
        kvm_flavour=kvm_flavour(),
        cpu_id=_cpu_id(cpuinfo),
        kvm_params=kvm_params(),
        mitigations=_values(Path("/sys/devices/system/cpu/vulnerabilities")),
    )
    host.fingerprint = fingerprint_of(host)
    return host


def kvm_flavour(
    modules: Path = Path("/sys/module"), kvm: Path = Path("/dev/kvm"), machine: str = platform.machine()
) -> KvmFlavour:
    """How KVM runs guests here: by VMX, by SVM, by software page tables (PVM), on arm64, or not at all."""
    for module, flavour in (("kvm_pvm", "pvm"), ("kvm_intel", "vmx"), ("kvm_amd", "svm")):
        if (modules / module).exists():
            return flavour  # type: ignore[return-value]
    if not kvm.exists():
        return "none"
    return "arm64" if machine == "aarch64" else "unknown"


def kvm_params(modules: Path = Path("/sys/module")) -> dict[str, str]:
    """MODULE.PARAMETER -> value, of the KVM modules that are loaded."""
    found: dict[str, str] = {}
    for module in sorted(modules.glob("kvm*")):
        found |= {f"{module.name}.{key}": value for key, value in _values(module / "parameters").items()}
    return found


def _values(folder: Path) -> dict[str, str]:
    """File name -> its one line, of the files that can be read."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.name: text for file in files if (text := _read(str(file)).strip())}


def _cpu_id(cpuinfo: str) -> str:
    names = ("cpu family", "model", "stepping", "microcode")
    found = [re.search(rf"^{name}\s*:\s*(\S+)$", cpuinfo, re.MULTILINE) for name in names]
    return "-".join(match[1] for match in found if match)


def missing_capabilities() -> list[str]:
    """The capabilities recording needs and this process lacks; CAP_SYS_ADMIN stands for all."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _read("/proc/self/status"), re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    if effective >> 21 & 1:
        return []
    return [CAPABILITIES[bit] for bit in (39, 38) if not effective >> bit & 1]


def peak_memory_bytes() -> int:
    """The most that was resident of this process since its program began.

    Not `ru_maxrss`: that begins with what the parent had when it forked.
    """
    match = re.search(r"^VmHWM:\s*(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def memory_available_bytes() -> int:
    """MemAvailable of this host."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 1 << 30


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
