"""Compile once, keep it on disk where that is allowed, and work all the same where it is not."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

LONG_CODE_BYTES: Final = 4096
"""Bytecode from which compiling takes seconds, which is announced."""
_LOG: Final = logging.getLogger(__name__)  # not set up by anyone, logging writes a warning's bare words to stderr
_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(function: F) -> F:
    """`function` compiled by numba without the interpreter lock; cached on disk if any cache directory can be written.

    numba looks at NUMBA_CACHE_DIR, then beside the source, then in the user's cache. With none of them writable (a
    read-only
    root without a home) it refuses to decorate; then the code is compiled anew in each process.
    """
    try:
        compiled = numba.njit(cache=True, **_OPTIONS)(function)
        _stamp_with_all_sources(compiled)
        kept = True
    except (RuntimeError, OSError):
        compiled = numba.njit(**_OPTIONS)(function)
        kept = False
    return _Uncachable(compiled, function, kept)  # type: ignore[return-value]


def _stamp_with_all_sources(compiled: Any) -> None:
    """numba looks at the age of the function's own file only; what it folds in stands in the files beside it, too."""
    sources = sorted(Path(__file__).parent.parent.glob("*/*.py"))
    with contextlib.suppress(AttributeError, OSError):
        file = compiled._cache._cache_file
        file._source_stamp = (file._source_stamp, *(path.stat().st_mtime_ns for path in sources))


def inline(function: F) -> F:
    """A small helper that jitted code calls and LLVM folds into its caller."""
    return numba.njit(inline="always", **_OPTIONS)(function)  # type: ignore[no-any-return]


def part(function: F) -> F:
    """A larger helper that jitted code calls; kept with its caller's code."""
    return numba.njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


class _Uncachable:
    """Calls the compiled function; when the cache turns out to be full, damaged or unwritable, does without it."""

    def __init__(self, compiled: Any, plain: Callable[..., Any], kept: bool) -> None:
        self._compiled = compiled
        self._plain = plain
        self._kept = kept
        self._ready = False
        self.__doc__ = plain.__doc__

    def __call__(self, *arguments: Any) -> Any:
        if self._ready:
            return self._compiled(*arguments)
        with _said(self):
            try:
                result = self._compiled(*arguments)
            except OSError:
                self._compiled, self._kept = numba.njit(**_OPTIONS)(self._plain), False
                result = self._compiled(*arguments)
        self._ready = True
        return result

    @property
    def signatures(self) -> list[Any]:
        """The argument types compiled so far: one, if every caller keeps to the kernel's dtypes."""
        return list(self._compiled.signatures)


class _Listener(event.Listener):  # type: ignore[misc]
    """Says once that a long function is being compiled; a hit in the cache is no compilation."""

    def __init__(self, owner: _Uncachable) -> None:
        self._owner = owner
        self._quiet = False

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"] is self._owner._compiled and not self._quiet:
            self._quiet = True
            how = "once for this version" if self._owner._kept else "in each process: no cache can be written"
            _LOG.warning("compiling the replay engine, some 30 s (%s)", how)

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


@contextlib.contextmanager
def _said(owner: _Uncachable) -> Iterator[None]:
    worker = multiprocessing.parent_process() is not None  # its parent has announced it
    if worker or len(owner._plain.__code__.co_code) < LONG_CODE_BYTES:
        yield
        return
    with event.install_listener("numba:compile", _Listener(owner)):
        yield
