"""Tracks as a file that Perfetto opens (*.pftrace): TracePacket messages, written as they are made."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from faultreplay.analysis.tracks.model import Instant, Slice, Track
from faultreplay.faulttrace.errors import FaultreplayError, MissingFeature

_SEQUENCE: Final = 1
_CLEARED: Final = 1  # SEQ_INCREMENTAL_STATE_CLEARED
_NEEDS: Final = 2  # SEQ_NEEDS_INCREMENTAL_STATE
_TOGETHER: Final = 5000  # packets


def write_tracks(tracks: Iterable[Track], path: Path) -> int:
    """Write `tracks`, each behind what it is in; the number of slices and instants.

    Raises:
        MissingFeature: the package `perfetto` is not installed.
        FaultreplayError: the file cannot be written.
    """
    perfetto_trace_pb2 = check_perfetto()
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            writer = _Writer(stream, perfetto_trace_pb2)
            for track in tracks:
                writer.put(track)
            writer.flush()
        part.replace(path)
    except OSError as error:
        raise FaultreplayError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return writer.count


def check_perfetto() -> Any:
    """Perfetto's messages.

    Raises:
        MissingFeature: the package is not installed.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError:
        raise MissingFeature(
            "*.pftrace needs the package perfetto, which is not installed: pip install 'faultreplay[perfetto]', "
            "or write *.json.gz"
        ) from None
    return perfetto_trace_pb2


class _Writer:
    """One sequence of packets; names are sent once and then by number."""

    def __init__(self, stream: IO[bytes], protos: Any) -> None:
        self.count = 0
        self._stream = stream
        self._waiting = protos.Trace()  # packets that are not written yet: a file of several such messages is one
        self._event = protos.TrackEvent
        self._uuids: dict[int, int] = {}
        self._interned: dict[tuple[str, str], int] = {}
        self._first = True

    def put(self, track: Track) -> None:
        """A track's description and all that is on it, in order of time."""
        uuid = len(self._uuids) + 1 + (zlib.crc32(b"faultreplay") << 24)
        self._uuids[id(track)] = uuid
        packet = self._packet()
        told = packet.track_descriptor
        told.uuid = uuid
        if track.parent is not None:
            told.parent_uuid = self._uuids[id(track.parent)]
        if track.tid:
            told.thread.pid, told.thread.tid, told.thread.thread_name = track.pid, track.tid, track.name
        elif track.pid:
            told.process.pid, told.process.process_name = track.pid, track.name
        else:
            told.name = track.name
        # An instant at the end of a slice stands behind it.
        for what in _in_order(track):
            if isinstance(what, Instant):
                self._begin(uuid, what.at_ns, what, self._event.TYPE_INSTANT)
                self.count += 1
            else:
                self._slice(uuid, what)

    def flush(self) -> None:
        """Write what waits."""
        self._stream.write(self._waiting.SerializeToString())
        self._waiting.Clear()

    def _slice(self, uuid: int, one: Slice) -> None:
        self._begin(uuid, one.start_ns, one, self._event.TYPE_SLICE_BEGIN)
        for inner in one.inner:
            self._slice(uuid, inner)
        packet = self._packet()
        packet.timestamp = one.end_ns
        packet.track_event.type, packet.track_event.track_uuid = self._event.TYPE_SLICE_END, uuid
        self.count += 1

    def _begin(self, uuid: int, at_ns: int, what: Slice | Instant, kind: int) -> None:
        packet = self._packet()
        packet.timestamp = at_ns
        event = packet.track_event
        event.type, event.track_uuid = kind, uuid
        event.name_iid = self._number(packet, "event_names", what.name)
        event.category_iids.append(self._number(packet, "event_categories", what.category))
        if isinstance(what, Slice):
            event.flow_ids.extend(what.flows)
        for name, value in what.args:
            told = event.debug_annotations.add()
            told.name_iid = self._number(packet, "debug_annotation_names", name)
            if isinstance(value, int):
                told.int_value = value
            else:
                told.string_value = value

    def _number(self, packet: Any, table: str, text: str) -> int:
        """What stands for `text` in the packets of this sequence; the first packet with it says so."""
        number = self._interned.get((table, text))
        if number is None:
            number = len(self._interned) + 1
            self._interned[table, text] = number
            entry = getattr(packet.interned_data, table).add()
            entry.iid, entry.name = number, text
        return number

    def _packet(self) -> Any:
        if len(self._waiting.packet) >= _TOGETHER:
            self.flush()
        packet = self._waiting.packet.add()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = _NEEDS | (_CLEARED if self._first else 0)
        self._first = False
        return packet


def _in_order(track: Track) -> Iterator[Slice | Instant]:
    """Slices and instants by time; an instant within a slice, which the viewer lets stand apart, follows it."""
    rest = sorted(track.instants, key=lambda one: one.at_ns)
    place = 0
    for one in track.slices:
        while place < len(rest) and rest[place].at_ns < one.start_ns:
            yield rest[place]
            place += 1
        yield one
    yield from rest[place:]
