"""What this host can record: each check says what it found, what that makes possible, and the exact mend.

A check is a function of `Surroundings`, so tests show it made-up machines. `examine` runs them all; `exit_code` says
whether a recording would work: 0, 5 (a kernel feature or tool is missing) or 77 (a permission is).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from faultreplay.collect.backends.attaching import try_tracepoint
from faultreplay.collect.doctor.uffd import UffdTrial, try_userfaultfd

State = Literal["ok", "missing", "denied", "note"]


@dataclass(frozen=True)
class Check:
    """One finding. `required`: without it nothing can be recorded.

    `state` is ``ok``; ``missing`` (a feature or tool); ``denied`` (a permission); ``note`` (works with a limit).
    """

    name: str
    state: State
    found: str
    enables: str
    mend: str = ""
    required: bool = False


def _run(argv: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


@dataclass(frozen=True)
class Surroundings:
    """The machine as the checks see it; the defaults are this one.

    Attributes:
        root: where /proc, /sys, /dev, /boot, /lib/modules and /usr are looked up.
        which: finds a program in PATH.
        run: runs a program, gives (exit code, its words); used for real tries, never with a made-up root.
        try_uffd: really opens a userfaultfd.
        try_tracepoint: really opens a tracepoint below a folder of tracefs; the error in words, or nothing.
        euid: effective user id; bpftrace asks for 0 whatever the capabilities.
    """

    root: Path = Path("/")
    which: Callable[[str], str | None] = shutil.which
    run: Callable[[Sequence[str]], tuple[int, str]] = _run
    try_uffd: Callable[[Path], UffdTrial] = try_userfaultfd
    try_tracepoint: Callable[[Path], str] = try_tracepoint
    euid: int = field(default_factory=os.geteuid)

    @property
    def release(self) -> str:
        """Release of the running kernel."""
        return self.read("proc/sys/kernel/osrelease")

    @property
    def live(self) -> bool:
        """Whether this is the real machine, where things may be tried."""
        return self.root == Path("/")

    def read(self, path: str) -> str:
        """The text of a small file, stripped; empty where it cannot be read."""
        try:
            return (self.root / path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def exists(self, path: str) -> bool:
        """Whether `path` is there and may be seen."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def refused(self, path: str) -> bool:
        """Whether this user is not let as far as `path`."""
        try:
            (self.root / path).stat()
        except OSError as error:
            return isinstance(error, PermissionError)
        return False


def examine(here: Surroundings | None = None) -> list[Check]:
    """All checks, in the order a recording needs them."""
    from faultreplay.collect.doctor import kernel as doctor_kernel
    from faultreplay.collect.doctor import tools as doctor_tools

    here = here or Surroundings()
    return [
        *doctor_kernel.permissions(here),
        *doctor_kernel.kernel_options(here),
        *doctor_kernel.tracefs(here),
        *doctor_kernel.tracepoints(here),
        *doctor_tools.backends(here),
        *doctor_kernel.function_probes(here),
        *doctor_kernel.kvm(here),
        *userfaultfd(here),
        *doctor_tools.lab_tools(here),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """0 when a recording would work, 77 when a permission is what lacks, else 5."""
    bad = {check.state for check in checks if check.required}
    if "denied" in bad:
        return 77
    return 5 if "missing" in bad else 0


def userfaultfd(here: Surroundings) -> Iterator[Check]:
    """May this user open a userfaultfd that also catches faults taken in the kernel, and what can it do?"""
    enables = "the lab, and VMMs under this user; recording other processes' userfaultfds does not need it"
    trial = here.try_uffd(here.root)
    if trial.how:
        yield Check("userfaultfd", "ok", f"by {trial.how}; features: {', '.join(trial.features)}", enables)
        if "thread-id" not in trial.features:
            yield Check(
                "userfaultfd thread ids",
                "missing",
                "UFFD_FEATURE_THREAD_ID is not offered",
                "faults are joined to threads by the message itself",
                "a kernel from 4.14 on",
            )
        return
    if trial.error == "ENOSYS":
        yield Check(
            "userfaultfd",
            "missing",
            "the kernel has no userfaultfd system call",
            enables,
            "a kernel with CONFIG_USERFAULTFD=y",
        )
        return
    yield Check(
        "userfaultfd",
        "denied",
        f"{trial.error} by system call and by /dev/userfaultfd",
        enables,
        "run as root, or: sysctl vm.unprivileged_userfaultfd=1, or give this user /dev/userfaultfd "
        "(chmod 666 /dev/userfaultfd)",
    )
