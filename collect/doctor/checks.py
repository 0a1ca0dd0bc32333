"""One check and the machine as the checks see it: tests show them made-up machines."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from faultreplay.collect.backends.attaching import try_tracepoint
from faultreplay.collect.backends.precompiled_program import has_object
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
        has_object: whether this installation has the precompiled programs.
        euid: effective user id; bpftrace asks for 0 whatever the capabilities.
    """

    root: Path = Path("/")
    which: Callable[[str], str | None] = shutil.which
    run: Callable[[Sequence[str]], tuple[int, str]] = _run
    try_uffd: Callable[[Path], UffdTrial] = try_userfaultfd
    try_tracepoint: Callable[[Path], str] = try_tracepoint
    has_object: Callable[[], bool] = has_object
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
