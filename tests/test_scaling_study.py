"""The study's models keep the shapes that the published figures show (docs/scaling.md)."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from faultreplay.replay.language.mechanism import load_mechanism

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_study", BENCHMARKS / "scaling_study.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_study"] = module
    spec.loader.exec_module(module)
    module.PAGES = {2: 300, 8: 200, 64: 100}
    return module


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "mechanisms").glob("*.toml")), ids=lambda p: p.stem)
def test_the_models_are_valid_mechanisms(path: Path) -> None:
    assert load_mechanism(str(path)).paths["missing"]


def test_published_figures_name_their_source() -> None:
    published = tomllib.loads((BENCHMARKS / "published.toml").read_text())
    assert published["houghton"]["message_id"].endswith("@google.com")
    blocks = [b for b in published["houghton"].values() if isinstance(b, dict)]
    assert sum(len(row) for b in blocks for row in b.values() if isinstance(row, list)) == 42
    assert all(rates == sorted(rates, reverse=True) for b in blocks for rates in b.values() if isinstance(rates, list))


@pytest.mark.parametrize("law", ["share", "line"])
def test_shapes(study: ModuleType, law: str) -> None:
    fit = study.Fit(law, lock=800.0)

    def stall_us(row: str, vcpus: int, block: str = "anon-one-uffd") -> float:
        return 1e6 / float(study.predict(block, row, fit, vcpus))

    # a single reader is one server: the stall is in proportion to the vCPUs
    assert stall_us("single-reader", 64) / stall_us("single-reader", 8) == pytest.approx(8, rel=0.15)
    # more readers help at 8 vCPUs and harm at 64
    assert stall_us("several-readers", 8) < stall_us("single-reader", 8)
    assert stall_us("several-readers", 64) > stall_us("single-reader", 64)
    # a userfaultfd each keeps the wake from walking over the others
    assert stall_us("several-readers", 64, "shmem-uffd-per-vcpu") < stall_us("several-readers", 64) / 4
    # exits scale with the host's own faults
    assert stall_us("kvm-userfault", 64) < stall_us("no-userfault", 64) * 1.5
    # and those do not pass about three million pages/s
    assert 64 / stall_us("no-userfault", 64) == pytest.approx(3, rel=0.15)
