"""Costs from one row of a table: the row is met, other rows are predicted, and what cannot be met is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from faultreplay.analysis.calibrate.own_row import OwnRow, scaled
from faultreplay.cli.main import main
from faultreplay.faulttrace.errors import UsageError
from faultreplay.replay.language.costs import load_costs
from faultreplay.replay.language.mechanism import load_mechanism
from faultreplay.replay.language.names import CONTENTION

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import scaling_law as law

SHIPPED = load_costs()


@pytest.mark.parametrize("name", ["kvm-exit", "uffd-missing", "kvm-userfault", "host-lazy"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_row_of_a_host_that_is_so_much_faster_or_slower_gives_that_factor_back(name: str, factor: float) -> None:
    mechanism = load_mechanism(name)
    used = OwnRow(mechanism, 1, 1.0).run(SHIPPED, 1).costs_used
    names = [n for n in used if n not in CONTENTION and n != "fetch"]
    rate = OwnRow(mechanism, 2, 1.0).rate(scaled(SHIPPED, names, factor), 2)
    costs, found = OwnRow(mechanism, 2, rate).fit(SHIPPED)
    assert found == pytest.approx(factor, rel=0.02)
    assert set(costs) == set(names)
    assert all(cost.provenance == "derived" and "so that" in cost.source for cost in costs.values())


def test_a_rate_that_no_host_makes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"kvm-exit with 64 accessors makes .* is that the rate of all"):
        OwnRow(load_mechanism("kvm-exit"), 64, 1e9).fit(SHIPPED)


@pytest.mark.parametrize("row", ["single-reader", "uffd-and-kvm-userfault", "kvm-userfault", "no-userfault"])
def test_two_vcpus_predict_eight_and_64_of_the_published_table(row: str) -> None:
    """Anonymous memory, one userfaultfd; what docs/calibration.md states about the error."""
    block = "anon-one-uffd"
    what = law.setup(block, row, 2)
    two, eight, most = law.BLOCKS[block][row]
    one = OwnRow(load_mechanism(what.mechanism).with_params(what.params), 2, 2 * two)
    costs = SHIPPED.merge(one.fit(SHIPPED)[0])
    for vcpus, there in ((8, eight), (64, most)):
        assert one.rate(costs, vcpus) / vcpus / there == pytest.approx(1, abs=0.3)


def test_the_command_writes_a_cost_file_and_predicts(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    done = CliRunner().invoke(
        main, ["calibrate", "--row", "kvm-exit", "2", "286000", "-o", str(file), "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    rates = {row["vcpus"]: row["pages_per_s"] for row in answer["records"]}
    assert rates[2] == pytest.approx(286_000, rel=0.01)
    assert set(load_costs(file)) == set(answer["costs"])
    assert done.exit_code == 0 and "contention" in done.stdout


@pytest.mark.parametrize("more", [["--lab"], ["x.trace"]])
def test_a_row_goes_alone(more: list[str]) -> None:
    done = CliRunner().invoke(main, ["calibrate", "--row", "kvm-exit", "2", "286000", *more])
    assert done.exit_code != 0
