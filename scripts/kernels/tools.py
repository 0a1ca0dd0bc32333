"""Record one guest inside a Debian kernel with all tools at once: golden files for the importers.

    python scripts/kernels/tools.py --out DIR [--kernel 6.1] [--pages 23] [--backing lazy]

Exit codes: 0 done, 1 the boot failed, 5 a tool or kernel is missing.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from boot import BootFailed, boot, missing_tools
from debian import KernelUnavailable, fetch
from run import BACKINGS, HERE, REPO, build_guest

TOOLS = {"perf": "linux-perf", "trace-cmd": "trace-cmd"}


def main() -> int:
    """Boot, record, leave the files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no QEMU outlives this
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="6.1", help="series (default: 6.1)")
    parser.add_argument("--backing", default="lazy", choices=BACKINGS)
    parser.add_argument("--pages", type=int, default=23, help="pages the guest touches (default: 23)")
    parser.add_argument("--backend", default="bcc", help="of our own recording (default: bcc)")
    parser.add_argument("--out", type=Path, required=True, help="the folder for what the tools print")
    args = parser.parse_args()
    lacking = missing_tools() + [f"{tool} ({package})" for tool, package in TOOLS.items() if not shutil.which(tool)]
    if lacking:
        print(f"error: not installed: {', '.join(lacking)}", file=sys.stderr)
        return 5
    share = args.out.resolve()
    guest = build_guest(share)
    words = (str(REPO), sys.executable, str(guest), str(share), str(args.pages), args.backing, args.backend)
    try:
        script = shutil.copy(HERE / "tools.sh", share)
        boot(fetch(args.kernel), Path(script), share, args=words, timeout_s=1500)
    except KernelUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    except BootFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    subprocess.run(["sh", HERE / "tools-print.sh", share], check=True)
    print(f"wrote {share}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
