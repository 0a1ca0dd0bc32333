"""Several VMs that restore from one storage device at the same time: what each pays for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from faultreplay.analysis.compare.case import Case
from faultreplay.analysis.compare.predict import counted, run
from faultreplay.analysis.compare.restore_metrics import last_first_touch_ns
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine.engine import Result
from faultreplay.replay.engine.several import together
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.workload.workload import Workload


@dataclass(frozen=True)
class Neighbour:
    """One VM under one mechanism: by itself, and with the others on its device; times in ns."""

    mechanism: str
    trace: str
    faults: int
    alone_startup_ns: int
    startup_ns: int
    """until the guest runs; together: until the last of them can"""
    alone_stall_ns: int
    stall_ns: int
    alone_last_ns: int
    last_ns: int
    """until its last first touch was over, from the beginning of the restore"""
    device_busy: float
    """share of the time that the device was busy, with all of them"""

    def as_record(self) -> dict[str, Any]:
        """Flat, for output."""
        return dict(self.__dict__)


def share_storage(cases: Sequence[Case], names: Sequence[str]) -> list[Neighbour]:
    """Replay the traces of `cases` alone and together under each mechanism, with the set-up and costs of the first.

    Each VM has handlers, locks, streams and a file of its own, and the device is one. All begin their restore at the
    same instant, and resume at the same one: when the last has done what it does before.

    Raises:
        UsageError: a mechanism has no storage, a trace has windows, or host CPUs are counted.
    """
    first = cases[0]
    if first.setup.cpus is not None:
        raise UsageError("several VMs: --cpus counts one VM's threads: leave it out")
    if any(case.trace.meta.windows for case in cases):
        raise UsageError("several VMs: windows are one VM's: take traces without")
    several = [(case.trace.name, _from_resume(case.read), case.setup.known or Knowledge()) for case in cases]
    workload, known = together(several)
    costs = first.costs()
    rows: list[Neighbour] = []
    for name in names:
        mechanism = _sharing(first.load(name))
        result = run(workload, mechanism, costs, replace(first.setup, known=known))
        busy = max(use.busy_share(result.span_ns) for use in result.resources.values() if use.kind == "storage")
        alone = [run(work, mechanism, costs, replace(first.setup, known=one)) for _, work, one in several]
        for vm, ((trace, work, _), own_result) in enumerate(zip(several, alone, strict=True)):
            faults, startup_ns, stall_ns, last_ns = _numbers(workload, result, vm)
            _, *own = _numbers(work, own_result, 0)
            rows.append(
                Neighbour(
                    mechanism=mechanism.name,
                    trace=trace,
                    faults=faults,
                    alone_startup_ns=own[0],
                    startup_ns=startup_ns,
                    alone_stall_ns=own[1],
                    stall_ns=stall_ns,
                    alone_last_ns=own[2],
                    last_ns=last_ns,
                    device_busy=busy,
                )
            )
    return rows


def _sharing(mechanism: Mechanism) -> Mechanism:
    storages = [one for one in mechanism.resources.values() if one.kind == "storage"]
    if not storages:
        raise UsageError(f"{mechanism.name}: reads from no storage: there is nothing to share")
    if mechanism.values.get("remote", 0):
        raise UsageError(f"{mechanism.name}: content comes as fetch says (remote), not from storage: leave --fetch out")
    return mechanism


def _from_resume(workload: Workload) -> Workload:
    """`workload` from when its guest resumed: what its threads did before is no part of the restore."""
    lead = workload.resume_ns
    if not lead:
        return workload
    first = workload.accessor_start[:-1][np.diff(workload.accessor_start) > 0]
    think, asleep = workload.think_ns.copy(), workload.asleep_ns.copy()
    think[first] = np.maximum(think[first] - lead, 0)
    if asleep.size:
        asleep[first] = np.minimum(asleep[first], think[first])
    return replace(workload, think_ns=think, asleep_ns=asleep, resume_ns=0)


def _numbers(workload: Workload, result: Result, vm: int) -> tuple[int, int, int, int]:
    """(faults, start-up, total stall, until the last first touch) of one VM's vCPUs."""
    who = counted(workload) & (workload.vm_of_accessor() == vm)
    mine = who[workload.accessor_of_row()] & (result.start_ns >= 0)
    startup_ns = result.restored.startup_ns if result.restored else 0
    last_ns = last_first_touch_ns(workload.page[mine], result.start_ns[mine], result.stall_ns[mine])
    return int(np.count_nonzero(mine)), startup_ns, int(result.stall_ns[mine].sum()), startup_ns + last_ns
