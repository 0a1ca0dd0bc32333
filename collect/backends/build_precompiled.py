"""Builds the precompiled object (needs clang and libbpf-dev).

`python -m faultreplay.collect.backends.build_precompiled`
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from faultreplay.collect.backends.precompiled_program import OBJECT_NAME, generate_precompiled
from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature

_ARCH: Final = {"x86_64": "x86", "aarch64": "arm64"}


def build(out: Path) -> Path:
    """Compile the programs to `out`; its path.

    Raises:
        MissingFeature: no clang, or headers of libbpf or Linux are missing.
    """
    clang = shutil.which("clang")
    if clang is None:
        raise MissingFeature("clang is not installed: apt install clang libbpf-dev")
    machine = platform.machine()
    with tempfile.TemporaryDirectory() as work:
        text = Path(work) / "faultreplay.bpf.c"
        text.write_text(generate_precompiled())
        made = Path(work) / OBJECT_NAME
        command = [clang, "-O2", "-g", "-target", "bpf", f"-D__TARGET_ARCH_{_ARCH.get(machine, machine)}"]
        command += ["-Wall", "-Werror", "-Wno-unused-function", f"-I/usr/include/{machine}-linux-gnu"]
        done = subprocess.run([*command, "-c", text, "-o", made], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error:" in line] or [done.stderr.strip()[:200]]
            raise MissingFeature(f"clang cannot compile the programs: {lines[0]} (apt install clang libbpf-dev)")
        _strip(made)
        shutil.copyfile(made, out)
    return out


def _strip(made: Path) -> None:
    """Without DWARF it is a tenth as large; BTF stays."""
    for tool in ("llvm-strip", "llvm-strip-14"):
        if shutil.which(tool):
            subprocess.run([tool, "-g", made], check=False)
            return


def main() -> int:
    """Build into the package."""
    out = Path(__file__).resolve().parents[1] / "bpf" / OBJECT_NAME
    try:
        build(out)
    except FaultreplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {out} ({out.stat().st_size} bytes)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
