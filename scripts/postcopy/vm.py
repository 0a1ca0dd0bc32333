"""A QEMU process with its monitor and its guest's serial console."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from qmp import Qmp, QmpError

QEMU = "qemu-system-x86_64"


class Vm:
    """A running QEMU.

    Attributes:
        qmp: its monitor.
        serial: file of all that the guest's console says.
    """

    def __init__(self, name: str, options: Sequence[str], folder: Path) -> None:
        self.serial = folder / f"{name}.serial"
        self._console = folder / f"{name}.console"
        monitor = folder / f"{name}.qmp"
        argv = [
            QEMU, "-name", f"{name},debug-threads=on", "-nodefaults", "-display", "none", "-vga", "none",
            "-chardev", f"socket,id=console,path={self._console},server=on,wait=off,logfile={self.serial}",
            "-serial", "chardev:console", "-qmp", f"unix:{monitor},server=on,wait=off", *options,
        ]  # fmt: skip
        self.words = (folder / f"{name}.words").open("w")
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.words, stderr=self.words)
        try:
            self.qmp = Qmp(monitor)
        except QmpError as error:
            self.stop()
            words = (folder / f"{name}.words").read_text().strip()[-300:]
            raise QmpError(f"{name}: {words or error}") from None

    def stop(self) -> None:
        """Kill and reap."""
        self.process.kill()
        self.process.wait()
        if hasattr(self, "qmp"):
            self.qmp.close()
        self.words.close()

    def said(self) -> str:
        """What the guest's console has said."""
        return self.serial.read_text(errors="replace") if self.serial.exists() else ""

    def type(self, line: str) -> None:
        """Type a line on the guest's console."""
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(self._console))
            console.sendall(f"{line}\n".encode())
            time.sleep(0.2)  # what the guest says meanwhile goes into the file all the same

    def alive(self, sign: str, timeout_s: float = 90) -> None:
        """Wait until the guest has said `sign`."""
        end = time.monotonic() + timeout_s
        while sign not in self.said():
            if time.monotonic() > end:
                raise QmpError(f"the guest has not said '{sign}' within {timeout_s:.0f} s")
            time.sleep(0.05)
