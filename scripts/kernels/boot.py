"""Boot an unpacked kernel under QEMU (TCG with nested SVM) over this machine's own root file system, read-only.

virtme-ng does the booting. No hardware virtualisation is needed or used: `-cpu max` under TCG offers SVM, so kvm_amd
loads inside and fires the tracepoints of hardware paging.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from debian import DebianKernel

NEEDS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod", "strings": "binutils"}


class BootFailed(Exception):
    """The kernel did not come up or the script in it did not end; the message holds the console's last lines."""


def missing_tools() -> list[str]:
    """What has to be installed first, as ``tool (package)``."""
    path = _path()
    lacking = [f"{tool} ({package})" for tool, package in NEEDS.items() if not shutil.which(tool, path=path)]
    if not shutil.which("vng", path=path):
        lacking.append("vng (pip install 'faultreplay[kernels]')")
    return lacking


def boot(kernel: DebianKernel, script: Path, share: Path, *, args: tuple[str, ...] = (), timeout_s: int = 500) -> str:
    """Run `script` as root inside; `share` is read-write in both worlds at the same path. The console's text.

    Raises:
        BootFailed: not up, or not done within `timeout_s`.
    """
    command = " ".join(["sh", str(script), *args, f">{share}/console.txt", "2>&1", ";", "echo $?", f">{share}/status"])
    argv = [
        "vng", "--disable-kvm", "--force-9p", "--disable-microvm", "--cpus", "2", "--memory", "3G",
        "--run", str(kernel.image), "--cwd", str(share), "--rwdir", str(share),
        # One thread for both CPUs: with two, TCG now and then runs an int3 that the other CPU has just patched away
        # (probes are switched on that way), and the kernel panics.
        "--qemu-opts=-cpu max -accel tcg,thread=single",
        "--append", "mitigations=off nokaslr",
        "--verbose", "--exec", command,
    ]  # fmt: skip
    for name in ("console.txt", "status"):
        (share / name).unlink(missing_ok=True)
    log = share / "boot.txt"
    with log.open("wb") as stream:
        vng = subprocess.Popen(
            argv, env={**os.environ, "PATH": _path()}, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            vng.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BootFailed(f"{kernel.release}: not done within {timeout_s} s\n{_tail(share)}") from None
        finally:
            if vng.poll() is None:  # QEMU is its grandchild: end the whole session of processes
                os.killpg(vng.pid, signal.SIGKILL)
                vng.wait()
    if not (share / "status").exists():
        raise BootFailed(f"{kernel.release}: the script did not end\n{_tail(share)}")
    if (share / "status").read_text().strip() != "0":
        raise BootFailed(f"{kernel.release}: the script failed\n{_tail(share)}")
    return (share / "console.txt").read_text(errors="replace")


def _path() -> str:
    """PATH with the virtual environment (vng calls virtme-run) and the sbin folders (depmod)."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _tail(share: Path) -> str:
    for name in ("console.txt", "boot.txt"):
        path = share / name
        if path.exists() and path.stat().st_size:
            return "\n".join(path.read_text(errors="replace").splitlines()[-15:])
    return "(no output)"
