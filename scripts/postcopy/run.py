"""`make postcopy`: a real post-copy migration between two QEMU processes on this machine, its destination recorded.

    python scripts/postcopy/run.py kvm|tcg [-o NAME.trace] [--mib 64]

The trace holds QEMU's own figures (query-migrate of both sides) in meta.extra.qemu; they are printed beside the
stitched stalls. Exit codes: 0 recorded and held together, 1 QEMU failed, 5 a tool is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from guests import Guest, firmware_guest, linux_guest
from qmp import QmpError
from vm import QEMU, Vm

from faultreplay.cli.qemu_view import beside
from faultreplay.cli.render import emit
from faultreplay.collect.recorder.recorder import Recorder
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.meta import MechanismUsed
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import update_meta


def migrate(guest: Guest, folder: Path, out: Path, *, force: bool, after: float, backend: str) -> dict[str, Any]:
    """Migrate `guest` with post-copy from `after` (share of RAM already sent); the destination is recorded into `out`.

    Returns:
        QEMU's own figures, as they are kept in the trace.
    """
    source = destination = None
    channel = folder / "migration"
    try:
        destination = Vm("destination", [*guest.options, "-incoming", "defer"], folder)
        source = Vm("source", guest.options, folder)
        if guest.sign_of_life:
            source.alive(guest.sign_of_life)
        else:
            time.sleep(1)
        for vm in (source, destination):
            wanted = [{"capability": "postcopy-ram", "state": True}]
            if vm is destination:  # it also turns on UFFD_FEATURE_THREAD_ID
                wanted.append({"capability": "postcopy-blocktime", "state": True})
            vm.qmp("migrate-set-capabilities", capabilities=wanted)
            # A downtime limit of 1 ms keeps QEMU from ending in pre-copy what is small enough.
            vm.qmp("migrate-set-parameters", max_bandwidth=100 << 20, max_postcopy_bandwidth=0, downtime_limit=1)
        destination.qmp("migrate-incoming", uri=f"unix:{channel}")
        spec = RecordSpec(
            pids=(destination.process.pid,), backend=backend, force=force,
            meta_extra={"mechanism": MechanismUsed("uffd-missing", {"handlers": 1})},
        )  # fmt: skip
        with Recorder(spec, out):
            source.qmp("migrate", uri=f"unix:{channel}")
            source.qmp.until("query-migrate", lambda a: _share_sent(a) >= after, timeout_s=60)
            source.qmp("migrate-start-postcopy")
            source.qmp.until("query-migrate", lambda a: a["status"] in ("completed", "failed"), timeout_s=90)
            destination.qmp.until("query-migrate", lambda a: a.get("status") in ("completed", "failed"), timeout_s=30)
            time.sleep(0.3)
            vcpus = destination.qmp("query-cpus-fast")
        return {
            "version": source.qmp.greeting["version"]["qemu"],
            "package": source.qmp.greeting["version"]["package"],
            "destination": destination.qmp("query-migrate"),
            "source": source.qmp("query-migrate"),
            "running": destination.qmp("query-status")["running"],
            "vcpus": [{"index": cpu["cpu-index"], "tid": cpu["thread-id"]} for cpu in vcpus],
        }
    finally:
        for vm in (source, destination):
            if vm is not None:
                vm.stop()


def _share_sent(answer: dict[str, Any]) -> float:
    ram = answer.get("ram", {})
    if answer["status"] in ("failed", "completed"):
        raise QmpError(
            f"migration {answer['status']} before post-copy began: {answer.get('error-desc', 'RAM too small')}"
        )
    return 1 - ram["remaining"] / ram["total"] if ram.get("total") and answer["status"] == "active" else 0.0


def main() -> int:
    """Build, migrate, record, compare, say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("guest", choices=["kvm", "tcg"], help="firmware under -accel kvm, or Linux under TCG")
    parser.add_argument("-o", "--output", type=Path, help="the trace to make (default: in a temporary folder)")
    parser.add_argument("--force", action="store_true", help="replace an existing trace")
    parser.add_argument("--mib", type=int, default=256, help="memory the guest dirties (default: 256)")
    parser.add_argument("--vcpus", type=int, default=2, help="vCPUs of the Linux guest (default: 2)")
    parser.add_argument("--after", type=float, default=0.3, help="share of RAM sent before post-copy (default: 0.3)")
    parser.add_argument("--backend", default="auto", help="recorder's backend")
    args = parser.parse_args()
    for tool, package in ((QEMU, "qemu-system-x86"), ("gcc", "gcc"), ("ld", "binutils")):
        if not shutil.which(tool):
            print(f"error: {tool} is not installed: apt-get install {package}", file=sys.stderr)
            return 5
    with tempfile.TemporaryDirectory(prefix="faultreplay-postcopy-") as name:
        folder = Path(name)
        out = args.output or Path(tempfile.mkdtemp(prefix="faultreplay-")) / f"postcopy-{args.guest}.trace"
        try:
            guest = (
                firmware_guest(folder, mib=args.mib)
                if args.guest == "kvm"
                else linux_guest(folder, mib=args.mib, vcpus=args.vcpus)
            )
            figures = migrate(guest, folder, out, force=args.force, after=args.after, backend=args.backend)
        except (QmpError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except FaultreplayError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    trace = open_trace(out)
    trace.meta.extra["qemu"] = figures
    update_meta(out, trace.meta)
    print(f"wrote {out}", file=sys.stderr)
    if report := beside(open_trace(out)):
        emit(report, "table")
    return 0 if figures["running"] else 1


if __name__ == "__main__":
    sys.exit(main())
