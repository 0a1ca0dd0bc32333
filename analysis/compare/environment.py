"""What belongs to no mechanism: how long content takes to come, and the link it comes over. The same for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from faultreplay.analysis.compare.predict import Setup, Used, link_of
from faultreplay.analysis.compare.storage_setting import LATENCY
from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.units import format_bytes, parse_size_bytes
from faultreplay.replay.language.costs import Cost, CostTable
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.workload import Workload

if TYPE_CHECKING:
    from faultreplay.faulttrace.store import Trace

SET: Final = "set with --fetch"


def brought_bytes(workload: Workload, used: Used | None) -> int:
    """What one fetch of the recording brought: the recorded mechanism's granule, else a page."""
    granule: Any = used.params.get("granule", 0) if used else 0
    size = parse_size_bytes(granule) if isinstance(granule, str) else int(granule)
    return max(size, workload.page_bytes)


def in_environment(costs: CostTable, setup: Setup, used: Used | None, brought: int) -> CostTable:
    """`costs` with the environment's fetch.

    A fetch, fitted or given, is until all of `brought` bytes are there. Where the link's bandwidth is known a
    mechanism pays for its bytes on the link, so these bytes' time is taken off the fetch.
    """
    if setup.storage is not None:
        latency = Distribution.constant(setup.storage.latency_ns)
        costs = costs.merge({LATENCY: Cost(latency, "measured-host", "set with --storage")})
    fetch = costs.get("fetch")
    if setup.fetch_ns is not None:
        fetch = Cost(Distribution.constant(setup.fetch_ns), "measured-host", SET)
    if fetch is None:
        return costs
    bytes_per_s = link_of(setup, used)
    if bytes_per_s >= 1:
        fetch = _less(fetch, brought * 1e9 / bytes_per_s)
    return costs.merge({"fetch": fetch})


def _less(cost: Cost, ns: float) -> Cost:
    parts = {name: part.less(ns) for name in ("on_idle_cpu", "on_busy_cpu") if (part := getattr(cost, name))}
    low, high = max(cost.low - ns, 0.0), max(cost.high - ns, 0.0)
    return replace(cost, distribution=cost.distribution.less(ns), low=low, high=high, **parts)


def guest_memory_bytes(trace: Trace) -> int:
    """What a stream of all of memory sends: the memslots, else what was registered with userfaultfd; 0: not known."""
    slots = {(t.tgid, slot.slot): slot.size_bytes for t in trace.meta.targets for slot in t.memslots}
    mapped = {(e.tgid, e.start): e.end - e.start for e in trace.meta.memory_map if e.uffd}
    if known := max(sum(slots.values()), sum(mapped.values())):
        return known
    registered = trace.events(kinds=[Kind.UFFD_REGISTER], columns=["addr", "size"]).unique("addr")
    return int(registered["size"].sum())


def with_memory(mechanism: Mechanism, size: Callable[[], int]) -> Mechanism:
    """`mechanism` with all of the guest's memory to send, if it streams by address and no amount is given."""
    push = mechanism.push
    if push is None or push.order != "address" or mechanism.values.get("memory", 1):
        return mechanism
    return mechanism.with_params({"memory": size() // mechanism.granule_bytes * mechanism.granule_bytes})


def lacks_link(mechanism: Mechanism, brought: int) -> str:
    """Why a mechanism cannot be charged without the link's bandwidth; empty where it can.

    Its fetch would bring another number of bytes than those whose time is known, or all of memory at once.
    """
    moves = {stage.name for path in mechanism.paths.values() for stage in path if stage.verb == "transfer"}
    moves |= {mechanism.push.link} if mechanism.push else set()
    links = [name for name, resource in mechanism.resources.items() if resource.kind == "link" and name in moves]
    if any(mechanism.value(mechanism.resources[name].size) >= 1 for name in links) or not links:
        return ""
    if mechanism.push is not None:
        return "it streams memory: its rate depends on the link, --link 10Gbit"
    if mechanism.granule_bytes != brought:
        return (
            f"a fault brings {format_bytes(mechanism.granule_bytes)}, fetch is the time of {format_bytes(brought)}: "
            "the rest depends on the link, --link 10Gbit"
        )
    return ""
