"""What a trace says of itself before any event is read: host, targets, probes, losses. Needs no numba, no polars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from faultreplay.cli.imported_view import imported_facts, losses_words
from faultreplay.cli.render import Column, Report
from faultreplay.faulttrace.place import whole_size
from faultreplay.faulttrace.slowed import slowed_words
from faultreplay.faulttrace.units import format_bytes, format_ns

if TYPE_CHECKING:
    from faultreplay.faulttrace.meta import Meta, WindowSpan
    from faultreplay.faulttrace.store import Trace


_NAMED: Final = 8


def header_report(trace: Trace) -> Report:
    """One line: events, losses, duration, size; what the trace says of itself under it."""
    meta = trace.meta
    record: dict[str, Any] = {
        "events": trace.event_rows,
        "lost": meta.losses.total,
        "duration_ns": meta.clock.end_ns - meta.clock.start_ns if meta.clock.end_ns else None,
        "size_bytes": whole_size(trace.path),
        "complete": meta.complete,
        "origin": meta.origin,
    }
    columns = [
        Column("events", "events", "count"),
        Column("lost", "lost", "count"),
        Column("duration_ns", "duration", "ns"),
        Column("size_bytes", "size", "bytes"),
        Column("complete", "complete"),
        Column("origin", "origin"),
    ]
    notes = [*trace.notes, *facts_of(meta, record["duration_ns"] or 0)]
    return Report([record], columns, trace.name, notes)


def facts_of(meta: Meta, duration_ns: int, seen: Sequence[WindowSpan] = ()) -> list[str]:
    """`meta` in words, one line a fact; `seen`: windows that the ioctls show."""
    host = meta.host
    machine = [host.distro, f"kernel {host.kernel}" if host.kernel else "", host.cpu_model]
    machine += [f"{host.cpus} CPUs" if host.cpus else "", format_bytes(host.mem_bytes) if host.mem_bytes else ""]
    facts = [f"host: {', '.join(part for part in machine if part) or 'not known'}; KVM: {host.kvm_flavour}"]
    facts.append(f"clock: {meta.clock.name}, from {meta.clock.start_realtime or 'an unknown time'} ({meta.origin})")
    if meta.command:
        facts.append(f"command: {' '.join(meta.command)}")
    if meta.mechanism is not None:
        settings = ", ".join(f"{key}={value}" for key, value in meta.mechanism.params.items())
        facts.append(f"mechanism: {meta.mechanism.name}" + (f" ({settings})" if settings else ""))
    for target in meta.targets:
        roles: dict[str, int] = {}
        for thread in target.threads:
            roles[thread.role] = roles.get(thread.role, 0) + 1
        crew = ", ".join(f"{count} {role}" for role, count in roles.items())
        known = ", ".join(part for part in (target.role, target.name, crew) if part)
        facts.append(f"target: {target.comm or '(name unknown)'} {target.tgid}" + (f" ({known})" if known else ""))
    attached = sum(probe.status == "attached" for probe in meta.probes)
    facts.append(f"probes: {attached} attached" if meta.probes else "probes: none named")
    absent: dict[str, list[str]] = {}
    for probe in meta.probes:
        if probe.status in ("missing", "shed"):
            absent.setdefault(f"{probe.status}, {probe.reason or 'no reason given'}", []).append(probe.name)
    facts += [f"probes {why}: {_some(names)}" for why, names in absent.items()]
    facts.append(losses_words(meta))
    facts += imported_facts(meta)
    cost = meta.recorder
    if cost.backend:
        share = f" ({100 * cost.cpu_ns / duration_ns:.0f} % of one)" if duration_ns else ""
        facts.append(
            f"recorder: {cost.backend}, {format_ns(cost.cpu_ns)} of CPU{share}, "
            f"{format_bytes(cost.max_rss_bytes)} resident, ring {format_bytes(cost.ring_bytes)}"
        )
    if words := slowed_words(meta):
        facts.append(words)
    facts += _piece(meta)
    for label, windows in (("window told", meta.windows), ("window seen", seen)):
        facts += [f"{label}: {_window(window, meta.clock.start_ns)}" for window in windows[:5]]
        if len(windows) > 5:
            facts.append(f"{label}: and {len(windows) - 5} more")
    return facts


def _piece(meta: Meta) -> list[str]:
    """What is not in the trace because somebody left it out, deleted or hid it."""
    facts = []
    for piece in meta.extra.get("cut", ()):
        vcpus = f", vCPUs {', '.join(map(str, piece['vcpus']))}" if piece["vcpus"] else ""
        facts.append(
            f"cut: {format_ns(piece['from_ns'])} to {format_ns(piece['until_ns'])} of the recording{vcpus}; "
            f"{piece['events_left_out']:,} events and {piece['losses_left_out']:,} losses left out; open faults at the "
            f"start {piece['faults_open_at_start']:,}, at the end {piece['faults_open_at_end']:,}"
        )
    if dropped := meta.extra.get("dropped"):
        facts.append(
            f"rotation deleted {dropped['parts']:,} older parts with {dropped['events']:,} events "
            f"and {dropped['losses']:,} losses"
        )
    if meta.extra.get("anonymised"):
        facts.append("anonymised: ids, addresses and instruction pointers are not the real ones")
    return facts


def _some(names: list[str]) -> str:
    """A short list whole, of a long one the beginning: imports lack most of what our own recorder has."""
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{len(names)}, as {', '.join(names[:3])} (all with --format json)"


def _window(window: WindowSpan, start_ns: int) -> str:
    return f"{window.kind} at {format_ns(window.start_ns - start_ns)} for {format_ns(window.end_ns - window.start_ns)}"
