"""QEMU's own figures of a migration, as `query-migrate` gives them: no recording is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from faultreplay.faulttrace.meta import Meta

_COUNTERS: Final = (
    ("total-time", "total", "ms"), ("setup-time", "setup", "ms"), ("downtime", "downtime", "ms"),
    ("expected-downtime", "expected downtime", "ms"), ("postcopy-requests", "post-copy requests", "count"),
    ("dirty-sync-count", "rounds of dirty sync", "count"), ("transferred", "transferred", "bytes"),
    ("postcopy-bytes", "in post-copy", "bytes"), ("remaining", "remaining", "bytes"),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer of `query-migrate`. `counters`: (what, value, unit), unit ms, count or bytes."""

    side: str
    status: str
    error: str
    counters: tuple[tuple[str, int, str], ...]

    @property
    def finished(self) -> bool:
        """Whether its figures are those of the whole migration."""
        return self.status == "completed"


@dataclass(frozen=True)
class VcpuFigures:
    """QEMU's figures of one vCPU (-1: all at once, -2: threads that are no vCPU); None where it gives none."""

    vcpu: int
    blocktime_ns: int | None
    latency_ns: int | None
    """Mean time from message read to page placed, of all its faults."""


@dataclass(frozen=True)
class Latencies:
    """Distribution of post-copy latencies: bucket i has those of [2^i us, 2^(i+1) us)."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Faults in the distribution."""
        return sum(self.counts)

    def share_below(self, bucket: int) -> float:
        """Share of faults under the lower edge of `bucket`, 0 to 1."""
        return sum(self.counts[:bucket]) / self.total if self.total else 0.0

    def edges_ns(self, bucket: int) -> tuple[int, int]:
        """From and until, in ns."""
        return 1000 << bucket, 2000 << bucket


def answers(meta: Meta) -> list[Answer]:
    """Every answer that the trace keeps: destination, source, further ones of a side, those of an unknown side."""
    found = []
    for side, answer in (meta.extra.get("qemu") or {}).items():
        if not isinstance(answer, Mapping) or "status" not in answer:
            continue
        ram = answer.get("ram") if isinstance(answer.get("ram"), Mapping) else {}
        counters = []
        for key, words, unit in _COUNTERS:
            value = _whole(answer.get(key, (ram or {}).get(key)))
            if value is not None:
                counters.append((words, value, unit))
        found.append(Answer(side, str(answer["status"]), str(answer.get("error-desc", "")), tuple(counters)))
    return found


def vcpu_figures(meta: Meta) -> list[VcpuFigures]:
    """A row a vCPU in QEMU's order, then all at once, then other threads (QEMU 10.1); empty without figures."""
    destination = _destination(meta)
    booked = _list(destination.get("postcopy-vcpu-blocktime"))
    late = _list(destination.get("postcopy-vcpu-latency"))
    rows = [
        VcpuFigures(vcpu, _ms(booked[vcpu]) if vcpu < len(booked) else None, late[vcpu] if vcpu < len(late) else None)
        for vcpu in range(max(len(booked), len(late)))
    ]
    whole, latency = _whole(destination.get("postcopy-blocktime")), _whole(destination.get("postcopy-latency"))
    if whole is not None or latency is not None:
        rows.append(VcpuFigures(-1, None if whole is None else _ms(whole), latency))
    others = _whole(destination.get("postcopy-non-vcpu-latency"))
    return [*rows, VcpuFigures(-2, None, others)] if others is not None else rows


def latencies(meta: Meta) -> Latencies | None:
    """QEMU 10.1's distribution of latencies; None where there is none."""
    counts = _list(_destination(meta).get("postcopy-latency-dist"))
    return Latencies(tuple(counts)) if counts else None


def _destination(meta: Meta) -> Mapping[str, Any]:
    answer = (meta.extra.get("qemu") or {}).get("destination")
    return answer if isinstance(answer, Mapping) else {}


def _list(value: Any) -> list[int]:
    return [number for number in map(_whole, value) if number is not None] if isinstance(value, list) else []


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ms(value: int) -> int:
    return value * 1_000_000
