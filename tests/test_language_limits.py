"""Every bound of mechanism and cost files from both its sides, and what is charged for a cost that is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from made_mechanisms import HEAD, write_mechanism
from made_traces import uffd_faults, write_trace

from faultreplay.cli import main as cli
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.engine.engine import simulate
from faultreplay.replay.language.checks import check_mechanism
from faultreplay.replay.language.costs import Cost, load_costs
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.workload.workload import make_workload

MOST_TIMES = 1 << 20


def stages(*lines: str) -> str:
    return "".join(f"[[paths.missing]]\n{line}\n" for line in lines)


def param(low: int, high: int, unit: str = "pages") -> str:
    return f'[params.n]\ndefault = {low}\nmin = {low}\nmax = {high}\nunit = "{unit}"\nhelp = "h"\n'


RETRY = 'retry = "again"\nchance = {chance}\nmost = {most}'
WAKE = 'wake = "1us"'
AGAIN = 'delay = "1us"\nlabel = "again"'
POOL = '[resources.pool]\nkind = "servers"\nservers = {}\n'
LINE = '[resources.line]\nkind = "link"\nbandwidth = {}\n'
USE_POOL = stages('acquire = "pool"', 'delay = "1us"', 'release = "pool"', WAKE)


def window(costs: int) -> str:
    return "[window]\nenter = [" + ", ".join(['"1us"'] * costs) + "]\n"


# What is right at its last value, and what is not one further.
MECHANISM_LIMITS = [
    (
        param(0, MOST_TIMES) + stages('delay = "1us"\ntimes = "$n"', WAKE),
        f"max = {MOST_TIMES}",
        f"max = {MOST_TIMES + 1}",
    ),
    (stages(AGAIN, RETRY.format(chance=1, most=1000), WAKE), "most = 1000", "most = 1001"),
    (stages(AGAIN, RETRY.format(chance=1, most=1), WAKE), "most = 1\n", "most = 0\n"),
    (stages(AGAIN, RETRY.format(chance=1, most=1), WAKE), "chance = 1\n", "chance = 1.001\n"),
    (stages(AGAIN, RETRY.format(chance=0, most=1), WAKE), "chance = 0\n", "chance = -0.001\n"),
    (param(0, 1, "share") + stages(AGAIN, RETRY.format(chance='"$n"', most=1), WAKE), "max = 1\n", "max = 2\n"),
    (param(0, 1, "share") + stages(AGAIN, RETRY.format(chance='"$n"', most=1), WAKE), "min = 0\n", "min = -1\n"),
    (stages(*['delay = "1us"'] * 55, WAKE), "[[paths.missing]]\nwake", '[[paths.missing]]\ndelay = "1us"\n' * 2),
    ("shards = 65536\n" + stages(WAKE), "65536", "65537"),
    ("shards = 1\n" + stages(WAKE), "shards = 1\n", "shards = 0\n"),
    (window(16) + stages(WAKE), '["1us"', '["1us", "1us"'),
    (POOL.format(0) + USE_POOL, "servers = 0", "servers = -1"),
    (LINE.format(0) + stages('transfer = "line"', WAKE), "bandwidth = 0", "bandwidth = -1"),
    (stages('delay = "0ns"', WAKE), '"0ns"', '"-1ns"'),
    (stages("delay = 0", WAKE), "delay = 0", "delay = 1"),
    (stages('delay = "1us"\nwhen = "write"', WAKE), '"write"', '"writes"'),
]


@pytest.mark.parametrize(("text", "good", "bad"), MECHANISM_LIMITS, ids=range(len(MECHANISM_LIMITS)))
def test_a_mechanism_is_right_at_a_limit_and_refused_behind_it(text: str, good: str, bad: str, tmp_path: Path) -> None:
    check_mechanism(load_mechanism(write_mechanism(tmp_path, HEAD + text)))
    assert good in text
    with pytest.raises(UsageError, match=r"m\.toml:") as caught:
        load_mechanism(write_mechanism(tmp_path, HEAD + text.replace(good, bad, 1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "unknown"),
    [('says = "x"\nwhen = "write"\nfoo = 1', "foo"), ("foo = 1", "foo"), ('says = "x"', ""), ('label = "x"', "")],
)
def test_a_stage_without_a_verb_names_the_key_that_nobody_knows(stage: str, unknown: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_mechanism(write_mechanism(tmp_path, HEAD + stages(stage)))
    assert "this one has none" in str(caught.value)
    assert str(caught.value).endswith(f"and the unknown key '{unknown}'" if unknown else "has none")


ENTRY = "provenance = 'assumed'\nsource = 'x'\n"
MOST = 1 << 53
COST_LIMITS = [
    (f"[costs.wake]\nvalue = 1\nn = {MOST}\n{ENTRY}", f"{MOST}", f"{MOST + 1}"),
    (f"[costs.wake]\nvalue = 1\nn = 0\n{ENTRY}", "n = 0", "n = -1"),
    (f"fitted_to = {MOST_TIMES}", f"{MOST_TIMES}", f"{MOST_TIMES + 1}"),
    ("fitted_to = 0", "= 0", "= -1"),
    (f"[costs.wake]\nmedian = 1\nsigma = 5\n{ENTRY}", "sigma = 5", "sigma = 5.001"),
    (f"[costs.wake]\nmedian = 1\nsigma = 0\n{ENTRY}", "sigma = 0", "sigma = -0.001"),
    (f"[costs.wake]\nvalue = 1e15\n{ENTRY}", "1e15", "1.001e15"),
    (f"[costs.wake]\nvalue = 0\n{ENTRY}", "value = 0", "value = -1"),
    (f"[costs.wake]\nquantiles = [[0, 1], [1, 2]]\n{ENTRY}", "[1, 2]", "[1.001, 2]"),
    (f"[costs.wake]\nquantiles = [[0, 1], [1, 2]]\n{ENTRY}", "[0, 1]", "[-0.001, 1]"),
    (f"[costs.wake]\nquantiles = [[0, 1], [1, 1]]\n{ENTRY}", "[1, 1]", "[1, 0]"),
    (f"[costs.wake]\nvalue = 5\nlow = 5\nhigh = 5\n{ENTRY}", "low = 5", "low = 5.1"),
    (f"[costs.wake]\nvalue = 5\nlow = 5\nhigh = 5\n{ENTRY}", "high = 5", "high = 4.9"),
    (f"[costs.wake]\nvalue = 5\nlow = 0.1\nhigh = 5\n{ENTRY}", "low = 0.1", "low = 0"),
    (f"[costs.wake]\nvalue = 5\nlow = 1\nhigh = 9\n{ENTRY}", "high = 9\n", ""),
    (f"[costs.wake]\nvalue = 5\nlow = 1\nhigh = 1e15\n{ENTRY}", "1e15", "1.001e15"),
]


@pytest.mark.parametrize(("text", "good", "bad"), COST_LIMITS, ids=range(len(COST_LIMITS)))
def test_a_cost_is_right_at_a_limit_and_refused_behind_it(text: str, good: str, bad: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    load_costs(path)
    assert good in text
    path.write_text(text.replace(good, bad, 1))
    with pytest.raises(UsageError, match=r"c\.toml:"):
        load_costs(path)


def test_as_many_points_as_a_table_may_have(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    points = ", ".join(f"[{n / 9_999!r}, {n}]" for n in range(10_000))
    path.write_text(f"[costs.wake]\nquantiles = [{points}]\n{ENTRY}")
    assert len(load_costs(path)["wake"].distribution.knots) == 10_000


def test_what_is_not_simulated_is_what_was_recorded() -> None:
    assert not load_mechanism("as-recorded").answer("missing", "vcpu").simulated
    assert load_mechanism("uffd-missing").answer("missing", "vcpu").simulated


# ------------------------------------------------------------------------------------------------------ what is charged


def one_stage(tmp_path: Path, stage: str, *, granule: str = "4K") -> npt.NDArray[np.int64]:
    """Stalls of a thousand faults that nobody shares anything with, under one stage and a wake of no time."""
    head = HEAD.replace('"4K"', f'"{granule}"')
    mechanism = load_mechanism(write_mechanism(tmp_path, head + stages(stage, "wake = 0\nawake = true")))
    costs = load_costs()
    drawn = Cost(Distribution.from_quantiles([(0, 1000), (1, 1001)]), "assumed", "here")
    work = make_workload([{"think_ns": np.full(1000, 5000)}])
    result = simulate(work, mechanism, costs.merge({"fetch": drawn}))
    return result.stall_ns


@pytest.mark.parametrize(("granule", "times"), [("4K", 0), ("16K", 3), ("2M", 511)])
def test_a_drawn_cost_takes_what_was_drawn_and_not_a_ns_more(granule: str, times: int, tmp_path: Path) -> None:
    stalls = one_stage(tmp_path, 'delay = "fetch"', granule=granule)
    assert (stalls.min(), stalls.max()) == (1000, 1001)
    further = one_stage(tmp_path, 'delay = "fetch"\ntimes = "further_pages"', granule=granule)
    assert (further.min(), further.max()) == (1000 * times, 1001 * times) or times > 1
    assert 1000 * times <= further.min() <= further.max() <= 1001 * times
    pages = one_stage(tmp_path, 'delay = "2ns"\ntimes = "granule_pages"', granule=granule)
    assert set(pages.tolist()) == {2 * (times + 1)}


def test_several_drawn_costs_in_a_row_are_the_sum_of_independent_draws(tmp_path: Path) -> None:
    between = '[[paths.missing]]\ndelay = "fetch"\n'
    stalls = one_stage(tmp_path, 'delay = "7ns"\n' + between * 5)
    assert stalls.min() >= 5007
    assert stalls.max() <= 5012
    counts = np.bincount(stalls - 5007, minlength=6) / len(stalls)
    assert len(set(stalls.tolist())) >= 5  # one draw for all five would give two values
    assert abs(counts @ np.arange(6) - 2.5) < 0.2


@pytest.mark.parametrize(
    ("shape", "ns", "mean"),
    [
        (Distribution.constant(10.0), 0.5, 9.5),
        (Distribution.constant(10.0), 12, 0.0),
        (Distribution.from_quantiles([(0, 10), (1, 20)]), 0.5, 14.5),
        (Distribution.from_quantiles([(0, 10), (1, 20)]), 0, 15.0),
    ],
)
def test_a_cost_is_shorter_by_also_less_than_a_ns(shape: Distribution, ns: float, mean: float) -> None:
    assert shape.less(ns).mean == pytest.approx(mean)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 1e9, 1e300, float("inf")])
@pytest.mark.parametrize(
    "shape",
    [
        Distribution.constant(0.0),
        Distribution.constant(1e-300),
        Distribution.constant(7.0),
        Distribution.constant(1e15),
        Distribution.lognormal(1e9, 2.5),
        Distribution.from_quantiles([(0, 10), (1, 9e14)]),
    ],
)
def test_a_stretched_cost_is_as_long_as_asked_or_as_long_as_a_cost_may_be(shape: Distribution, factor: float) -> None:
    longer = shape.stretched(factor)
    assert longer.table_ns()[-1] <= LONGEST_NS
    top = int(shape.table_ns()[-1])
    if top == 0:
        assert longer.table_ns()[-1] == 0
    elif factor <= 1 or top * factor < 0.999 * LONGEST_NS:
        assert longer.mean == pytest.approx(shape.mean * factor)
    else:
        assert longer.table_ns()[-1] > 0.99 * LONGEST_NS


def test_a_range_as_wide_as_can_be_is_an_interval_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `models check` accepts, `compare` takes."""
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=20))
    path = tmp_path / "c.toml"
    for low, value, high in (("1e-300", "1e-290", "1e15"), ("0.001", "1e6", "1e15"), ("1", "1e9", "1e15")):
        path.write_text(f"[costs.wake]\nvalue = {value}\nlow = {low}\nhigh = {high}\n{ENTRY}")
        assert cli._exit_code(["models", "check", str(path)]) == 0
        words = ["compare", str(trace), "-m", "uffd-missing", "--no-fit", "--costs", str(path), "--format", "csv"]
        assert cli._exit_code(words) == 0, capsys.readouterr().err


def test_a_table_has_its_last_knot_at_the_very_end() -> None:
    """Coarse knots up to 15/16, fine ones above: 498 in all, the last at p = 1."""
    shape = Distribution.from_quantiles([(0, 0), (1, 4096)])
    table = shape.table_ns()
    assert len(table) == 498
    assert table[:241].tolist() == [16 * n for n in range(241)]
    assert table[241:].tolist() == list(range(3840, 4097))


@pytest.mark.parametrize(("median", "sigma", "constant"), [(0.0, 1.0, True), (5.0, 0.0, True), (5.0, 1.0, False)])
def test_a_lognormal_without_width_or_length_is_a_constant(median: float, sigma: float, constant: bool) -> None:
    assert Distribution.lognormal(median, sigma).is_constant is constant
