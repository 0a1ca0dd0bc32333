"""Where a cost comes from, as a value: this trace, its host, a file of the user's, or other hardware."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from faultreplay.replay.language.costs import Cost, CostTable, load_costs, shipped_for
from faultreplay.replay.language.filed import filed_costs

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Host


class Origin(Enum):
    """Where a cost comes from; the value is its name in JSON and CSV."""

    TRACE = "this trace"
    HOST = "this host"
    FILE = "your file"
    SET = "set by you"
    OTHER_HOST = "another host"
    PUBLISHED = "published"
    DERIVED = "derived"
    ASSUMED = "assumed"


_FOREIGN: Final = frozenset({Origin.OTHER_HOST, Origin.PUBLISHED, Origin.DERIVED, Origin.ASSUMED})


@dataclass(frozen=True)
class CostSource:
    """Where one cost comes from."""

    origin: Origin
    file: str = ""
    """the cost file, where it is not the default one"""

    @property
    def foreign(self) -> bool:
        """Whether it is no figure of the trace's own host, nor one that the user answers for."""
        return self.origin in _FOREIGN

    def __str__(self) -> str:
        return f"{self.origin.value} ({self.file})" if self.file else self.origin.value


_WORDS: Final = {
    Origin.TRACE: "costs measured in this trace",
    Origin.HOST: "costs measured on this host",
    Origin.FILE: "costs from your files",
    Origin.SET: "costs set on the command line",
    Origin.OTHER_HOST: "costs measured on another host, so foreign",
    Origin.PUBLISHED: "costs published for other hardware, so foreign",
    Origin.DERIVED: "costs derived from published figures of other hardware, so foreign",
    Origin.ASSUMED: "costs assumed, so foreign",
}

TRACE: Final = CostSource(Origin.TRACE)
HOST: Final = CostSource(Origin.HOST)


def load_cost_files(names: Sequence[str], host: Host | None = None) -> tuple[CostTable, dict[str, CostSource]]:
    """The costs to start from, and where each comes from.

    Later wins: the default table; what is shipped for the host's kind of KVM, which is another machine's; what
    ``calibrate --lab`` filed on a host with the same fingerprint; the user's files.

    Args:
        names: files given by the user, or names of shipped tables.
        host: of the trace; None: of no trace.
    """
    fingerprint = host.fingerprint if host else ""
    table = load_costs()
    where = {name: _shipped_source(cost) for name, cost in table.items()}
    for more in shipped_for(host.kvm_flavour if host else ""):
        table = table.merge(more)
        where |= {name: CostSource(Origin.OTHER_HOST, f"costs/{more.name}.toml") for name in more}
    filed = filed_costs(fingerprint)
    if filed is not None:
        table = table.merge(filed)
        where |= dict.fromkeys(filed, HOST)
    for name in names:
        more = load_costs(name)
        table = table.merge(more)
        where |= {cost: _file_source(more, more[cost], fingerprint, str(name)) for cost in more}
    return table, where


def sources_of(
    used: Mapping[str, str], where: Mapping[str, CostSource], fitted: Collection[str]
) -> dict[str, CostSource]:
    """The source of each cost that a replay used.

    Args:
        used: cost -> provenance, as `Result.costs_used`.
        where: from `load_cost_files`.
        fitted: costs that the trace itself showed.
    """
    return {name: TRACE if name in fitted else where.get(name, CostSource(Origin.ASSUMED)) for name in used}


def with_host_parts(fitted: CostTable, table: CostTable, where: Mapping[str, CostSource]) -> CostTable:
    """`fitted`, with what woken threads pay on idle and on busy CPUs from this host's own costs where a trace lacks it.

    A trace whose threads share CPUs hardly shows an idle one; under another mechanism they may find nothing else.
    """

    def whole(name: str, cost: Cost) -> Cost:
        if where.get(name) != HOST or name not in table:
            return cost
        own = table[name]
        return replace(
            cost,
            on_idle_cpu=cost.on_idle_cpu or own.on_idle_cpu,
            on_busy_cpu=cost.on_busy_cpu or own.on_busy_cpu,
        )

    return fitted.merge({name: whole(name, cost) for name, cost in fitted.items()})


def words_of(source: CostSource) -> str:
    """The source in words, before a list of costs."""
    return _WORDS[source.origin] + (f" ({source.file})" if source.file else "")


def _shipped_source(cost: Cost) -> CostSource:
    if cost.provenance in ("published", "derived"):
        return CostSource(Origin(cost.provenance))
    return CostSource(Origin.ASSUMED if cost.provenance == "assumed" else Origin.OTHER_HOST)


def _file_source(table: CostTable, cost: Cost, fingerprint: str, file: str) -> CostSource:
    """A figure that a user wrote is theirs; one that was measured is of the host that the file names."""
    if table.shipped:
        source = _shipped_source(cost)
        return CostSource(source.origin, f"costs/{table.name}.toml")
    if not cost.provenance.startswith("measured"):
        return CostSource(Origin.FILE, file)
    if table.fingerprint and table.fingerprint == fingerprint:
        return CostSource(Origin.HOST, file)
    return CostSource(Origin.OTHER_HOST, file)
