"""What a replay with storage or streams tells beside stalls: start-up, when all is there, what a prefetch brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.replay.engine import storage as bits
from faultreplay.replay.engine.streams import Piece, Staged
from faultreplay.replay.language.words import CONTENT_CAUSES
from faultreplay.replay.workload.workload import Ints, Workload

_CONTENT = np.array([name in CONTENT_CAUSES for name in CAUSES])
_OWN_FAULT = bits.ASKED | bits.JOINED
_OWN_READ = bits.READ_ITSELF | bits.WAITED


@dataclass(frozen=True)
class Restored:
    """Numbers of one replay; times are ns from the beginning of the restore."""

    startup_ns: int = 0
    """until the guest runs: what streams do before"""
    all_there_ns: int = 0
    """until all is there that the guest needs, and all that streams bring"""
    beside_ns: int = 0
    """until the last stream was done, from the guest's resume; 0: none works beside it"""
    needed_pages: int = 0
    """native pages that the guest touches and somebody must bring"""
    set_pages: int = 0
    """native pages that streams bring, or find there"""
    covered_pages: int = 0
    """needed ones among these"""
    late_pages: int = 0
    """covered ones that were not there in time: the guest waited for them, or had asked first"""
    left_faults: int = 0
    """faults of its vCPUs (of all, where it has none) on needed pages that somebody had to bring, or was bringing"""
    cache_hits: int = 0
    """reads that the page cache answered"""
    cache_waits: int = 0
    """reads that waited for another one's request"""
    cache_reads: int = 0
    """reads that made a request"""

    @property
    def coverage(self) -> float | None:
        """Share of the needed pages that streams bring; None: there are no streams."""
        return self.covered_pages / self.needed_pages if self.set_pages and self.needed_pages else None

    @property
    def waste(self) -> float | None:
        """Share of what streams bring that the guest does not touch."""
        return 1 - self.covered_pages / self.set_pages if self.set_pages else None


def restored(stage: Staged, pieces: Sequence[Piece], startup_ns: int, start_ns: Ints, stall_ns: Ints) -> Restored:
    """The numbers of a run whose rows are kept.

    Args:
        stage: the guest with the streams beside it
        pieces: all streams, those before the guest's resume too
        startup_ns: until the guest ran
        start_ns, stall_ns: int64[rows of the stage]
    """
    w, found, guest = stage.workload, stage.files.found, stage.faults
    done = start_ns >= 0
    end_ns = np.where(done, start_ns + stall_ns, 0)
    needs = np.zeros(w.faults, np.bool_)
    needs[:guest] = _CONTENT[w.cause[:guest]]
    late = done & needs & ((found & (bits.THERE | _OWN_FAULT)) != bits.THERE)
    since = w.resume_ns if guest else 0
    beside_ns = max(int(end_ns[guest:].max(initial=0)) - since, 0)
    needed = np.unique(w.page[needs].astype(np.int64))
    brought = _brought(pieces)
    covered = np.intersect1d(needed, brought, assume_unique=True)
    reads = found[:guest]
    return Restored(
        startup_ns=startup_ns,
        all_there_ns=startup_ns + max(int(end_ns[late].max(initial=0)) - since, beside_ns),
        beside_ns=beside_ns,
        needed_pages=needed.size,
        set_pages=brought.size,
        covered_pages=covered.size,
        late_pages=np.intersect1d(covered, _late(stage, pieces, done & needs), assume_unique=True).size,
        left_faults=int(np.count_nonzero(late & _of_guest(w))),
        cache_hits=int(np.count_nonzero(reads & bits.HIT)),
        cache_waits=int(np.count_nonzero(reads & bits.WAITED)),
        cache_reads=int(np.count_nonzero(reads & bits.READ_ITSELF)),
    )


def _of_guest(w: Workload) -> npt.NDArray[np.bool_]:
    """bool[F]: which rows are vCPUs'; all where there are none."""
    vcpu = w.accessor_kind == ACCESSORS.index("vcpu")
    rows: npt.NDArray[np.bool_] = (vcpu if vcpu.any() else np.ones_like(vcpu))[w.accessor_of_row()]
    return rows


def _pages_of(piece: Piece) -> Ints:
    return (piece.page[:, None] + np.arange(piece.pages)).ravel()


def _brought(pieces: Sequence[Piece]) -> Ints:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(_pages_of(piece) for piece in pieces)]))


def _late(stage: Staged, pieces: Sequence[Piece], rows: npt.NDArray[np.bool_]) -> Ints:
    """Pages of streams for which the guest had to wait.

    A stream that places pages is late where the guest asked for the page itself or waited for it; one that only reads
    into the page cache, where the guest's own read did.
    """
    page, found = stage.workload.page.astype(np.int64), stage.files.found
    late = [np.zeros(0, np.int64)]
    for piece in pieces:
        waited = rows & ((found & (_OWN_FAULT if piece.places else _OWN_READ)) != 0)
        late.append(np.intersect1d(page[waited], _pages_of(piece)))
    return np.unique(np.concatenate(late))
