"""One input through the command line, and what it came to. Used in a process of its own that a parent watches."""

from __future__ import annotations

import contextlib
import io
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from faultreplay.cli import main as cli

Outcome = Literal["refused", "accepted", "noted", "silent", "traceback"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("refused", "accepted", "noted", "silent", "traceback")
"""refused: one clear line and an exit code of the documented ones; accepted: exit 0, the numbers that are known, or
none are; noted: other numbers, and a note that says why; silent: other numbers without a word; traceback: an internal
error, an undocumented exit code or an error of several lines. A hang is what the parent sees."""
_EXIT_CODES: Final = (0, 1, 2, 3, 4, 5, 77)
_STEERING: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Ran:
    """What a call of the command line left."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What is wrong with the way it ended, whatever it was given; empty: nothing."""
        if self.code not in _EXIT_CODES:
            return f"exit code {self.code}"
        if "internal error" in self.err or "Traceback" in self.err:
            return self.err.strip()[-300:]
        lines = [line for line in self.err.splitlines() if line.startswith(("error:", "Error:"))]
        if self.code not in (0, 130) and len(lines) != 1:
            return f"exit code {self.code} with {len(lines)} lines of error"
        steering = {c for c in self.out + self.err if c not in "\n\t" and unicodedata.category(c) in _STEERING}
        if steering:
            return f"control characters printed: {sorted(map(repr, steering))}"
        return ""


def call(*words: str) -> Ran:
    """The command line in this process, its output caught."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli._exit_code(list(words))
        except SystemExit as ended:  # nothing may leave this way
            code = ended.code if isinstance(ended.code, int) else 1
            err.write("Traceback: SystemExit")
    return Ran(code, out.getvalue(), err.getvalue())


def plain_outcome(*runs: Ran) -> tuple[Outcome, str]:
    """Of runs whose numbers nobody can judge."""
    for ran in runs:
        if ran.complaint:
            return "traceback", ran.complaint
    return ("refused", "") if any(ran.code for ran in runs) else ("accepted", "")


@dataclass(frozen=True)
class Numbers:
    """What `compare --format json` says of a trace."""

    records: str
    notes: frozenset[str]

    @classmethod
    def of(cls, ran: Ran) -> Numbers:
        """The numbers of a run that ended well."""
        whole = json.loads(ran.out)
        return cls(json.dumps(whole["records"], sort_keys=True), frozenset(whole["notes"]))


def compared(trace: Path, right: Numbers | None) -> tuple[Outcome, str, Numbers | None]:
    """A trace through `inspect` and `compare`, compared with the numbers of the undamaged one."""
    looked = call("inspect", str(trace), "--format", "json")
    ran = call("compare", str(trace), "-m", "uffd-missing,kvm-exit", "--format", "json")
    outcome, why = plain_outcome(looked, ran)
    if outcome != "accepted":
        return outcome, why, None
    found = Numbers.of(ran)
    if right is None or found.records == right.records:
        return "accepted", "", found
    if found.notes - right.notes:
        return "noted", "", found
    return "silent", "other numbers, and no note that the undamaged trace has not", found
