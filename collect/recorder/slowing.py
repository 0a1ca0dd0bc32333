"""How much the programs slow the targets down, where it is much: under bpftrace, which prints each event."""

from __future__ import annotations

from typing import Any

from faultreplay.collect.backends.backend import Backend
from faultreplay.collect.targets import proc


class Slowing:
    """Sums the programs' own time and the targets' CPU time; `look` now and then, since targets end."""

    def __init__(self, backend: Backend, tgids: list[int]) -> None:
        self._program_time = getattr(backend, "program_time", lambda: None)
        self._first = {tgid: proc.cpu_ns(tgid) for tgid in tgids}
        self._last = dict(self._first)

    def look(self, tgids: set[int]) -> None:
        """Take the CPU time of these processes, as long as they live."""
        for tgid in tgids:
            now = proc.cpu_ns(tgid)
            self._first.setdefault(tgid, 0)
            self._last[tgid] = max(now, self._last.get(tgid, 0))

    def told(self) -> dict[str, Any] | None:
        """For `meta.json`; None where the backend or the kernel does not count."""
        found = self._program_time()
        if found is None:
            return None
        program_ns, runs = found
        target_ns = sum(self._last[tgid] - self._first[tgid] for tgid in self._last)
        return {"program_ns": program_ns, "runs": runs, "target_cpu_ns": target_ns}
