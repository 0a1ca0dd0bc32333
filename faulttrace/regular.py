"""Read files that users supply: regular files only, of limited size, with a one-line error for each problem.

Opening a FIFO or reading a device could block for ever. Every reader that takes a user's path (meta.json, parts,
mechanism and cost files, input of importers) uses this module.
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
"""Size limit of a mechanism or cost file; the largest shipped one has 10 KB."""

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Location, error: type[FaultreplayError] = UsageError) -> None:
    """Check that `path` is a regular file (links are followed), without opening it.

    Raises:
        FileNotFoundError, NotADirectoryError: nothing there; the caller handles it.
        NoPermission: it may not be accessed.
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
    """Open `path` for reading; raises the errors of `check_regular`."""
    check_regular(path, error)
    if isinstance(path, Place):
        return path.open()
    try:
        # O_NONBLOCK: a FIFO may have replaced the file since the check; opening that would wait for a writer.
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
    """All bytes of a regular file of at most `limit_bytes`; raises the errors of `check_regular`."""
    with open_regular(path, error) as stream:
        try:
            # Its size and one byte more, to detect a larger file: memory for the whole limit is not allocated.
            size = size_of(path) if isinstance(path, Place) else os.fstat(stream.fileno()).st_size
            data = stream.read(min(size, limit_bytes) + 1)
        except OSError as wrong:
            raise error(f"{path}: {wrong.strerror or 'cannot be read'}") from None
    if len(data) > limit_bytes:
        raise error(f"{path}: more than {limit_bytes} bytes, the most that such a file may have")
    return data


def read_text_file(path: Path, limit_bytes: int = MAX_TEXT_BYTES, error: type[FaultreplayError] = UsageError) -> str:
    """The UTF-8 text of a regular file of at most `limit_bytes`; raises the errors of `check_regular`."""
    data = read_bytes_file(path, limit_bytes, error)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line = data[: wrong.start].count(b"\n") + 1
        raise error(f"{path}:{line}: not UTF-8 text: byte {wrong.start} is 0x{data[wrong.start]:02x}") from None
