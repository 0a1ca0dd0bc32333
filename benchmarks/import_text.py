"""Lines per second and peak memory of `faultreplay import` on text, beside `wc -l` and a bare loop of Python.

    python benchmarks/import_text.py [--mb 250] [--from trace-cmd|perf-script] [--repeat 3]

The file is made here: stage-2 faults of four vCPUs with their scheduling, one in sixteen with a trip to userspace and
its system calls, and events that are not taken. Wall and CPU time are told: on a busy machine only the latter says
much.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faultreplay.collect.importers import import_file

INFO = "info1 0x0000000000000182 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000"
RIP = "0xffffffff81040f72"


def events(n: int) -> list[tuple[int, str, str]]:
    """(microseconds after the fault, category, event) of fault `n`."""
    vcpu = n % 4
    found = [
        (0, "kvm", f"kvm_exit: vcpu {vcpu} reason EPT_VIOLATION rip {RIP} {INFO}"),
        (1, "kvm", f"kvm_page_fault: vcpu {vcpu} rip {RIP} address 0x{4096 * n:016x} error_code 0x182"),
        (1, "kvmmmu", f"kvm_mmu_spte_requested: gfn {n:x} pfn {n:x} level 1"),
        (4, "sched", f"sched_waking: comm=CPU {vcpu}/KVM pid={4140 + vcpu} prio=120 target_cpu=00{vcpu}"),
        (6, "idle", f"sched_switch: prev_comm=swapper/{vcpu} prev_pid=0 prev_prio=120 prev_state=R ==> "
                     f"next_comm=CPU {vcpu}/KVM next_pid={4140 + vcpu} next_prio=120"),
    ]  # fmt: skip
    if n % 16 == 0:
        found += [
            (7, "kvm", "kvm_userspace_exit: reason KVM_EXIT_IO (2)"),
            (8, "syscalls", "sys_exit_ioctl: 0x0"),
            (9, "syscalls", "sys_enter_ioctl: fd: 0x0000000c, cmd: 0x0000ae80, arg: 0x00000000"),
        ]
    return [*found, (11, "kvm", f"kvm_entry: vcpu {vcpu}, rip {RIP}")]


def line(source: str, vcpu: int, time_s: str, what: tuple[str, str]) -> str:
    """One line; a switch from the idle thread is of that thread."""
    category, event = what
    idle = category == "idle"
    if source == "trace-cmd":
        who = "          <idle>-0     " if idle else f"       CPU {vcpu}/KVM-414{vcpu} "
        return f"{who} [00{vcpu}] {time_s}: {event}\n"
    who = "         swapper     0/0    " if idle else f"       CPU {vcpu}/KVM  4136/414{vcpu} "
    return f"{who} [00{vcpu}] {time_s}000: {'sched' if idle else category}:{event}\n"


def make(path: Path, source: str, mebibytes: int) -> int:
    """Write the file; the number of its lines."""
    lines = n = size = 0
    with path.open("w") as stream:
        while size < mebibytes << 20:
            block = []
            for _ in range(10_000):
                vcpu, start = n % 4, 100_000_000 + 13 * n
                for after, category, event in events(n):
                    seconds, us = divmod(start + after, 1_000_000)
                    block.append(line(source, vcpu, f"{seconds:>5}.{us:06}", (category, event)))
                n += 1
            text = "".join(block)
            stream.write(text)
            lines, size = lines + len(block), size + len(text)
    return lines


def python_loop(path: Path) -> None:
    """What a reader in plain Python cannot be faster than."""
    with path.open() as stream:
        for line in stream:
            line.split(None, 5)


def best(repeat: int, run: Callable[[], object]) -> tuple[float, float]:
    """Least wall and CPU seconds (of this process and of those it starts)."""
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), _cpu()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu() - cpu)
    return min(walls), min(cpus)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> int:
    """Make, measure, say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=250, help="size of the file, MiB (default: 250)")
    parser.add_argument("--from", dest="source", choices=("trace-cmd", "perf-script"), default="trace-cmd")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faultreplay-import-") as folder:
        path = Path(folder) / "x.txt"
        lines = make(path, args.source, args.mb)
        print(f"{args.source}: {lines:,} lines, {path.stat().st_size >> 20} MiB")
        runs = (
            ("wc -l", lambda: subprocess.run(["wc", "-l", path], check=True, stdout=subprocess.DEVNULL)),
            ("Python, line.split()", lambda: python_loop(path)),
            ("faultreplay import", lambda: import_file(args.source, path, Path(folder) / "x.trace", force=True)),
        )
        took = {name: best(args.repeat, run) for name, run in runs}
        for name, (wall, cpu) in took.items():
            ratio = cpu / took["faultreplay import"][1]
            rates = f"{lines / wall:>12,.0f} lines/s   {lines / cpu:>12,.0f} lines/CPU s"
            print(f"  {name:<22} {rates}   {ratio:6.2f} of its CPU")
        print(f"  peak resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
