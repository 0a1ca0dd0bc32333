"""Text files of other tools: packed or not, in blocks of whole lines, so that memory is bounded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Final, TypeAlias, cast

from faultreplay.collect.importers.raw import Source
from faultreplay.faulttrace.errors import IncompleteData, NoPermission, UsageError

Progress: TypeAlias = Callable[[int, int], None]
"""Takes the bytes of the file that are read, and how many it has; of a tool's output the lines, and 0."""

BLOCK_BYTES: Final = 8 << 20
_LONGEST_LINE: Final = 64 << 20
_DATA_FILES: Final = {
    b"PERFILE": "perf.data: give it as it is with --from perf-script, not packed",
    b"2ELIFREP": "perf.data of a machine of the other byte order",
    b"\x17\x08Dtracing": "trace.dat: give it as it is with --from trace-cmd, not packed",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first (zstd -d)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x7fELF": "a program, not a trace",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}


def magic(path: Path) -> bytes:
    """The first 16 bytes of a file; none of a pipe.

    Raises:
        UsageError: no such file, or a folder.
        NoPermission: may not be read.
    """
    with _errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            return b""  # a pipe: what is read of it is gone
        with path.open("rb") as stream:
            return stream.read(16)


def read_blocks(
    path: Path, source: Source, progress: Progress | None = None, stream: IO[bytes] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Blocks of whole lines with the number of their first line; what is damaged is marked in `source`.

    `stream`: what a tool makes of the file, read in its place.

    Raises:
        UsageError: no such file.
        NoPermission: may not be read.
        IncompleteData: not text, or a damaged packed file.
    """
    number, rest = 1, b""
    with _errors(path), path.open("rb") as file:
        total = 0 if stream or not path.is_file() else path.stat().st_size
        text = stream or _unpacked(file)
        while True:
            data = text.read(BLOCK_BYTES)
            if number == 1 and not rest:
                data = _checked_start(path, data)
            whole, newline, tail = (rest + data).rpartition(b"\n")
            if not data:
                whole, tail = rest, b""
                source.tail_cut = bool(rest)
            rest = tail
            if len(rest) > _LONGEST_LINE:
                raise IncompleteData(f"{path}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB: not text")
            if whole or newline:
                lines = _lines(whole, number, source)
                yield number, lines
                number += len(lines)
            if progress is not None:
                progress(file.tell() if total else number, total)
            if not data:
                return


def read_lines(path: Path, source: Source, progress: Progress | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines; errors as of `read_blocks`."""
    for first, lines in read_blocks(path, source, progress):
        yield from enumerate(lines, start=first)


def _lines(data: bytes, first: int, source: Source) -> list[str]:
    lines = data.decode(errors="replace").split("\n")
    if "\r" in lines[0]:
        lines = [line.rstrip("\r") for line in lines]
    if b"\0" in data or not data.isascii():
        for number, line in enumerate(lines, start=first):
            if "\ufffd" in line:
                source.mark("lines with bytes that are not UTF-8", number)
            if "\0" in line:
                source.mark("lines with NUL bytes", number)
    return lines


def _unpacked(file: BufferedReader) -> IO[bytes]:
    start = file.peek(6)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(file))
    if start.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.open(file))
    if start.startswith(b"\xfd7zXZ"):
        return cast("IO[bytes]", lzma.open(file))
    return file


def _checked_start(path: Path, data: bytes) -> bytes:
    for begins, what in _DATA_FILES.items():
        if data.startswith(begins):
            raise IncompleteData(f"{path}: not text: {what}")
    if b"\0" in data.partition(b"\n")[0]:
        raise IncompleteData(f"{path}: not text: give the output of the tool's report, or its data file as it is")
    return data.removeprefix(b"\xef\xbb\xbf")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder, not a file") from None
    except PermissionError:
        raise NoPermission(f"{path}: may not be read") from None
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise IncompleteData(f"{path}: a damaged packed file: {error}") from None
