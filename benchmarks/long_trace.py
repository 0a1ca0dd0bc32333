"""A long trace made of a short one: its events again and again, each time later.

    python benchmarks/long_trace.py SOURCE.trace OUT.trace [--events 100000000]

Threads, pages and the order of events are those that were recorded; only time goes on. It is written with the writer
that the recorder uses. meta.json says in `extra` that it is repeated: its faults are no recording of that length.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from faultreplay.faulttrace.meta import Integrity, Losses
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter

_GAP_NS = 1_000_000


def repeat(source: Path, out: Path, events: int) -> int:
    """Write at least `events` events to `out`; how many."""
    trace = open_trace(source)
    table = pa.concat_tables(trace.event_tables()).combine_chunks()
    start_ns, end_ns = trace.meta.clock.start_ns, trace.end_ns
    # An event is written where it ends, and says how long it took: nothing reaches before the recording.
    period_ns = int(end_ns - min(start_ns, pc.min(table["ts_ns"]).as_py())) + _GAP_NS
    times = -(-events // table.num_rows)
    meta = copy.deepcopy(trace.meta)
    meta.integrity, meta.losses = Integrity(), Losses()
    meta.recorder.events = times * table.num_rows
    meta.clock.end_ns = end_ns + (times - 1) * period_ns
    meta.extra = {**meta.extra, "repeated": {"times": times, "every_ns": period_ns, "of": source.name}}
    at = table.schema.get_field_index("ts_ns")
    with TraceWriter(out, meta) as writer:
        for number in range(times):
            ts_ns = pa.array(table["ts_ns"].to_numpy() + np.int64(number * period_ns), EVENTS.field("ts_ns").type)
            writer.append_events(table.set_column(at, EVENTS.field("ts_ns"), ts_ns))
    return times * table.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--events", type=int, default=100_000_000)
    options = parser.parse_args()
    print(f"{repeat(options.source, options.out, options.events):,} events in {options.out}")


if __name__ == "__main__":
    main()
