"""Streams of a mechanism on stage: threads of their own, with a row for each piece that they bring.

To the compiled loop a stream's thread is an accessor, and a piece is a fault with a path of its own. What belongs to
the guest stands before it in all arrays, so that results are cut where the guest ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.engine import layout as at
from faultreplay.replay.engine import opcodes as o
from faultreplay.replay.engine.file_map import cached_at_first, devices_of, map_of
from faultreplay.replay.engine.storage import Files
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.program import Program
from faultreplay.replay.language.storage import range_pages
from faultreplay.replay.language.streams import PageStream
from faultreplay.replay.workload.pages import Pages, tracked_of
from faultreplay.replay.workload.summary import open_loop
from faultreplay.replay.workload.workload import Ints, Workload

_VMM: Final = 1
_EXECUTE: Final = 2  # no read, behind which a write of its own may come
_FLAGS: Final = np.zeros(0, np.uint8)
_GRANULES: Final = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Knowledge:
    """What is known beside the workload; pages are numbered as its own are (address // page size)."""

    working_set: Ints | None = None
    """int64[P]: pages that earlier runs touched, in order of first touch; None: no earlier run"""
    memory: tuple[tuple[int, int], ...] = ()
    """(first page, pages) of each range of guest memory; none: not known"""


@dataclass(frozen=True)
class Piece:
    """The rows of one stream of one VM: its pieces in order."""

    number: int
    """of the stream"""
    vm: int
    """of several"""
    page: Ints
    """first native page of each piece"""
    servers: int
    batch: int
    """pieces that a thread takes at once"""
    packed: bool
    claims: bool
    """its path looks the granule up, and brings it"""
    places: bool
    """its path places pages in the guest's memory; else they are only read into the page cache"""
    pages: int
    """native pages of a piece"""


@dataclass(frozen=True)
class Staged:
    """A workload with the threads of its streams behind its own accessors."""

    workload: Workload
    pages: Pages
    files: Files
    accessors: int
    """of the guest"""
    faults: int
    """of the guest"""
    piece_page: Ints
    """int64[rows of streams]: the first page of each"""


def _pieces(  # noqa: PLR0917
    mechanism: Mechanism, stream: PageStream, number: int, workload: Workload, known: Knowledge, cpus: int
) -> list[Piece]:
    """The stream's pieces, for each VM."""
    page_bytes = workload.page_bytes
    granule_pages = mechanism.granule_bytes // page_bytes
    path = mechanism.paths[stream.path]
    piece_pages = range_pages(mechanism, page_bytes, stream.chunk, "chunk =") or granule_pages
    if piece_pages < granule_pages:
        raise UsageError(f"{mechanism.name}: a piece of {stream.path} is smaller than a granule")
    if stream.packed and (piece_pages > granule_pages or any(stage.verb == "around" for stage in path)):
        raise UsageError(f"{mechanism.name}: pieces of a packed file are granules, which have no neighbours there")
    pages = _set(stream, workload, known)
    if stream.order == "address":
        pages = np.unique(pages)
    ahead = max(
        [range_pages(mechanism, page_bytes, stage.options.ahead, "ahead =") for stage in path if stage.verb == "read"],
        default=0,
    )
    servers = min(int(mechanism.value(stream.servers)), cpus or 1 << 20)
    claims = any(stage.verb == "coalesce" for stage in path)
    places = claims or any(stage.verb == "around" for stage in path)
    batch = max(ahead // piece_pages, 1)
    vm = workload.vm_of_page(pages)
    return [
        Piece(
            number, n, _begins(pages[vm == n], piece_pages), servers, batch, stream.packed, claims, places, piece_pages
        )
        for n in range(workload.vms)
    ]


def _begins(pages: Ints, piece_pages: int) -> Ints:
    """The first page of each piece, in the order in which `pages` first name it."""
    piece = pages // piece_pages
    _, first = np.unique(piece, return_index=True)
    return piece[np.sort(first)] * piece_pages


def _set(stream: PageStream, workload: Workload, known: Knowledge) -> Ints:
    """Pages of a stream, each once, in order of first touch; all of memory in order of address."""
    if stream.set == "all":
        ranges = known.memory or _ranges_touched(workload)
        return np.concatenate([np.arange(first, first + count) for first, count in ranges] or [np.zeros(0, np.int64)])
    if stream.set == "working-set" and known.working_set is not None:
        return known.working_set
    page = workload.page.astype(np.int64)[open_loop(workload)[0]]
    _, first = np.unique(page, return_index=True)
    return page[np.sort(first)]


def _ranges_touched(workload: Workload) -> list[tuple[int, int]]:
    """Where guest memory is not known: the 2 MiB ranges that the trace touches."""
    block = max((2 << 20) // workload.page_bytes, 1)
    return [(int(one) * block, block) for one in np.unique(workload.page.astype(np.int64) // block)]


def threads_of(mechanism: Mechanism) -> int:
    """Most threads of streams that work at once."""
    counts = [(stream.before, int(mechanism.value(stream.servers))) for stream in mechanism.streams]
    return max((sum(count for early, count in counts if early is when) for when in (False, True)), default=0)


class Scene:
    """A guest with the files behind its memory, on which streams are set to work.

    Args of the constructor: `workload`, `pages`: the guest; `known`: what is known beside them; `seed`: of the page
    cache's share; `cpus`: of the host, 0 for as many as are wanted.
    """

    def __init__(  # noqa: PLR0917
        self,
        workload: Workload,
        pages: Pages,
        mechanism: Mechanism,
        program: Program,
        known: Knowledge,
        seed: int,
        cpus: int,
    ) -> None:
        self.workload, self.pages, self.program = workload, pages, program
        self.granule_pages = mechanism.granule_bytes // workload.page_bytes
        self.pieces = [
            piece
            for number, stream in enumerate(mechanism.streams)
            for piece in _pieces(mechanism, stream, number, workload, known, cpus)
        ]
        self.before = [piece for piece in self.pieces if mechanism.streams[piece.number].before]
        self.beside = [piece for piece in self.pieces if not mechanism.streams[piece.number].before]
        touched = [workload.page.astype(np.int64) // self.granule_pages]
        touched += [piece.page // self.granule_pages for piece in self.pieces if not piece.packed]
        longest = max((storage.readahead_pages for storage in program.storages), default=0)
        self.map = map_of(np.concatenate(touched), self.granule_pages, workload.page_bytes, longest)
        self.packed: dict[tuple[int, int], int] = {}
        size, ends = 0, []
        for piece in self.pieces:
            if piece.packed:
                self.packed[piece.number, piece.vm] = self.map.pages + size
                size += piece.page.size * self.granule_pages
                ends.append(slice(self.map.pages + size, self.map.pages + size + piece.batch * piece.pages))
                size += piece.batch * piece.pages
        known_pages = known.working_set if known.working_set is not None else _none()
        self.cached = cached_at_first(program.storages, self.map, size, known_pages, seed)
        for behind in ends:  # nothing is read there, nor in the next file
            self.cached[:, behind] = 0
        self.tracked = tracked_of(workload, pages, self.granule_pages)

    def stage(self, pieces: Sequence[Piece], *, guest: bool = True) -> Staged:
        """The guest (or nobody) with the threads of these streams."""
        workload, pages = self.workload, self.pages
        own = self.map.at(workload.page.astype(np.int64) // self.granule_pages * self.granule_pages)
        if not guest:
            workload, pages, own = _nobody(workload), replace(pages, flags=_FLAGS, granule=_GRANULES), _none()
        dealt = [_deal(piece) for piece in pieces]
        page = [piece.page[order] for piece, (order, _) in zip(pieces, dealt, strict=True)]
        place = [self._places(piece, order) for piece, (order, _) in zip(pieces, dealt, strict=True)]
        sizes = [piece.page.size for piece in pieces]
        pages_of_pieces = np.concatenate([_none(), *page])
        granule = self.tracked.at(pages_of_pieces // self.granule_pages)
        claimed = np.repeat(np.array([piece.claims for piece in pieces], bool), sizes) & (granule >= 0)
        number = np.repeat(np.array([piece.number for piece in pieces], np.int64), sizes)
        staged = _with_threads(
            workload, pages_of_pieces, number, np.concatenate([_none(), *(each for _, each in dealt)])
        )
        granules = pages.granule if pages.granule.size else np.full(workload.faults, -1, np.int32)
        return Staged(
            workload=staged,
            pages=replace(
                pages,
                flags=np.concatenate([pages.flags, np.where(claimed, at.TRACKED, 0).astype(np.uint8)]),
                granule=np.concatenate([granules, np.where(claimed, granule, -1).astype(np.int32)]),
            ),
            files=self._files(np.concatenate([own, *place]), staged.faults),
            accessors=workload.accessors,
            faults=workload.faults,
            piece_page=pages_of_pieces,
        )

    def _places(self, piece: Piece, order: Ints) -> Ints:
        if piece.packed:
            return self.packed[piece.number, piece.vm] + order * self.granule_pages
        return self.map.at(piece.page[order])

    def _table(self, size: int) -> npt.NDArray[np.int32]:
        """int32[size]: the tracked granule that begins at each place; -1: none."""
        table = np.full(size, -1, np.int32)
        if self.tracked.key.size:
            table[self.map.at(self.tracked.key * self.granule_pages)] = self.tracked.index
        return table

    def _files(self, place: Ints, rows: int) -> Files:
        size = self.cached.shape[1]
        return Files(
            of_row=place.astype(np.int32),
            cached_at=self.cached.copy(),
            marked=np.zeros(self.cached.shape, np.uint8),
            granule=self._table(size),
            placed=np.zeros(size, np.uint8),
            devices=devices_of(self.program.storages),
            found=np.zeros(rows, np.uint8),
            granule_pages=np.int64(self.granule_pages),
        )


def _none() -> Ints:
    return np.zeros(0, np.int64)


def _deal(piece: Piece) -> tuple[Ints, Ints]:
    """(the pieces thread by thread, in order; how many each thread has): batches go round."""
    order = np.arange(piece.page.size, dtype=np.int64)
    thread = order // piece.batch % piece.servers
    return np.argsort(thread, kind="stable"), np.bincount(thread, minlength=piece.servers).astype(np.int64)


def _with_threads(w: Workload, page: Ints, number: Ints, counts: Ints) -> Workload:
    """`w` with an accessor for each thread of a stream; `counts`: pieces of each."""
    rows, threads = page.size, counts.size

    def longer(values: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
        return np.concatenate([values, np.full(rows, value, values.dtype)])

    def known(values: npt.NDArray[Any], value: int) -> npt.NDArray[Any]:
        return longer(values, value) if values.size else values

    begins = w.faults + np.cumsum(counts) - counts
    think, asleep = longer(w.think_ns, 0), known(w.asleep_ns, 0)
    if w.resume_ns and w.faults:
        asleep = asleep if asleep.size else np.zeros_like(think)
        some = begins[counts > 0]
        think[some] = asleep[some] = w.resume_ns
    return replace(
        w,
        accessor_start=np.concatenate([w.accessor_start, w.faults + np.cumsum(counts)]),
        think_ns=think,
        page=np.concatenate([w.page.astype(np.int64), page]),
        access=longer(w.access, _EXECUTE),
        cause=np.concatenate([w.cause, (o.PATH_STREAMS + number).astype(np.uint8)]),
        recorded_stall_ns=known(w.recorded_stall_ns, -1),
        recorded_start_ns=known(w.recorded_start_ns, -1),
        accessor_kind=np.concatenate([w.accessor_kind, np.full(threads, _VMM, np.uint8)]),
        accessor_name=(*w.accessor_name, *(f"stream{n}" for n in range(threads))),
        tail_ns=np.concatenate([w.tail_ns, np.zeros(threads, np.int64)]),
        asleep_ns=asleep,
        preempted_ns=known(w.preempted_ns, 0),
    )


def _nobody(w: Workload) -> Workload:
    """`w` without its accessors: what is done before the guest runs."""
    return replace(
        w,
        accessor_start=np.zeros(1, np.int64),
        think_ns=_none(),
        page=_none(),
        access=np.zeros(0, np.uint8),
        cause=np.zeros(0, np.uint8),
        recorded_stall_ns=_none(),
        recorded_start_ns=_none(),
        accessor_kind=np.zeros(0, np.uint8),
        accessor_name=(),
        tail_ns=_none(),
        asleep_ns=_none(),
        preempted_ns=_none(),
    )
