"""What a recording says of itself in `meta.json`: at its start, and at its end."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from faultreplay.collect.backends.backend import Backend
from faultreplay.collect.recorder.chosen import Chosen
from faultreplay.collect.recorder.host import describe_host
from faultreplay.collect.recorder.keep import Stall
from faultreplay.collect.recorder.limits import Shedder
from faultreplay.collect.recorder.spec import RecordSpec
from faultreplay.collect.targets import proc
from faultreplay.faulttrace.meta import Meta, Tool
from faultreplay.faulttrace.units import format_ns

_POLL_NS: Final = 300_000_000  # losses are looked at four times a second


def first_meta(spec: RecordSpec, chosen: Chosen, backend: Backend) -> Meta:
    """`meta.json` as it is before the first event."""
    meta = Meta(
        tool=Tool(version=_version()),
        host=describe_host(),
        command=list(spec.command),
        targets=[proc.describe_target(tgid) for tgid in chosen.tgids],
        probes=backend.probes,
    )
    for target in meta.targets:
        target.name = chosen.names.get(target.tgid, "")
    if chosen.command is not None:
        meta.targets[-1].cmdline = list(spec.command)
        meta.targets[-1].comm = Path(spec.command[0]).name[:15]
        meta.targets[-1].threads = meta.targets[-1].threads[:1]
    meta.clock.start_ns = time.monotonic_ns()
    meta.clock.start_realtime = datetime.now(UTC).isoformat()
    meta.recorder.backend = backend.name
    meta.recorder.ring_bytes = backend.ring_bytes
    known = {f.name for f in fields(Meta)}
    for key, value in spec.meta_extra.items():
        if key in known:
            setattr(meta, key, value)
        else:
            meta.extra[key] = value
    return meta


def tell_shed(meta: Meta, shedder: Shedder) -> list[str]:
    """Put into `meta` which groups were dropped; one line for each time."""
    if shedder.spans:
        meta.extra["shed"] = shedder.spans
    for probe in meta.probes:
        if probe.status == "attached" and probe.group in shedder.shed_now:
            probe.status = "shed"
    return [
        f"group {span['group']} was shed for {format_ns(span['end_ns'] - span['start_ns'])}: {span['reason']}"
        for span in shedder.spans
    ]


def tell_trigger(meta: Meta, stall: Stall) -> str:
    """Put into `meta` the stall that ended the recording; a line about it."""
    meta.extra["trigger"] = dataclasses.asdict(stall)
    return f"trigger: thread {stall.tid} stalled for {format_ns(stall.stall_ns)}"


def loss_causes(rows: Iterable[Mapping[str, Any]], meta: Meta) -> dict[str, int]:
    """Lost events by cause, of rows of `LOSSES`: what helps against one is no help against another."""
    spans = meta.extra.get("shed", ())
    group = {probe.name: probe.group for probe in meta.probes}
    causes: dict[str, int] = {}
    for row in rows:
        shed = any(
            span["group"] == group.get(row["probe"]) and span["start_ns"] <= row["ts_ns"] <= span["end_ns"] + _POLL_NS
            for span in spans
        )
        if shed:
            cause = "shed"
        elif row["probe"] == "bpftrace":
            cause = "printing"
        else:
            cause = "nested" if row["cpu"] < 0 else "ring"
        causes[cause] = causes.get(cause, 0) + int(row["lost"])
    return causes


def _version() -> str:
    try:
        return importlib.metadata.version("faultreplay")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return ""
