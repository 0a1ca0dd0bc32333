"""`doctor` on made-up machines, each with one thing broken, and on the real one."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from faultreplay.collect.backends.probes import on_machine
from faultreplay.collect.doctor.checks import Check, Surroundings
from faultreplay.collect.doctor.doctor import examine, exit_code
from faultreplay.collect.doctor.uffd import UffdTrial, feature_names, try_userfaultfd

RELEASE = "6.12.1-made-up"
CONFIG = [
    "BPF_SYSCALL", "BPF_EVENTS", "FTRACE_SYSCALLS", "BPF_JIT", "DEBUG_INFO_BTF", "USERFAULTFD", "KVM", "KPROBES",
    "FUNCTION_TRACER",
]  # fmt: skip
TRACEPOINTS = [probe for probe in on_machine() if not probe.tracepoint.startswith("kprobe:")]
ALL_CAPS = "000001ffffffffff"


def put(root: Path, path: str, text: str | bytes = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


BCC = "usr/lib/python3/dist-packages/bcc"
LIBBPF = "usr/lib/x86_64-linux-gnu/libbpf.so.1"


@pytest.fixture
def machine(tmp_path: Path) -> Surroundings:
    """A machine that lacks nothing."""
    put(tmp_path, "proc/sys/kernel/osrelease", RELEASE + "\n")
    put(tmp_path, "proc/sys/kernel/cap_last_cap", "40\n")
    put(tmp_path, "proc/self/status", f"Name:\tx\nCapEff:\t{ALL_CAPS}\n")
    put(tmp_path, "proc/self/mounts", "tracefs /sys/kernel/tracing tracefs rw 0 0\n")
    put(tmp_path, "proc/config.gz", gzip.compress("".join(f"CONFIG_{o}=y\n" for o in CONFIG).encode()))
    put(tmp_path, "sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    put(tmp_path, "sys/kernel/btf/vmlinux")
    tracing = "sys/kernel/tracing"
    put(tmp_path, f"{tracing}/events/header_page")
    put(tmp_path, f"{tracing}/kprobe_events")
    for probe in TRACEPOINTS:
        fields = "".join(
            f"\tfield:unsigned long {name};\toffset:{8 * i};\tsize:8;\tsigned:0;\n"
            for i, name in enumerate(probe.reads)
        )
        put(tmp_path, f"{tracing}/events/{probe.tracepoint.replace(':', '/')}/format", f"name: x\nformat:\n{fields}")
    put(tmp_path, "sys/module/kvm_amd/parameters/npt", "Y\n")
    put(tmp_path, "dev/kvm")
    put(tmp_path, "usr/lib/python3/dist-packages/bcc/__init__.py")
    put(tmp_path, "usr/lib/x86_64-linux-gnu/libbcc.so.0")
    put(tmp_path, LIBBPF)
    put(tmp_path, "usr/include/linux/userfaultfd.h")
    headers = f"lib/modules/{RELEASE}/build/include/generated"
    put(tmp_path, f"{headers}/autoconf.h")
    put(tmp_path, f"{headers}/utsrelease.h", f'#define UTS_RELEASE "{RELEASE}"\n')
    return Surroundings(
        root=tmp_path,
        which=lambda name: f"/usr/bin/{name}",
        try_uffd=lambda root: UffdTrial("system call", feature_names(0x1FFFF)),
        has_object=lambda: True,
        euid=0,
    )


def find(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_machine_that_lacks_nothing(machine: Surroundings) -> None:
    checks = examine(machine)
    assert {c.state for c in checks} == {"ok"}, [c for c in checks if c.state != "ok"]
    assert exit_code(checks) == 0
    assert find(checks, "KVM flavour").found == "svm"
    assert find(checks, "tracepoints").found == f"{len(TRACEPOINTS)} of {len(TRACEPOINTS)} present"


def remove(path: str) -> Callable[[Surroundings], Surroundings]:
    def change(here: Surroundings) -> Surroundings:
        target = here.root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        return here

    return change


def write(path: str, text: str) -> Callable[[Surroundings], Surroundings]:
    def change(here: Surroundings) -> Surroundings:
        put(here.root, path, text)
        return here

    return change


def caps(*bits: int) -> Callable[[Surroundings], Surroundings]:
    return write("proc/self/status", f"CapEff:\t{sum(1 << bit for bit in bits):016x}\n")


def no_program(*names: str) -> Callable[[Surroundings], Surroundings]:
    return lambda here: replace(here, which=lambda name: None if name in names else f"/usr/bin/{name}")


def uffd(error: str) -> Callable[[Surroundings], Surroundings]:
    return lambda here: replace(here, try_uffd=lambda root: UffdTrial(error=error))


def both(*changes: Callable[[Surroundings], Surroundings]) -> Callable[[Surroundings], Surroundings]:
    def change(here: Surroundings) -> Surroundings:
        for one in changes:
            here = one(here)
        return here

    return change


def config_without(option: str) -> Callable[[Surroundings], Surroundings]:
    def change(here: Surroundings) -> Surroundings:
        text = "".join(f"CONFIG_{o}=y\n" for o in CONFIG if o != option)
        put(here.root, "proc/config.gz", gzip.compress(text.encode()))
        return here

    return change


BPF, PERFMON, ADMIN, PTRACE = 39, 38, 21, 19
TRACING = "sys/kernel/tracing"


@pytest.mark.parametrize(
    ("change", "name", "state", "words", "code"),
    [
        (caps(), "capabilities", "denied", "missing: CAP_BPF, CAP_PERFMON", 77),
        (caps(BPF, PTRACE), "capabilities", "denied", "missing: CAP_PERFMON", 77),
        (caps(PERFMON, PTRACE), "capabilities", "denied", "missing: CAP_BPF", 77),
        (caps(BPF, PERFMON, PTRACE), "capabilities", "ok", "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE", 0),
        (caps(ADMIN, PTRACE), "capabilities", "ok", "CAP_SYS_ADMIN", 0),
        (caps(BPF, PERFMON), "CAP_SYS_PTRACE", "denied", "only this user's own processes", 0),
        (both(caps(PTRACE), write("proc/sys/kernel/cap_last_cap", "37")), "capabilities", "denied",
         "missing: CAP_SYS_ADMIN", 77),
        (write("sys/kernel/security/lockdown", "none integrity [confidentiality]"), "lockdown", "denied",
         "lockdown=integrity", 77),
        (write("sys/kernel/security/lockdown", "none [integrity] confidentiality"), "lockdown", "ok", "integrity", 0),
        (remove("sys/kernel/security/lockdown"), "lockdown", "ok", "not built in", 0),
        (remove("proc/config.gz"), "kernel options", "note", "modprobe configs", 0),
        (config_without("KPROBES"), "CONFIG_KPROBES", "missing", "handle_userfault", 0),
        (config_without("BPF_SYSCALL"), "CONFIG_BPF_SYSCALL", "missing", "CONFIG_BPF_SYSCALL=y", 5),
        (both(remove(TRACING), write("proc/self/mounts", "")), "tracefs", "missing",
         "mount -t tracefs tracefs /sys/kernel/tracing", 5),
        (remove(f"{TRACING}/events/kvm/kvm_pml_full"), "kvm:kvm_pml_full", "missing", "KVM_PML_FULL", 0),
        (both(remove(f"{TRACING}/events/kvm"), remove("sys/module/kvm_amd"), remove("dev/kvm")), "kvm:kvm_exit",
         "missing", "modprobe kvm_intel or kvm_amd", 0),
        (write(f"{TRACING}/events/kvm/kvm_entry/format", "\tfield:int other;\toffset:0;\tsize:4;\tsigned:1;\n"),
         "tracepoint fields", "note", "kvm:kvm_entry (rip)", 0),
        (remove(f"lib/modules/{RELEASE}"), "kernel headers", "missing", f"linux-headers-{RELEASE}", 0),
        (write(f"lib/modules/{RELEASE}/build/include/generated/utsrelease.h", '#define UTS_RELEASE "6.1.0-56-amd64"'),
         "kernel headers", "note", "borrowed: made for 6.1.0-56-amd64", 0),
        (remove(BCC), "bcc", "missing", "python3-bpfcc", 0),
        (remove("usr/lib/x86_64-linux-gnu/libbcc.so.0"), "bcc", "missing", "libbcc.so.0", 0),
        (no_program("bpftrace"), "bpftrace", "missing", "bpftrace", 0),
        (both(remove(BCC), remove(LIBBPF), no_program("bpftrace")), "backend", "missing",
         "apt-get install python3-bpfcc bpftrace", 5),
        (both(remove(BCC), no_program("bpftrace")), "backend", "ok", "precompiled", 0),
        (remove(LIBBPF), "precompiled", "missing", "libbpf1", 0),
        (lambda here: replace(here, has_object=lambda: False), "precompiled", "missing", "make bpf", 0),
        (both(remove(f"lib/modules/{RELEASE}"), remove(LIBBPF), no_program("bpftrace")), "backend", "missing",
         "linux-headers", 5),
        (both(write("proc/sys/kernel/perf_event_paranoid", "3\n"),
              lambda here: replace(here, try_tracepoint=lambda events: "Permission denied")), "attaching", "denied",
         "kernel.perf_event_paranoid is 3", 77),
        (lambda here: replace(here, euid=1000), "bpftrace", "denied", "--backend bcc", 0),
        (both(lambda here: replace(here, euid=1000), remove(BCC), remove(LIBBPF)), "backend", "missing", "neither", 5),
        (remove("sys/kernel/btf/vmlinux"), "BTF", "missing", "CONFIG_DEBUG_INFO_BTF", 0),
        (remove(f"{TRACING}/kprobe_events"), "kprobes", "missing", "CONFIG_KPROBES", 0),
        (both(remove("sys/module/kvm_amd"), remove("dev/kvm")), "KVM", "missing", "modprobe", 0),
        (remove("dev/kvm"), "/dev/kvm", "missing", "--device /dev/kvm", 0),
        (both(remove("sys/module/kvm_amd"), write("sys/module/kvm_intel/x", "")), "KVM flavour", "ok", "vmx", 0),
        (both(remove("sys/module/kvm_amd"), write("sys/module/kvm_pvm/x", "")), "KVM flavour", "ok", "pvm", 0),
        (uffd("EPERM"), "userfaultfd", "denied", "vm.unprivileged_userfaultfd=1", 0),
        (uffd("ENOSYS"), "userfaultfd", "missing", "CONFIG_USERFAULTFD=y", 0),
        (lambda here: replace(here, try_uffd=lambda root: UffdTrial("system call", ("sigbus",))),
         "userfaultfd thread ids", "missing", "4.14", 0),
        (no_program("cc", "gcc", "clang"), "C compiler", "missing", "gcc", 0),
        (remove("usr/include/linux/userfaultfd.h"), "C compiler", "missing", "linux-libc-dev", 0),
    ],
)  # fmt: skip
def test_one_thing_is_broken(  # noqa: PLR0917 - pytest's parameters
    machine: Surroundings, change: Callable[[Surroundings], Surroundings], name: str, state: str, words: str, code: int
) -> None:
    checks = examine(change(machine))
    check = find(checks, name)
    assert check.state == state
    assert words in f"{check.found} {check.enables} {check.mend}"
    assert check.enables
    assert check.mend or check.state in ("ok", "note")
    assert exit_code(checks) == code


def test_a_permission_outranks_a_missing_tool(machine: Surroundings) -> None:
    checks = examine(both(caps(), remove(BCC), no_program("bpftrace"))(machine))
    assert exit_code(checks) == 77


def test_config_beside_the_kernel_image(machine: Surroundings) -> None:
    remove("proc/config.gz")(machine)
    put(machine.root, f"boot/config-{RELEASE}", "CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_EVENTS=y\nCONFIG_FTRACE_SYSCALLS=y\n")
    checks = examine(machine)
    assert find(checks, "kernel options").found == f"3 of 9 set (/boot/config-{RELEASE})"
    assert exit_code(checks) == 0


def test_config_among_the_kernels_own_headers(machine: Surroundings) -> None:
    """Debian's kernels have no /proc/config.gz, and a container or a booted test kernel has no /boot of its own."""
    remove("proc/config.gz")(machine)
    put(machine.root, f"lib/modules/{RELEASE}/build/.config", "CONFIG_BPF_SYSCALL=y\nCONFIG_KVM=m\n")
    found = f"2 of 9 set (/lib/modules/{RELEASE}/build/.config)"
    assert find(examine(machine), "kernel options").found == found
    write(f"lib/modules/{RELEASE}/build/include/generated/utsrelease.h", '#define UTS_RELEASE "6.1.0"')(machine)
    assert find(examine(machine), "kernel options").state == "note"  # borrowed: another kernel's options


def test_tracefs_that_may_not_be_read(machine: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(f"{TRACING}/events/header_page")(machine)

    def refused(self: Path) -> object:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)  # root, who runs the tests, is refused nothing
    checks = examine(machine)
    assert find(checks, "tracefs").state == "denied"
    assert find(checks, "kprobes").state == "note"  # no statement about a kernel that may not be looked at
    assert exit_code(checks) == 77


def test_headers_that_may_not_be_read(machine: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "missing": to install them again would not help."""
    headers = f"lib/modules/{RELEASE}/build/include/generated/autoconf.h"
    seen = Surroundings.exists
    monkeypatch.setattr(Surroundings, "exists", lambda self, path: path != headers and seen(self, path))
    monkeypatch.setattr(Surroundings, "refused", lambda self, path: path == headers)
    remove(LIBBPF)(machine)
    checks = examine(replace(machine, euid=1000))
    assert find(checks, "kernel headers").state == find(checks, "backend").state == "denied"
    assert "may not read it" in find(checks, "kernel headers").found
    assert exit_code(checks) == 77


def test_refused_is_not_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Surroundings(root=tmp_path)
    assert not here.refused("nothing/here")
    put(tmp_path, "a/b")
    assert not here.refused("a/b")

    def no_way(self: Path) -> object:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", no_way)
    assert here.refused("a/b")


def test_feature_bits() -> None:
    assert feature_names(0x100) == ("thread-id",)
    assert feature_names(1 << 40 | 1) == ("pagefault-flag-wp", hex(1 << 40))


def test_bpftrace_is_really_tried_on_the_real_machine() -> None:
    tried: list[str] = []

    def run(argv: object) -> tuple[int, str]:
        assert isinstance(argv, list)
        tried.append(argv[-1])
        return (0, "bpftrace v9") if "--version" in argv else (1, "x: WARNING: no\nERROR: Error attaching probe: 'k'\n")

    checks = examine(Surroundings(which=lambda name: f"/usr/bin/{name}", run=run, euid=0))
    assert any("kprobe:handle_userfault" in program for program in tried)
    assert find(checks, "fentry").found == "Error attaching probe: 'k'"
    assert find(checks, "bpftrace").found.endswith("v9")


def doctor(*args: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    code = "import sys; from faultreplay.cli.main import run; run(sys.argv[1:])"
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, "doctor", *args], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = doctor("--format", "json")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] in (0, 5, 77)
    assert {"name", "state", "found", "enables", "mend", "required"} == set(answer["records"][0])
    table = doctor()
    assert table.returncode == done.returncode
    assert "capabilities: " in table.stdout and "enables: " in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 80


@pytest.mark.live
def test_the_command_here_can_record() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    done = doctor()
    assert done.returncode == 0, done.stdout
    assert try_userfaultfd(Path("/")).how


@pytest.mark.live
def test_without_any_capability_it_says_which() -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv (util-linux) to drop capabilities")
    done = doctor(prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert done.returncode == 77, done.stdout
    assert "missing: CAP_BPF, CAP_PERFMON" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
