"""How to replay: the options of the user, the mechanism of the recording, parameters of both."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from faultreplay.analysis.compare.metrics import overlap_ns
from faultreplay.analysis.compare.storage_setting import StorageSetting, with_storage
from faultreplay.faulttrace.errors import IncompleteData, UsageError
from faultreplay.replay.engine.streams import Knowledge
from faultreplay.replay.language.mechanism import Mechanism, Param, list_mechanisms, load_mechanism

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.meta import Meta


@dataclass(frozen=True)
class Setup:
    """How to replay, apart from the mechanism: the options of the command line."""

    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cost_files: Sequence[str] = ()
    loop: Literal["closed", "open"] = "closed"
    retouch: Literal["recorded", "working-set"] = "recorded"
    reading: Literal["auto", "recorded", "first-touch"] = "auto"
    """how faults of memory that was there are taken; auto: as first touches where no fault is one of missing memory"""
    fetch_ns: int | None = None
    """the environment's: until a page's content is there; None: as the trace shows, else as the cost files say"""
    link_bytes_per_s: int = 0
    """the environment's: the link's bandwidth; 0: as the recording says, else not known"""
    vcpu_threads: Sequence[str] = ()
    """threads, by id or name, that are vCPUs though they never call KVM_RUN"""
    cpus: int | None = None
    pinned: bool = False
    """with `cpus`: each thread is pinned to one CPU"""
    seed: int = 0
    seeds: int = 1
    working_sets: Sequence[str] = ()
    """traces of earlier runs of the guest: what a prefetch knows"""
    storage: StorageSetting | None = None
    """the environment's: the device with the snapshot file; None: as costs and mechanisms say"""
    page_cache: dict[str, float] | None = None
    """and what the page cache has of it, as parameters (`parse_page_cache`); None: as mechanisms say"""
    first: int = 1000
    """accesses after which a restored guest is taken to have got going"""
    known: Knowledge | None = field(default=None, compare=False)
    """what is known beside the trace; `open_case` finds it"""
    bounds: frozenset[str] = frozenset()
    """of what neither the trace nor the user says, both extremes are replayed: any of ``cpus``, ``retouch``"""


@dataclass(frozen=True)
class Used:
    """The mechanism that served the faults while they were recorded. `inferred`: the faults say so, not the trace."""

    name: str
    params: Mapping[str, Any]
    inferred: bool
    asynchronous: bool = False
    """its handler reads on while content is on its way: `handlers` is how many faults it has in hand"""
    window_kind: str = ""
    """the mechanism whose rule the recorded windows followed"""


# What holds for every host of a kind, unless the user sets it. Shadow paging maps up to 8 entries with one fault
# (PTE_PREFETCH_NUM in arch/x86/kvm/mmu/mmu.c), the TDP MMU one.
HOST_SETTINGS: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "pvm": {"memslot-destroy": {"refill": "32K"}, "uffd-wp-freeze": {"refill": "32K"}}
}
# The lab's window -> the rule in the mechanisms' language: its freeze is UFFDIO_WRITEPROTECT over guest memory.
LAB_WINDOWS: Final = {"freeze": "uffd-wp", "pause": "pause", "memslot-destroy": "memslot-destroy"}
# What most faults of a trace look like -> the mechanism that makes them so.
_SIGNS: Final = {
    ("missing", "copy"): "uffd-missing",
    ("missing", "zeropage"): "uffd-missing",
    ("minor", "continue"): "uffd-minor",
    ("exit", "userspace"): "kvm-exit",
    ("stage2", "kernel"): "host-lazy",
    ("minor-host", "kernel"): "host-lazy",
}


MECHANISM_COLUMNS: Final = ("cause", "resolution", "handler_tid", "start_ns", "queue_ns", "service_ns")
"""Columns of `FAULTS` that tell how they were served."""


def mechanism_used(meta: Meta, faults: pl.DataFrame) -> Used | None:
    """The mechanism of the recording: from `meta`, else from what most of its faults look like, else None."""
    if meta.mechanism is not None and meta.mechanism.name in LAB_WINDOWS:
        # The lab names a run after its window; what served the faults outside it stands in `base`.
        base = str(meta.mechanism.params.get("base", ""))
        known = base if base in list_mechanisms() else "host-lazy"
        return Used(known, dict(meta.mechanism.params), inferred=False, window_kind=LAB_WINDOWS[meta.mechanism.name])
    if meta.mechanism is not None:
        name, params = restore_used(meta.mechanism.name, meta.mechanism.params)
        at_once = served_at_once(faults)
        # Threads of one userfaultfd; where memory is sharded each shard has its own.
        threads = _whole(params, "handlers", at_once) * max(_whole(params, "shards", 1), 1)
        if at_once > threads:
            return Used(name, params | {"handlers": at_once}, inferred=False, asynchronous=True)
        return Used(name, params, inferred=False)
    if not len(faults):
        return None
    commonest = faults.group_by("cause", "resolution").len().sort("len", "cause", "resolution").row(-1)
    inferred = _SIGNS.get((commonest[0], commonest[1]))
    if inferred is None:
        return None
    threads = faults["handler_tid"].filter(faults["handler_tid"] > 0).n_unique()
    at_once = served_at_once(faults)
    params = {"handlers": max(threads, at_once)} if inferred.startswith("uffd") and threads else {}
    return Used(inferred, params, inferred=True, asynchronous=bool(params) and at_once > threads)


def restore_used(name: str, recorded: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, parameters) of a restore that the lab recorded, in the mechanisms' own words."""
    params = dict(recorded)
    if isinstance(params.get("fetch"), str):
        params["remote"] = int(params["fetch"] != "snapshot")
    if "page_cache" in params:
        params["cached"] = float(params["page_cache"] == "hot")
    if name == "prefetch-beside" and params.get("base") == "file-private":
        name = "file-private-prefetch"
    return name, params


def served_at_once(faults: pl.DataFrame) -> int:
    """How many faults the handlers had in hand at once (read, not yet placed), for at least 2 % of their busy time."""
    told = faults["queue_ns"].is_not_null() & faults["service_ns"].is_not_null()
    told &= faults["cause"].is_in(["missing", "minor"])
    served = faults.select("start_ns", "queue_ns", "service_ns").filter(told)
    if not len(served):
        return 0
    read = (served["start_ns"] + served["queue_ns"]).to_numpy().astype(np.int64)
    placed = read + served["service_ns"].to_numpy().astype(np.int64)
    del served
    busy = overlap_ns(read, placed, 1)
    depth = 1
    while overlap_ns(read, placed, depth + 1) > 0.02 * busy:
        depth += 1
    return depth


def with_used(mechanism: Mechanism, used: Used | None) -> Mechanism:
    """`mechanism`, and what it falls back to, with what the recording shows: all of it if it is the recorded one.

    Another takes the parameters that both declare alike (name, unit and default): handlers, shards, faults in hand, so
    that two rows differ by the mechanism and nothing else. Where it gives each shard handlers of its own and the
    recorded one has no shards, it shares their threads out; faults that one thread has in hand are every shard's.
    """
    if used is None:
        return mechanism
    below = {kind: with_used(other, used) for kind, other in mechanism.fallback.items()}
    mechanism = replace(mechanism, fallback=below)
    if mechanism.name == used.name:
        return mechanism.with_params({k: v for k, v in used.params.items() if k in mechanism.params})
    shown = _shipped(used.name).params if used.name in list_mechanisms() else {}
    alike = {
        name: used.params[name]
        for name, param in mechanism.params.items()
        if name in used.params and _alike(param, shown.get(name), used.params[name])
    }
    handlers, per = alike.get("handlers"), mechanism.resources.get("handler")
    if handlers and per and per.per == "shard" and "shards" not in shown and not used.asynchronous:
        alike["handlers"] = max(int(handlers) // int(mechanism.value(mechanism.shards)), 1)
    return mechanism.with_params(alike)


def _alike(param: Param, recorded: Param | None, value: Any) -> bool:
    """Whether a recorded parameter's `value` means the same for `param`; a run without handlers says 0 of them."""
    if recorded and (param.unit, param.default) != (recorded.unit, recorded.default):
        return False
    return not isinstance(value, int | float) or param.minimum <= value <= param.maximum


def for_host(setup: Setup, kvm_flavour: str) -> Setup:
    """`setup` with what holds for every host of this kind; what the user set wins."""
    known = HOST_SETTINGS.get(kvm_flavour, {})
    settings = {name: {**values, **setup.settings.get(name, {})} for name, values in known.items()}
    return replace(setup, settings={**setup.settings, **settings})


def for_lab(setup: Setup, meta: Meta) -> Setup:
    """`setup` with the host's CPUs as a resource where the lab pinned its threads, unless the user says how many.

    Elsewhere a trace does not tell which CPUs a thread might have had.
    """
    if setup.cpus is None and meta.lab.get("pinned") and meta.host.cpus:
        return replace(setup, cpus=meta.host.cpus, pinned=True)
    return setup


def load_with(name: str, setup: Setup, used: Used | None) -> Mechanism:
    """A mechanism as a row of a table names it: `NAME`, a file, or with parameters of its own `NAME:PARAM=VALUE:...`.

    It takes the environment's link, what the recording shows, what the user set for all rows of that name, then the
    row's own parameters; with these it is named as the row is.
    """
    plain, own = split_choice(name)
    loaded = _shipped(plain) if plain in list_mechanisms() else load_mechanism(plain)
    mechanism = with_link(with_used(loaded, used), link_of(setup, used))
    remote = setup.fetch_ns is not None and setup.storage is None
    mechanism = with_storage(mechanism, setup.storage, setup.page_cache, remote=remote)
    settings = {**setup.settings.get(mechanism.name, {}), **setup.settings.get(plain, {}), **own}
    mechanism = mechanism.with_params(settings)
    return replace(mechanism, name=label_of(mechanism.name, own)) if own else mechanism


def split_choice(text: str) -> tuple[str, dict[str, str]]:
    """`uffd-missing:handlers=4:granule=2M` as its name and its parameters.

    Raises:
        UsageError: a parameter without a value.
    """
    name, *parts = text.split(":")
    own = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"-m {text}: write NAME:PARAMETER=VALUE, as uffd-missing:handlers=4")
        own[key.replace("-", "_")] = value
    return name, own


def label_of(name: str, own: Mapping[str, str]) -> str:
    """The name of a row with its own parameters."""
    return ":".join([name, *(f"{key}={value}" for key, value in own.items())])


def link_of(setup: Setup, used: Used | None) -> float:
    """Bandwidth of the link that content comes over, bytes/s: as set, else as recorded; 0: not known."""
    if setup.link_bytes_per_s:
        return setup.link_bytes_per_s
    recorded = used.params.get("bandwidth", 0) if used else 0
    return float(recorded) if isinstance(recorded, int | float) else 0.0


def with_link(mechanism: Mechanism, bytes_per_s: float) -> Mechanism:
    """`mechanism`, and what it falls back to, on the environment's link: none has a faster one of its own."""
    below = {kind: with_link(other, bytes_per_s) for kind, other in mechanism.fallback.items()}
    mechanism = replace(mechanism, fallback=below)
    return mechanism.with_params({"bandwidth": bytes_per_s}) if "bandwidth" in mechanism.params else mechanism


@functools.lru_cache
def _shipped(name: str) -> Mechanism:
    return load_mechanism(name)


def _whole(params: Mapping[str, Any], key: str, default: int) -> int:
    """A parameter from meta.json, whatever its type is there."""
    try:
        return int(params.get(key, default))
    except (TypeError, ValueError, OverflowError):
        raise IncompleteData(f"meta.json: mechanism.params.{key} is no whole number: {params[key]!r}") from None
