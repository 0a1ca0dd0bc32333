"""Hold a trace of `guest.c`, recorded under hardware paging, against what must be in it, number by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from faultreplay.faulttrace.schema import Kind
from faultreplay.faulttrace.store import Trace

DEVICE_GPA = 0xD0000000
SVM_EXIT_NPF = 0x400
VMX_EXIT_EPT_VIOLATION = 48


@dataclass(frozen=True)
class Expectation:
    """One number that must hold exactly."""

    what: str
    wanted: int
    seen: int

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.wanted == self.seen


def check(trace: Trace, facts: dict[str, Any]) -> list[Expectation]:
    """All expectations on `trace`; `facts` is the line of JSON the guest printed."""
    import polars as pl

    pages, backing = facts["pages"], facts["backing"]
    events = trace.events(tgid=facts["vcpu_tid"])  # the guest's first thread is its vCPU
    vcpu = events.filter(pl.col("tid") == facts["vcpu_tid"])

    def count(kind: Kind, *conditions: Any) -> int:
        return vcpu.filter(pl.col("kind") == int(kind), *conditions).height

    first, last = facts["data_gpa"], facts["data_gpa"] + pages * 4096
    in_data = (pl.col("addr") >= first) & (pl.col("addr") < last)
    faults = vcpu.filter(pl.col("kind") == int(Kind.KVM_PAGE_FAULT), in_data)
    exits = count(Kind.KVM_EXIT)
    npf = pl.col("code") == (SVM_EXIT_NPF if trace.meta.host.kvm_flavour == "svm" else VMX_EXIT_EPT_VIOLATION)
    copies = events.filter(pl.col("kind") == int(Kind.UFFD_COPY), pl.col("tid") == facts["handler_tid"])
    messages = events.filter(pl.col("kind") == int(Kind.UFFD_MSG), pl.col("ip") == 0x12)
    # A full dirty ring makes KVM exit before the faulting write is done: it faults, and is pushed, once more.
    # What fails with EFAULT faults a second time when its page is there.
    full, failed = facts.get("ring_exits", 0), facts.get("efault_exits", 0)
    again = full + failed
    devices = facts.get("mmio_exits", 0)
    served = pages if backing in ("uffd", "apf") else 0
    found = [
        # Not sched_waking's: an interrupt that wakes a thread while another probe runs on that CPU is missed by
        # design of the kernel's perf tracepoints, and booked (Linux 6.7 on); nothing here is counted from it.
        Expectation("events lost by KVM and userfaultfd probes", 0, _lost(trace)),
        Expectation("kvm_page_fault on data pages", pages + again, faults.height),
        Expectation("distinct data pages faulted", pages, faults["addr"].unique().len()),
        Expectation(
            "kvm_exit for a stage-2 fault (data, code page, device)",
            pages + 1 + again + devices,
            count(Kind.KVM_EXIT, npf),
        ),
        Expectation("kvm_page_fault in all", pages + 1 + again + devices, count(Kind.KVM_PAGE_FAULT)),
        Expectation("kvm_mmio at the device", devices, count(Kind.KVM_MMIO, pl.col("addr") == DEVICE_GPA)),
        Expectation("kvm_entry: one before each kvm_exit", exits, count(Kind.KVM_ENTRY)),
        Expectation("kvm_exit and kvm_entry alternate", 0, _out_of_turn(vcpu)),
        Expectation("KVM_RUN calls", facts["kvm_runs"], count(Kind.KVM_RUN_EXIT)),
        Expectation("userfaultfd messages", served, messages.height),
        Expectation("UFFDIO_COPY ioctls", served, copies.height),
        Expectation("pages the handler says it served", served, facts["served"]),
    ]
    asynchronous = pages if backing == "apf" else 0
    pushed = pages + full if backing == "ring" else 0
    pushes = vcpu.filter(pl.col("kind") == int(Kind.KVM_DIRTY_RING_PUSH), pl.col("code") == 1)  # slot 1: the data
    completed = events.filter(pl.col("kind") == int(Kind.KVM_ASYNC_PF_COMPLETED), in_data)  # in a kernel worker
    found += [
        Expectation("kvm_async_pf_not_present", asynchronous, count(Kind.KVM_ASYNC_PF_NOT_PRESENT)),
        Expectation("pages of kvm_async_pf_completed", asynchronous, completed["addr"].unique().len()),
        Expectation("kvm_async_pf_completed", asynchronous, completed.height),
        Expectation("kvm_async_pf_ready", asynchronous, count(Kind.KVM_ASYNC_PF_READY)),
        Expectation("kvm_dirty_ring_push", pushed, pushes.height),
        Expectation("pages of kvm_dirty_ring_push", pushed - full, pushes["addr"].unique().len()),
        Expectation("kvm_dirty_ring_exit", full, count(Kind.KVM_DIRTY_RING_EXIT)),
        Expectation("entries that the VMM found in the ring", pushed, facts.get("harvested", 0)),
    ]
    if any(probe.name.endswith("handle_userfault") and probe.status == "attached" for probe in trace.meta.probes):
        # Twice per KVM fault: a try that may not wait comes first. Where the fault is asynchronous a worker waits.
        # One that fails is tried a third time, to see whether the page is poisoned.
        tries = (served if backing == "apf" else 2 * served) + 3 * failed
        found.append(Expectation("handle_userfault in the vCPU", tries, count(Kind.HANDLE_USERFAULT)))
    return found + _stitched(trace, facts) + _by_reason(trace, facts, exits)


def _stitched(trace: Trace, facts: dict[str, Any]) -> list[Expectation]:
    import polars as pl

    pages, uffd = facts["pages"], facts["backing"] == "uffd"
    first, last = facts["data_hva"], facts["data_hva"] + pages * 4096
    faults = trace.faults().filter(pl.col("tid") == facts["vcpu_tid"], pl.col("page") >= first, pl.col("page") < last)
    cause = {"uffd": "missing", "exit": "exit"}.get(facts["backing"], "stage2")
    again = facts.get("ring_exits", 0)
    joined = faults.filter(pl.col("cause") == cause, pl.col("join") != "none", pl.col("stall_ns") > 0)
    found = [
        Expectation(f"stitched faults of cause {cause}, joined, with a stall", pages + again, joined.height),
        Expectation("distinct pages stitched", pages, joined["page"].unique().len()),
    ]
    if uffd:
        by_handler = joined.filter(pl.col("handler_tid") == facts["handler_tid"], pl.col("resolution") == "copy")
        found.append(Expectation("joined to the copy of the handler", pages, by_handler.height))
    return found


def _by_reason(trace: Trace, facts: dict[str, Any], exits: int) -> list[Expectation]:
    """What `inspect --exits` counts of this vCPU, and the same faults where KVM_RUN was not recorded."""
    from faultreplay.analysis.compare.exits import exit_statistics

    mine = [group for group in exit_statistics(trace).groups if group.tid == facts["vcpu_tid"]]
    npf = [group for group in mine if group.reason in ("npf", "EPT_VIOLATION")]
    pages, devices, efault = facts["pages"], facts.get("mmio_exits", 0), facts.get("efault_exits", 0)
    ring = facts.get("ring_exits", 0)
    found = [
        Expectation("exits by reason, in all", exits, sum(group.exits for group in mine)),
        Expectation("exits for stage-2 faults", pages + 1 + devices + efault + ring, sum(g.exits for g in npf)),
        Expectation("of these to userspace", devices + efault + ring, sum(g.to_userspace for g in npf)),
        Expectation("exits without an entry (the last one)", 1, sum(group.unended for group in mine)),
    ]
    if facts["backing"] in ("devices", "exit"):
        found += _without_runs(trace, facts)
    return found


def _without_runs(trace: Trace, facts: dict[str, Any]) -> list[Expectation]:
    """The guest's faults with and without calls of KVM_RUN recorded: the same ones, as long, and no device's."""
    import polars as pl

    from faultreplay.faulttrace.stitch import stitch_events

    events = trace.events(tgid=facts["vcpu_tid"])
    runs = pl.col("kind").is_in([int(Kind.KVM_RUN_ENTER), int(Kind.KVM_RUN_EXIT)])
    whole, bare = stitch_events(events, trace.meta), stitch_events(events.filter(~runs), trace.meta)
    columns = ["start_ns", "end_ns", "cause", "page"]
    of_guest = pl.col("cause").is_in(["stage2", "exit"])
    with_runs, without = (found.faults.filter(of_guest).select(columns) for found in (whole, bare))
    return [
        Expectation("faults of the guest without KVM_RUN: equal rows", 1, int(with_runs.equals(without))),
        Expectation("device exits, in no fault", facts.get("mmio_exits", 0) + 1, bare.report.device_exits),
        Expectation("faults handed to the VMM", facts.get("efault_exits", 0), bare.report.exits_untimed),
    ]


def _lost(trace: Trace) -> int:
    return sum(lost for probe, lost in trace.meta.losses.by_probe.items() if not probe.startswith("sched:"))


def _out_of_turn(vcpu: Any) -> int:
    """Neighbours among exits and entries that are of the same kind."""
    import polars as pl

    turns = vcpu.filter(pl.col("kind").is_in([int(Kind.KVM_EXIT), int(Kind.KVM_ENTRY)]))["kind"]
    return int((turns == turns.shift(1)).sum() or 0)
