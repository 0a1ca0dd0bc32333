"""Lab runs made only to calibrate: small, each for a few costs, all of them in half a minute."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
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
AT_ONCE: Final = ", at once"
_FETCHING: Final = ("uffd-missing", "kvm-exit", "mmio-exit")


@dataclass(frozen=True)
class MicroTraces:
    """What the runs left."""

    quiet: list[Trace]
    contended: list[Trace]

    def by_fetch(self) -> tuple[list[Trace], list[Trace]]:
        """Of the quiet ones those that slept through a fetch, and those that had it at once."""
        fetching = {trace: spec["fetch"] for trace in self.quiet if (spec := _spec(trace))["mechanism"] in _FETCHING}
        at_once = [trace for trace, fetch in fetching.items() if fetch == "0us"]
        return [trace for trace in fetching if trace not in at_once], at_once


def _spec(trace: Trace) -> Mapping[str, str]:
    spec = trace.meta.lab.get("spec")
    return spec if isinstance(spec, dict) else {"mechanism": "", "fetch": ""}


def micro_specs() -> dict[str, LabSpec]:
    """Name -> what to run: handlers that sleep through the fetch, as on a network, and ones that have it at once.

    After a sleep a CPU is idle more deeply and its caches are colder: the same step takes up to three times as long, or
    a half. Each run of which that holds is made both ways; what they differ by is in the costs' ranges.
    There is no run of uffd-minor: its placing ioctl would blur that of the others. guest-memfd and dirty-log have no
    cost that a mechanism charges.
    """
    from faultreplay.lab.spec import LabSpec, Window

    def windows(kind: str) -> tuple[Window, ...]:
        return tuple(Window((5 + 8 * n) * _MS, 2 * _MS, kind) for n in range(_WINDOWS))

    specs = {
        "host-lazy": LabSpec("host-lazy", vcpus=1, pages=1000),
        "host-lazy-write": LabSpec("host-lazy", vcpus=1, pages=1000, access="w"),
    }
    for name, fetch in (("", "200us"), (AT_ONCE, "0us")):
        # One accessor: the handler is always idle. Two: it never is.
        specs["uffd-idle" + name] = LabSpec("uffd-missing", vcpus=1, handlers=1, pages=1000, fetch=fetch)
        specs["uffd-busy" + name] = LabSpec("uffd-missing", vcpus=2, handlers=1, pages=500, fetch=fetch)
        specs["kvm-exit" + name] = LabSpec("kvm-exit", vcpus=1, pages=500, fetch=fetch)
        specs["mmio-exit" + name] = LabSpec("mmio-exit", vcpus=1, pages=300, fetch=fetch)
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
    """What is started in the block has this many cores: with more, no thread would wait for one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:_CONTENDED_CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
