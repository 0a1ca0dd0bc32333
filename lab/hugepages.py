"""Huge pages of 2 MiB for a run: reserved where that is allowed, given back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from faultreplay.faulttrace.errors import MissingFeature

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@contextlib.contextmanager
def reserved(count: int) -> Iterator[None]:
    """At least `count` free huge pages while the body runs.

    Raises:
        MissingFeature: the kernel has no huge pages of 2 MiB, or not enough of them.
    """
    if count == 0:
        yield
        return
    if not _POOL.exists():
        raise MissingFeature("hugetlb-2m: this kernel has no huge pages of 2 MiB (CONFIG_HUGETLBFS)")
    before, free = _read("nr_hugepages"), _read("free_hugepages") - _read("resv_hugepages")
    if free >= count:
        yield
        return
    with contextlib.suppress(PermissionError):
        (_POOL / "nr_hugepages").write_text(str(before + count - free))
    try:
        have = _read("free_hugepages") - _read("resv_hugepages")
        if have < count:
            raise MissingFeature(
                f"hugetlb-2m: {count} free huge pages of 2 MiB are needed, {have} are there: "
                f"echo {before + count - free} > /proc/sys/vm/nr_hugepages as root"
            )
        yield
    finally:
        with contextlib.suppress(PermissionError):
            (_POOL / "nr_hugepages").write_text(str(before))


def _read(name: str) -> int:
    return int((_POOL / name).read_text())
