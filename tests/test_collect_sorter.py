"""Blocks of several CPUs' events into one order of time, and into parts that grow row group by row group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultreplay.collect.backends.ring import EVENT_DTYPE, Block
from faultreplay.collect.recorder import drain
from faultreplay.collect.recorder.drain import Columns, Drain, Sorter
from faultreplay.faulttrace.errors import FaultreplayError
from faultreplay.faulttrace.meta import Meta
from faultreplay.faulttrace.schema import EVENTS
from faultreplay.faulttrace.store import open_trace
from faultreplay.faulttrace.writer import TraceWriter


def rows(times: list[int], first: int = 0) -> np.ndarray:
    """Events with these times; `value` counts from `first`."""
    events = np.zeros(len(times), EVENT_DTYPE)
    events["ts_ns"] = times
    events["value"] = np.arange(first, first + len(times))
    return events


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=8),
    st.sampled_from([0, 5, 1000]),
    st.sampled_from([0, 3, 64]),
    st.sampled_from([4, 1 << 16]),
)
def test_each_event_comes_out_once_in_order_of_time_with_ties_as_they_came(
    batches: list[list[int]], skew_ns: int, lead: int, group_rows: int
) -> None:
    written: list[tuple[int, int]] = []
    observed: list[tuple[int, int]] = []

    def note(to: list[tuple[int, int]]) -> object:
        return lambda columns: to.extend(zip(columns["ts_ns"].tolist(), columns["value"].tolist(), strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drain, "GROUP_ROWS", group_rows)
        sorter = Sorter(note(observed), note(written))  # type: ignore[arg-type]
    came: list[tuple[int, int]] = []
    for number, batch in enumerate(batches):
        times = [number * 20 + time for time in batch]  # up to 10 ns earlier than those of the batch before
        block = Block(16, lead)
        block.put(0, rows(times, len(came)))
        came += list(zip(times, range(len(came), len(came) + len(times)), strict=True))
        sorter.add(block, len(times), skew_ns)
        for column in block.columns.values():
            column[:] = 77  # a block is used again: nothing may still look at it
    sorter.end()
    sorter.flush()
    assert observed == written
    if skew_ns >= 10 or len(batches) <= 1:
        assert written == sorted(came, key=lambda event: event[0])
    assert sorted(written) == sorted(came)


def columns(times: list[int], first: int = 0) -> Columns:
    return {name: rows(times, first)[name] for name in EVENTS.names}


def test_a_part_grows_by_row_groups_and_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.trace", Meta())
    writer.append_in_order(columns([1, 2, 2]))
    writer.append_in_order(columns([2, 5], 3))
    assert list((tmp_path / "a.trace/events").glob("part-*")) == []
    writer.close()
    part = tmp_path / "a.trace/events/part-000000.parquet"
    metadata = pq.read_metadata(part)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [3, 2]
    trace = open_trace(tmp_path / "a.trace")
    assert trace.events()["value"].to_list() == [0, 1, 2, 3, 4]


def test_an_event_that_came_too_late_begins_another_part_and_is_read_in_its_place(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        writer.append_in_order(columns([10, 20, 30]))
        writer.append_in_order(columns([25, 40], 3))
        writer.append_in_order(columns([50], 5))
    assert len(list((tmp_path / "a.trace/events").glob("part-*"))) == 2
    trace = open_trace(tmp_path / "a.trace")
    assert trace.events()["ts_ns"].to_list() == [10, 20, 25, 30, 40, 50]
    streamed = [time for frame in trace.source(None).frames(EVENTS.names) for time in frame["ts_ns"].to_list()]
    assert streamed == [10, 20, 25, 30, 40, 50]


def test_events_in_any_order_may_follow_those_in_order(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        writer.append_in_order(columns([10, 20]))
        writer.append_events(rows([9, 4], 2))
        writer.append_in_order(columns([30], 4))
    assert open_trace(tmp_path / "a.trace").events()["value"].to_list() == [3, 2, 0, 1, 4]


def test_a_full_disk_leaves_no_half_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TraceWriter(tmp_path / "a.trace", Meta())
    writer.append_in_order(columns([1]))
    writer.flush()
    writer.append_in_order(columns([2]))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(FaultreplayError, match="no space left: what was written before is whole"):
        writer.append_in_order(columns([3]))
    assert [path.name for path in (tmp_path / "a.trace/events").iterdir()] == ["part-000000.parquet"]
    writer.give_up()
    assert open_trace(tmp_path / "a.trace", allow_incomplete=True).events()["ts_ns"].to_list() == [1]


class Stream:
    """A backend that has a prime number of events, and no more."""

    skew_ns, ring_bytes, left = 1_000_000, 1 << 20, 100_003

    def take_into(self, out: Block, at: int) -> int:
        n = min(4099, self.left, out.rows - at)
        out.put(at, rows(list(range(100_003 - self.left, 100_003 - self.left + n)), 100_003 - self.left))
        self.left -= n
        return n

    def poll_losses(self) -> list[object]:
        return []


def test_what_was_taken_is_written_to_the_last_event(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta()) as writer:
        moved = Drain(Stream(), writer, 1 << 26, lambda _: None)  # type: ignore[arg-type]
        moved.start()
        moved.stop()
        assert moved.failed is None
    assert moved.events == 100_003
    assert open_trace(tmp_path / "a.trace").events()["value"].to_list() == list(range(100_003))
