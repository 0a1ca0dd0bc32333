"""A QMP client of forty lines: one command at a time over a unix socket."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command or is gone; the message names the command and QEMU's words."""


class Qmp:
    """A connection to the QEMU that listens at `path`."""

    def __init__(self, path: Path, *, timeout_s: float = 20) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        end = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                if time.monotonic() > end:
                    self._socket.close()
                    raise QmpError(f"{path}: {error}") from None
                time.sleep(0.05)
        self._stream = self._socket.makefile("rw", encoding="utf-8")
        self.greeting: dict[str, Any] = json.loads(self._stream.readline())["QMP"]
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute `command`; underscores in the names of arguments stand for dashes."""
        wire = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            self._stream.write(json.dumps({"execute": command, "arguments": wire}) + "\n")
            self._stream.flush()
            while line := self._stream.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise QmpError(f"{command}: {error}") from None
        raise QmpError(f"{command}: QEMU closed the connection")

    def close(self) -> None:
        """Let go of the connection; QEMU runs on."""
        self._stream.close()
        self._socket.close()

    def until(self, command: str, wanted: Any, *, timeout_s: float, every_s: float = 0.02) -> Any:
        """Repeat `command` until `wanted(answer)` is true; the answer."""
        end = time.monotonic() + timeout_s
        while not wanted(answer := self(command)):
            if time.monotonic() > end:
                raise QmpError(f"{command}: not within {timeout_s:.0f} s: {json.dumps(answer)[:300]}")
            time.sleep(every_s)
        return answer
