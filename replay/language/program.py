"""What the engine needs to know of a mechanism: operations, tables of costs, resources, and what each column counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a workload asks of a program: the accessors and faults that occur, and how they are replayed."""

    accessors: int
    page_bytes: int
    needed: Sequence[tuple[int, int]]
    """(index in CAUSES, index in ACCESSORS) of faults that occur: only costs that are charged must be known"""
    refaults: bool = False
    """stage 2 may be emptied and touched again"""
    rewrites: bool = False
    """what was read may be written, with a fault of its own"""
    shared: bool = True
    """some granule is looked up, so that paths must coalesce"""
    on_cpus: bool = False
    """delays take a host CPU unless asleep"""
    vms: int = 1
    """each has resources of its own, but for storage"""


@dataclass(frozen=True)
class Instances:
    """The consecutive instances of one declared resource."""

    name: str
    kind: str
    first: int
    count: int
    servers: int


class Storage(NamedTuple):
    """One storage."""

    name: str
    depth: int
    """requests at once; 0: no limit"""
    readahead_pages: int
    """native pages around one that is read"""
    cached: float
    """share of the file in the page cache at the beginning"""
    left: bool
    """and what earlier runs read"""
    instance: int
    """of the resource"""


class Share(NamedTuple):
    """One column of what the kernel counts for an operation."""

    pc: int
    column: int
    """0: ns of waiting, or how often a delay was gone through; from 1: ns of the first cost and on"""
    word: str
    """of `time_words.TIME_WORDS`"""
    each_ns: int
    """0: the column holds ns; else it counts, this many ns each"""
    name: str = ""
    """of the cost, where it has one"""


@dataclass
class Program:
    """What the kernel needs to know of a mechanism."""

    ops: npt.NDArray[np.int64]
    tables: npt.NDArray[np.int64]
    path_pc: npt.NDArray[np.int64]
    resources: list[Instances]
    servers: npt.NDArray[np.int64]
    costs_used: dict[str, str]
    moved: dict[tuple[str, str], list[tuple[int, int]]]
    """(class, accessor kind) -> (link instance, bytes) of each fault, where links have no limit"""
    has_latency: bool
    tails: int
    """slots for what goes on after a wake, as a first guess"""
    shards: int
    recorded_classes: dict[str, set[str]]
    """class of fault -> accessor kinds for which this mechanism has no path: they take what they took"""
    link_ns: dict[str, tuple[int, int]]
    """link -> (first instance, ns for one granule)"""
    sections: int
    push_latency_ns: int
    """from the end of a pushed granule's transfer until it is placed"""
    storages: list[Storage]
    """in the order of their numbers"""
    shares: list[Share]
    """what the columns of the kernel's `spent` stand for"""
