"""`make kernels`: boot Debian kernels under QEMU with nested SVM, record a guest inside, check the trace to the number.

    python scripts/kernels/run.py [--kernel 6.1 --kernel 6.12] [--backend bcc --backend bpftrace] [--out DIR]

Exit codes: 0 every number exact, 1 one was not, 5 a tool or kernel is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from boot import BootFailed, boot, missing_tools
from check import check
from debian import KernelUnavailable, fetch
from types_btf import write_btf

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
BACKINGS = ["lazy", "uffd", "apf", "ring", "devices", "exit"]


def main() -> int:
    """Boot, record, check, say."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no QEMU outlives this
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", action="append", help="series, as 6.1 (default: 6.1 and 6.12)")
    parser.add_argument("--backend", action="append", help="bcc or bpftrace (default: bcc)")
    parser.add_argument("--backing", action="append", choices=BACKINGS, help="default: all")
    parser.add_argument("--pages", type=int, default=1009, help="pages the guest touches (default: 1009)")
    parser.add_argument("--doctor", action="store_true", help="also run `faultreplay doctor` inside")
    parser.add_argument("--out", type=Path, help="keep traces and logs in this folder")
    args = parser.parse_args()
    if lacking := missing_tools():
        print(f"error: not installed: {', '.join(lacking)}", file=sys.stderr)
        return 5
    out = (args.out or Path(tempfile.mkdtemp(prefix="faultreplay-kernels-"))).resolve()
    guest = build_guest(out)
    exact = True
    for series in args.kernel or ["6.1", "6.12"]:
        share = out / series
        share.mkdir(parents=True, exist_ok=True)
        write_btf(share / "types.btf")
        backends, backings = args.backend or ["bcc"], args.backing or BACKINGS
        began = time.monotonic()
        try:
            kernel = fetch(series)
            words = (str(REPO), sys.executable, str(guest), str(share), str(args.pages))
            more = ("doctor",) if args.doctor else ()
            # bpftrace alone takes minutes to start under TCG
            timeout_s = 450 + 600 * ("bpftrace" in backends)
            arguments = (*words, quoted(backends), quoted(backings), *more)
            # A copy: a shell reads its script as it goes, and this one may be edited meanwhile.
            script = shutil.copy(HERE / "inside.sh", share)
            boot(kernel, Path(script), share, args=arguments, timeout_s=timeout_s)
        except KernelUnavailable as error:
            print(f"error: {error}", file=sys.stderr)
            return 5
        except BootFailed as error:
            print(f"error: {error}", file=sys.stderr)
            exact = False
            continue
        print(f"{kernel.release}: booted, recorded and gone in {time.monotonic() - began:.0f} s")
        for backend in backends:
            exact &= report(share, backend)
    print(f"traces and logs: {out}", file=sys.stderr)
    return 0 if exact else 1


def build_guest(folder: Path) -> Path:
    """Compile guest.c into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    guest = folder / "guest"
    subprocess.run(["cc", "-O2", "-Wall", "-pthread", "-static", "-o", guest, HERE / "guest.c"], check=True)
    return guest


def report(share: Path, backend: str) -> bool:
    """Check one trace, print every number, say whether all hold."""
    from faultreplay.faulttrace.meta import MechanismUsed
    from faultreplay.faulttrace.store import open_trace
    from faultreplay.faulttrace.writer import update_meta

    trace = open_trace(share / f"{backend}.trace")
    host = trace.meta.host
    print(f"  {backend}: {trace.event_rows} events, recorded on {host.kernel}, {host.kvm_flavour}")
    exact = True
    guests = [json.loads(line) for line in (share / f"{backend}.jsonl").read_text().splitlines()]
    trace.meta.extra["guests"] = guests  # what they printed: the trace can be checked again later
    if [facts["backing"] for facts in guests] == ["uffd"]:
        trace.meta.mechanism = MechanismUsed("uffd-missing", {"handlers": 1})
    update_meta(trace.path, trace.meta)
    for facts in guests:
        for item in check(trace, facts):
            mark = "ok " if item.holds else "BAD"
            print(
                f"    {mark} {facts['backing']}: {item.what}: {item.seen}"
                + ("" if item.holds else f", not {item.wanted}")
            )
            exact &= item.holds
    return exact


def quoted(words: list[str]) -> str:
    """Words as one shell word."""
    return f"'{' '.join(words)}'"


if __name__ == "__main__":
    sys.exit(main())
