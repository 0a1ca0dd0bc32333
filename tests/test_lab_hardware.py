"""The lab's guest under hardware-style paging: kvm_amd with nested paging, in Debian's 6.1 under QEMU (TCG)."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest

from faultreplay.lab.build import SOURCES
from faultreplay.lab.lists import make_lists, write_lists
from faultreplay.lab.spec import LabSpec
from faultreplay.lab.truth import verify

ROOT = Path(__file__).parent.parent
RUNS = {
    "uffd-missing": "mechanism=uffd-missing",
    "uffd-minor": "mechanism=uffd-minor",
    "kvm-exit": "mechanism=kvm-exit",
    "mmio-exit": "mechanism=mmio-exit",
    "host-lazy": "mechanism=host-lazy",
    "guest-memfd": "mechanism=guest-memfd",
    "freeze": "mechanism=host-lazy prewarm=1 windows=3000000+20000000:freeze",
    "memslot-destroy": "mechanism=host-lazy prewarm=1 windows=3000000+20000000:memslot-destroy",
    "pause": "mechanism=uffd-missing windows=30000000+20000000:pause",
}
LACKING = {"guest-memfd": "guest-memfd: this kernel has no guest_memfd"}
INSIDE = """#!/bin/sh
# inside.sh SHARE: run each line of SHARE/runs (name, then arguments) in the booted kernel
modprobe kvm_amd
while read -r name words; do
    mkdir -p "$1/$name"
    (sleep 1; echo; sleep 4; echo) | timeout 20 "$1/labhost" target=kvm handlers=1 granule=4096 seed=1 \\
        spin_below_ns=60000 timeout_ns=8000000000 fetch=fixed:200000 list="$1/lists.bin" out="$1/$name" $words \\
        >"$1/$name/said" 2>"$1/$name/error"
done <"$1/runs"
true
"""


@pytest.mark.slow
@pytest.mark.live
def test_every_mechanism_under_nested_paging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts/kernels"))
    boot, debian = importlib.import_module("boot"), importlib.import_module("debian")
    if lacking := boot.missing_tools():
        pytest.skip(f"needs {', '.join(lacking)}")
    try:
        kernel = debian.fetch("6.1")
    except debian.KernelUnavailable as error:
        pytest.skip(f"needs a Debian kernel: {error}")
    sources = [str(file) for file in sorted(SOURCES.glob("*.c"))]
    command = ["cc", "-O2", "-w", "-static", "-pthread", "-o", str(tmp_path / "labhost"), *sources, "-lm"]
    subprocess.run(command, check=True)
    lists, pages = make_lists(LabSpec(vcpus=2, pages=101, accesses=202, order="random", access="mixed", think="200us"))
    write_lists(tmp_path / "lists.bin", lists)
    (tmp_path / "runs").write_text("".join(f"{name} pages={pages} {words}\n" for name, words in RUNS.items()))
    (tmp_path / "inside.sh").write_text(INSIDE)
    boot.boot(kernel, tmp_path / "inside.sh", tmp_path, args=(str(tmp_path),))
    for name in RUNS:
        error = (tmp_path / name / "error").read_text()
        if name in LACKING:
            assert error.startswith(LACKING[name])
            continue
        assert error == "", f"{name}: {error}"
        done = json.loads((tmp_path / name / "said").read_text().splitlines()[-1])
        assert done["problem"] == "", name
        assert [a["done"] for a in done["accessors"]] == [1, 1], name
        found = verify(tmp_path / name, lists, zero_filled=bool(done["zero_filled"]), atomic=True)
        assert found == {"pages_touched": 202, "pages_present": 202} | dict.fromkeys(list(found)[2:], 0), name
        for window in done["windows"]:
            assert (window["ran"], window["pages_changed"]) == (1, 0), name
        exits = {"kvm-exit": "efault_exits", "mmio-exit": "mmio_exits"}.get(name)
        if exits:
            assert [a[exits] for a in done["accessors"]] == [101, 101]
