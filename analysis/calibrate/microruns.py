"""Lab runs made only to calibrate: small, each for a few costs, all of them in half a minute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from faultreplay.faulttrace.errors import MissingFeature
from faultreplay.faulttrace.store import Trace, open_trace

if TYPE_CHECKING:
    from faultreplay.lab.spec import LabSpec

_MS: Final = 1_000_000
_WINDOWS: Final = 16  # a run, and the most it takes; two sizes of memory and two runs of each make 64 of each kind
_CONTENDED_CORES: Final = 2


@dataclass(frozen=True)
class MicroTraces:
    """What the runs left."""

    quiet: list[Trace]
    contended: list[Trace]


def micro_specs() -> dict[str, LabSpec]:
    """Name -> what to run. Handlers sleep through the fetch, as they do on a network: a CPU they hog costs others.

    There is no run of uffd-minor: its placing ioctl would blur that of the others. guest-memfd and dirty-log have no
    cost that a mechanism charges.
    """
    from faultreplay.lab.spec import LabSpec, Window

    def windows(kind: str) -> tuple[Window, ...]:
        return tuple(Window((5 + 8 * n) * _MS, 2 * _MS, kind) for n in range(_WINDOWS))

    specs = {
        # One accessor: the handler is always idle. Two: it never is.
        "uffd-idle": LabSpec("uffd-missing", vcpus=1, handlers=1, pages=1000, fetch="100us"),
        "uffd-busy": LabSpec("uffd-missing", vcpus=2, handlers=1, pages=500, fetch="200us"),
        "kvm-exit": LabSpec("kvm-exit", vcpus=1, pages=500, fetch="100us"),
        "mmio-exit": LabSpec("mmio-exit", vcpus=1, pages=300, fetch="100us"),
        "host-lazy": LabSpec("host-lazy", vcpus=1, pages=1000),
        "host-lazy-write": LabSpec("host-lazy", vcpus=1, pages=1000, access="w"),
    }
    for pages, kind, seed in product((500, 4000), ("freeze", "memslot-destroy", "pause"), (1, 2)):
        specs[f"{kind}-{pages}-{seed}"] = LabSpec(
            kind, vcpus=1, pages=pages, access="w", order="uniform", accesses=6000, windows=windows(kind), seed=seed
        )
    return specs


def contended_specs() -> dict[str, LabSpec]:
    """Runs with more threads than cores (they get two), so that woken threads find another one on their CPU."""
    from faultreplay.lab.spec import LabSpec

    return {
        "uffd-sharded": LabSpec("uffd-sharded", vcpus=2, pages=500, fetch="200us", pin=False),
        "contended": LabSpec("uffd-missing", vcpus=2, handlers=1, pages=500, fetch="0us", pin=True),
    }


@contextmanager
def micro_traces(say: Callable[[str], None]) -> Iterator[MicroTraces]:
    """Run them all and give the traces, which live as long as the body.

    Raises:
        MissingFeature, NoPermission: not even one can run here.
    """
    from faultreplay.collect.backends.backends import kept_attached
    from faultreplay.lab.runner import run

    with TemporaryDirectory(prefix="faultreplay-calibrate-") as folder, kept_attached():
        missing: list[str] = []

        def made(specs: dict[str, LabSpec]) -> list[Trace]:
            traces = []
            for name, spec in specs.items():
                say(f"lab: {name}")
                path = Path(folder) / f"{name}.trace"
                try:
                    result = run(spec, path)
                except MissingFeature as error:
                    say(f"  left out: {error}")
                    missing.append(str(error))
                    continue
                if result.problem:
                    say(f"  left out: {result.problem}")
                    continue
                traces.append(open_trace(path))
            return traces

        quiet = made(micro_specs())
        if not quiet:
            raise MissingFeature(missing[0] if missing else "no lab run came to its end: faultreplay lab run says more")
        with _few_cores():
            contended = made(contended_specs())
        yield MicroTraces(quiet, contended)


@contextmanager
def _few_cores() -> Iterator[None]:
    """What is started meanwhile has so many cores: on a host with more, nobody would wait for one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:_CONTENDED_CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
