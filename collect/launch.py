"""Starting a command that waits until the probes are attached."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from faulttrace.errors import UsageError


class Launched:
    """A command held back at its start; `release` lets it run under the same process id.

    Raises:
        UsageError: no such command.
    """

    def __init__(self, command: Sequence[str]) -> None:
        if not command or shutil.which(command[0]) is None:
            raise UsageError(f"'{command[0] if command else ''}' is not a command that can be run: check its path")
        self.command = list(command)
        gate, self._release_fd = os.pipe()
        # A shell holds the place and becomes the command: the pid that is traced is the command's own.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"{_close_after(gate)}", "faultreplay", str(gate), *command], pass_fds=[gate]
        )
        os.close(gate)

    @property
    def pid(self) -> int:
        """Process id, before and after the command runs."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status as subprocess has it; None while it runs."""
        return self._process.poll()

    def release(self) -> None:
        """Let the command run."""
        if self._release_fd >= 0:
            os.write(self._release_fd, b"\n")
            os.close(self._release_fd)
            self._release_fd = -1

    def stop(self, grace_s: float = 5.0) -> None:
        """End the command if it still runs: SIGTERM, then SIGKILL."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._release_fd >= 0:
            os.close(self._release_fd)
            self._release_fd = -1


def _close_after(gate: int) -> str:
    return f'read -r _ <&{gate}; exec {gate}<&-; shift; exec "$@"'
