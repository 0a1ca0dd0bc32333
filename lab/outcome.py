"""The outcome of a run: clock, truth, services, windows, and the check of memory."""

from __future__ import annotations

import errno
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.faulttrace.lab_facts import (
    LabAccessor,
    LabFacts,
    LabPrefetch,
    LabServices,
    LabTotals,
    LabWaiters,
    LabWindow,
)
from faultreplay.faulttrace.schema import TRUTH
from faultreplay.lab.lists import AccessList
from faultreplay.lab.program import Program
from faultreplay.lab.restore import device_bytes_per_s
from faultreplay.lab.spec import PAGE_BYTES, WATCH, LabResult, LabSpec
from faultreplay.lab.truth import WAITS_FOR_THAW, Clock, read_services, truth_table, verify

_QUANTILES = (0.5, 0.9, 0.99)


def collect(
    spec: LabSpec, out: Path | None, lists: list[AccessList], guest: Program, done: dict[str, Any]
) -> LabResult:
    """What the run came to, from the program's last words and its files."""
    facts, work = guest.facts, guest.work
    if "pairs" not in done:
        empty = LabResult(spec, out, TRUTH.empty_table(), np.zeros(0, dtype=[("page", "i8")]), {}, [], done["problem"])
        return empty
    clock = Clock(done["pairs"])
    for accessor in done["accessors"]:
        accessor["parked_ns"] = round(accessor["parked_ticks"] * clock.ns_per_tick)
    offsets, offset_error_ns = _guest_offsets(done["accessors"], clock)
    truth = truth_table(work, lists, facts, clock, offsets)
    services = read_services(work, clock)
    ran = [w for w in done["windows"] if w["ran"]]
    base_ns = int(done["base_ns"])
    end_ns = pc.max(truth["end_ns"]).as_py() if truth.num_rows else int(done["end_ns"])
    lab: LabFacts = {
        "spec": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(spec).items()},
        "base_ns": base_ns,
        "run_time_ns": end_ns - base_ns,
        "clock_error_ns": clock.error_ns + offset_error_ns,
        "data_pages": guest.facts["data_bytes"] // PAGE_BYTES,
        "pinned": spec.pinned,
        "accesses": truth.num_rows,
        "accessors": [_accessor(a) for a in done["accessors"]],
        "per_accessor": _totals(truth, base_ns),
        "services": _service_summary(services),
        "windows": ran,
        "window_writes": sum(w["pages_changed"] for w in ran if w["kind"] != WATCH),
        "waiters": [_waiters(truth, services, w) for w in ran],
    }
    startup = done["startup"]
    if startup["before_ns"]:
        lab["startup_ns"] = startup["before_ns"] - startup["before_from_ns"]
    if spec.prefetch:
        lab["prefetch"] = _prefetch(read_services(work, clock, "prefetch-*.bin"), startup)
    if spec.needs_snapshot:
        lab["cached_pages"] = startup["cached_pages"]
    if rate := device_bytes_per_s(facts):
        lab["storage_bytes_per_s"] = rate
    if spec.mechanism == "dirty-log":
        lab["dirty"] = done["dirty"]
    problem = done["problem"]
    if not problem:
        atomic = not any(w["kind"] == "memslot-destroy" for w in ran)
        lab["verified"] = verify(work, lists, zero_filled=bool(done["zero_filled"]), atomic=atomic)
        wrong = {k: v for k, v in lab["verified"].items() if v and not k.startswith("pages_")}
        if wrong:
            problem = "memory does not hold what it must: " + ", ".join(f"{v} {k}" for k, v in wrong.items())
        elif len(ran) < len(done["windows"]):
            late = done["windows"][len(ran)]["kind"]
            problem = f"the run ended before its {late} window began: use more --accesses, or an earlier --window"
        elif lab["window_writes"]:
            problem = f"{lab['window_writes']} pages changed inside a window that must stop all writes"
    lab["problem"] = problem
    windows = [(w["kind"], w["begin_from_ns"], w["end_ns"]) for w in ran if w["kind"] != WATCH]
    return LabResult(spec, out, truth, services, lab, windows, problem, facts)


def _accessor(a: dict[str, Any]) -> LabAccessor:
    return {
        "done": a["done"],
        "left": a["left"],
        "efault_exits": a["efault_exits"],
        "mmio_exits": a["mmio_exits"],
        "kicks": a["kicks"],
        "parked_ns": a["parked_ns"],
    }


def _guest_offsets(accessors: list[dict[str, Any]], clock: Clock) -> tuple[list[int], float]:
    """Guest TSC minus ours, and its uncertainty: 0 if the guest's reading lies between two of ours."""
    offsets, error_ns = [], 0.0
    for a in accessors:
        if a["warm_before"] <= a["warm_guest"] <= a["warm_after"]:
            offsets.append(0)
            continue
        # Read just before its exit: the offset is known up to the time that exit took, less than the whole bracket.
        offsets.append(a["warm_guest"] - a["warm_after"])
        error_ns = max(error_ns, (a["warm_after"] - a["warm_before"]) * clock.ns_per_tick)
    return offsets, error_ns


def _totals(truth: pa.Table, base_ns: int) -> list[LabTotals]:
    frame = truth.append_column("dur", pc.subtract(truth["end_ns"], truth["start_ns"]))
    grouped = frame.group_by("tid").aggregate([("dur", "sum"), ("dur", "count"), ("end_ns", "max")])
    return [
        {
            "tid": row["tid"],
            "accesses": row["dur_count"],
            "access_ns": row["dur_sum"],
            "run_time_ns": row["end_ns_max"] - base_ns,
        }
        for row in grouped.to_pylist()
    ]


def _quantiles(values: npt.NDArray[np.int64]) -> dict[str, float]:
    if not len(values):
        return {"n": 0}
    quantiles = {f"p{q * 100:g}": float(np.quantile(values, q)) for q in _QUANTILES}
    moments = {"mean": float(values.mean()), "sd": float(values.std())}
    return {"n": len(values), **moments, **quantiles, "max": float(values.max())}


def _service_summary(services: npt.NDArray[np.void]) -> LabServices:
    """How long content took to come and to be placed, by the resolver's own clock, in ns."""
    first = services[services["result"] == 0]
    return {
        "resolved": len(first),
        "already_there": int(np.count_nonzero(services["result"] == -errno.EEXIST)),
        "waited_for_thaw": int(np.count_nonzero(services["result"] == WAITS_FOR_THAW)),
        "fetch_ns": _quantiles(first["fetched_ns"] - first["msg_ns"]),
        "resolve_ns": _quantiles(first["placed_ns"] - first["fetched_ns"]),
    }


def _prefetch(brought: npt.NDArray[np.void], startup: dict[str, int]) -> LabPrefetch:
    placed = brought[brought["result"] == 0]
    return {
        "from_ns": startup["prefetch_from_ns"],
        "end_ns": startup["prefetch_ns"],
        "placed": len(placed),
        "already_there": int(np.count_nonzero(brought["result"] == -errno.EEXIST)),
        "fetch_ns": _quantiles(placed["fetched_ns"] - placed["msg_ns"]),
        "resolve_ns": _quantiles(placed["placed_ns"] - placed["fetched_ns"]),
    }


def _waiters(truth: pa.Table, services: npt.NDArray[np.void], window: LabWindow) -> LabWaiters:
    """Accesses in progress when the window began to end, and the writers whose message arrived during a freeze."""
    start, end = truth["start_ns"], truth["end_ns"]
    met = truth.filter(pc.and_(pc.less(start, window["end_from_ns"]), pc.greater(end, window["end_from_ns"])))
    waiters: LabWaiters = {"kind": window["kind"], "accesses": met.num_rows}
    if window["kind"] == "freeze":
        inside = (services["msg_ns"] >= window["begin_from_ns"]) & (services["msg_ns"] < window["end_ns"])
        waiters["writers"] = int(np.count_nonzero(inside & (services["result"] == WAITS_FOR_THAW)))
    if met.num_rows:
        waiters["first_start_ns"] = pc.min(met["start_ns"]).as_py()
        waiters["last_end_ns"] = pc.max(met["end_ns"]).as_py()
        waiters["waited_ns"] = pc.sum(pc.subtract(met["end_ns"], met["start_ns"])).as_py()
    return waiters
