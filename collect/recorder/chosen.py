"""Which processes a recording is of: those named, their children, VMs, a cgroup's, the command's."""

from __future__ import annotations

from dataclasses import dataclass, field

from faultreplay.collect.recorder.hints import children_of, serves_nobody
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.collect.targets import proc
from faultreplay.collect.targets.handlers import handlers_of
from faultreplay.collect.targets.launch import Launched
from faultreplay.collect.targets.targets import NAMED_ONLY, Filter, cgroup_members, cgroup_path, find_vms, select_vms


@dataclass
class Chosen:
    """The targets at the start of a recording, and how later ones are found."""

    tgids: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """of VMs, by process"""
    wanted: Filter = NAMED_ONLY
    command: Launched | None = None
    """held back until the probes are attached"""
    notes: list[str] = field(default_factory=list)


def choose(spec: RecordSpec) -> Chosen:
    """The processes that `spec` asks for, in the order it names them; its command is started, and held.

    Raises:
        FaultreplayError: a process, VM or cgroup does not exist.
    """
    chosen = Chosen()
    tgids = [proc.check_pid(pid) for pid in spec.pids]
    tgids += _children_of(tgids, spec.children, chosen.notes)
    if spec.vms or spec.all_vms:
        vms = find_vms()
        tgids += [vm.tgid for vm in vms] if spec.all_vms else select_vms(spec.vms, vms)
        chosen.names = {vm.tgid: vm.name or vm.uuid for vm in vms}
    chosen.wanted = Filter(spec.all_vms, cgroup_path(spec.cgroup) if spec.cgroup else None)
    if chosen.wanted.cgroup:
        tgids += cgroup_members(chosen.wanted.cgroup)
    if spec.with_handler or (spec.with_handler is None and (spec.vms or spec.all_vms)):
        tgids += _handlers_of(tgids, chosen.notes)
    chosen.tgids = list(dict.fromkeys(tgids))
    if spec.command:
        chosen.command = Launched(spec.command)
        chosen.tgids.append(chosen.command.pid)
    return chosen


def _handlers_of(tgids: list[int], notes: list[str]) -> list[int]:
    found: list[int] = []
    for tgid in tgids:
        outside = [pid for pid in handlers_of(tgid) if pid not in (*tgids, *found)]
        if outside:
            who = ", ".join(f"{pid} ({proc.describe_target(pid).comm})" for pid in outside)
            notes.append(
                f"also recorded: {who}, which takes the userfaults of {tgid} (--without-handler leaves it out)"
            )
        found += outside
    return found


def _children_of(tgids: list[int], children: bool | None, notes: list[str]) -> list[int]:
    if children is False:
        return []
    above = [tgid for tgid in tgids if children or serves_nobody(tgid)]
    below = [tgid for tgid in children_of(above) if tgid not in tgids] if above else []
    if below:
        whose = ", ".join(map(str, above))
        notes.append(f"also recorded: {len(below)} processes below {whose} (--no-children leaves them out)")
    return below
