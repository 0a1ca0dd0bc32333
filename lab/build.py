"""Builds the lab's host program with the system's C compiler into the user's cache, once per version of its sources."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O2", "-g", "-Wall", "-pthread", "-lm")


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/faultreplay`, or `~/.cache/faultreplay`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faultreplay"


def build() -> Path:
    """Path of the program, built if this version is not there yet.

    Raises:
        MissingFeature: not x86-64, or no C compiler.
        FaultreplayError: the compiler does not accept the sources.
    """
    if platform.machine() != "x86_64":
        raise MissingFeature(f"the lab's guest is x86-64 code, this machine is {platform.machine()}: run it elsewhere")
    files = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    program = cache_dir() / digest.hexdigest()[:16] / "labhost"
    if program.exists():
        return program
    compiler = os.environ.get("CC") or "cc"
    if not shutil.which(compiler):
        raise MissingFeature(f"no C compiler ({compiler}) to build the lab's guest: apt install gcc libc6-dev")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as work:
        made = Path(work) / "labhost"
        command = [compiler, *FLAGS[:-1], "-o", str(made), *(str(f) for f in files if f.suffix == ".c"), FLAGS[-1]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise FaultreplayError(f"{compiler} cannot build the lab's program: {first}")
        made.rename(program)
    return program
