"""Compile once, keep it on disk where that is allowed, and work all the same where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(function: F) -> F:
    """`function` compiled by numba without the interpreter lock; cached on disk if any cache directory can be written.

    numba looks at NUMBA_CACHE_DIR, then beside the source, then in the user's cache. With none of them writable (a
    read-only
    root without a home) it refuses to decorate; then the code is compiled anew in each process.
    """
    try:
        compiled = numba.njit(cache=True, **_OPTIONS)(function)
    except (RuntimeError, OSError):
        compiled = numba.njit(**_OPTIONS)(function)
    return _Uncachable(compiled, function)  # type: ignore[return-value]


def inline(function: F) -> F:
    """A small helper that jitted code calls and LLVM folds into its caller."""
    return numba.njit(inline="always", **_OPTIONS)(function)  # type: ignore[no-any-return]


class _Uncachable:
    """Calls the compiled function; when the cache turns out to be full, damaged or unwritable, does without it."""

    def __init__(self, compiled: Any, plain: Callable[..., Any]) -> None:
        self._compiled = compiled
        self._plain = plain
        self.__doc__ = plain.__doc__

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._compiled(*arguments)
        except OSError:
            self._compiled = numba.njit(**_OPTIONS)(self._plain)
            return self._compiled(*arguments)

    @property
    def signatures(self) -> list[Any]:
        """The argument types compiled so far: one, if every caller keeps to the kernel's dtypes."""
        return list(self._compiled.signatures)
