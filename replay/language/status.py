"""The upstream status of a mechanism, as its file gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from faultreplay.replay.language.reading import TomlFile, shown

STATES: Final = {
    "merged": "merged upstream",
    "proposed": "posted as patches; no merge is known here",
    "idea": "an idea on a list, without code",
    "userspace": "no change of the kernel",
    "none": "no mechanism: a bound to compare others with",
    "unknown": "not known",
}
"""Words of ``is`` and what they mean."""


@dataclass(frozen=True)
class Status:
    """Upstream status; `source` is where that is said."""

    state: str
    """a word of `STATES`"""
    words: str = ""
    """since which release, or which version of the series and when"""
    source: str = ""

    def __str__(self) -> str:
        return f"{STATES[self.state]}: {self.words}" if self.words else STATES[self.state]


UNKNOWN: Final = Status("unknown")


def read_status(file: TomlFile, entry: Any) -> Status:
    """``status = { is = "merged", words = "Linux 4.3", source = "userfaultfd(2)" }``; None: unknown.

    Raises:
        UsageError: another word, or a claim without a source.
    """
    if entry is None:
        return UNKNOWN
    entry = file.known(entry, ("is", "words", "source"), "status")
    state, words, source = (file.words(entry.get(key, ""), "status", key) for key in ("is", "words", "source"))
    if state not in STATES:
        raise file.fail(f"{shown(state)} is none of {', '.join(STATES)}", "status", "is")
    if state in ("merged", "proposed", "idea") and not source:
        raise file.fail("says no source: where is that said?", "status")
    return Status(state, words, source)
