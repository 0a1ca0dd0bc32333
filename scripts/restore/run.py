"""`make restores`: a real QEMU guest restored lazily from a snapshot file, recorded, as often as asked.

    python scripts/restore/run.py tcg|kvm -o DIRECTORY [--runs 2] [--cache hot,cold]

The guest runs with its memory in a file (share=on) until it is ready; then its devices are saved with the migration
capability x-ignore-shared, which leaves memory in the file. Each run maps that file privately, loads the devices and
goes on: memory comes in by page faults. Linux under TCG serves a key-value store, with another seed in each run; the
firmware under KVM goes on dirtying pages in random order. Leaves GUEST-CACHE-N.trace in the directory.

Exit codes: 0 recorded, 1 QEMU failed, 5 a tool is missing.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "postcopy"))

from guests import Guest, firmware_guest, linux_with  # noqa: E402 - a neighbour folder's modules
from qmp import QmpError  # noqa: E402
from vm import QEMU, Vm  # noqa: E402

from faultreplay.collect.recorder.recorder import Recorder  # noqa: E402
from faultreplay.collect.recorder.spec import RecordSpec  # noqa: E402
from faultreplay.faulttrace.errors import FaultreplayError  # noqa: E402
from faultreplay.faulttrace.meta import MechanismUsed, Memslot  # noqa: E402
from faultreplay.faulttrace.store import open_trace  # noqa: E402
from faultreplay.faulttrace.writer import update_meta  # noqa: E402

PAGE_BYTES = 4096
_IGNORE_SHARED = [{"capability": "x-ignore-shared", "state": True}]


@dataclass(frozen=True)
class Snapshot:
    """A guest's memory file and the state of its devices."""

    guest: Guest
    memory: Path
    state: Path
    megabytes: int

    def options(self, share: str) -> list[str]:
        """QEMU's options with the memory file mapped shared (`on`) or privately (`off`)."""
        backend = f"memory-backend-file,id=memory,size={self.megabytes}M,mem-path={self.memory},share={share}"
        return [*self.guest.options, "-object", backend, "-machine", "pc,memory-backend=memory"]


def take(guest: Guest, folder: Path, storage: Path, megabytes: int) -> Snapshot:
    """Run `guest` until it is ready, stop it and save its devices."""
    made = Snapshot(guest, storage / "memory", folder / "devices", megabytes)
    source = Vm("source", made.options("on"), folder)
    try:
        if guest.sign_of_life:
            source.alive(guest.sign_of_life)
        else:
            time.sleep(1)
        source.qmp("stop")
        source.qmp("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
        source.qmp("migrate", uri=f"exec:cat>{made.state}")
        done = source.qmp.until("query-migrate", lambda a: a.get("status") in ("completed", "failed"), timeout_s=60)
        if done["status"] != "completed":
            raise QmpError(f"the devices cannot be saved: {done}")
    finally:
        source.stop()
    return made


def restore(snapshot: Snapshot, folder: Path, out: Path, *, cold: bool, work: str, run_s: float, force: bool) -> None:
    """Restore with a private mapping, recorded from before the guest goes on until its work is done.

    Args:
        snapshot: what `take` left.
        folder: for sockets and words.
        out: the trace.
        cold: drop the memory file from the page cache first.
        work: the line typed on the guest's console; empty: it works by itself for `run_s`.
        run_s: so long, where nothing is typed.
        force: replace an existing trace.
    """
    prepare_cache(snapshot.memory, cold)
    vm = Vm(out.stem, [*snapshot.options("off"), "-incoming", "defer"], folder)
    try:
        vm.qmp("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
        vm.qmp("migrate-incoming", uri=f"exec:cat {snapshot.state}")
        vm.qmp.until("query-migrate", lambda a: a.get("status") == "completed", timeout_s=60)
        vcpus = [str(cpu["thread-id"]) for cpu in vm.qmp("query-cpus-fast")]
        tcg = "tcg" in " ".join(snapshot.guest.options)
        params = {"page_cache": "cold" if cold else "hot"}
        spec = RecordSpec(
            pids=(vm.process.pid,), force=force, vcpu_threads=tuple(vcpus) if tcg else (),
            meta_extra={"mechanism": MechanismUsed("file-private", params), "origin": "recorded"},
        )  # fmt: skip
        with Recorder(spec, out):
            vm.qmp("cont")
            if work:
                vm.type(work)
                vm.alive("keyvalue: done")
            else:
                time.sleep(run_s)
            vm.qmp("stop")
        _name_guest_memory(out, snapshot)
    finally:
        vm.stop()


def prepare_cache(path: Path, cold: bool) -> None:
    """All of a file in the page cache, or nothing of it.

    Raises:
        QmpError: it stays in the cache (a tmpfs, or somebody has it mapped).
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if not cold:
            while file.read(1 << 20):
                pass
            return
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if left := cached_pages(path):
            raise QmpError(f"{path}: {left} pages stay in the page cache: choose --storage on a disk")


def cached_pages(path: Path) -> int:
    """How many pages of a file are in the page cache."""
    import ctypes

    pages = path.stat().st_size // PAGE_BYTES
    there = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED) as view:
        first = ctypes.c_char.from_buffer(view)
        done = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(pages * PAGE_BYTES), there
        )
        del first
    if done:
        raise QmpError(f"{path}: mincore failed")
    return sum(byte & 1 for byte in there)


def _name_guest_memory(out: Path, snapshot: Snapshot) -> None:
    """Where guest physical memory lies, which QEMU's `pc` machine makes one piece below 3.5 GiB: file offsets are
    guest physical addresses. No system call of the recording shows it."""
    trace = open_trace(out)
    meta = trace.meta
    for entry in meta.memory_map:
        if entry.name == str(snapshot.memory):
            slot = Memslot(meta.clock.start_ns, 0, 0, entry.start, entry.end - entry.start)
            if not meta.targets[0].memslots:
                meta.targets[0].memslots = [slot]
            entry.name = "guest memory"
    update_meta(out, meta)


def main() -> int:
    """Build, snapshot, restore, say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("guest", choices=["kvm", "tcg"], help="firmware under -accel kvm, or Linux under TCG")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory of the traces")
    parser.add_argument("--force", action="store_true", help="replace existing traces")
    parser.add_argument("--runs", type=int, default=2, help="restores for each state of the page cache (default: 2)")
    parser.add_argument("--cache", default="hot,cold", help="states of the page cache (default: hot,cold)")
    parser.add_argument("--mib", type=int, default=48, help="memory that the guest works on (default: 48)")
    parser.add_argument("--operations", type=int, default=20_000, help="requests to the store (default: 20000)")
    parser.add_argument("--run-s", type=float, default=0.4, help="how long the firmware runs on (default: 0.4)")
    parser.add_argument("--storage", type=Path, default=Path("/var/tmp"), help="where the memory file is")
    args = parser.parse_args()
    for tool, package in ((QEMU, "qemu-system-x86"), ("gcc", "gcc"), ("ld", "binutils"), ("busybox", "busybox-static")):
        if not shutil.which(tool):
            print(f"error: {tool} is not installed: apt-get install {package}", file=sys.stderr)
            return 5
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="faultreplay-restore-") as name,
        tempfile.TemporaryDirectory(prefix="faultreplay-restore-", dir=args.storage) as storage,
    ):
        try:
            _all_runs(args, Path(name), Path(storage))
        except (QmpError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except FaultreplayError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _all_runs(args: argparse.Namespace, folder: Path, storage: Path) -> None:
    if args.guest == "kvm":
        guest, megabytes = firmware_guest(folder, mib=args.mib), args.mib + 32
    else:
        megabytes = args.mib + 80
        guest = linux_with(
            folder, HERE / "keyvalue.c", str(args.mib), memory_mib=megabytes, vcpus=1, sign="keyvalue: ready"
        )
    snapshot = take(guest, folder, storage, megabytes)
    print(f"devices: {snapshot.state.stat().st_size >> 10} KiB, memory: {megabytes} MiB in a file", file=sys.stderr)
    for cache in args.cache.split(","):
        for run in range(1, args.runs + 1):
            out = args.output / f"{args.guest}-{cache}-{run}.trace"
            work = f"{run} {args.operations}" if args.guest == "tcg" else ""
            restore(snapshot, folder, out, cold=cache == "cold", work=work, run_s=args.run_s, force=args.force)
            faults = open_trace(out).faults()
            print(f"wrote {out}: {faults.height} faults, {_kib(out)} KiB", file=sys.stderr)


def _kib(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >> 10


if __name__ == "__main__":
    sys.exit(main())
