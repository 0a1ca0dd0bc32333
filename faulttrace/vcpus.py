"""vCPUs that never call KVM_RUN: threads that run guest code themselves, as QEMU's TCG threads do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from faultreplay.faulttrace.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from faultreplay.faulttrace.meta import Meta, Target

NAMED: Final = "vcpu_threads"
"""Key of `Meta.extra`: thread ids that the user declared to be vCPUs when recording."""
_TCG: Final = re.compile(r"CPU (\d+)/TCG")


def vcpu_threads(meta: Meta, named: Sequence[str] = ()) -> dict[int, int]:
    """Thread id -> vCPU number of threads that are vCPUs without KVM.

    Args:
        meta: of a trace; it has the threads' names, and the threads that were named when it was recorded.
        named: more of them, by thread id or by name; ``*`` in a name matches anything.

    Raises:
        UsageError: no thread of the trace has this id or name.
    """
    recorded = [str(tid) for tid in meta.extra.get(NAMED, ())]
    return {tid: number for target in meta.targets for tid, number in numbers(target, recorded).items()} | _named(
        meta.targets, named
    )


def numbers(target: Target, named: Iterable[str] = ()) -> dict[int, int]:
    """Thread id -> vCPU number of a process's threads.

    Numbers are from QEMU's names of TCG threads. For the threads in `named` they are from digits in the name, else in
    order.
    """
    found = {t.tid: int(match[1]) for t in target.threads if (match := _TCG.fullmatch(t.comm))}
    wanted = list(named)
    for thread in target.threads:
        if thread.tid not in found and any(_is(thread.tid, thread.comm, text) for text in wanted):
            digits = re.search(r"\d+", thread.comm)
            number = int(digits[0]) if digits else len(found)
            found[thread.tid] = number if number not in found.values() else max(found.values()) + 1
    return found


def label_vcpus(faults: pl.DataFrame, threads: Mapping[int, int], targets: Sequence[Target] = ()) -> pl.DataFrame:
    """Stitched faults in which the own accesses of these threads are a vCPU's; kernel accesses are not changed.

    If the memory slots of a target are known, pages outside them are the VMM's own memory: accesses there stay `vmm`.
    """
    import polars as pl

    if not threads:
        return faults
    tids = pl.Series(list(threads), dtype=pl.Int32)
    mine = pl.col("tid").is_in(tids.implode()) & (pl.col("accessor") == "vmm")
    for target in targets:
        inside = [
            (pl.col("page") >= slot.hva) & (pl.col("page") < slot.hva + slot.size_bytes)
            for slot in target.memslots
            if slot.size_bytes
        ]
        if inside:
            mine &= (pl.col("vm") != target.tgid) | pl.any_horizontal(inside)
    number = pl.col("tid").replace_strict(dict(threads), default=-1, return_dtype=pl.Int32)
    return faults.with_columns(
        vcpu=pl.when(mine).then(number).otherwise(pl.col("vcpu")).cast(pl.Int32),
        accessor=pl.when(mine).then(pl.lit("vcpu")).otherwise(pl.col("accessor")).cast(faults.schema["accessor"]),
    )


def _named(targets: Sequence[Target], named: Sequence[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for target in targets:
        found |= numbers(target, named)
    for text in named:
        everyone = [thread for target in targets for thread in target.threads]
        if not any(_is(thread.tid, thread.comm, text) for thread in everyone):
            names = ", ".join(sorted({thread.comm for thread in everyone if thread.comm})) or "none has a name"
            raise UsageError(f"--vcpu-threads {text}: no thread of this trace: there are {names}")
    return found


def _is(tid: int, comm: str, text: str) -> bool:
    return text == str(tid) or fnmatchcase(comm, text)
