"""What a lab run is: mechanisms, parameters, and what comes out of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.lab_facts import LabFacts

MAX_ACCESSORS: Final = 64
MAX_PAGES: Final = 1 << 26
"""Of all accessors: 256 GiB of 4K pages."""
MAX_ACCESSES: Final = 1 << 27
"""Of all accessors: each leaves 40 bytes of truth."""
MAX_SIGMA: Final = 5
"""Of a lognormal fetch."""
PAGE_BYTES: Final = 4096


@dataclass(frozen=True)
class LabMechanism:
    """A real way to fill in missing memory. `handlers`: threads besides the accessors (None: as many as accessors)."""

    title: str
    handlers: int | None = 1
    process: bool = True
    granule_bytes: int = PAGE_BYTES
    file: bool = False
    """restored from a snapshot file"""
    around: bool = False
    """`granule_bytes` is what a fetch brings; accesses are to pages of 4 KiB"""


MECHANISMS: Final[dict[str, LabMechanism]] = {
    "uffd-missing": LabMechanism("userfaultfd MISSING over anonymous memory, UFFDIO_COPY"),
    "uffd-minor": LabMechanism("userfaultfd MINOR over shared memory, second mapping, UFFDIO_CONTINUE"),
    "uffd-sharded": LabMechanism("one userfaultfd and one handler per accessor, each over its own range", None),
    "kvm-exit": LabMechanism("UFFD_FEATURE_SIGBUS: KVM_RUN gives EFAULT, the vCPU thread resolves and re-enters", 0),
    "mmio-exit": LabMechanism("no memslot: MMIO exit, the vCPU thread fetches and adds one", 0, process=False),
    "host-lazy": LabMechanism("anonymous memory, filled in by the kernel alone", 0),
    "hugetlb-2m": LabMechanism("userfaultfd MISSING over 2 MiB huge pages", granule_bytes=2 << 20),
    "guest-memfd": LabMechanism("guest_memfd with MMAP|INIT_SHARED, filled in by the kernel alone", 0),
    "dirty-log": LabMechanism("populated memory; KVM_GET_DIRTY_LOG again and again", 1, process=False),
    "file-private": LabMechanism("private mapping of a snapshot file, filled in by the kernel alone", 0, file=True),
    "restore-copy": LabMechanism("all of a snapshot file read into anonymous memory before the start", 0, file=True),
    "uffd-handler-process": LabMechanism("uffd-missing whose handler is another process, as Firecracker's"),
    "uffd-fault-around": LabMechanism(
        "uffd-missing that brings the 64 KiB around a fault", granule_bytes=1 << 16, around=True
    ),
}
PREFETCH_TITLES: Final = {
    "prefetch-before": "prefetch: a recorded set of pages is brought before the start, the rest by --base",
    "prefetch-beside": "prefetch: a recorded set of pages is brought while accessors run, faults by --base",
}
PREFETCH_KINDS: Final = tuple(PREFETCH_TITLES)
PREFETCHED: Final = ("uffd-missing", "uffd-minor", "uffd-sharded", "uffd-fault-around", "hugetlb-2m", "file-private")
"""What prefetch can be over."""
WINDOW_TITLES: Final = {
    "pause": "window: all accessors are kicked out and held",
    "freeze": "window: memory is write-protected by userfaultfd, writers wait",
    "memslot-destroy": "window: the memslot is deleted and added again (guests only)",
}
WINDOW_KINDS: Final = tuple(WINDOW_TITLES)
WATCH: Final = "watch"  # a window that stops nothing: the control for the comparison of memory
_FAILURES = re.compile(r"(handler-exit|source-exit)@\d+|hugetlb-enomem")
ORDERS: Final = ("seq", "random", "uniform", "zipf", "chase", "bursts", "phases", "coalesce", "alike")


@dataclass(frozen=True)
class Window:
    """An interval, in ns from the start of the run, in which accesses are held up in the way `kind` says."""

    start_ns: int
    length_ns: int
    kind: str


@dataclass(frozen=True)
class LabSpec:
    """One run. A mechanism may also be the name of a window kind: that window over memory which `base` fills in."""

    mechanism: str = "uffd-missing"
    target: str = "kvm"
    vcpus: int = 1
    handlers: int | None = None  # None: what the mechanism needs
    pages: int = 1000  # granules per accessor; in all when shared
    shared: bool = False
    accesses: int | None = None  # per accessor; None: once a page, four times where the order repeats pages
    order: str = "seq"
    access: str = "r"  # r | w | rmw | mixed | mixed:SHARE_OF_WRITES
    think: str = "20us"  # 20us | exp:20us | file:PATH
    fetch: str = "200us"  # 200us | exp:MEAN | lognormal:MEAN:SIGMA | unix | tcp
    rate_bytes: int = 0  # of the page server, bytes/s; 0: no limit
    seed: int = 0
    pin: bool | None = None  # None: when there is a core for each thread
    nice: int = -20  # of the host program against all else on the host; 0: leave it alone
    windows: tuple[Window, ...] = ()
    base: str = "populated"  # under a mechanism that is a window: populated, or a mechanism's name
    workload: Path | None = None  # a trace to execute again, in place of order, think and access
    granule_bytes: int | None = None  # mmio-exit only
    spin_below_ns: int = 60_000  # a fetch shorter than this is spun, not slept
    timeout_ns: int = 10_000_000_000  # without progress for so long, the run is given up
    dirty_interval_ns: int = 10_000_000
    snapshot: str = "tmpfs"  # where the snapshot file lies: tmpfs | disk | DIRECTORY
    page_cache: str = "hot"  # of the snapshot file: hot | cold
    readahead: bool = True  # of a private mapping: off is MADV_RANDOM
    working_set: Path | None = None  # prefetch: what another lab trace touched, in that order
    working_set_seed: int | None = None  # prefetch: what a run with this seed would touch
    prefetchers: int = 1  # threads
    fail: str = ""  # handler-exit@MESSAGES | source-exit@PAGES | hugetlb-enomem

    def __post_init__(self) -> None:
        if self.mechanism not in (*MECHANISMS, *WINDOW_KINDS, *PREFETCH_KINDS):
            names = ", ".join([*MECHANISMS, *WINDOW_KINDS, *PREFETCH_KINDS])
            raise UsageError(f"'{self.mechanism}' is no lab mechanism: choose one of {names}")
        if self.base != "populated" and self.base not in MECHANISMS:
            raise UsageError(f"--base {self.base}: choose populated or one of {', '.join(MECHANISMS)}")
        if self.target not in ("kvm", "process"):
            raise UsageError(f"--target {self.target}: choose kvm or process")
        if not 1 <= self.vcpus <= MAX_ACCESSORS:
            raise UsageError(f"--vcpus {self.vcpus}: 1 to {MAX_ACCESSORS}")
        if self.handlers is not None and not 0 <= self.handlers <= MAX_ACCESSORS:
            raise UsageError(f"--handlers {self.handlers}: 0 to {MAX_ACCESSORS}")
        if not 1 <= self.pages <= MAX_PAGES // self.vcpus:
            raise UsageError(f"--pages {self.pages}: 1 to {MAX_PAGES // self.vcpus:,} with {self.vcpus} accessors")
        if self.accesses is not None and not 1 <= self.accesses <= MAX_ACCESSES // self.vcpus:
            most = MAX_ACCESSES // self.vcpus
            raise UsageError(f"--accesses {self.accesses}: 1 to {most:,} with {self.vcpus} accessors")
        if self.order not in ORDERS:
            raise UsageError(f"--order {self.order}: choose one of {', '.join(ORDERS)}")
        if self.target == "process" and (
            not MECHANISMS[self.real_mechanism].process or any(w.kind == "memslot-destroy" for w in self.all_windows)
        ):
            raise UsageError(f"{self.mechanism} needs a guest: leave out --target process")
        if self.fail and not _FAILURES.fullmatch(self.fail):
            raise UsageError(f"--fail {self.fail}: write handler-exit@MESSAGES, source-exit@PAGES or hugetlb-enomem")
        self._check_restore()
        for window in self.windows:
            if window.kind not in (*WINDOW_KINDS, WATCH):
                raise UsageError(f"window kind '{window.kind}': choose one of {', '.join(WINDOW_KINDS)}")

    def _check_restore(self) -> None:
        if self.page_cache not in ("hot", "cold"):
            raise UsageError(f"--page-cache {self.page_cache}: choose hot or cold")
        if self.page_cache == "cold" and self.snapshot == "tmpfs":
            raise UsageError("--page-cache cold: a file on tmpfs is always in memory: add --snapshot disk")
        if not 1 <= self.prefetchers <= MAX_ACCESSORS:
            raise UsageError(f"--prefetchers {self.prefetchers}: 1 to {MAX_ACCESSORS}")
        if not self.prefetch:
            return
        if self.real_mechanism not in PREFETCHED:
            raise UsageError(f"--base {self.base}: {self.mechanism} can be over {', '.join(PREFETCHED)}")
        if self.working_set is None and self.working_set_seed is None:
            raise UsageError(f"{self.mechanism}: which pages? --working-set TRACE, or --working-set-seed SEED")

    @property
    def prefetch(self) -> str:
        """`before`, `beside` or empty."""
        return self.mechanism.removeprefix("prefetch-") if self.mechanism in PREFETCH_KINDS else ""

    @property
    def needs_snapshot(self) -> bool:
        """Whether the run has a snapshot file."""
        return MECHANISMS[self.real_mechanism].file or self.fetch == "snapshot"

    @property
    def real_mechanism(self) -> str:
        """The mechanism that fills in memory."""
        if self.mechanism in MECHANISMS:
            return self.mechanism
        if self.mechanism in PREFETCH_KINDS:
            return "uffd-missing" if self.base == "populated" else self.base
        return "host-lazy" if self.base == "populated" else self.base

    @property
    def prewarm(self) -> bool:
        """Whether memory is there, and mapped for the guest, before the run."""
        return self.mechanism == "dirty-log" or (self.mechanism in WINDOW_KINDS and self.base == "populated")

    @property
    def all_windows(self) -> tuple[Window, ...]:
        """Windows asked for; a mechanism that is a window has by default one of 10 ms after 20 ms."""
        if self.windows or self.mechanism not in WINDOW_KINDS:
            return self.windows
        return (Window(20_000_000, 10_000_000, self.mechanism),)

    @property
    def real_handlers(self) -> int:
        """Handler threads the run has."""
        needed = MECHANISMS[self.real_mechanism].handlers
        if self.real_mechanism == "host-lazy":
            return int(any(w.kind == "freeze" for w in self.all_windows))  # someone must read the messages
        if needed == 0:
            return 0
        if needed is None:  # each accessor's userfaultfd has a handler, otherwise it would not be served
            return max(self.handlers or 0, self.vcpus)
        return self.handlers or needed

    @property
    def granule(self) -> int:
        """Bytes that one fetch fills in."""
        if self.real_mechanism in ("mmio-exit", "uffd-fault-around") and self.granule_bytes:
            return self.granule_bytes
        return MECHANISMS[self.real_mechanism].granule_bytes

    @property
    def stride(self) -> int:
        """How many 4 KiB pages the pages of the access lists are apart."""
        return 1 if MECHANISMS[self.real_mechanism].around else self.granule // PAGE_BYTES

    @property
    def pinned(self) -> bool:
        """Whether each thread gets a core of its own."""
        if self.pin is not None:
            return self.pin
        return self.vcpus + self.real_handlers <= len(os.sched_getaffinity(0))


@dataclass
class LabResult:
    """What a run gave. `problem` is empty when it went to its end and memory held what it must."""

    spec: LabSpec
    out: Path | None
    truth: pa.Table  # columns of faulttrace.schema.TRUTH
    services: npt.NDArray[np.void]  # a row a resolution: page, msg_ns, fetched_ns, placed_ns, faulter, handler, result
    lab: LabFacts
    windows: list[tuple[str, int, int]]  # kind, start_ns, end_ns as they really were
    problem: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def run_time_ns(self) -> int:
        """From the common start to the last access's end."""
        return int(self.lab["run_time_ns"])
