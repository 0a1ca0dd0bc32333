"""Checks of the kernel: permissions, options, tracepoints, function probes, KVM."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Final

from faultreplay.collect.backends.probes import on_machine
from faultreplay.collect.backends.tracefs import parse_format
from faultreplay.collect.doctor.checks import Check, Surroundings
from faultreplay.collect.recorder.host import kvm_flavour
from faultreplay.faulttrace.meta import KvmFlavour

_CAPS: Final = {
    "CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38, "CAP_BPF": 39,
}  # fmt: skip

# option, what it makes possible, whether nothing works without it
_OPTIONS: Final = (
    ("CONFIG_BPF_SYSCALL", "loading BPF programs", True),
    ("CONFIG_BPF_EVENTS", "BPF programs on tracepoints", True),
    ("CONFIG_FTRACE_SYSCALLS", "userfaultfd messages, userfaultfd and KVM ioctls (syscall tracepoints)", True),
    ("CONFIG_BPF_JIT", "probes at their usual cost (without it several times more expensive)", False),
    ("CONFIG_DEBUG_INFO_BTF", "bpftrace without headers, fentry", False),
    ("CONFIG_USERFAULTFD", "userfaultfd itself", False),
    ("CONFIG_KVM", "KVM guests", False),
    ("CONFIG_KPROBES", "kprobe:handle_userfault, which sharpens the start of a userfault", False),
    ("CONFIG_FUNCTION_TRACER", "fentry probes", False),
)

_FLAVOURS: Final = {
    "vmx": "hardware paging: kvm_exit, kvm_page_fault and kvm_entry bound each stage-2 fault",
    "svm": "hardware paging: kvm_exit, kvm_page_fault and kvm_entry bound each stage-2 fault",
    "pvm": "shadow paging: kvm_mmu_pagetable_walk and kvm_mmu_set_spte bound a fault, its world switches are not seen",
    "arm64": "hardware paging: kvm_exit, kvm_guest_fault and kvm_entry bound each stage-2 fault; untested on arm64",
    "unknown": "vendor module not recognised: what fires is recorded",
}


def _flavour(here: Surroundings) -> KvmFlavour:
    return kvm_flavour(here.root / "sys/module", here.root / "dev/kvm")


def permissions(here: Surroundings) -> Iterator[Check]:
    """Capabilities from /proc/self/status (not the user id: a container's root may have few), and lockdown."""
    words = [line.split()[1] for line in here.read("proc/self/status").splitlines() if line.startswith("CapEff:")]
    have = {name for name, bit in _CAPS.items() if words and int(words[0], 16) >> bit & 1}
    last = here.read("proc/sys/kernel/cap_last_cap")
    split = not last.isdigit() or int(last) >= _CAPS["CAP_BPF"]  # Linux 5.8 split CAP_BPF off CAP_SYS_ADMIN
    wanted = ["CAP_BPF", "CAP_PERFMON"] if split else ["CAP_SYS_ADMIN"]
    lacking = [] if "CAP_SYS_ADMIN" in have else [name for name in wanted if name not in have]
    enables = "loading BPF programs and attaching them to tracepoints"
    if lacking:
        caps = ",".join(name.lower() for name in wanted)
        yield Check(
            "capabilities",
            "denied",
            f"missing: {', '.join(lacking)}",
            enables,
            f"run as root, or: capsh --caps={caps},cap_sys_ptrace,cap_dac_read_search+eip, or in a container "
            + " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in wanted),
            required=True,
        )
    else:
        yield Check("capabilities", "ok", ", ".join(sorted(have)), enables, required=True)
    if "CAP_SYS_PTRACE" not in have:
        yield Check(
            "CAP_SYS_PTRACE",
            "denied",
            "missing",
            "memory maps and file descriptors of other users' VMMs (-p, --vm)",
            "run as root or add the capability; without it only this user's own processes can be recorded",
        )
    yield from _lockdown(here)


def _lockdown(here: Surroundings) -> Iterator[Check]:
    modes = here.read("sys/kernel/security/lockdown")
    mode = modes[modes.find("[") + 1 : modes.find("]")] if "[" in modes else ""
    if mode == "confidentiality":
        yield Check(
            "lockdown",
            "denied",
            "confidentiality: BPF programs may not read memory",
            "tracing as such",
            "boot with lockdown=integrity or lockdown=none (Secure Boot turns it on)",
            required=True,
        )
    else:
        yield Check("lockdown", "ok", mode or "not built in, or securityfs not mounted", "tracing as such")


def kernel_options(here: Surroundings) -> Iterator[Check]:
    """One line for those that are set, one for each that is not."""
    text, source = _config(here)
    if not text:
        yield Check(
            "kernel options",
            "note",
            "found in none of: /proc/config.gz, /boot/config-RELEASE, the kernel's headers",
            "knowing beforehand what the kernel lacks",
            "install the headers of this very kernel, or: modprobe configs (the probes are tried in any case)",
        )
        return
    options = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    present = [name for name, _, _ in _OPTIONS if options.get(name, "n") in ("y", "m")]
    yield Check(
        "kernel options",
        "ok",
        f"{len(present)} of {len(_OPTIONS)} set ({source})",
        "recording as such; what is not set follows",
    )
    for name, enables, required in _OPTIONS:
        if name not in present:
            yield Check(name, "missing", "not set", enables, f"a kernel built with {name}=y", required=required)


def _config(here: Surroundings) -> tuple[str, str]:
    try:
        packed = (here.root / "proc/config.gz").read_bytes()
        return gzip.decompress(packed).decode(errors="replace"), "/proc/config.gz"
    except (OSError, EOFError):
        pass
    for path in (f"boot/config-{here.release}", f"lib/modules/{here.release}/config"):
        if text := here.read(path):
            return text, f"/{path}"
    build = f"lib/modules/{here.release}/build"  # its headers hold it too, where they are its own and not borrowed
    if f'"{here.release}"' in here.read(f"{build}/include/generated/utsrelease.h"):
        return here.read(f"{build}/.config"), f"/{build}/.config"
    return "", ""


def _tracefs_path(here: Surroundings) -> str:
    for path in ("sys/kernel/tracing", "sys/kernel/debug/tracing"):
        if here.exists(f"{path}/events/header_page"):
            return path
    return ""


def tracefs(here: Surroundings) -> Iterator[Check]:
    """Mounted, and may be read."""
    enables = "the layout of every tracepoint"
    if path := _tracefs_path(here):
        yield Check("tracefs", "ok", f"/{path}", enables, required=True)
        if refusal := here.try_tracepoint(here.root / path / "events"):
            yield Check(
                "attaching",
                "denied",
                f"perf_event_open: {refusal}; kernel.perf_event_paranoid is "
                f"{here.read('proc/sys/kernel/perf_event_paranoid') or 'not known'}",
                "programs on tracepoints",
                "run as root or with CAP_SYS_ADMIN; where CAP_PERFMON is there and the kernel is a distribution's that "
                "knows level 3: sysctl kernel.perf_event_paranoid=2",
                required=True,
            )
        return
    try:
        list((here.root / "sys/kernel/tracing").iterdir())
        mounts = here.read("proc/self/mounts")
        if any(line.split()[2:3] == ["tracefs"] for line in mounts.splitlines()):
            raise PermissionError
    except PermissionError:
        yield Check(
            "tracefs",
            "denied",
            "mounted, but this user may not look inside",
            enables,
            "run as root or with CAP_DAC_READ_SEARCH, or: mount -o remount,mode=755 /sys/kernel/tracing",
            required=True,
        )
        return
    except OSError:
        pass
    yield Check(
        "tracefs", "missing", "not mounted", enables, "mount -t tracefs tracefs /sys/kernel/tracing", required=True
    )


def tracepoints(here: Surroundings) -> Iterator[Check]:
    """Each tracepoint of the probe table: is it there, with the fields that are read?"""
    tracing = _tracefs_path(here)
    if not tracing:
        return
    absent, changed = [], []
    rows = [probe for probe in on_machine() if not probe.tracepoint.startswith(("kprobe:", "fentry:"))]
    for probe in rows:
        category, _, name = probe.tracepoint.partition(":")
        text = here.read(f"{tracing}/events/{category}/{name}/format")
        if not text:
            absent.append(probe)
            continue
        fields = parse_format(probe.tracepoint, text).fields
        # A few fields have another name on other kernels; the generator knows those, so this is a remark only.
        if gone := [name for name in probe.reads_of(fields) if name not in fields]:
            changed.append(f"{probe.tracepoint} ({', '.join(gone)})")
    total = len(rows)
    yield Check(
        "tracepoints",
        "ok" if not absent else "note",
        f"{total - len(absent)} of {total} present",
        "recording as such; what is missing follows and is listed in meta.json too",
    )
    for probe in absent:
        kinds = ", ".join(kind.name for kind in probe.kinds) or "state for its neighbours"
        yield Check(
            probe.tracepoint,
            "missing",
            "this kernel has no such tracepoint",
            f"events: {kinds}",
            _mend_tracepoint(here, probe.tracepoint),
        )
    if changed:
        yield Check(
            "tracepoint fields",
            "note",
            f"other layout: {'; '.join(changed)}",
            "the columns taken from them",
            "nothing to do where the recorder attaches them; else a newer faultreplay",
        )


def _mend_tracepoint(here: Surroundings, tracepoint: str) -> str:
    category = tracepoint.partition(":")[0]
    if category.startswith("kvm") and _flavour(here) == "none":
        return "modprobe kvm_intel or kvm_amd: KVM's tracepoints come with its modules"
    if category == "syscalls":
        return "a kernel with CONFIG_FTRACE_SYSCALLS=y"
    return "nothing to do: another kernel version has it; the recorder goes on without"


def function_probes(here: Surroundings) -> Iterator[Check]:
    """Kprobes and fentry: really tried with bpftrace where that is possible."""
    enables = "the exact moment a userfault is taken (handle_userfault); nothing depends on it"
    bpftrace = here.which("bpftrace") if here.live and here.euid == 0 else None
    tracing = _tracefs_path(here)
    for name, probe, mend in (
        ("kprobes", "kprobe:handle_userfault", "a kernel with CONFIG_KPROBES=y"),
        (
            "fentry",
            "kfunc:vmlinux:handle_userfault",
            "a kernel with CONFIG_DEBUG_INFO_BTF=y and CONFIG_FUNCTION_TRACER=y that lets functions be traced",
        ),
    ):
        if bpftrace:
            code, words = here.run([bpftrace, "-e", f"{probe} {{ }} BEGIN {{ exit(); }}"])
            yield (
                Check(name, "ok", f"{probe} attaches", enables)
                if code == 0
                else Check(name, "missing", _reason(words), enables, mend)
            )
        elif name == "kprobes" and not tracing:
            yield Check(name, "note", "not known: tracefs cannot be read", enables, "see tracefs")
        elif name == "kprobes":
            there = here.exists(f"{tracing}/kprobe_events")
            yield (
                Check(name, "ok", f"/{tracing}/kprobe_events", enables)
                if there
                else Check(name, "missing", "no kprobe_events in tracefs", enables, mend)
            )


def _reason(words: str) -> str:
    """The most telling line of bpftrace's complaints."""
    lines = [line.strip() for line in words.splitlines() if "RLIMIT_MEMLOCK" not in line]
    telling = [line for line in lines if "ERROR" in line or "No such file" in line]
    return (telling or lines or ["it does not attach"])[0].rpartition("ERROR: ")[2][:160]


def kvm(here: Surroundings) -> Iterator[Check]:
    """/dev/kvm and who may open it."""
    flavour = _flavour(here)
    if flavour == "none":
        yield Check(
            "KVM",
            "missing",
            "no /dev/kvm and no vendor module",
            "KVM guests, the lab's guests",
            "modprobe kvm_intel or kvm_amd (processes under userfaultfd can be recorded without)",
        )
        return
    yield Check("KVM flavour", "ok", flavour, _FLAVOURS[flavour])
    try:
        (here.root / "dev/kvm").open("r+b", buffering=0).close()
    except FileNotFoundError:
        yield Check("/dev/kvm", "missing", "not there", "the lab's guests", "pass --device /dev/kvm to the container")
    except OSError as error:
        yield Check(
            "/dev/kvm",
            "denied",
            error.strerror or str(error),
            "the lab's guests",
            "run as root or join the group that owns it: usermod -aG kvm $USER",
        )
    else:
        yield Check("/dev/kvm", "ok", "opens", "the lab's guests")
