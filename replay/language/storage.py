"""The operations of the stages ``read`` and ``around``, and what a program says of storage."""

from __future__ import annotations

from typing import Final

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.language.emitter import Emitter
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.stage import Amount, Stage
from faultreplay.replay.language.time_words import word_of

MOST_BYTES: Final = 2 << 20
"""Of an aligned range and a piece of a stream."""


def emit_storage_stage(to: Emitter, mechanism: Mechanism, stage: Stage) -> None:
    """Append a ``read`` or ``around``."""
    if stage.verb == "read":
        _read(to, mechanism, stage)
    else:
        _around(to, mechanism, stage)


def range_pages(mechanism: Mechanism, page_bytes: int, size: Amount | None, what: str) -> int:
    """Native pages of a size that must be a range of memory: a power of two, `MOST_BYTES` at most; 0 of none."""
    count = int(mechanism.value(size)) if size is not None else 0
    if not count:
        return 0
    pages = count // page_bytes
    if count > MOST_BYTES or count % page_bytes or pages & (pages - 1):
        raise UsageError(
            f"{mechanism.name}: {what} {count:,} bytes: must be a page of {page_bytes} bytes times a power of two, and "
            f"{MOST_BYTES:,} at most"
        )
    return pages


def _read(to: Emitter, mechanism: Mechanism, stage: Stage) -> None:
    resource = mechanism.resources[stage.name]
    keys = resource.storage
    assert keys is not None  # a storage has them
    page = to.page_bytes
    device = to.device(mechanism, stage.name)
    over = range_pages(mechanism, page, stage.options.over, "over =")
    ahead = range_pages(mechanism, page, stage.options.ahead, "ahead =")
    around = to.storages[device].readahead_pages
    before, after = (0, ahead) if ahead else (around // 2, around - around // 2)
    onward = around if keys.onward and not ahead else 0
    most = max(mechanism.granule_bytes // page, over, before + after)
    bandwidth = mechanism.value(resource.size)
    page_ps = -(-page * 10**12 // int(bandwidth)) if bandwidth >= 1 else 0
    if most * page_ps > LONGEST_NS * 1000:
        raise UsageError(
            f"{mechanism.name}: {most * page:,} bytes take longer from '{stage.name}' than {LONGEST_NS:g} ns (11 days)"
        )
    window = (before, after, over, device, page_ps, page, onward)
    pc = to.emit(
        o.READ,
        (o.OF, *to.of(mechanism, stage.name)),
        (o.COST, *to.cost(mechanism, keys.latency)),
        (o.READ_BEFORE, *window),
        (o.ASLEEP, 1),
    )
    to.share(pc, "queue")
    to.share(pc, "fetch", 1)
    to.delay(mechanism, Stage("delay", stage.options.miss or 0), len(to.ops))
    to.ops[pc][o.READ_HIT] = to.emit(o.UNLESS)  # does nothing: what follows is not joined to the cost of having waited


def _around(to: Emitter, mechanism: Mechanism, stage: Stage) -> None:
    pages = range_pages(mechanism, to.page_bytes, stage.operand, "around =")
    if pages <= 1:
        return
    if mechanism.granule_bytes != to.page_bytes:
        raise UsageError(
            f"{mechanism.name}: 'around' places single pages of {to.page_bytes} bytes: a granule of "
            f"{mechanism.granule_bytes:,} has no neighbours of that size"
        )
    each = to.mean(mechanism, stage.options.each)
    files = [name for name, resource in mechanism.resources.items() if resource.kind == "storage"]
    if stage.options.cached and not files:
        raise UsageError(f"{mechanism.name}: 'around' with cached: there is no storage, and so no page cache")
    device = to.device(mechanism, files[0]) if files else 0
    around = (o.AROUND_PAGES, pages, int(stage.options.cached), device)
    if to.on_cpus:  # the work first, then they are there
        to.share(to.emit(o.AROUND, (o.COST, each), around), word_of(stage.options.each, "resolve"), 1)
        each = 0
    pc = to.emit(o.AROUND, (o.COST, each), around, (o.AROUND_MARKS, 1))
    to.share(pc, word_of(stage.options.each, "resolve"), 1)
