"""Why a recording shows nothing: what /proc says of its targets, in words, with the fix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from faultreplay.collect.targets import proc
from faultreplay.collect.targets.handlers import handlers_of


def children_of(tgids: Iterable[int]) -> list[int]:
    """All processes below `tgids`, themselves left out, in order of their ids."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = proc.parent(int(entry.name))
            if parent:
                parents[int(entry.name)] = parent
    own = set(tgids)
    below: set[int] = set()
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in own | below} - own - below
        below |= more
        grown = bool(more)
    return sorted(below)


def serves_nobody(tgid: int) -> bool:
    """Whether a process holds neither a VM nor a userfaultfd: then it is its children that may."""
    found = proc.descriptors(tgid)
    return not (found.vms or found.uffds or found.denied)


def why_nothing(tgids: Iterable[int]) -> list[str]:
    """What may be the reason that targets gave no event; at least one line."""
    living = [tgid for tgid in tgids if proc.exists(tgid)]
    if not living:
        return ["the targets have ended"]
    reasons = []
    below = children_of(living)
    if below:
        some = ", ".join(str(pid) for pid in below[:5]) + (", ..." if len(below) > 5 else "")
        reasons.append(f"they have children that are not recorded ({some}): give --children")
    for tgid in living:
        found = proc.descriptors(tgid)
        registered = any(entry.uffd for entry in proc.memory_map(tgid, 0))
        if found.uffds and not registered and not found.vms:
            who = "handles the faults of another one (it holds a userfaultfd, and none of its own memory is registered)"
            reasons.append(f"process {tgid} {who}: give -p for that one too")
        elif registered and not found.uffds:
            who = "has its faults taken by another one (its memory is registered with a userfaultfd it does not hold)"
            found_pids = " ".join(f"-p {pid}" for pid in handlers_of(tgid))
            reasons.append(f"process {tgid} {who}: give {found_pids or '-p for that one'} too, or --with-handler")
        elif _stopped(tgid):
            reasons.append(f"process {tgid} is stopped")
    return reasons or ["they touched no missing memory: idle, or all of it is present already"]


def _stopped(tgid: int) -> bool:
    try:
        state = Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in ("T", "t")
