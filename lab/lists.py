"""Access lists: which page, how, after how long a think, for each accessor. Seeded; the guest only executes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.regular import read_text_file
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.lab.spec import LabSpec

Ints = npt.NDArray[np.int64]

OP_READ, OP_WRITE, OP_RMW = 0, 1, 2
OP_ABSOLUTE = 4  # the think time counts from the start of the run
BURST = 16
PHASES = 4
ZIPF_EXPONENT = 1.0
REPEATING = ("uniform", "zipf", "phases")  # orders in which a page comes more than once
ROUNDS = 4  # accesses for each page in these
ALIKE_TOUCHED = 2  # order "alike": one page out of this many is touched
ALIKE_SHARE = 0.85  # this share of them is the same in every run
ALIKE_BLOCK = 4  # neighbours that are touched one after the other
ALIKE_SHIFT = 0.05  # how far, as a share of all, a block moves in the order from run to run


@dataclass(frozen=True)
class AccessList:
    """One accessor's accesses. `op` low bits: what; upper bits: unique, and what a write stores."""

    page: Ints
    think_ns: Ints
    op: Ints

    @property
    def longest_think_ns(self) -> int:
        """The longest time that passes by itself between two accesses."""
        think_ns = np.diff(self.think_ns, prepend=0) if (self.op & OP_ABSOLUTE).any() else self.think_ns
        return int(think_ns.max(initial=0))


def make_lists(spec: LabSpec) -> tuple[list[AccessList], int]:
    """A list for each accessor, and how many 4 KiB pages they refer to."""
    stride = spec.stride
    shared = spec.shared or spec.order == "coalesce"
    lists = []
    for vcpu in range(spec.vcpus):
        rng = np.random.default_rng([spec.seed, vcpu])
        count = spec.accesses or _once(spec) * (ROUNDS if spec.order in REPEATING or spec.prewarm else 1)
        page = (
            _alike(spec.pages, count, vcpu, rng)
            if spec.order == "alike"
            else _order(spec.order, spec.pages, count, rng)
        )
        think_ns = _think(spec, count, rng)
        kind = _kinds(spec.access, count, rng)
        if spec.order == "coalesce":  # all accessors at one page at one time
            think_ns = np.cumsum(think_ns)
            kind = kind | OP_ABSOLUTE
        if not shared:
            page = page + vcpu * spec.pages
        lists.append(AccessList(page * stride, think_ns, tag_ops(kind, vcpu)))
    return lists, spec.pages * (1 if shared else spec.vcpus) * stride


def tag_ops(kind: Ints, accessor: int) -> Ints:
    """Make each op unique: accessor in bits 48.., place in the list in bits 8..47."""
    return kind | np.arange(len(kind), dtype=np.int64) << 8 | accessor + 1 << 48


def write_lists(path: Path, lists: list[AccessList]) -> None:
    """The file that the host program reads: accessors, their counts, all records."""
    with path.open("wb") as file:
        np.array([len(lists), *(len(a.page) for a in lists)], dtype=np.uint64).tofile(file)
        for a in lists:
            np.stack([a.page, a.think_ns, a.op], axis=1).astype(np.uint64).tofile(file)


def _order(order: str, pages: int, count: int, rng: np.random.Generator) -> Ints:
    rounds = -(-count // pages)
    match order:
        case "seq" | "coalesce":
            return np.arange(count, dtype=np.int64) % pages
        case "random" | "bursts":
            return np.concatenate([rng.permutation(pages) for _ in range(rounds)])[:count].astype(np.int64)
        case "chase":  # one cycle through all pages, walked again and again
            return np.tile(rng.permutation(pages), rounds)[:count].astype(np.int64)
        case "zipf":
            weight = 1.0 / np.arange(1, pages + 1) ** ZIPF_EXPONENT
            return rng.permutation(pages)[rng.choice(pages, count, p=weight / weight.sum())].astype(np.int64)
        case "phases":  # the working set moves on
            phase = np.arange(count, dtype=np.int64) * PHASES // count
            low, high = phase * pages // PHASES, (phase + 1) * pages // PHASES
            return rng.integers(low, np.maximum(high, low + 1)).astype(np.int64)
    return rng.integers(0, pages, count).astype(np.int64)


def _once(spec: LabSpec) -> int:
    return max(spec.pages // ALIKE_TOUCHED, 1) if spec.order == "alike" else spec.pages


def _alike(pages: int, count: int, vcpu: int, rng: np.random.Generator) -> Ints:
    """Runs of one guest: most blocks are those of every run, in nearly the same order; the others are the run's own.

    Each page comes once until all that the run touches are through, then the same again.
    """
    blocks = -(-pages // ALIKE_BLOCK)
    order = np.random.default_rng([vcpu]).permutation(blocks)  # without the run's seed
    touched = max(blocks // ALIKE_TOUCHED, 1)
    common = round(touched * ALIKE_SHARE)
    own = rng.permutation(order[common:])[: touched - common]
    when = np.concatenate([np.arange(common), rng.uniform(0, touched, touched - common)])
    when = when + rng.normal(0, ALIKE_SHIFT * touched, touched)
    chosen = np.concatenate([order[:common], own])[np.argsort(when, kind="stable")]
    once = (chosen[:, None] * ALIKE_BLOCK + np.arange(ALIKE_BLOCK)).ravel()
    return np.resize(once[once < pages], count).astype(np.int64)


def first_touches(lists: list[AccessList]) -> Ints:
    """The pages of a run in the order of their first touch, as think times alone would have it."""
    at_ns = [a.think_ns if (a.op & OP_ABSOLUTE).any() else np.cumsum(a.think_ns + 1) for a in lists]
    page = np.concatenate([a.page for a in lists])[np.argsort(np.concatenate(at_ns), kind="stable")]
    _, first = np.unique(page, return_index=True)
    return page[np.sort(first)]


def _think(spec: LabSpec, count: int, rng: np.random.Generator) -> Ints:
    kind, _, rest = spec.think.rpartition(":")
    if kind == "file" or spec.think.startswith("file:"):
        think = np.resize(_think_file(Path(spec.think.removeprefix("file:"))), count)
    elif kind == "exp":
        think = rng.exponential(parse_duration_ns(rest), count).astype(np.int64)
    elif not kind:
        think = np.full(count, parse_duration_ns(rest), dtype=np.int64)
    else:
        raise UsageError(f"--think {spec.think}: write 20us, exp:20us or file:PATH")
    if spec.order == "bursts":  # the thinks of a burst come all before its first access
        first = np.arange(count) // BURST * BURST
        sums = np.zeros(count, dtype=np.int64)
        np.add.at(sums, first, think)
        think = sums
    return think


def _think_file(path: Path) -> Ints:
    try:
        values = [parse_duration_ns(line, default_unit="ns") for line in read_text_file(path).split()]
    except OSError as error:
        raise UsageError(f"--think file:{path}: {error.strerror}") from None
    if not values:
        raise UsageError(f"--think file:{path}: no durations in it")
    return np.array(values, dtype=np.int64)


def _kinds(access: str, count: int, rng: np.random.Generator) -> Ints:
    fixed = {"r": OP_READ, "w": OP_WRITE, "rmw": OP_RMW}
    if access in fixed:
        return np.full(count, fixed[access], dtype=np.int64)
    name, _, share = access.partition(":")
    try:
        if name != "mixed":
            raise ValueError
        writes = float(share or 0.5)
        if not 0 <= writes <= 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"--access {access}: choose r, w, rmw, mixed or mixed:SHARE_OF_WRITES, as mixed:0.3") from None
    return np.where(rng.random(count) < writes, OP_WRITE, OP_READ).astype(np.int64)
