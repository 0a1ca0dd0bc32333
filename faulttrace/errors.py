"""All errors that a user can see, each with its exit code.

A message is one line that says what is wrong and how to fix it; the command line prints only that line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FaultreplayError(Exception):
    """A run-time error (exit 1). The base of all errors shown to a user."""

    exit_code = 1


class UsageError(FaultreplayError):
    """The command line or a user's file asks for something that does not exist (exit 2)."""

    exit_code = 2


class ThresholdExceeded(FaultreplayError):
    """A result exceeds a limit that the user set, such as --max-error (exit 3)."""

    exit_code = 3


class IncompleteData(FaultreplayError):
    """A trace or file is truncated, damaged, of another version or too lossy (exit 4)."""

    exit_code = 4


class MissingFeature(FaultreplayError):
    """The kernel, the machine or a tool lacks what was requested (exit 5)."""

    exit_code = 5


class NoPermission(FaultreplayError):
    """The user may not do this here (exit 77)."""

    exit_code = 77


def nearest(word: str, known: Iterable[str]) -> str:
    """`` did you mean 'x'?`` for an unknown name that is close to a known one; else nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" did you mean '{found[0]}'?" if found else ""
