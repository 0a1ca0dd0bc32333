"""The two guests that are migrated: a Linux that dirties memory (for TCG) and a firmware that does (for KVM)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "kernels"))

from debian import fetch  # noqa: E402 - a neighbour folder's module

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec /program {arguments} </dev/ttyS0 >/dev/ttyS0 2>&1
"""


@dataclass(frozen=True)
class Guest:
    """QEMU options of a guest, and what its serial console says once it dirties memory (empty: nothing)."""

    options: tuple[str, ...]
    sign_of_life: str
    vcpus: int


def firmware_guest(folder: Path, *, mib: int) -> Guest:
    """The firmware under KVM: one vCPU that dirties `mib` MiB in random order at CPL 3."""
    assembled, image = folder / "firmware.o", folder / "firmware.bin"
    pages = mib << 8
    _run("gcc", "-c", f"-DPAGES={pages}", "-DSPIN=2000", "-o", assembled, HERE / "firmware.S")
    _run("ld", "-Ttext=0xffff0000", "-e", "0xffff0000", "--oformat", "binary", "-o", image, assembled)
    memory = mib + 32
    return Guest(("-accel", "kvm", "-m", str(memory), "-smp", "1", "-bios", str(image)), "", 1)


def linux_guest(folder: Path, *, mib: int, vcpus: int) -> Guest:
    """Debian's 6.1 kernel with a busybox initramfs under TCG: one dirtying thread a vCPU."""
    argument = f"{mib} {vcpus}"
    return linux_with(folder, HERE / "toucher.c", argument, memory_mib=mib + 160, vcpus=vcpus, sign="toucher: ")


def linux_with(folder: Path, source: Path, arguments: str, *, memory_mib: int, vcpus: int, sign: str) -> Guest:
    """Debian's 6.1 kernel under TCG with a busybox initramfs whose only program is the C file `source`."""
    program = folder / source.stem
    _run("gcc", "-O2", "-static", "-pthread", "-o", program, source, "-lm")
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is not installed: apt-get install busybox-static")
    initramfs = folder / "initramfs.cpio"
    files = {
        "bin": None, "dev": None, "bin/busybox": Path(busybox).read_bytes(), "program": program.read_bytes(),
        "init": _INIT.format(arguments=arguments).encode(),
    }  # fmt: skip
    initramfs.write_bytes(cpio(files))
    options = (
        "-accel", "tcg,thread=multi", "-m", str(memory_mib), "-smp", str(vcpus),
        "-kernel", str(fetch("6.1").image), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet mitigations=off nokaslr",
    )  # fmt: skip
    return Guest(options, sign, vcpus)


def cpio(files: dict[str, bytes | None]) -> bytes:
    """An initramfs in the "newc" format; None as content makes a folder."""
    out = bytearray()
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")], start=1):
        mode = 0o040755 if content is None else 0o100755
        body = content or b""
        fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + body
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def _run(*argv: str | os.PathLike[str]) -> None:
    subprocess.run(argv, check=True)
