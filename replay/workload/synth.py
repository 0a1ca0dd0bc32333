"""Synthetic first touches for scaling studies, as arrays or as a trace.

Nothing here was measured, and a synthetic trace says so: origin `synthetic`, no stall, no host. The touches of a vCPU
are drawn from `seed` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.meta import Clock, Integrity, Meta, Target, Thread, Tool
from faultreplay.faulttrace.schema import FAULTS
from faultreplay.faulttrace.units import LONGEST_NS, parse_duration_ns
from faultreplay.faulttrace.writer import TraceWriter
from faultreplay.replay.workload.synth_restore import Restore, restore_streams
from faultreplay.replay.workload.workload import ACCESS_CODES, Workload, make_workload

Ints = npt.NDArray[np.int64]

KINDS: Final = ("demand-paging", "zipf", "phases", "restore")
PAGE_BYTES: Final = 4096
_BEGIN_NS: Final = 1_000_000_000
_BASE: Final = 1 << 40
_TGID: Final = 1
_FIRST_TID: Final = 1000
_CHUNK_ROWS: Final = 1 << 20
MOST_ACCESSES: Final = 1 << 27
"""Limit for all vCPUs together: about 10 GB of memory while the accesses are drawn and sorted."""


@dataclass(frozen=True)
class Think:
    """Time between the end of one fault and the next: constant `mean_ns`, or exponential with that mean."""

    mean_ns: int
    exponential: bool = False

    @classmethod
    def parse(cls, text: str) -> Think:
        """``20us`` or ``exp:20us``.

        Raises:
            UsageError: neither.
        """
        kind, colon, rest = text.partition(":")
        if colon and kind != "exp":
            raise UsageError(f"--think {text}: write a duration as 20us, or exp:20us")
        return cls(parse_duration_ns(rest if colon else text), bool(colon))

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        """`count` think times."""
        if not self.exponential:
            return np.full(count, self.mean_ns, np.int64)
        return np.rint(rng.standard_exponential(count) * self.mean_ns).astype(np.int64)


@dataclass(frozen=True)
class SynthSpec:
    """Parameters of a synthetic workload.

    demand-paging: each vCPU touches its own `pages` pages in order. zipf: the vCPUs share `vcpus` x `pages` pages and
    each makes `pages` accesses, page k with probability proportional to k ** -`skew`; only an access to a page that
    this vCPU has not touched before can fault. phases: demand paging in `phases` bursts with `quiet_ns` between them.
    restore: `vcpus` x `pages` different pages of a guest that resumes from a snapshot, see `restore`.
    """

    kind: str
    vcpus: int
    pages: int
    think: Think
    seed: int = 0
    skew: float = 1.0
    phases: int = 4
    quiet_ns: int = 10_000_000
    restore: Restore = field(default_factory=Restore)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"'{self.kind}' is not a synthetic workload: choose {', '.join(KINDS)}")
        if self.vcpus < 1 or self.pages < 1 or self.phases < 1:
            raise UsageError("vCPUs, pages and phases are counted from 1")
        if self.vcpus * self.pages > MOST_ACCESSES:
            raise UsageError(f"{self.vcpus} vCPUs x {self.pages} pages: at most {MOST_ACCESSES:,} accesses in all")
        if self.phases > MOST_ACCESSES:
            raise UsageError(f"{self.phases} phases: at most {MOST_ACCESSES:,}")
        if self.pages * self.think.mean_ns + self.phases * self.quiet_ns > LONGEST_NS:
            raise UsageError(f"thinking and pauses come to more than {LONGEST_NS:g} ns (11 days)")
        if not 0 <= self.skew <= 10:
            raise UsageError(f"a skew of {self.skew:g} is not between 0 (uniform) and 10")


def synthesize(spec: SynthSpec) -> Workload:
    """The workload of `spec`, ready for the engine; the same arrays for the same seed."""
    if spec.kind == "restore":
        streams = restore_streams(spec.restore, spec.vcpus, spec.pages, spec.seed)
        return make_workload(streams, page_bytes=PAGE_BYTES, origin="synthetic")
    rngs = np.random.default_rng(spec.seed).spawn(spec.vcpus)
    draw = _STREAMS[spec.kind]
    shared = _popularity(spec) if spec.kind == "zipf" else None
    streams = []
    for vcpu, rng in enumerate(rngs):
        page, think = draw(spec, vcpu, rng, shared)
        streams.append({"think_ns": think, "page": page, "name": f"vcpu{vcpu}", "access": "w"})
    return make_workload(streams, page_bytes=PAGE_BYTES, origin="synthetic")


def write_synthetic(spec: SynthSpec, path: Path, *, version: str = "", force: bool = False) -> int:
    """Write the trace of `spec`; returns the number of its faults.

    `start_ns` is when the page would be touched if no fault took any time; `end_ns` is the same and `stall_ns` null:
    there was no mechanism.
    """
    workload = synthesize(spec)
    owner = workload.accessor_of_row()
    start = _start_ns(workload)
    order = np.lexsort((owner, start))
    end_ns = int(start[order[-1]]) + 1
    meta = Meta(
        tool=Tool(version=version),
        origin="synthetic",
        clock=Clock(start_ns=_BEGIN_NS, end_ns=end_ns),
        command=_command(spec),
        targets=[
            Target(
                _TGID,
                comm="synthetic",
                role="vm",
                threads=[Thread(_FIRST_TID + n, f"vcpu{n}", "vcpu", n) for n in range(spec.vcpus)],
            )
        ],
        extra={"synthetic": _record(spec)},
        integrity=Integrity(hashlib.sha256(repr(spec).encode()).hexdigest()[:32]),  # the same spec, the same trace
    )
    with TraceWriter(path, meta, force=force) as writer:
        writer.write_faults(_chunks(workload, owner, start, order))
    return workload.faults


def _demand_paging(spec: SynthSpec, vcpu: int, rng: np.random.Generator, _: Any) -> tuple[Ints, Ints]:
    first = vcpu * spec.pages
    return np.arange(first, first + spec.pages, dtype=np.int64), spec.think.draw(spec.pages, rng)


def _phases(spec: SynthSpec, vcpu: int, rng: np.random.Generator, _: Any) -> tuple[Ints, Ints]:
    page, think = _demand_paging(spec, vcpu, rng, None)
    borders = np.unique(np.arange(1, spec.phases) * spec.pages // spec.phases)
    think[borders[borders > 0]] += spec.quiet_ns
    return page, think


def _zipf(spec: SynthSpec, vcpu: int, rng: np.random.Generator, shared: Any) -> tuple[Ints, Ints]:
    rank = np.searchsorted(shared, rng.random(spec.pages) * shared[-1], side="right")
    page = np.random.default_rng(spec.seed).permutation(shared.size)[np.minimum(rank, shared.size - 1)]
    at = np.cumsum(spec.think.draw(spec.pages, rng))
    _, first = np.unique(page, return_index=True)
    first.sort()
    return page[first].astype(np.int64), np.diff(at[first], prepend=0)


def _popularity(spec: SynthSpec) -> npt.NDArray[np.float64]:
    """Cumulative weight of the pages by rank. A permutation, the same for all vCPUs, maps ranks to pages."""
    return np.cumsum(np.arange(1, spec.vcpus * spec.pages + 1, dtype=np.float64) ** -spec.skew)


_STREAMS: Final = {"demand-paging": _demand_paging, "zipf": _zipf, "phases": _phases}


def _start_ns(workload: Workload) -> Ints:
    total = np.cumsum(workload.think_ns)
    before = np.concatenate([[0], total])[workload.accessor_start[:-1]]
    started: Ints = total - np.repeat(before, np.diff(workload.accessor_start)) + _BEGIN_NS
    return started


def _chunks(workload: Workload, owner: npt.NDArray[np.int32], start: Ints, order: Ints) -> Iterator[pa.Table]:
    """Tables of `FAULTS`, a million rows each: 10 million faults need no more memory than their arrays."""
    first_row = np.zeros(workload.faults, bool)
    first_row[workload.accessor_start[:-1][np.diff(workload.accessor_start) > 0]] = True
    for at in range(0, order.size, _CHUNK_ROWS):
        rows = order[at : at + _CHUNK_ROWS]
        count = rows.size
        known = {
            "fault_id": np.arange(at, at + count),
            "vm": np.full(count, _TGID),
            "accessor": _same("vcpu", count),
            "tid": owner[rows] + _FIRST_TID,
            "vcpu": owner[rows],
            "start_ns": start[rows],
            "end_ns": start[rows],
            "think_ns": pa.array(workload.think_ns[rows], mask=first_row[rows]),
            "page": _BASE + workload.page[rows].astype(np.int64) * PAGE_BYTES,
            "granule": np.full(count, PAGE_BYTES),
            "access": _words_of(workload.access[rows]),
            "cause": _same("missing", count),
            "resolution": _same("none", count),
            "handler_tid": np.zeros(count, np.int32),
            "join": _same("synthetic", count),
        }
        columns = [pa.array(known[f.name]).cast(f.type) if f.name in known else pa.nulls(count, f.type) for f in FAULTS]
        yield pa.table(columns, schema=FAULTS)


def _words_of(access: npt.NDArray[np.uint8]) -> pa.Array:
    """The letter of each access."""
    return pa.DictionaryArray.from_arrays(access.astype(np.int8), pa.array(list(ACCESS_CODES)))


def _same(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), pa.array([text]))


def _command(spec: SynthSpec) -> list[str]:
    think = f"exp:{spec.think.mean_ns}ns" if spec.think.exponential else f"{spec.think.mean_ns}ns"
    words = ["faultreplay", "synth", spec.kind, "--vcpus", str(spec.vcpus), "--pages", str(spec.pages)]
    words += ["--think", think, "--seed", str(spec.seed)]
    if spec.kind == "zipf":
        words += ["--skew", f"{spec.skew:g}"]
    if spec.kind == "phases":
        words += ["--phases", str(spec.phases), "--quiet", f"{spec.quiet_ns}ns"]
    if spec.kind == "restore":
        ramp = ",".join(f"{ns}ns:{share:g}" for ns, share in spec.restore.ramp[1:])
        words += ["--run", str(spec.restore.run), "--jaccard", f"{spec.restore.jaccard:g}"]
        words += ["--next-page", f"{spec.restore.next_page:g}", "--ramp", ramp]
        words += ["--writes", f"{spec.restore.writes:g}", "--memory", str(spec.restore.memory_pages * PAGE_BYTES)]
    return words


def _record(spec: SynthSpec) -> dict[str, Any]:
    record = dict(spec.__dict__)
    record["think"] = dict(spec.think.__dict__)
    del record["restore"]
    if spec.kind == "restore":
        record |= {f"restore_{key}": value for key, value in spec.restore.__dict__.items()}
    return record
