"""Starting a command that waits until the probes are attached."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

from faultreplay.faulttrace.errors import FaultreplayError, UsageError

_HOLD = 'kill -STOP $$; exec "$@"'
# A recorder that is killed must leave no stopped shell: its end of the pipe closes, and `read` fails.
_GUARD = 'read -r released || kill -KILL "$1"'


class Launched:
    """A command held back at its start; `release` lets it run under the same process id.

    A stopped shell has the process id and then becomes the command, without any file descriptor of the recorder.

    Raises:
        UsageError: no such command.
    """

    def __init__(self, command: Sequence[str]) -> None:
        if not command or shutil.which(command[0]) is None:
            raise UsageError(f"'{command[0] if command else ''}' is not a command that can be run: check its path")
        self._process = subprocess.Popen(["/bin/sh", "-c", _HOLD, "faultreplay", *command])
        guard = ["/bin/sh", "-c", _GUARD, "faultreplay", str(self.pid)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is None or state.si_code != os.CLD_STOPPED:
            self._dismiss_guard()
            raise FaultreplayError(f"'{command[0]}' ended before it could be recorded")
        self._held = True

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
        if self._held:
            self._dismiss_guard()
            self._process.send_signal(signal.SIGCONT)

    def stop(self, grace_s: float = 5.0) -> None:
        """End the command if it still runs: SIGTERM, then SIGKILL."""
        if self._process.poll() is None:
            if self._held:
                self._process.kill()
                self._dismiss_guard()
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _dismiss_guard(self) -> None:
        self._held = False
        self._guard.communicate(b"released\n")
