"""Builds dist/faultreplay-recorder.pyz: one file that records on a host with Python and libbpf1.

    python scripts/make_recorder.py [OUT]      (or: make recorder)

It holds faultreplay with its precompiled BPF programs and the pinned versions of what recording needs: numpy, pyarrow,
click, msgspec, rich. Replay needs numba and polars, which are not in it: it records, imports nothing else, and says so.
The file is for this machine's architecture and for the Python it was made with (3.11 on Debian 12).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("click", "markdown-it-py", "mdurl", "msgspec", "numpy", "pyarrow", "pygments", "rich")
# What recording never loads, of packages that are mostly other things.
UNUSED = (
    "pyarrow/include", "pyarrow/includes", "pyarrow/src", "pyarrow/tests", "pyarrow/libarrow_flight*",
    "pyarrow/_flight*", "pyarrow/libarrow_python.so.*.*.*", "pyarrow/*.pyx", "pyarrow/*.pxd", "pyarrow/*.pxi",
    "pyarrow/_pyarrow_cpp_tests*", "numpy/**/tests", "numpy/_core/include", "numpy/_core/lib", "numpy/f2py",
    "numpy/random/lib", "**/__pycache__", "bin",
)  # fmt: skip


def run(*command: object, where: Path = ROOT) -> None:
    """Run a command; what it prints goes to stderr.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([str(word) for word in command], cwd=where, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(str(word) for word in command[:6])} ... failed ({done.returncode})")


def pinned(lock: str) -> str:
    """The entries of NEEDED in a lock file, with their hashes."""
    entries = re.split(r"\n(?=\S)", lock)
    wanted = [entry for entry in entries if re.match(rf"(?:{'|'.join(NEEDED)})==", entry)]
    if len(wanted) != len(NEEDED):
        raise SystemExit("error: requirements.lock does not pin all that recording needs: make lock")
    return "\n".join(line for entry in wanted for line in entry.splitlines() if not line.strip().startswith("#")) + "\n"


def main() -> int:
    """Build; the path is printed on stdout."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "faultreplay-recorder.pyz"
    out.parent.mkdir(parents=True, exist_ok=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    with tempfile.TemporaryDirectory() as work_name:
        work = Path(work_name)
        site, wheels, requirements = work / "site", work / "wheels", work / "requirements.txt"
        requirements.write_text(pinned((ROOT / "requirements.lock").read_text()))
        run(sys.executable, "-m", "faultreplay.collect.backends.build_precompiled")
        run(*pip, "install", "--target", site, "--no-deps", "--require-hashes", "-r", requirements)
        source = work / "source"  # pip would leave build/ in the checkout
        shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "dist", "*.trace"))
        run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source)
        run(*pip, "install", "--target", site, "--no-deps", *wheels.glob("*.whl"))
        for pattern in UNUSED:
            for path in site.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run(sys.executable, "-m", "shiv", "--site-packages", site, "--compressed", "--python", "/usr/bin/env python3",
            "--entry-point", "faultreplay.cli.main:run", "--output-file", out)  # fmt: skip
    print(f"{out} ({out.stat().st_size / 1e6:.0f} MB)", file=sys.stderr)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
