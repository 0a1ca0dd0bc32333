"""Run a workload through a mechanism. Nothing here prints, reads files or knows a mechanism by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.schema import ACCESSORS, CAUSES
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine import checks
from faultreplay.replay.engine.checks import histogram_edges_ns
from faultreplay.replay.engine.restore import SceneRun, needs_scene
from faultreplay.replay.engine.result import ResourceUse, Result
from faultreplay.replay.engine.run import Run, Setting
from faultreplay.replay.engine.streams import Knowledge, Scene, threads_of
from faultreplay.replay.engine.windows import Window, bound_by, refill_bytes, window_rows
from faultreplay.replay.language.compiler import Compiler, Demand, Program
from faultreplay.replay.language.costs import Cost
from faultreplay.replay.language.mechanism import Mechanism
from faultreplay.replay.language.tracking import brings_more, tracks_pages
from faultreplay.replay.workload.pages import pages_of
from faultreplay.replay.workload.summary import counts_of
from faultreplay.replay.workload.workload import Ints, Workload

__all__ = ["Options", "ResourceUse", "Result", "histogram_edges_ns", "simulate"]


class Options(TypedDict, total=False):
    """How to replay; each may be left out."""

    seed: int
    """of all randomness; the same seed gives the same rows on every machine; default 0"""
    loop: str
    """``closed`` (default) keeps think times, ``open`` keeps recorded start times"""
    windows: Sequence[Window]
    """in time from the beginning"""
    retouch: str
    """``recorded`` (default) or ``working-set``: what is touched again inside a window or after stage 2 was emptied, or
    written after it was read"""
    cpus: int | None
    """host CPUs that thinking accessors and working handlers need; None: as many as they want"""
    pinned: bool
    """with `cpus`: accessor n has CPU n modulo `cpus`, then the handlers in the same way; else any"""
    until_ns: int | None
    """stop at this time"""
    rows: bool
    """keep a row a fault (default); else only sums and a histogram, for traces larger than memory"""
    known: Knowledge | None
    """what earlier runs touched, and where guest memory is; for streams and the page cache"""


def simulate(workload: Workload, mechanism: Mechanism, costs: Mapping[str, Cost], **options: Unpack[Options]) -> Result:
    """Replay `workload` through `mechanism`.

    Args:
        workload: accessors and their faults
        mechanism: from `load_mechanism`, parameters set
        costs: cost name -> `Cost`; every name the mechanism charges must be there
        options: see `Options`

    Raises:
        UsageError: options or costs do not fit the mechanism.
    """
    run, rules, warnings = prepared(workload, mechanism, costs, options)
    run.execute()
    return run.result(rules, warnings)


def prepared(
    workload: Workload, mechanism: Mechanism, costs: Mapping[str, Cost], options: Options
) -> tuple[Run, list[Mechanism], tuple[str, ...]]:
    """A run as `simulate` makes it, the mechanism of each window's rule, and what a reader must be warned of."""
    _check(options)
    checks.check_workload(workload)
    counts = counts_of(workload)
    cpus, seed, retouch = options.get("cpus"), options.get("seed", 0), options.get("retouch", "recorded")
    is_open = options.get("loop", "closed") == "open"
    bound = bound_by(mechanism, options.get("windows", ()))
    refill = refill_bytes(bound, workload.page_bytes) if retouch == "working-set" else 0
    write_again = mechanism.write_after_read and retouch == "working-set" and not is_open
    pages = pages_of(
        workload,
        mechanism.granule_bytes,
        track=tracks_pages(mechanism),
        everything=brings_more(mechanism),
        refill_bytes=refill,
    )
    demand = Demand(
        accessors=workload.accessors + threads_of(mechanism) * workload.vms,
        page_bytes=workload.page_bytes,
        needed=[(int(c), int(kind)) for c, kind in zip(*np.nonzero(counts), strict=True)],
        refaults=refill > 0,
        rewrites=write_again,
        shared=pages.tracked > 0 or options.get("until_ns") is not None,
        on_cpus=cpus is not None,
        vms=workload.vms,
    )
    program = Compiler(mechanism, costs, demand).program()
    rules_rows = window_rows(bound, costs, retouch, seed, program.costs_used)
    checks.check_windows(rules_rows, workload.faults * (mechanism.granule_bytes // workload.page_bytes))
    setting = Setting(
        seed=seed,
        is_open=is_open,
        until_ns=options.get("until_ns"),
        keep_rows=options.get("rows", True) or bool(rules_rows.size),
        cpus=cpus or 0,
        pinned=options.get("pinned", False) and bool(cpus),
        preempt_ns=_preempt_ns(costs, program) if cpus else 0,
        write_again=write_again,
    )
    rules = [rule for _, rule in bound]
    warnings = _warnings(workload, mechanism, program, counts)
    known = options.get("known") or Knowledge()
    if needs_scene(mechanism, program):
        scene = Scene(workload, pages, mechanism, program, known, seed, cpus or 0)
        return SceneRun(scene, mechanism, program, rules_rows, setting), rules, warnings
    run = Run(workload, mechanism, program, pages, rules_rows, setting, known=known.working_set)
    return run, rules, warnings


def _check(options: Options) -> None:
    """Refuse what makes no sense whatever the workload."""
    cpus, until_ns = options.get("cpus"), options.get("until_ns")
    loop, retouch = options.get("loop", "closed"), options.get("retouch", "recorded")
    if unknown := set(options) - set(Options.__annotations__):
        raise TypeError(f"simulate() got an unexpected keyword argument '{min(unknown)}'")
    if loop not in ("closed", "open"):
        raise UsageError(f"loop is closed or open, not '{loop}'")
    if retouch not in ("recorded", "working-set"):
        raise UsageError(f"retouch is recorded or working-set, not '{retouch}'")
    if cpus is not None and cpus < 1:
        raise UsageError(f"a host has at least one CPU, not {cpus}")
    if cpus is not None and cpus > checks.MOST_CPUS:
        raise UsageError(f"a host has at most {checks.MOST_CPUS} CPUs, not {cpus}")
    if until_ns is not None and not 0 <= until_ns <= LONGEST_NS:
        raise UsageError(f"until must be from 0 to 1e15 ns (11 days), not {until_ns}")


def _preempt_ns(costs: Mapping[str, Cost], program: Program) -> int:
    """Charged where one thread takes another's CPU; notes that it is."""
    cost = costs.get("preempt")
    if cost is None:
        return 0
    program.costs_used["preempt"] = cost.provenance
    return round(cost.distribution.quantile(0.5))


def _warnings(workload: Workload, mechanism: Mechanism, program: Program, counts: Ints) -> tuple[str, ...]:
    found: list[str] = []
    for name, kinds in program.recorded_classes.items():
        total = sum(int(counts[CAUSES.index(name), ACCESSORS.index(kind)]) for kind in kinds)
        if total:
            found.append(f"{total} faults of class {name} are not {mechanism.name}'s: replayed with the stall they had")
            if not workload.recorded_stall_ns.size:
                found[-1] += " (unknown here: 0)"
    return tuple(found)
