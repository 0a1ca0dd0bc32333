"""Files that others made, read with care: regular files only, bounded in size, one line for each way of being wrong.

A FIFO or a device where a file should be would be waited for, or read, for ever. Every reader of ours that takes a
user's path (meta.json, parts, mechanism and cost files, what importers read) comes through here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from faultreplay.faulttrace.errors import FaultreplayError, NoPermission, UsageError
from faultreplay.faulttrace.place import Location, Place, size_of

MAX_TEXT_BYTES: Final = 4 << 20
"""Of a mechanism or cost file; the largest shipped one has 10 KB."""

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Location, error: type[FaultreplayError] = UsageError) -> None:
    """See that `path` is a regular file (links are followed), without opening it.

    Raises:
        FileNotFoundError, NotADirectoryError: nothing there; the caller knows what that means.
        NoPermission: it may not be looked at.
        error: something else is there; the message says what.
    """
    if isinstance(path, Place):
        if path.is_dir():
            raise error(f"{path}: a directory, not a regular file")
        size_of(path)
        return
    try:
        info = path.stat()
    except PermissionError as refused:
        raise NoPermission(f"{path}: {refused.strerror}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as wrong:  # ValueError: a NUL in the name
        raise error(f"{path}: {getattr(wrong, 'strerror', None) or wrong}") from None
    if not stat.S_ISREG(info.st_mode):
        raise error(f"{path}: {_KINDS.get(stat.S_IFMT(info.st_mode), 'something else')}, not a regular file")


def open_regular(path: Location, error: type[FaultreplayError] = UsageError) -> BinaryIO:
    """`path` opened for reading; what it raises is as in `check_regular`."""
    check_regular(path, error)
    if isinstance(path, Place):
        return path.open()
    try:
        # O_NONBLOCK: what was a file a moment ago may be a FIFO now; opening that would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as refused:
        raise NoPermission(f"{path}: {refused.strerror}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as wrong:
        raise error(f"{path}: {wrong.strerror or errno.errorcode.get(wrong.errno or 0, 'cannot be opened')}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: not a regular file any more")
    return os.fdopen(descriptor, "rb")


def read_bytes_file(path: Location, limit_bytes: int, error: type[FaultreplayError] = UsageError) -> bytes:
    """The whole of a regular file of at most `limit_bytes`; what it raises is as in `check_regular`."""
    with open_regular(path, error) as stream:
        try:
            # As much as it has, and a byte to see that it does not grow: memory for the limit is not allocated.
            size = size_of(path) if isinstance(path, Place) else os.fstat(stream.fileno()).st_size
            data = stream.read(min(size, limit_bytes) + 1)
        except OSError as wrong:
            raise error(f"{path}: {wrong.strerror or 'cannot be read'}") from None
    if len(data) > limit_bytes:
        raise error(f"{path}: more than {limit_bytes} bytes, the most that such a file may have")
    return data


def read_text_file(path: Path, limit_bytes: int = MAX_TEXT_BYTES, error: type[FaultreplayError] = UsageError) -> str:
    """The UTF-8 text of a regular file of at most `limit_bytes`; what it raises is as in `check_regular`."""
    data = read_bytes_file(path, limit_bytes, error)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line = data[: wrong.start].count(b"\n") + 1
        raise error(f"{path}:{line}: not UTF-8 text: byte {wrong.start} is 0x{data[wrong.start]:02x}") from None
