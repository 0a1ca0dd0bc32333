"""Lab runs made only to calibrate: small, each for a few costs, all of them in two minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from faulttrace.errors import MissingFeature
from faulttrace.store import Trace, open_trace

if TYPE_CHECKING:
    from lab.spec import LabSpec

_MS: Final = 1_000_000
_WINDOWS: Final = 16  # a run; two sizes of memory and two runs of each make 64


def micro_specs() -> dict[str, LabSpec]:
    """Name -> what to run. Handlers sleep through the fetch, as they do on a network: a CPU they hog costs others."""
    from lab.spec import LabSpec, Window

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
    for pages in (500, 4000):
        for kind in ("freeze", "memslot-destroy", "pause"):
            specs[f"{kind}-{pages}"] = LabSpec(
                kind, vcpus=1, pages=pages, access="w", order="uniform", accesses=6000, windows=windows(kind)
            )
    return specs


@contextmanager
def micro_traces(say: Callable[[str], None]) -> Iterator[list[Trace]]:
    """Run them all and give the traces, which live as long as the body.

    Raises:
        MissingFeature, NoPermission: not even one can run here.
    """
    from collect.backends import kept_attached
    from lab.runner import run

    with TemporaryDirectory(prefix="faultreplay-calibrate-") as folder, kept_attached():
        traces, missing = [], []
        for name, spec in micro_specs().items():
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
        if not traces:
            raise MissingFeature(missing[0] if missing else "no lab run came to its end: faultreplay lab run says more")
        yield traces
