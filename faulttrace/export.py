"""Export a trace to one file in a common format: Chrome JSON (for Perfetto), CSV or Parquet."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from faultreplay.faulttrace.errors import FaultreplayError, UsageError
from faultreplay.faulttrace.plain_text import plain_frame
from faultreplay.faulttrace.schema import EVENTS, FAULTS, Kind
from faultreplay.faulttrace.store import Trace

if TYPE_CHECKING:
    import polars as pl

FORMATS: Final = {".json.gz": "Chrome JSON, gzip", ".json": "Chrome JSON", ".csv": "CSV", ".parquet": "Parquet"}
_STAGES: Final = ("queue", "service", "wake")
_INSTANTS: Final = (Kind.KVM_SET_MEMSLOT, Kind.KVM_UNMAP_HVA_RANGE, Kind.KVM_MMU_ZAP_ALL, Kind.MADVISE, Kind.FALLOCATE)


def export(trace: Trace, output: Path, what: str = "faults") -> int:
    """Write `trace` to `output`, in the format of its file name's ending; returns the number of records written.

    Args:
        what: ``faults``, ``events`` or ``losses`` for CSV and Parquet; Chrome JSON always shows faults on a time line.

    Raises:
        UsageError: the ending is not of a known format, or Chrome JSON was requested for something other than faults.
    """
    ending = next((ending for ending in FORMATS if output.name.endswith(ending)), None)
    if ending is None:
        raise UsageError(f"{output}: the name must end in one of {', '.join(FORMATS)}")
    if ending.startswith(".json") and what != "faults":
        raise UsageError(f"Chrome JSON shows faults; {what} go to CSV or Parquet: name the file *.csv or *.parquet")
    part = output.with_name(f".{output.name}.part")
    try:
        if ending.startswith(".json"):
            count = _write_chrome(trace, part, packed=ending.endswith(".gz"))
        else:
            frames = _frames(trace, what)
            count = _write_csv(frames, part) if ending == ".csv" else _write_parquet(trace, frames, part)
        part.replace(output)
    except OSError as error:
        raise FaultreplayError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _frames(trace: Trace, what: str) -> Iterator[pl.DataFrame]:
    """The table in pieces (at least one). Events get a column with the name of their kind."""
    import polars as pl

    if what == "faults":
        yield from trace.fault_frames(FAULTS.names)
    elif what == "losses":
        yield trace.losses()
    elif what == "events":
        names = pl.DataFrame({"kind": [int(k) for k in Kind], "kind_name": [k.name for k in Kind]})
        names = names.with_columns(pl.col("kind").cast(pl.UInt8))
        empty = cast("pl.DataFrame", pl.from_arrow(EVENTS.empty_table()))
        for frame in itertools.chain([empty], trace.source(None).frames(EVENTS.names)):
            yield frame.select(EVENTS.names).join(names, on="kind", how="left", maintain_order="left")
    else:
        raise UsageError(f"'{what}' cannot be exported: choose faults, events or losses")


def _write_csv(frames: Iterable[pl.DataFrame], path: Path) -> int:
    """Write the frames; returns the number of rows."""
    count = 0
    with path.open("wb") as stream:
        for number, frame in enumerate(frames):
            plain_frame(frame).write_csv(stream, include_header=number == 0, quote_style="necessary")
            count += frame.height
    return count


def _write_parquet(trace: Trace, frames: Iterator[pl.DataFrame], path: Path) -> int:
    """Write one file with meta.json as schema metadata (key ``faultreplay.meta``); returns the number of rows."""
    from faultreplay.faulttrace.files import put_tables

    first = next(frames).to_arrow()
    schema = first.schema.with_metadata({"faultreplay.meta": trace.meta.to_json().decode()})
    tables = itertools.chain([first], (frame.to_arrow() for frame in frames))
    count, _ = put_tables(path, schema, (table.cast(schema) for table in tables if table.num_rows))
    return count


def _write_chrome(trace: Trace, path: Path, *, packed: bool) -> int:
    """Trace-event JSON: stalls as slices on their thread's track, stages inside, instants for what changes memory."""
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") if packed else path.open("w", encoding="utf-8") as stream:
        stream.write('{"displayTimeUnit": "ns", "otherData": ')
        host = trace.meta.host
        stream.write(json.dumps({"tool": "faultreplay", "kernel": host.kernel, "clock": trace.meta.clock.name}))
        stream.write(', "traceEvents": [\n')
        for item in _chrome_events(trace):
            stream.write((",\n" if count else "") + json.dumps(item, separators=(",", ":")))
            count += 1
        stream.write("\n]}\n")
    return count


def _chrome_events(trace: Trace) -> Iterator[dict[str, Any]]:
    faults = trace.faults()
    base_ns = trace.meta.clock.start_ns or int(faults["start_ns"].min() or 0)  # type: ignore[arg-type]
    names = {target.tgid: target.name or target.comm for target in trace.meta.targets}
    threads = {t.tid: (target.tgid, t) for target in trace.meta.targets for t in target.threads}
    for tgid, name in names.items():
        yield {"ph": "M", "pid": tgid, "tid": tgid, "name": "process_name", "args": {"name": name or str(tgid)}}
    for tid, (tgid, thread) in threads.items():
        label = f"vCPU {thread.vcpu}" if thread.role == "vcpu" and thread.vcpu >= 0 else thread.comm or thread.role
        yield {"ph": "M", "pid": tgid, "tid": tid, "name": "thread_name", "args": {"name": f"{label} ({tid})"}}
    for row in faults.iter_rows(named=True):
        yield from _chrome_fault(row, base_ns)
    for window in trace.meta.windows:
        pid = trace.meta.targets[0].tgid if trace.meta.targets else 0
        length_ns = window.end_ns - window.start_ns
        yield _slice(f"window: {window.kind}", "window", (pid, 0), window.start_ns - base_ns, length_ns)
    for row in trace.events(_INSTANTS).iter_rows(named=True):
        yield {
            "ph": "i", "s": "t", "name": Kind(row["kind"]).name, "cat": "memory", "pid": row["tgid"], "tid": row["tid"],
            "ts": (row["ts_ns"] - base_ns) / 1e3, "args": {"addr": hex(row["addr"]), "size": row["size"]},
        }  # fmt: skip


def _chrome_fault(row: dict[str, Any], base_ns: int) -> Iterator[dict[str, Any]]:
    keys = ("fault_id", "access", "cause", "resolution", "join", "granule", "handler_tid", "think_ns")
    args = {key: row[key] for key in keys if row[key] not in (None, "")} | {"page": hex(row["page"])}
    name, start = f"{row['cause']} {row['access']}", row["start_ns"] - base_ns
    if row["stall_ns"] is None:
        yield {
            "ph": "i", "s": "t", "name": f"{name} (end unseen)", "cat": "fault", "pid": row["vm"], "tid": row["tid"],
            "ts": start / 1e3, "args": args,
        }  # fmt: skip
        return
    yield _slice(name, "fault", (row["vm"], row["tid"]), start, row["stall_ns"]) | {"args": args}
    at = start
    for stage in _STAGES:
        length = row[f"{stage}_ns"]
        if length is None or length < 0 or at + length > start + row["stall_ns"]:
            return
        if length:
            yield _slice(stage, "stage", (row["vm"], row["tid"]), at, length)
        at += length


def _slice(name: str, category: str, track: tuple[int, int], start_ns: int, length_ns: int) -> dict[str, Any]:
    # Microseconds with three decimals are whole nanoseconds up to 2^53 us: exact.
    times = {"ts": start_ns / 1e3, "dur": length_ns / 1e3}
    return {"ph": "X", "name": name, "cat": category, "pid": track[0], "tid": track[1], **times}
