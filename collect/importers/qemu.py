"""QEMU's answers to query-migrate: of which side they are, and how far the migration was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from faultreplay.collect.backends.probes import PROBES
from faultreplay.collect.importers.files import read_lines
from faultreplay.collect.importers.raw import Source
from faultreplay.collect.importers.run import ImportSummary
from faultreplay.faulttrace.errors import IncompleteData
from faultreplay.faulttrace.meta import Meta, Probe
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter, update_meta

_SOURCE_KEYS: Final = {"ram", "total-time", "downtime", "expected-downtime", "setup-time", "vfio", "xbzrle-cache"}
_UNFINISHED: Final = (
    "none", "setup", "cancelling", "active", "postcopy-active", "postcopy-paused", "postcopy-recover",
    "postcopy-recover-setup", "postcopy-device", "pre-switchover", "device", "wait-unplug", "colo",
)  # fmt: skip
_NUMBERS: Final = {"postcopy-blocktime", "postcopy-latency", "postcopy-non-vcpu-latency"}
_LISTS: Final = {"postcopy-vcpu-blocktime", "postcopy-vcpu-latency", "postcopy-latency-dist"}
_SIDES: Final = ("destination", "source", "unknown side")


def import_qemu(
    paths: list[Path], out: Path, *, into: bool = False, force: bool = False, vcpus: list[int] | None = None
) -> ImportSummary:
    """Keep QEMU's `query-migrate` answers in a trace: into an existing one, or into a new one without events.

    Which side an answer is from shows in it: only the destination has blocktimes, only the source RAM counters. An
    answer with neither is kept as of an unknown side. Two of one side are both kept (`source`, `source-2`, ...).
    `vcpus`: the vCPUs' threads in QEMU's order; default: the trace's vCPU threads in the order of vCPU or thread
    numbers.

    Raises:
        IncompleteData: not the JSON of query-migrate, or no answer at all.
    """
    meta = open_trace(out).meta if into else Meta(origin="imported")
    figures: dict[str, Any] = dict(meta.extra.get("qemu") or {})
    notes = []
    for path in paths:
        for name, answer in _answers(path).items():
            if isinstance(answer, dict) and name not in ("vcpus", ""):
                notes += _said(path, answer)
            notes += _keep(figures, name, answer, path)
    notes += _vcpus(meta, figures, vcpus)
    meta.extra["qemu"] = figures
    if into:
        update_meta(out, meta)
        return ImportSummary(out, 0, 0, 0, "", {}, tuple(notes))
    meta.extra["import"] = {"from": "qemu-migrate", "notes": notes}
    reason = "QEMU's figures only: no events"
    meta.probes = [Probe(probe.tracepoint, probe.groups[0], "missing", reason) for probe in PROBES]
    TraceWriter(out, meta, force=force).close()
    notes.append("no events: there are QEMU's figures only, and no faults to replay")
    return ImportSummary(out, 0, 0, 0, "", {}, tuple(notes))


def _answers(path: Path) -> dict[str, Any]:
    """Side -> answer; more than one where the file is what faultreplay keeps of a migration."""
    answer = _json(path)
    if isinstance(answer, dict) and "error" in answer and "return" not in answer:
        error = answer["error"]
        said = error.get("desc", "") if isinstance(error, dict) else str(error)
        raise IncompleteData(f"{path}: QEMU answered with an error: {str(said)[:200]}")
    if isinstance(answer, dict) and isinstance(answer.get("return"), dict):
        answer = answer["return"]
        if not answer:
            raise IncompleteData(f"{path}: an empty answer: this QEMU has not migrated anything")
    if isinstance(answer, dict) and {"destination", "source"} & answer.keys() and "status" not in answer:
        return answer  # as faultreplay keeps them
    if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
        raise IncompleteData(f"{path}: not an answer of query-migrate: it has no status")
    _check_types(path, answer)
    return {_side(answer): answer}


def _check_types(path: Path, answer: dict[str, Any]) -> None:
    """Refuse figures that are not of QEMU's own types: nothing here guesses."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53

    for key in _NUMBERS & answer.keys():
        if not whole(answer[key]):
            raise IncompleteData(f"{path}: {key} is not a whole number")
    for key in _LISTS & answer.keys():
        if not isinstance(answer[key], list) or not all(whole(value) for value in answer[key]):
            raise IncompleteData(f"{path}: {key} is not a list of whole numbers")
    if not isinstance(answer.get("ram", {}), dict):
        raise IncompleteData(f"{path}: ram is not an object")


def _json(path: Path) -> Any:
    text = "\n".join(line for _, line in read_lines(path, Source()))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if text.lstrip().startswith(("(qemu)", "Status:", "Migration status:", "Globals:", "globals:")):
        raise IncompleteData(
            f"{path}: the text of the monitor's 'info migrate': give the answer of QMP's query-migrate "
            '(virsh qemu-monitor-command DOMAIN \'{"execute": "query-migrate"}\')'
        )
    if '"QMP"' in text or text.count('"return"') + text.count('"event"') > 1:
        raise IncompleteData(f"{path}: a whole QMP session: save the one answer of query-migrate alone")
    raise IncompleteData(f"{path}: not JSON: save the answer of QMP's query-migrate as it is")


def _side(answer: dict[str, Any]) -> str:
    if any(key.startswith("postcopy-") for key in answer):
        return "destination"  # of the answer itself; the source has such counters inside "ram"
    if answer.keys() & _SOURCE_KEYS:
        return "source"
    if "socket-address" in answer:
        return "destination"  # where it listened
    return "unknown side"


def _keep(figures: dict[str, Any], name: str, answer: Any, path: Path) -> list[str]:
    """Add an answer to the figures; another one of the same side is kept, too."""
    if name not in figures or figures[name] == answer or name not in _SIDES:
        figures[name] = answer
        return []
    place = next(f"{name}-{n}" for n in range(2, len(figures) + 3) if f"{name}-{n}" not in figures)
    figures[place] = answer
    return [f"{path}: another answer of the {name}: kept as {place}, the first one is used"]


def _said(path: Path, answer: dict[str, Any]) -> list[str]:
    status = str(answer.get("status", ""))
    if status == "completed":
        return []
    if status in ("failed", "cancelled"):
        why = f": {answer['error-desc']}" if answer.get("error-desc") else ""
        return [f"{path}: the migration {'failed' if status == 'failed' else 'was cancelled'}{why}"]
    if status in _UNFINISHED:
        return [f"{path}: taken before the end, status {status}: its figures are those up to then"]
    return [f"{path}: status {status}, which this faultreplay does not know"]


def _vcpus(meta: Meta, figures: dict[str, Any], chosen: list[int] | None) -> list[str]:
    """Say which thread is which vCPU of `postcopy-vcpu-blocktime`; its order is that of QEMU's vCPUs."""
    booked = (figures.get("destination") or {}).get("postcopy-vcpu-blocktime") or []
    if chosen:
        figures["vcpus"] = [{"index": index, "tid": tid} for index, tid in enumerate(chosen)]
        if booked and len(booked) != len(chosen):
            return [f"{len(chosen)} threads are named, QEMU has figures of {len(booked)} vCPUs"]
        return []
    if figures.get("vcpus") or not booked:
        return []
    threads = [
        (thread.vcpu if thread.vcpu >= 0 else 1 << 20, thread.tid)
        for target in meta.targets
        for thread in target.threads
        if thread.role == "vcpu"
    ]
    if len(threads) != len(booked):
        if not threads:
            return []
        return [f"the trace has {len(threads)} vCPU threads, QEMU figures of {len(booked)}: name them with --vcpus"]
    figures["vcpus"] = [{"index": index, "tid": tid} for index, (_, tid) in enumerate(sorted(threads))]
    return ["vCPUs of QEMU's figures taken in the order of vCPU or thread numbers (--vcpus says otherwise)"]
