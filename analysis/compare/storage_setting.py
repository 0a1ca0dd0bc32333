"""The storage that a snapshot lies on and its page cache, for every row: what --storage and --page-cache say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import parse_duration_ns, parse_rate_bytes
from faultreplay.replay.language.mechanism import Mechanism

LATENCY: Final = "storage_read"
"""The cost that a storage's latency is."""


@dataclass(frozen=True)
class StorageSetting:
    """A device: latency of one request, bandwidth, requests at once; 0 of the latter two: no limit."""

    latency_ns: int
    bytes_per_s: int = 0
    depth: int | None = None
    """None: as each mechanism's file says"""


def parse_storage(text: str) -> StorageSetting:
    """``80us,2GB/s`` or ``80us,2GB/s,32``.

    Raises:
        UsageError: not of that form.
    """
    parts = text.split(",")
    if not 2 <= len(parts) <= 3 or (len(parts) == 3 and not parts[2].strip().isdigit()):
        raise UsageError(f"--storage {text}: write LATENCY,RATE or LATENCY,RATE,DEPTH, as 80us,2GB/s,32")
    depth = int(parts[2]) if len(parts) == 3 else None
    if depth is not None and depth > 65_536:
        raise UsageError(f"--storage {text}: at most 65,536 requests at once")
    return StorageSetting(parse_duration_ns(parts[0].strip()), parse_rate_bytes(parts[1].strip()), depth)


def parse_page_cache(text: str) -> dict[str, float]:
    """``none``, ``all``, a share as ``0.3``, or ``left``: what earlier runs read; as parameters of a mechanism.

    Raises:
        UsageError: none of them.
    """
    words = {"none": (0.0, 0.0), "all": (1.0, 0.0), "left": (0.0, 1.0)}
    if text in words:
        cached, left = words[text]
        return {"cached": cached, "left": left}
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--page-cache {text}: say none, all, left or a share from 0 to 1")
    return {"cached": share, "left": 0.0}


def with_storage(
    mechanism: Mechanism, storage: StorageSetting | None, page_cache: dict[str, float] | None, *, remote: bool
) -> Mechanism:
    """`mechanism`, and what it falls back to, on this storage; `remote`: content comes as the cost fetch says."""
    below = {kind: with_storage(one, storage, page_cache, remote=remote) for kind, one in mechanism.fallback.items()}
    mechanism = replace(mechanism, fallback=below)
    asked: dict[str, Any] = dict(page_cache or {})
    if storage is not None:
        asked["storage_bandwidth"] = storage.bytes_per_s
        if storage.depth is not None:
            asked["queue_depth"] = storage.depth
    if remote:
        asked["remote"] = 1
    has_storage = any(resource.kind == "storage" for resource in mechanism.resources.values())
    if not has_storage:
        return mechanism
    return mechanism.with_params({name: value for name, value in asked.items() if name in mechanism.params})
