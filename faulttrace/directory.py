"""File names in a trace's directory: which files belong to a trace, which parts exist, how a trace is replaced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from faultreplay.faulttrace import limits
from faultreplay.faulttrace.errors import FaultreplayError, IncompleteData, NoPermission, UsageError
from faultreplay.faulttrace.files import disk_errors
from faultreplay.faulttrace.meta import LOSSES_FILE, MAX_META_BYTES
from faultreplay.faulttrace.place import Location, is_pack, open_pack
from faultreplay.faulttrace.regular import read_bytes_file

META: Final = "meta.json"
EVENTS_DIR: Final = "events"
FAULTS_FILE: Final = "faults.parquet"
TRUTH_FILE: Final = "truth.parquet"
FILES: Final = (META, LOSSES_FILE, FAULTS_FILE, TRUTH_FILE)
_DIR_MODE: Final = 0o700

_PART: Final = re.compile(r"part-([0-9]{6,10})\.parquet")
# Temporary files (named by mkstemp) that a killed writer left behind before it could rename them.
_LEFT_OVER: Final = re.compile(r"\.(meta\.json|(losses|faults|truth|part-[0-9]{6,10})\.parquet)\.[a-z0-9_]{8}")


def part_name(number: int) -> str:
    """Name of a part within its trace."""
    return f"{EVENTS_DIR}/part-{number:06d}.parquet"


def part_numbers(path: Location) -> list[int]:
    """Numbers of the event parts of the trace at `path`, in order.

    Raises:
        IncompleteData: a file name resembles that of a part but is not one, or its number is too large.
        NoPermission: the directory may not be read.
    """
    numbers = []
    for name in _names(path / EVENTS_DIR):
        if not name.startswith("part-"):
            continue
        match = _PART.fullmatch(name)
        number = int(match[1]) if match else -1
        if number < 0 or f"{EVENTS_DIR}/{name}" != part_name(number):
            raise IncompleteData(f"{path / EVENTS_DIR / name}: not a name of a part: a copy, or renamed? Remove it")
        if number > limits.MAX_PART_NUMBER:
            raise IncompleteData(f"{path / EVENTS_DIR / name}: part numbers end at {limits.MAX_PART_NUMBER}")
        numbers.append(number)
    return sorted(numbers)


def check_free(path: Path, *, force: bool) -> None:
    """Check that a trace may be created at `path`: there is nothing, an empty directory or, with `force`, a trace.

    Raises:
        UsageError: there is something else, or a trace and `force` is off.
        NoPermission: it may not be read.
    """
    if path.is_symlink():
        raise UsageError(f"{path}: a symbolic link: give the name of the trace itself, or remove the link")
    if not path.exists():
        return
    if not force and looks_like_trace(path):
        raise UsageError(f"{path}: exists: choose another name or give --force")
    if foreign := _foreign(path):
        raise UsageError(f"{path}: exists and is not a trace ({foreign}): nothing was replaced; choose another name")


def make_trace_dir(path: Path, *, force: bool) -> None:
    """Create an empty trace directory at `path`; with `force`, an existing trace is replaced.

    Raises:
        UsageError: see `check_free`; nothing was removed.
        NoPermission: it may not be created.
    """
    check_free(path, force=force)
    remove_trace(path)
    with disk_errors(path):
        path.mkdir(mode=_DIR_MODE, parents=True)
        (path / EVENTS_DIR).mkdir(mode=_DIR_MODE)


def remove_trace(path: Path) -> None:
    """Remove the trace or empty directory at `path`, if it exists: only files that belong to a trace, one by one.

    Raises:
        UsageError: it contains something else; nothing was removed.
        NoPermission: it may not be read or removed.
    """
    if not path.exists():
        return
    check_free(path, force=True)
    with disk_errors(path):
        if path.is_file():
            path.unlink()
            return
        for name in _names(path / EVENTS_DIR):
            (path / EVENTS_DIR / name).unlink()
        for name in _names(path):
            (path / name).rmdir() if name == EVENTS_DIR else (path / name).unlink()
        path.rmdir()


def looks_like_trace(path: Path) -> bool:
    """Whether `path` has a meta.json of faultreplay, of any version, even a damaged one."""
    try:
        data = read_bytes_file((open_pack(path) if is_pack(path) else path) / META, MAX_META_BYTES, IncompleteData)
        return b'"schema_version"' in data
    except (FaultreplayError, OSError):
        return False


def _foreign(path: Path) -> str:
    """What in `path` does not belong to a trace, in words; an empty string: nothing."""
    if path.is_symlink() or not path.is_dir():
        if not path.is_symlink() and is_pack(path):
            return "" if looks_like_trace(path) else "a zip without a trace"
        return "not a directory"
    return _foreign_inside(path)


def _foreign_inside(path: Path) -> str:
    names = _names(path)
    for name in names:
        inside = path / name
        if name == EVENTS_DIR:
            if inside.is_symlink() or not inside.is_dir():
                return f"{name} is not a directory"
            for part in _names(inside):
                if not (_PART.fullmatch(part) or _LEFT_OVER.fullmatch(part)) or _is_dir(inside / part):
                    return f"it holds {name}/{part}"
        elif not (name in FILES or _LEFT_OVER.fullmatch(name)) or _is_dir(inside):
            return f"it holds {name}"
    if names and not looks_like_trace(path) and not set(names) <= {EVENTS_DIR}:
        return f"it has no {META} of faultreplay"
    return ""


def _is_dir(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _names(path: Location) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise NoPermission(f"{path}: {error.strerror}: traces are private to who recorded them") from None
