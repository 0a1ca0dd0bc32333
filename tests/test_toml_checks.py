"""Mechanism and cost files with values of the wrong type or past all bounds: one line with its place, never a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_mechanisms import HEAD, pool_path, write_mechanism
from made_traces import uffd_faults, write_trace

from faultreplay.cli import main as cli
from faultreplay.faulttrace.errors import UsageError
from faultreplay.faulttrace.units import LONGEST_NS
from faultreplay.replay.language.checks import check_mechanism
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.distributions import Distribution
from faultreplay.replay.language.mechanism import list_mechanisms, load_mechanism

GOOD = f"""{HEAD}
[params.handlers]
default = 1
min = 1
max = 8
unit = "threads"
help = "h"

[params.bandwidth]
default = 0
min = 0
max = 1e15
unit = "bytes/s"
help = "b"

[params.pause]
default = "1us"
min = "0ns"
max = "1s"
unit = "ns"
help = "p"

[resources.pool]
kind = "servers"
servers = "$handlers"

[resources.line]
kind = "link"
bandwidth = "$bandwidth"

[resources.queue]
kind = "waitqueue"

"""
GOOD += pool_path('delay = "$pause"\nlabel = "again"') + '[[paths.missing]]\ntransfer = "line"\nlatency = "5us"\n'
GOOD += '[[paths.missing]]\nwake = "wake"\n'

WRONG = [
    ('title = "t"', "title = 3", "title: must be a text in quotes, not a number"),
    ('granule = "4K"', "granule = nan", "granule: nan is not a size"),
    ('granule = "4K"', "granule = [4096]", "granule: [4096] is not a size"),
    ('granule = "4K"', 'granule = "4K"\nserves = [["vcpu"]]', "serves: must be a text or a list of texts"),
    ('granule = "4K"', 'granule = "4K"\nshards = 1.5', "shards: must be a whole number"),
    ('granule = "4K"', 'granule = "4K"\nshards = 10000000', "shards: must be a whole number from 1 to 65536"),
    ('granule = "4K"', 'granule = "4K"\n[fallback]\nvmm = ["ideal"]', "fallback.vmm"),
    ('granule = "4K"', 'granule = "4K"\nfallback = ["ideal"]', "fallback: must be a table, not a list"),
    ('granule = "4K"', 'granule = "4K"\n[window]\nblocks = 3', "window.blocks: must be a table, not a number"),
    ('granule = "4K"', 'granule = "4K"\n[window]\nstops = [["vcpu"]]', "window.stops: must be a text"),
    ('granule = "4K"', 'granule = "4K"\n[window]\nenter = 5', "window.enter: must be a text or a list"),
    ('granule = "4K"', 'granule = "4K"\n[classes]\nminor = ["missing"]', "classes.minor"),
    ('kind = "servers"', 'kind = ["servers"]', "resources.pool: kind must be one of"),
    ('kind = "waitqueue"', 'kind = "waitqueue"\nper = {}', "resources.queue.per: per must be one of"),
    ("default = 1", "default = true", "params.handlers.default: True is not a number"),
    ("default = 1", "default = 1.5", "params.handlers.default: 1.5 is no whole number"),
    ("max = 8", "max = nan", "params.handlers.max: nan is not a number"),
    ("max = 8", "max = 0x" + "f" * 400, "params.handlers.max"),
    ('unit = "threads"', "unit = []", "params.handlers.unit: must be a text in quotes, not a list"),
    ('max = "1s"', 'max = "278h"', "params.pause.max: '278h' is more than 1e15 ns"),
    ('max = "1s"', "max = 1e17", "params.pause.max: 1e+17 is not a number within the limit"),
    ('delay = "$pause"', 'delay = "$handlers"', "'$handlers' is in 'threads': here stands a parameter in ns"),
    ('servers = "$handlers"', 'servers = "$pause"', "'$pause' is in 'ns': here stands no time and no size"),
    ('servers = "$handlers"', 'servers = "4K"', "resources.pool.servers: must be a whole number"),
    ('bandwidth = "$bandwidth"', 'bandwidth = "0.5"', "'0.5' is less than 1 byte"),
    ('bandwidth = "$bandwidth"', "bandwidth = 0.5", "0.5 is not a whole number of bytes"),
    ('delay = "resolve"', "delay = nan", "the cost nan has no unit"),
    ('delay = "resolve"', "delay = 2026-01-01", "is not a cost"),
    ('delay = "resolve"', 'delay = "1000000000000000000ns"', "is more than 1e15 ns"),
    ('delay = "resolve"', 'delay = "resolve"\nwhen = 3', "when: must be a text or a list of texts"),
    ('delay = "resolve"', 'delay = "resolve"\nwhen = 2026-01-01', "when: must be a text or a list of texts"),
    ('delay = "resolve"', 'delay = "resolve"\nsays = 3', "says: must be a text in quotes"),
    ('delay = "resolve"', 'delay = "resolve"\nlabel = ["again"]', "label: must be a text in quotes"),
    ('acquire = "pool"', 'acquire = ["pool"]', "['pool'] is no resource of kind servers"),
    ('delay = "resolve"', 'retry = ["again"]\nchance = 0.1\nmost = 3', "retry: must be a text in quotes"),
    ('acquire = "pool"', 'retry = "again"\nchance = nan\nmost = 3', "chance: nan is not between 0 and 1"),
    ('acquire = "pool"', 'retry = "again"\nchance = 0.1\nmost = 1.5', "most: must be a whole number from 1 to 1000"),
    ('acquire = "pool"', 'retry = "again"\nchance = "$handlers"\nmost = 3', "'$handlers' must stay between 0 and 1"),
    ('delay = "resolve"', 'retry = "again"\nchance = 0.1\nmost = 3', "must hold the same servers as at 'again'"),
    ('[[paths.missing]]\nwake = "wake"', '[[paths.missing]]\nwake = "wake"\nawake = 1', "awake: must be true or false"),
    (
        "[[paths.missing]]\nacquire",
        '[[paths.missing]]\ncoalesce = "join"\n' * 2 + "[[paths.missing]]\nacquire",
        "a second",
    ),
]


def test_the_pattern_of_the_refusals_is_itself_accepted(tmp_path: Path) -> None:
    check_mechanism(load_mechanism(write_mechanism(tmp_path, GOOD)))


@pytest.mark.parametrize(("old", "new", "reason"), WRONG, ids=[str(n) for n in range(len(WRONG))])
def test_a_value_that_cannot_be_is_refused_in_one_line(old: str, new: str, reason: str, tmp_path: Path) -> None:
    assert old in GOOD
    path = write_mechanism(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_mechanism(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


COST = "provenance = 'assumed'\nsource = 'x'\n"
WRONG_COSTS = {
    f"[costs.fault_entry]\nvalue = 1e17\n{COST}": "a cost is at most 1e.15 ns",
    f"[costs.fault_entry]\nvalue = '278h'\n{COST}": "is more than 1e15 ns",
    f"[costs.fault_entry]\nvalue = nan\n{COST}": "finite time of 0 ns or more",
    f"[costs.fault_entry]\nvalue = true\n{COST}": "True is not a number",
    f"[costs.fault_entry]\nvalue = []\n{COST}": "\\[\\] is not a number",
    f"[costs.fault_entry]\nvalue = 0x{'f' * 400}\n{COST}": "is not a number",
    f"[costs.fault_entry]\nmedian = 1\nsigma = 8\n{COST}": "sigma is 8: of a lognormal cost it lies between 0 and 5",
    f"[costs.fault_entry]\nmedian = 1\nsigma = nan\n{COST}": "sigma is nan",
    f"[costs.fault_entry]\nmedian = 1e14\nsigma = 5\n{COST}": "the longest draw is",
    f"[costs.fault_entry]\nvalue = 1\nsigma = 1\n{COST}": "sigma goes with median",
    f"[costs.fault_entry]\nvalue = 1\nn = '0ns'\n{COST}": "n: must be a whole number",
    f"[costs.fault_entry]\nvalue = 1\nn = -1\n{COST}": "n: must be a whole number",
    f"[costs.fault_entry]\nquantiles = [[nan, 1]]\n{COST}": "a quantile lies between 0 and 1",
    f"[costs.fault_entry]\nquantiles = [[0, nan], [1, 2]]\n{COST}": "finite time of 0 ns or more",
    f"[costs.fault_entry]\nquantiles = [{'[0, 1],' * 10_001}]\n{COST}": "10001 points: at most 10000",
    "[costs.fault_entry]\nvalue = 1\nprovenance = ['assumed']\nsource = 'x'": "provenance must be one of",
    "[costs.fault_entry]\nvalue = 1\nprovenance = 'assumed'\nsource = 3": "source: must be a text",
    "costs = 3": "costs: must be a table",
    "kvm_flavour = []": "kvm_flavour: must be a text",
    "x = " + "[" * 5000: "not TOML: nested too deeply",
    "x = " + "9" * 5000: "not TOML",
}


@pytest.mark.parametrize("text", WRONG_COSTS, ids=range(len(WRONG_COSTS)))
def test_a_cost_that_cannot_be_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=WRONG_COSTS[text]) as caught:
        load_costs(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"[costs.fault_entry]\nvalue = 1 # \xff")
    for verb in (["models", "check", str(path)], ["models", "show", "uffd-missing", "--costs", str(path)]):
        assert cli._exit_code(verb) == 2
        assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", list_mechanisms())
def test_every_shipped_mechanism_compiles_for_every_class(name: str) -> None:
    check_mechanism(load_mechanism(name))


def test_a_cost_stays_within_the_bound_when_a_granule_multiplies_it(tmp_path: Path) -> None:
    text = GOOD.replace('granule = "4K"', 'granule = "1G"').replace(
        'delay = "resolve"', 'delay = "100h"\ntimes = "further_pages"'
    )
    mechanism = load_mechanism(write_mechanism(tmp_path, text))
    with pytest.raises(UsageError, match=r"m\.toml: m charges '100h' 262,143 times: a constant is .*at most 1e\+15"):
        check_mechanism(mechanism)
    slow = load_mechanism(write_mechanism(tmp_path, text.replace('delay = "100h"\n', 'delay = "1ns"\n')))
    with pytest.raises(UsageError, match="bytes take 1,073,741,824,000,000,000 ns over 'line'"):
        check_mechanism(slow.with_params({"bandwidth": "1"}))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"handlers": "1.5"}, "1.5' is no whole number"),
        ({"handlers": 2.5}, "2.5 is no whole number"),
        ({"handlers": "nan"}, "'nan' is not a number within the limit"),
        ({"handlers": "1e400"}, "'1e400' is not a number within the limit"),
        ({"bandwidth": "0.5"}, "'0.5' is less than 1 byte"),
        ({"bandwidth": 0.5}, "0.5 is no whole number"),
        ({"granule": "nan"}, "'nan' is not a size"),
    ],
)
def test_a_parameter_that_would_be_cut_to_a_whole_number_is_refused(setting: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_mechanism("uffd-missing").with_params(setting)


def test_no_draw_of_an_accepted_cost_is_past_the_bound() -> None:
    shape = Distribution.lognormal(1e9, 2.5)
    assert shape.table_ns().max() <= LONGEST_NS
    with pytest.raises(UsageError, match="a cost is at most"):
        shape.scaled(1e9)


def test_a_told_parameter_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_trace(tmp_path / "a.trace", uffd_faults(each=20), params={"handlers": ""})
    assert cli._exit_code(["compare", str(trace)]) == 4
    assert "mechanism.params.handlers is no whole number: ''" in capsys.readouterr().err
