"""What this host can record: each check says what it found, what that makes possible, and the exact fix.

A check is a function of `Surroundings`, so tests show it made-up machines. `examine` runs them all; `exit_code` says
whether a recording would work: 0, 5 (a kernel feature or tool is missing) or 77 (a permission is).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from faultreplay.collect.doctor import kernel as doctor_kernel
from faultreplay.collect.doctor import tools as doctor_tools
from faultreplay.collect.doctor.checks import Check, Surroundings


def examine(here: Surroundings | None = None) -> list[Check]:
    """All checks, in the order a recording needs them."""
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
    """0 when a recording would work, 77 when only a permission is missing, else 5."""
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
