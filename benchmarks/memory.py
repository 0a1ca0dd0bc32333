"""Peak memory of one replay of many faults, rows kept or only sums.

    python benchmarks/memory.py [--faults 100000000] [--sums]

Issue's bound: 100 million faults in under 6 GiB. The workload is made in place, as a reader of a trace would.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import Workload


def workload(vcpus: int, faults: int) -> Workload:
    """Demand paging with everything a recorded trace has: pages, accesses, recorded stalls and start times."""
    per = faults // vcpus
    total = per * vcpus
    rng = np.random.default_rng(1)
    think = rng.integers(1_000, 200_000, total)
    stall = np.full(total, 50_000)
    start = np.cumsum(think)
    for a in range(vcpus):
        start[a * per : (a + 1) * per] -= int(start[a * per]) - int(think[a * per])
    return Workload(
        accessor_start=np.arange(vcpus + 1) * per,
        think_ns=think,
        page=np.arange(total, dtype=np.int32),
        access=np.ones(total, np.uint8),
        cause=np.zeros(total, np.uint8),
        recorded_stall_ns=stall,
        recorded_start_ns=start,
        accessor_kind=np.zeros(vcpus, np.uint8),
        accessor_name=tuple(f"vcpu{a}" for a in range(vcpus)),
        tail_ns=np.zeros(vcpus, np.int64),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100_000_000)
    parser.add_argument("--vcpus", type=int, default=16)
    parser.add_argument("--sums", action="store_true", help="keep no rows")
    options = parser.parse_args()
    work = workload(options.vcpus, options.faults)
    begin = time.perf_counter()
    result = simulate(work, load_mechanism("uffd-missing"), load_costs(), rows=not options.sums)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{work.faults:,} faults, {options.vcpus} vCPUs, {'sums' if options.sums else 'rows'}: {seconds:.1f} s, "
          f"{work.faults / seconds / 1e6:.2f} M/s, peak {peak / 2**30:.2f} GiB, "
          f"total stall {result.total_stall_ns / 1e9:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
