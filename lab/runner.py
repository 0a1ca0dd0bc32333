"""`run`: one lab run from specification to trace with truth."""

from __future__ import annotations

import contextlib
import errno
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collect.host import describe_host
from faulttrace import store
from faulttrace.errors import FaultreplayError, UsageError
from faulttrace.meta import MapEntry, MechanismUsed, Memslot, Meta, Target, Thread, WindowSpan
from faulttrace.schema import TRUTH
from faulttrace.units import parse_duration_ns
from lab.build import build
from lab.hugepages import reserved
from lab.lists import AccessList, make_lists, write_lists
from lab.program import PageServer, Program
from lab.spec import PAGE_BYTES, WATCH, LabResult, LabSpec
from lab.truth import WAITS_FOR_THAW, Clock, read_services, truth_table, verify

_ACCESSOR_FACTS = ("done", "left", "efault_exits", "mmio_exits", "kicks", "parked_ns")
_QUANTILES = (0.5, 0.9, 0.99)


def run(spec: LabSpec, out: Path | None = None, record: bool = True, force: bool = False) -> LabResult:
    """Run `spec` for real; write a trace with `truth.parquet` to `out` (None: none is kept).

    A run that does not go well to its end (a handler died, memory is wrong) still gives a result and a readable
    trace; `LabResult.problem` says what happened.

    Raises:
        MissingFeature, NoPermission: the kernel, KVM or the compiler cannot do this here.
        UsageError: the specification asks for what cannot be.
    """
    program = build()
    spec, lists, pages, notes = _plan(spec)
    with tempfile.TemporaryDirectory(prefix="faultreplay-lab-") as name, contextlib.ExitStack() as stack:
        work = Path(name)
        write_lists(work / "lists.bin", lists)
        stack.enter_context(reserved(_hugepages(spec, pages)))
        arguments = _arguments(spec, pages, work)
        arguments["timeout_ns"] = spec.timeout_ns + _longest_wait_ns(spec, lists)
        if spec.fetch in ("unix", "tcp"):
            limit = _number_after("source-exit@", spec.fail)
            link = {"granule": spec.granule, "rate_bytes": spec.rate_bytes, "limit": limit, "nice": spec.nice}
            server = PageServer(program, spec.fetch, work, **link)
            arguments["fetch"] = stack.enter_context(server).address
        guest = stack.enter_context(Program(program, arguments, work))
        meta = _meta(spec, guest.facts)
        interrupted = False
        with _recording(out, meta, record, force):
            try:
                problem = _go(guest)
            except KeyboardInterrupt:
                problem, interrupted = "", True
        result = _collect(spec, out, lists, guest, {"problem": problem} if problem else guest.end())
    if notes:
        result.lab["notes"] = notes
    if out is not None:
        _finish(out, meta, result)
    if interrupted:  # the trace is whole up to here
        raise KeyboardInterrupt
    return result


def _plan(spec: LabSpec) -> tuple[LabSpec, list[AccessList], int, list[str]]:
    """Lists, the pages they refer to, and the specification with as many vCPUs as there are lists."""
    if spec.workload is None:
        return spec, *make_lists(spec), []
    from lab.rerun import lists_from_trace

    lists, pages, notes = lists_from_trace(spec.workload, spec.granule // PAGE_BYTES)
    return replace(spec, vcpus=len(lists)), lists, pages, notes


def _longest_wait_ns(spec: LabSpec, lists: list[AccessList]) -> int:
    """How long an accessor may rightly make no progress."""
    return max(a.longest_think_ns for a in lists) + sum(w.length_ns for w in spec.all_windows)


def _number_after(word: str, text: str) -> int:
    return int(text.removeprefix(word)) if text.startswith(word) else 1 << 62


def _hugepages(spec: LabSpec, pages: int) -> int:
    if spec.real_mechanism != "hugetlb-2m":
        return 0
    needed = pages * PAGE_BYTES // spec.granule
    return needed // 2 if spec.fail == "hugetlb-enomem" else needed


def _go(guest: Program) -> str:
    try:
        guest.go()
    except FaultreplayError as error:  # it was killed: the trace so far is kept, and says why it ends
        return str(error)
    return ""


def _arguments(spec: LabSpec, pages: int, work: Path) -> dict[str, object]:
    return {
        "mechanism": spec.real_mechanism,
        "target": spec.target,
        "handlers": spec.real_handlers,
        "pages": pages,
        "granule": spec.granule,
        "list": work / "lists.bin",
        "out": work,
        "fetch": "none" if spec.fetch in ("unix", "tcp") else fetch_argument(spec.fetch),
        "seed": spec.seed + 1,
        "nice": spec.nice,
        "pin": int(spec.pinned),
        "prewarm": int(spec.prewarm),
        "spin_below_ns": spec.spin_below_ns,
        "dirty_interval_ns": spec.dirty_interval_ns,
        "windows": ",".join(f"{w.start_ns}+{w.length_ns}:{w.kind}" for w in spec.all_windows),
        "fail": spec.fail,
    }


def fetch_argument(text: str) -> str:
    """`200us`, `exp:200us`, `lognormal:200us:0.5` as the host program takes them."""
    kind, _, rest = text.rpartition(":") if not text.startswith("lognormal:") else ("lognormal", "", text[10:])
    if kind == "lognormal":
        mean, _, sigma = rest.partition(":")
        try:
            return f"lognormal:{parse_duration_ns(mean)}:{float(sigma or 0.5)}"
        except ValueError:
            pass
    elif kind == "exp":
        return f"exp:{parse_duration_ns(rest)}"
    elif not kind:
        return f"fixed:{parse_duration_ns(rest)}"
    raise UsageError(f"--fetch {text}: write 200us, exp:200us, lognormal:200us:0.5, unix or tcp")


@contextlib.contextmanager
def _recording(out: Path | None, meta: Meta, record: bool, force: bool) -> Iterator[None]:
    """Probes attached; or a trace without events that will hold the truth only; or nothing."""
    if out is None:
        yield
        return
    if not record:
        with store.TraceWriter(out, meta, force=force):
            yield
        return
    from collect.recorder import Recorder, RecordSpec

    known = {"origin": meta.origin, "mechanism": meta.mechanism, "command": meta.command, "memory_map": meta.memory_map}
    with Recorder(RecordSpec(pids=(meta.targets[0].tgid,), force=force, meta_extra=known), out):
        yield


def _meta(spec: LabSpec, facts: dict[str, Any]) -> Meta:
    """What is known before the run: who the threads are, where the memory is, which mechanism serves it."""
    now_ns = time.monotonic_ns()
    threads = [
        Thread(tid=t["tid"], role=t["role"], vcpu=t["index"] if t["role"] == "vcpu" else -1) for t in facts["threads"]
    ]
    hva, size = facts["data_hva"], facts["data_bytes"]
    target = Target(tgid=facts["pid"], comm="labhost", role="vm" if facts["data_gpa"] else "", threads=threads)
    if facts["data_gpa"] and spec.real_mechanism != "mmio-exit":
        target.memslots = [Memslot(ts_ns=now_ns, slot=1, gpa=facts["data_gpa"], hva=hva, size_bytes=size)]
    uffd = facts["uffd_mode"].removesuffix("|sigbus")
    if any(w.kind == "freeze" for w in spec.all_windows) and uffd != "wp":
        uffd += "+wp"
    return Meta(
        origin="lab",
        host=describe_host(),
        command=["faultreplay", *sys.argv[1:]],  # where it is installed is nobody else's business
        mechanism=MechanismUsed(spec.mechanism, mechanism_params(spec)),
        targets=[target],
        memory_map=[MapEntry(now_ns, facts["pid"], hva, hva + size, spec.granule, uffd, "guest memory")],
    )


def mechanism_params(spec: LabSpec) -> dict[str, Any]:
    """The parameters of what really served the faults, by the names that the replay's mechanisms use."""
    params: dict[str, Any] = {"handlers": spec.real_handlers, "granule": spec.granule, "bandwidth": spec.rate_bytes}
    params["fetch"] = spec.fetch
    if spec.real_mechanism == "uffd-sharded":
        params["shards"] = spec.vcpus
    if spec.real_mechanism != spec.mechanism:
        params["base"] = spec.base
    if spec.mechanism == "dirty-log":
        params["interval_ns"] = spec.dirty_interval_ns
    return params


def _collect(
    spec: LabSpec, out: Path | None, lists: list[AccessList], guest: Program, done: dict[str, Any]
) -> LabResult:
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
    lab: dict[str, Any] = {
        "spec": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(spec).items()},
        "base_ns": base_ns,
        "run_time_ns": end_ns - base_ns,
        "clock_error_ns": clock.error_ns + offset_error_ns,
        "data_pages": guest.facts["data_bytes"] // PAGE_BYTES,
        "pinned": spec.pinned,
        "accesses": truth.num_rows,
        "accessors": [{key: a[key] for key in _ACCESSOR_FACTS} for a in done["accessors"]],
        "per_accessor": _totals(truth, base_ns),
        "services": _service_summary(services),
        "windows": ran,
        "window_writes": sum(w["pages_changed"] for w in ran if w["kind"] != WATCH),
        "waiters": [_waiters(truth, services, w) for w in ran],
    }
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


def _guest_offsets(accessors: list[dict[str, Any]], clock: Clock) -> tuple[list[int], float]:
    """Guest TSC minus ours, and how sure that is: 0 where the guest's reading lies between two of ours."""
    offsets, error_ns = [], 0.0
    for a in accessors:
        if a["warm_before"] <= a["warm_guest"] <= a["warm_after"]:
            offsets.append(0)
            continue
        # Read just before its exit: the offset is known up to the time that exit took, less than the whole bracket.
        offsets.append(a["warm_guest"] - a["warm_after"])
        error_ns = max(error_ns, (a["warm_after"] - a["warm_before"]) * clock.ns_per_tick)
    return offsets, error_ns


def _totals(truth: pa.Table, base_ns: int) -> list[dict[str, int]]:
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


def _service_summary(services: npt.NDArray[np.void]) -> dict[str, Any]:
    """How long content took to come and to be placed, by the resolver's own clock, in ns."""
    first = services[services["result"] == 0]
    return {
        "resolved": len(first),
        "already_there": int(np.count_nonzero(services["result"] == -errno.EEXIST)),
        "waited_for_thaw": int(np.count_nonzero(services["result"] == WAITS_FOR_THAW)),
        "fetch_ns": _quantiles(first["fetched_ns"] - first["msg_ns"]),
        "resolve_ns": _quantiles(first["placed_ns"] - first["fetched_ns"]),
    }


def _waiters(truth: pa.Table, services: npt.NDArray[np.void], window: dict[str, Any]) -> dict[str, Any]:
    """Accesses in progress when the window began to end, and the writers whose message met a freeze."""
    start, end = truth["start_ns"], truth["end_ns"]
    met = truth.filter(pc.and_(pc.less(start, window["end_from_ns"]), pc.greater(end, window["end_from_ns"])))
    waiters: dict[str, Any] = {"kind": window["kind"], "accesses": met.num_rows}
    if window["kind"] == "freeze":
        inside = (services["msg_ns"] >= window["begin_from_ns"]) & (services["msg_ns"] < window["end_ns"])
        waiters["writers"] = int(np.count_nonzero(inside & (services["result"] == WAITS_FOR_THAW)))
    if met.num_rows:
        waiters["first_start_ns"] = pc.min(met["start_ns"]).as_py()
        waiters["last_end_ns"] = pc.max(met["end_ns"]).as_py()
        waiters["waited_ns"] = pc.sum(pc.subtract(met["end_ns"], met["start_ns"])).as_py()
    return waiters


def _finish(out: Path, known: Meta, result: LabResult) -> None:
    """Truth, roles of the threads and what the run knows, into the trace."""
    if result.truth.num_rows:
        store.write_truth(out, result.truth)
    meta = Meta.read(out / "meta.json")
    meta.lab = result.lab or {"problem": result.problem}
    meta.windows = [WindowSpan(*window) for window in result.windows]
    roles = {thread.tid: thread for thread in known.targets[0].threads}
    for thread in meta.targets[0].threads:
        if thread.tid in roles:
            thread.role, thread.vcpu = roles[thread.tid].role, roles[thread.tid].vcpu
    meta.targets[0].memslots = meta.targets[0].memslots or known.targets[0].memslots
    if result.truth.num_rows and not meta.clock.end_ns:
        meta.clock.start_ns = result.lab["base_ns"]
        meta.clock.end_ns = result.lab["base_ns"] + result.lab["run_time_ns"]
    store.update_meta(out, meta)
