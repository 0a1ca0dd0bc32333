"""Access lists and the clock: what the guest is told to do, and how its ticks become ns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faultreplay.faulttrace.errors import MissingFeature, UsageError
from faultreplay.lab import build
from faultreplay.lab.lists import OP_ABSOLUTE, make_lists
from faultreplay.lab.runner import fetch_argument
from faultreplay.lab.spec import LabSpec
from faultreplay.lab.truth import Clock


def pages_of(**options: object) -> np.ndarray:
    return make_lists(LabSpec(**options))[0][0].page  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["seq", "random", "chase", "bursts"])
def test_each_page_is_touched_once_a_round(order: str) -> None:
    page = pages_of(pages=97, accesses=194, order=order)
    assert sorted(page[:97]) == list(range(97))
    assert sorted(page[97:]) == list(range(97))


def test_a_chase_walks_the_same_cycle_and_random_does_not() -> None:
    chase, random = (pages_of(pages=97, accesses=194, order=order) for order in ("chase", "random"))
    assert (chase[:97] == chase[97:]).all()
    assert (random[:97] != random[97:]).any()


def test_zipf_prefers_few_pages_and_uniform_none() -> None:
    drawn = [pages_of(pages=100, accesses=20000, order=order) for order in ("zipf", "uniform")]
    zipf, uniform = (np.bincount(page, minlength=100) for page in drawn)
    assert zipf.max() > 20000 / np.sum(1 / np.arange(1, 101)) * 0.9
    assert uniform.max() < 300


def test_phases_move_through_the_pages() -> None:
    page = pages_of(pages=100, accesses=400, order="phases")
    for phase in range(4):
        part = page[phase * 100 : (phase + 1) * 100]
        assert part.min() >= phase * 25
        assert part.max() < (phase + 1) * 25


def test_private_pages_are_disjoint_and_shared_ones_common() -> None:
    private, total = make_lists(LabSpec(vcpus=3, pages=10))
    assert total == 30
    assert sorted(np.concatenate([a.page for a in private])) == list(range(30))
    shared, total = make_lists(LabSpec(vcpus=3, pages=10, shared=True))
    assert total == 10
    assert all(sorted(a.page) == list(range(10)) for a in shared)


def test_huge_granules_lie_apart() -> None:
    lists, total = make_lists(LabSpec(mechanism="hugetlb-2m", pages=3))
    assert list(lists[0].page) == [0, 512, 1024]
    assert total == 3 * 512


def test_bursts_keep_the_total_think_time() -> None:
    think = make_lists(LabSpec(pages=100, order="bursts", think="10us"))[0][0].think_ns
    assert think.sum() == 100 * 10_000
    assert np.count_nonzero(think) == 7  # 6 bursts of 16 and one of 4


def test_coalescing_accesses_share_their_moments() -> None:
    first, second = make_lists(LabSpec(vcpus=2, pages=50, order="coalesce", think="100us"))[0]
    assert (first.page == second.page).all()
    assert (first.think_ns == second.think_ns).all()
    assert (first.op & OP_ABSOLUTE).all()


def test_same_seed_same_lists_other_seed_others() -> None:
    one, same, other = (pages_of(pages=50, order="random", seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_every_op_is_unique_across_accessors() -> None:
    lists, _ = make_lists(LabSpec(vcpus=4, pages=100, access="mixed"))
    ops = np.concatenate([a.op for a in lists])
    assert len(np.unique(ops)) == 400


def test_think_times_exponential_and_from_a_file(tmp_path: Path) -> None:
    think = make_lists(LabSpec(pages=20000, think="exp:20us"))[0][0].think_ns
    assert 19_000 < think.mean() < 21_000
    assert 18_000 < think.std() < 22_000
    (tmp_path / "think").write_text("10us\n20us\n30us\n")
    think = make_lists(LabSpec(pages=7, think=f"file:{tmp_path}/think"))[0][0].think_ns
    assert list(think) == [10_000, 20_000, 30_000, 10_000, 20_000, 30_000, 10_000]


@pytest.mark.parametrize(
    "options",
    [
        {"think": "gauss:3us"}, {"access": "x"}, {"access": "mixed:lots"}, {"think": "file:/does/not/exist"},
        {"mechanism": "magic"}, {"vcpus": 0}, {"pages": 0}, {"order": "spiral"}, {"fail": "fire"}, {"target": "moon"},
    ],
)  # fmt: skip
def test_a_bad_word_is_named(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(options.values()))).split(":", maxsplit=1)[0]):
        make_lists(LabSpec(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("200us", "fixed:200000"),
        ("0", "fixed:0"),
        ("exp:1ms", "exp:1000000"),
        ("lognormal:200us:0.7", "lognormal:200000:0.7"),
    ],
)
def test_fetch_words(text: str, argument: str) -> None:
    assert fetch_argument(text) == argument


def test_bad_fetch_words() -> None:
    for text in ("pareto:3us", "lognormal:200us:wide"):
        with pytest.raises(UsageError, match="--fetch"):
            fetch_argument(text)


def test_clock_maps_ticks_to_ns_and_bounds_its_error() -> None:
    rng = np.random.default_rng(0)
    tsc = np.sort(rng.integers(10**12, 10**12 + 2_100_000_000, 20))
    true_ns = 5_000_000 + (tsc - 10**12) / 2.1
    jitter = rng.integers(-20, 21, 20)
    pairs = [[int(t), int(n + j), 42] for t, n, j in zip(tsc, true_ns, jitter, strict=True)]
    clock = Clock(pairs)
    got = clock.to_ns(tsc.astype(np.uint64))
    assert np.abs(got - true_ns).max() <= clock.error_ns
    assert clock.error_ns < 100
    assert clock.to_ns(np.array([10**12], dtype=np.uint64))[0] == pytest.approx(5_000_000, abs=100)


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(MissingFeature, match=r"no-such-compiler.*apt install gcc") as caught:
        build.build()
    assert "\n" not in str(caught.value)


def test_other_machines_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(MissingFeature, match="x86-64"):
        build.build()


def test_every_shard_has_a_handler() -> None:
    assert LabSpec(mechanism="uffd-sharded", vcpus=3, handlers=1).real_handlers == 3
    assert LabSpec(mechanism="uffd-sharded", vcpus=3, handlers=6).real_handlers == 6
    assert LabSpec(mechanism="uffd-missing", vcpus=3).real_handlers == 1
    assert LabSpec(mechanism="kvm-exit", vcpus=3, handlers=2).real_handlers == 0
