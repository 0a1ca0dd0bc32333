"""Whether exits, stage-2 faults and entries of each vCPU thread take turns: if not, lines are missing or doubled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from faultreplay.collect.importers.raw import Mark
from faultreplay.faulttrace.exits import EPT_VIOLATION, NPF
from faultreplay.faulttrace.schema import Kind

_EXIT, _ENTRY, _FAULT = int(Kind.KVM_EXIT), int(Kind.KVM_ENTRY), int(Kind.KVM_PAGE_FAULT)
_ARM_FAULT = int(Kind.KVM_GUEST_FAULT)
_OF_STAGE2 = (EPT_VIOLATION, NPF)


class Turns:
    """Fed with tables in the order of the file; counts what cannot follow one another."""

    def __init__(self) -> None:
        self.two_vcpus: tuple[int, int, int] | None = None
        """(thread, vCPU, other vCPU): entered one after the other without an exit between."""
        self._turns, self._faultless, self._begun = Mark(), Mark(), Mark()
        self._kinds: set[int] = set()
        self._last: dict[int, tuple[int, int, int]] = {}  # thread -> kind, vCPU and code of its last of these

    def feed(self, table: pa.Table, lines: npt.NDArray[np.int64]) -> None:
        """The next rows (columns of `EVENTS`) and the lines that they are from."""
        frame = pl.DataFrame({name: pl.from_arrow(table[name]) for name in ("tid", "kind", "vcpu", "code")})
        frame = frame.with_columns(pl.col("kind").replace(_ARM_FAULT, _FAULT), line=pl.Series(lines)).filter(
            pl.col("kind").is_in((_EXIT, _ENTRY, _FAULT))
        )
        if not frame.height:
            return
        self._kinds |= set(frame["kind"].unique().to_list())
        for (tid,), mine in frame.group_by("tid", maintain_order=True):
            self._thread(int(tid), mine)

    def words(self) -> list[str]:
        """What was found, where the source has the kinds of event that it takes to see it."""
        found = []
        if self._turns.count and {_EXIT, _ENTRY} <= self._kinds:
            found.append(
                f"in {self._turns.count:,} places kvm_exit, kvm_page_fault and kvm_entry of a thread do not alternate "
                f"(the first: line {self._turns.line}): events are missing there, or stand there twice"
            )
        if self._faultless.count and self._kinds >= {_EXIT, _ENTRY, _FAULT}:
            found.append(
                f"{self._faultless.count:,} exits for a stage-2 fault have no kvm_page_fault (the first is entered "
                f"again in line {self._faultless.line}): it is missing there, or a nested guest's"
            )
        if self._begun.count and _EXIT in self._kinds:
            found.append(
                f"the source begins within a stage-2 fault of {self._begun.count:,} threads (the first: line "
                f"{self._begun.line}): the exit before it is missing, so its stall is too short"
            )
        unended = sum(kind == _FAULT for kind, _, _ in self._last.values())
        if unended and _ENTRY in self._kinds:
            found.append(f"the source ends within a stage-2 fault of {unended:,} threads, before their kvm_entry")
        return found

    def _thread(self, tid: int, mine: pl.DataFrame) -> None:
        kind, vcpu = mine["kind"].to_numpy().astype(np.int64), mine["vcpu"].to_numpy()
        code = mine["code"].to_numpy().astype(np.int64)
        before_kind, before_vcpu, before_code = self._last.get(tid, (-1, -1, 0))
        earlier = np.concatenate([[before_kind], kind[:-1]])
        inside = (earlier == _EXIT) | (earlier == _FAULT)
        entered = earlier == _ENTRY
        broken = ((kind == _EXIT) & inside) | ((kind != _EXIT) & entered)
        faultless = (kind == _ENTRY) & (earlier == _EXIT)
        faultless &= np.isin(np.concatenate([[before_code], code[:-1]]), _OF_STAGE2)
        begun = (kind == _FAULT) & (earlier < 0)
        for mark, which in ((self._turns, broken), (self._faultless, faultless), (self._begun, begun)):
            where = np.flatnonzero(which)
            if len(where):
                mark.add(int(mine["line"][int(where[0])]), len(where))
        earlier_vcpu = np.concatenate([[before_vcpu], vcpu[:-1]])
        other = np.flatnonzero((kind == _ENTRY) & entered & (vcpu >= 0) & (earlier_vcpu >= 0) & (vcpu != earlier_vcpu))
        if len(other) and self.two_vcpus is None:
            self.two_vcpus = (tid, int(earlier_vcpu[other[0]]), int(vcpu[other[0]]))
        self._last[tid] = (int(kind[-1]), int(vcpu[-1]), int(code[-1]))
