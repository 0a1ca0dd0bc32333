"""Published vCPU tables under the shipped mechanisms: what a row is, and how costs are fitted to it.

Used by `scaling_study.py` (docs/scaling.md) and by the tests. The published figures: `published.toml`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from faultreplay.analysis.calibrate.contention import descend
from faultreplay.analysis.calibrate.saturated import saturated_workload
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.costs import CostTable
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import load_mechanism

PUBLISHED: Final[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
VCPUS: Final[tuple[int, ...]] = tuple(PUBLISHED["houghton"]["vcpus"])
BLOCKS: Final[dict[str, Any]] = {key: block for key, block in PUBLISHED["houghton"].items() if isinstance(block, dict)}
ROWS: Final = {
    "no-userfault": "no userfault",
    "single-reader": "userfaultfd, single reader",
    "several-readers": "userfaultfd, several readers",
    "uffd-and-kvm-userfault": "userfaultfd + KVM Userfault",
    "kvm-userfault": "KVM Userfault",
}
FITTED: Final = (
    "host_fault",
    "host_fault_minor",
    "exit_userspace",
    "mm_share",
    "fault_entry",
    "handler_loop",
    "lock_contended",
    "mm_serial_contended",
)
"""The eight costs of a host that are fitted. `enter_guest` equals `exit_userspace`; `reenter` is it and the fault that
finds the page (`host_fault_minor`); `wake` keeps its share of `fault_entry`."""
WAKE_OF_TRAP: Final = 5 / 3


@dataclass(frozen=True)
class Setup:
    """What one row of a table stands for."""

    mechanism: str
    memory_class: str
    params: Mapping[str, float]


def setup(block: str, row: str, vcpus: int) -> Setup:
    """The mechanism, class of fault and parameters of a row of Houghton's tables.

    How many readers "several" are is not stated: one for each vCPU is assumed, in all.
    """
    anonymous = block.startswith("anon")
    memory = "missing" if anonymous else "minor"
    if row == "no-userfault":
        return Setup("host-lazy", memory, {})
    if row == "kvm-userfault":
        return Setup("kvm-userfault", memory, {})
    if row == "uffd-and-kvm-userfault":
        return Setup("kvm-exit" if anonymous else "kvm-exit-minor", "missing", {})
    if block.endswith("per-vcpu"):
        return Setup("uffd-sharded-minor", "missing", {"shards": vcpus, "handlers": 1})
    readers = 1 if row == "single-reader" else vcpus
    return Setup("uffd-missing" if anonymous else "uffd-minor", "missing", {"handlers": readers})


def rate(what: Setup, vcpus: int, costs: CostTable, *, keep_fetch: bool = False) -> float:
    """Pages/s of each vCPU. ``NAME-minor`` is a mechanism whose placing ioctl is UFFDIO_CONTINUE.

    The content is there, unless `keep_fetch`: then `costs` says how long it takes.
    """
    work = saturated_workload(vcpus, what.memory_class)
    name = what.mechanism
    if name.endswith("-minor") and name != "uffd-minor":
        name = name.removesuffix("-minor")
        costs = costs.merge({"resolve": costs["resolve_continue"]})
    ready = costs if keep_fetch else costs.with_constants(fetch=0)
    result = simulate(work, load_mechanism(name).with_params(what.params), ready)
    return work.faults / vcpus / result.run_time_ns * 1e9


def with_values(costs: CostTable, ns: Mapping[str, float]) -> CostTable:
    """`costs` with some of `FITTED` set (means, ns) and what follows from them."""
    ns = dict(ns)
    if "exit_userspace" in ns:
        ns["enter_guest"] = ns["exit_userspace"]
    if "fault_entry" in ns:
        ns["wake"] = ns["fault_entry"] * WAKE_OF_TRAP
    entry = ns.get("enter_guest", costs["enter_guest"].distribution.mean)
    found = ns.get("host_fault_minor", costs["host_fault_minor"].distribution.mean)
    ns["reenter"] = entry + found
    changed = {}
    for name, mean in ns.items():
        shape = costs[name].distribution
        changed[name] = shape.scaled(mean / shape.mean) if shape.mean else Distribution.constant(mean)
    return costs.with_distributions(changed)


Figure = tuple[str, str, int]
"""block, row, vCPUs"""


def figures(blocks: Iterable[str] = BLOCKS) -> dict[Figure, float]:
    """Every published figure, pages/s of each vCPU."""
    return {
        (block, row, vcpus): float(there)
        for block in blocks
        for row in ROWS
        if row in BLOCKS[block]
        for vcpus, there in zip(VCPUS, BLOCKS[block][row], strict=True)
    }


def fit(costs: CostTable, there: Mapping[Figure, float], names: Sequence[str] = FITTED, rounds: int = 3) -> CostTable:
    """`costs` with `names` fitted to published figures: the largest error counts most (sixth powers of logarithms).

    Each vCPU makes fewer faults here than there (16384): the rate settles after some tens.
    """
    values = {name: costs[name].distribution.mean for name in names}
    seen: dict[tuple[str, str, int, tuple[float, ...]], float] = {}

    def loss(candidate: Mapping[str, float]) -> float:
        table = with_values(costs, candidate)
        total = 0.0
        for (block, row, vcpus), rate_there in there.items():
            key = (block, row, vcpus, tuple(round(candidate[n], 1) for n in names if n in _moves(row)))
            if key not in seen:
                seen[key] = rate(setup(block, row, vcpus), vcpus, table)
            total += math.log(seen[key] / rate_there) ** 6
        return total

    return with_values(costs, descend(loss, values, rounds))


def _moves(row: str) -> frozenset[str]:
    """The costs that a row depends on."""
    if row == "no-userfault":
        return frozenset({"host_fault", "host_fault_minor", "mm_share"})
    if row == "kvm-userfault":
        return frozenset({"host_fault", "host_fault_minor", "mm_share", "exit_userspace"})
    if row == "uffd-and-kvm-userfault":
        return frozenset({"host_fault_minor", "mm_share", "exit_userspace"})
    return frozenset({"mm_share", "fault_entry", "handler_loop", "lock_contended", "mm_serial_contended"})
