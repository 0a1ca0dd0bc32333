"""How much a recording slowed its targets down: `slowed` in `Meta.extra`."""

from __future__ import annotations

from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.units import format_ns

SLOWED = "slowed"
"""Key of `Meta.extra`: program_ns, runs (of BPF programs while recording), target_cpu_ns (of the targets)."""


def slowed_words(meta: Meta) -> str:
    """The slow-down in one line; empty if not measured, except for older recordings by bpftrace: then it says so."""
    told = meta.extra.get(SLOWED)
    if not isinstance(told, dict):
        if meta.recorder.backend == "bpftrace":
            return "recorded by bpftrace: its printing slowed the targets down, by how much was not measured"
        return ""
    program_ns, runs, target_ns = (int(told.get(key, 0)) for key in ("program_ns", "runs", "target_cpu_ns"))
    if not runs:
        return ""
    share = (
        f", at most {program_ns / target_ns:.0%} of the targets' CPU time ({format_ns(target_ns)})" if target_ns else ""
    )
    return (
        f"recorded by {meta.recorder.backend}: its programs took {format_ns(program_ns)} within the recorded threads "
        f"and others ({program_ns / runs:,.0f} ns each time){share}: stalls and times between them are longer by that"
    )
