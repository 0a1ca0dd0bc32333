"""`run`: one lab run from specification to trace with truth."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from faultreplay.collect.recorder.host import describe_host
from faultreplay.faulttrace import writer
from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.meta import MapEntry, MechanismUsed, Memslot, Meta, Target, Thread, WindowSpan
from faultreplay.faulttrace.units import parse_duration_ns
from faultreplay.lab.backing import back_free_memory
from faultreplay.lab.build import build
from faultreplay.lab.hugepages import reserved
from faultreplay.lab.lists import AccessList, make_lists, write_lists
from faultreplay.lab.outcome import collect
from faultreplay.lab.program import HandlerProcess, PageServer, Program
from faultreplay.lab.restore import snapshot_file, storage_params, write_working_set
from faultreplay.lab.spec import MAX_SIGMA, PAGE_BYTES, LabResult, LabSpec


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
        if snapshot := stack.enter_context(snapshot_file(spec)):
            arguments["snapshot"] = snapshot
        set_pages = write_working_set(work / "set.bin", spec, pages) if spec.prefetch else 0
        arguments["timeout_ns"] = spec.timeout_ns + _longest_wait_ns(spec, lists)
        if spec.fetch in ("unix", "tcp"):
            limit = _number_after("source-exit@", spec.fail)
            link = {"granule": spec.granule, "rate_bytes": spec.rate_bytes, "limit": limit, "nice": spec.nice}
            server = PageServer(program, spec.fetch, work, **link)
            arguments["fetch"] = stack.enter_context(server).address
        handler = None
        if spec.real_mechanism == "uffd-handler-process":
            handler = stack.enter_context(HandlerProcess(program, arguments, work))
            arguments["peer"] = handler.socket
        guest = stack.enter_context(Program(program, arguments, work))
        meta = _meta(spec, guest.facts, snapshot)
        if handler:
            handler.adopted()
            meta.targets.append(_handler_target(handler))
        interrupted = False
        with _recording(out, meta, record, force):
            if spec.real_mechanism != "hugetlb-2m" and not spec.prewarm:  # else the memory is taken already
                back_free_memory(guest.facts["data_bytes"])
            if handler:
                handler.go()
            try:
                problem = _go(guest)
            except KeyboardInterrupt:
                problem, interrupted = "", True
        gone = handler.end() if handler and not problem else ""
        done = {"problem": problem} if problem else guest.end()
        done["problem"] = done["problem"] or gone
        result = collect(spec, out, lists, guest, done)
        if spec.prefetch:
            result.lab["prefetch"]["set_pages"] = set_pages
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
    from faultreplay.lab.rerun import lists_from_trace

    lists, pages, notes = lists_from_trace(spec.workload, spec.stride)
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
        "cold": int(spec.page_cache == "cold"),
        "readahead": int(spec.readahead),
        **(
            {"prefetch": spec.prefetch, "prefetchers": spec.prefetchers, "set": work / "set.bin"}
            if spec.prefetch
            else {}
        ),
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
    """`200us`, `exp:200us`, `lognormal:200us:0.5`, `snapshot` as the host program takes them."""
    if text == "snapshot":
        return text
    kind, _, rest = text.rpartition(":") if not text.startswith("lognormal:") else ("lognormal", "", text[10:])
    if kind == "lognormal":
        mean, _, sigma = rest.partition(":")
        try:
            spread = float(sigma or 0.5)
            if 0 <= spread <= MAX_SIGMA:
                return f"lognormal:{parse_duration_ns(mean)}:{spread}"
        except ValueError:
            pass
    elif kind == "exp":
        return f"exp:{parse_duration_ns(rest)}"
    elif not kind:
        return f"fixed:{parse_duration_ns(rest)}"
    raise UsageError(f"--fetch {text}: write 200us, exp:200us, lognormal:200us:0.5, unix, tcp or snapshot")


@contextlib.contextmanager
def _recording(out: Path | None, meta: Meta, record: bool, force: bool) -> Iterator[None]:
    """Probes attached; or a trace without events that will hold the truth only; or nothing."""
    if out is None:
        yield
        return
    if not record:
        with writer.TraceWriter(out, meta, force=force):
            yield
        return
    from faultreplay.collect.recorder.recorder import Recorder
    from faultreplay.collect.recorder.spec import RecordSpec

    known = {"origin": meta.origin, "mechanism": meta.mechanism, "command": meta.command, "memory_map": meta.memory_map}
    pids = tuple(target.tgid for target in meta.targets)
    with Recorder(RecordSpec(pids=pids, force=force, meta_extra=known), out):
        yield


def _meta(spec: LabSpec, facts: dict[str, Any], snapshot: Path | None) -> Meta:
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
    page_bytes = spec.granule if spec.real_mechanism != "uffd-fault-around" else PAGE_BYTES
    file = "private" if spec.real_mechanism == "file-private" else ""
    if any(w.kind == "freeze" for w in spec.all_windows) and uffd != "wp":
        uffd += "+wp"
    return Meta(
        origin="lab",
        host=describe_host(),
        command=["faultreplay", *sys.argv[1:]],  # where it is installed is nobody else's business
        mechanism=MechanismUsed(spec.mechanism, mechanism_params(spec) | storage_params(spec, snapshot)),
        targets=[target],
        memory_map=[MapEntry(now_ns, facts["pid"], hva, hva + size, page_bytes, uffd, "guest memory", file)],
    )


def _handler_target(handler: HandlerProcess) -> Target:
    threads = [Thread(tid=t["tid"], role="handler") for t in handler.facts["threads"]]
    return Target(tgid=handler.facts["pid"], comm="labhost", threads=threads)


def mechanism_params(spec: LabSpec) -> dict[str, Any]:
    """The parameters of what really served the faults, by the names that the replay's mechanisms use."""
    params: dict[str, Any] = {"handlers": spec.real_handlers, "granule": spec.granule, "bandwidth": spec.rate_bytes}
    params["fetch"] = spec.fetch
    params["spin"] = spec.spin_below_ns
    if spec.real_mechanism == "uffd-sharded":
        params["shards"] = spec.vcpus
    if spec.real_mechanism != spec.mechanism:
        params["base"] = spec.real_mechanism if spec.prefetch else spec.base
    if spec.prefetch:
        params["prefetchers"] = spec.prefetchers
    if spec.needs_snapshot:
        params |= {"snapshot": spec.snapshot, "page_cache": spec.page_cache}
    if spec.mechanism == "dirty-log":
        params["interval_ns"] = spec.dirty_interval_ns
    return params


def _finish(out: Path, known: Meta, result: LabResult) -> None:
    """Truth, roles of the threads and what the run knows, into the trace."""
    if result.truth.num_rows:
        writer.write_truth(out, result.truth)
    meta = Meta.read(out / "meta.json")
    meta.lab = result.lab or {"problem": result.problem}
    meta.windows = [WindowSpan(*window) for window in result.windows]
    roles = {thread.tid: thread for target in known.targets for thread in target.threads}
    for thread in (thread for target in meta.targets for thread in target.threads):
        if thread.tid in roles:
            thread.role, thread.vcpu = roles[thread.tid].role, roles[thread.tid].vcpu
    meta.targets[0].memslots = meta.targets[0].memslots or known.targets[0].memslots
    if result.truth.num_rows and not meta.clock.end_ns:
        meta.clock.start_ns = result.lab["base_ns"]
        meta.clock.end_ns = result.lab["base_ns"] + result.lab["run_time_ns"]
    writer.update_meta(out, meta)
