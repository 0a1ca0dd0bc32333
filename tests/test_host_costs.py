"""A trace is charged with costs of its own kind of host where such are shipped, and the table says so."""

from __future__ import annotations

from faultreplay.analysis.compare.notes import is_borrowed
from faultreplay.analysis.compare.predict import load_cost_files
from faultreplay.replay.language.costs import list_costs, load_costs, shipped_for


def test_a_pvm_trace_gets_costs_of_pvm_hosts() -> None:
    table, where = load_cost_files((), "pvm")
    pvm = load_costs("pvm")
    assert table["exit_userspace"] == pvm["exit_userspace"]
    assert table["fetch"] == load_costs()["fetch"], "the lab cannot tell what the environment takes"
    assert where["exit_userspace"].startswith("measured on a pvm host")
    assert not is_borrowed(where["exit_userspace"])


def test_other_hosts_keep_the_default() -> None:
    for flavour in ("vmx", "svm", "none", "unknown", ""):
        table, where = load_cost_files((), flavour)
        assert dict(table) == dict(load_costs())
        assert not where


def test_default_table_is_of_no_one_kind() -> None:
    assert not load_costs().kvm_flavour
    assert [table.name for table in shipped_for("pvm")] == ["pvm"]
    assert {"default", "pvm"} <= set(list_costs())


def test_published_costs_are_borrowed() -> None:
    assert is_borrowed("published")
    assert is_borrowed("assumed")
    assert not is_borrowed("this trace")
    assert not is_borrowed("your file")
