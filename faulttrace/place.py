"""Locations of trace files that are not local files: members of one zip file, or files behind an fsspec URL.

A `Place` has the methods of `Path` that reading a trace needs: names, sizes, bytes. Nothing is unpacked: a stored
member of a zip is read in place.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, UsageError

_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
ZIP_BEGINS: Final = b"PK\x03\x04"
"""The first bytes of a trace in one file."""
_MOST_MEMBERS: Final = 1_000_000
_READ_BYTES: Final = 1 << 20


class Files(Protocol):
    """Files by name. Several threads may read ranges of their bytes."""

    where: str
    """for messages"""
    sizes: Mapping[str, int]

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on."""


class Place:
    """A file or folder among `Files`; the empty name is their root."""

    def __init__(self, files: Files, name: str = "") -> None:
        self.files = files
        self._inside = name

    def __truediv__(self, name: str) -> Place:
        return Place(self.files, f"{self._inside}/{name}" if self._inside else name)

    def __str__(self) -> str:
        return f"{self.files.where}/{self._inside}" if self._inside else self.files.where

    @property
    def name(self) -> str:
        """The last part, as of a path."""
        return str(self).rstrip("/").rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is a file or folder of this name."""
        return self._inside in self.files.sizes or self.is_dir()

    def is_dir(self) -> bool:
        """Whether there are files below this name."""
        return not self._inside or any(name.startswith(f"{self._inside}/") for name in self.files.sizes)

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        return self._inside in self.files.sizes

    def iterdir(self) -> Iterator[Place]:
        """The entries of this folder."""
        start = f"{self._inside}/" if self._inside else ""
        names = {name.removeprefix(start).partition("/")[0] for name in self.files.sizes if name.startswith(start)}
        return (self / name for name in sorted(names))

    @property
    def size_bytes(self) -> int:
        """Length of the file.

        Raises:
            FileNotFoundError: there is none.
        """
        if self._inside not in self.files.sizes:
            raise FileNotFoundError(str(self))
        return self.files.sizes[self._inside]

    def open(self) -> BinaryIO:
        """The file for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        return io.BufferedReader(_Window(self.files, self._inside, self.size_bytes), _READ_BYTES)


Location: TypeAlias = Path | Place
"""Where a trace, or one of its files, is."""


def whole_size(where: Location) -> int:
    """Bytes of all files of a trace."""
    if isinstance(where, Place):
        return sum(where.files.sizes.values())
    return sum(path.stat().st_size for path in where.rglob("*") if path.is_file())


def size_of(where: Location) -> int:
    """Bytes of a file."""
    return where.size_bytes if isinstance(where, Place) else where.stat().st_size


class _Window(io.RawIOBase):
    """One of `Files` as a stream."""

    def __init__(self, files: Files, name: str, size: int) -> None:
        self._files, self._name, self._size, self._at = files, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._files.read(self._name, self._at, max(min(len(view), self._size - self._at), 0))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class ZipFiles:
    """The members of a zip, all stored without compression.

    Args:
        stream: the zip, seekable. The caller may close it if `read_at` is given; otherwise it must stay open.
        where: its name, for messages.
        read_at: reads bytes by offset and length, from any thread; None: read the stream, one thread at a time.

    Raises:
        IncompleteData: not a complete zip, or a member is compressed, encrypted or duplicated.
    """

    def __init__(self, stream: BinaryIO, where: str, read_at: Callable[[int, int], bytes] | None = None) -> None:
        self.where = where
        self._read_at = read_at or _in_turn(stream)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
            raise IncompleteData(f"{where}: not a whole trace in one file ({error}): copy it again") from None
        if len(members) > _MOST_MEMBERS:
            raise IncompleteData(f"{where}: {len(members)} files in it: not a trace")
        self._heads = {member.filename: member.header_offset for member in members}
        self.sizes: Mapping[str, int] = {member.filename: member.file_size for member in members}
        if len(self.sizes) != len(members):
            raise IncompleteData(f"{where}: holds a file twice: not a trace that faultreplay packed")
        for member in members:
            self._check(member)
        self._starts: dict[str, int] = {}

    def _check(self, member: zipfile.ZipInfo) -> None:
        name = member.filename
        parts = name.split("/")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise IncompleteData(
                f"{self.where}: {name!r} is compressed or encrypted; a packed trace is stored: unpack it, "
                "then: faultreplay export DIR --pack -o NAME.trace"
            )
        if not all(parts) or {".", ".."} & set(parts) or stat.S_ISLNK(member.external_attr >> 16):
            raise IncompleteData(f"{self.where}: holds {name!r}, which is no file of a trace")

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of a member's bytes."""
        start = self._starts.get(name)
        if start is None:
            start = self._starts[name] = self._start(name)
        return self._read_at(start + offset, length)

    def _start(self, name: str) -> int:
        """Offset of a member's bytes: after its local header, whose extra field can differ from the directory's."""
        head = self._heads[name]
        data = self._read_at(head, _LOCAL_HEADER.size)
        if len(data) < _LOCAL_HEADER.size or not data.startswith(ZIP_BEGINS):
            raise IncompleteData(f"{self.where}: damaged: {name} is not where the directory says: copy it again")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(data)
        return head + _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def _in_turn(stream: BinaryIO) -> Callable[[int, int], bytes]:
    lock = threading.Lock()

    def read_at(offset: int, length: int) -> bytes:
        with lock:
            stream.seek(offset)
            return stream.read(length)

    return read_at


class UrlFiles:
    """The files of a trace's directory behind an fsspec file system; listed once."""

    def __init__(self, filesystem: Any, root: str, where: str) -> None:
        self.where = where
        self._filesystem, self._root = filesystem, root.rstrip("/")
        found = filesystem.find(self._root, detail=True)
        self.sizes: Mapping[str, int] = {
            name.removeprefix("/").removeprefix(self._root.removeprefix("/")).removeprefix("/"): int(info["size"] or 0)
            for name, info in found.items()
        }

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of a file's bytes."""
        if length <= 0:
            return b""
        try:
            return bytes(self._filesystem.cat_file(f"{self._root}/{name}", start=offset, end=offset + length))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise FaultreplayError(f"{self.where}/{name}: {error}") from None


def open_pack(path: Path) -> Place:
    """The root of the trace in the one file at `path`.

    Raises:
        UsageError: not such a file.
        IncompleteData: a damaged one.
        NoPermission: it may not be read.
    """
    # Not at the top: that module imports this one.
    from faultreplay.faulttrace.regular import open_regular

    with open_regular(path, IncompleteData) as stream:
        if stream.read(len(ZIP_BEGINS)) != ZIP_BEGINS:
            raise UsageError(
                f"{path}: a file, and none of 'faultreplay export --pack': a trace is a directory or such a file"
            )
        descriptor = os.dup(stream.fileno())
        try:
            files = ZipFiles(stream, str(path), lambda offset, length: os.pread(descriptor, length, offset))
        except BaseException:
            os.close(descriptor)
            raise
    weakref.finalize(files, os.close, descriptor)
    return Place(files)


def is_pack(path: Path) -> bool:
    """Whether a file begins like a zip: a trace in one file, possibly damaged."""
    try:
        with path.open("rb") as stream:
            return path.is_file() and stream.read(4) == ZIP_BEGINS
    except OSError:
        return False
