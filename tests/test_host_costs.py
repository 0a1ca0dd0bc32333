"""A cost is a host's own only where the host is known to be the same; all else is foreign, and the table says so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from faultreplay.analysis.compare.sources import CostSource, Origin, load_cost_files
from faultreplay.collect.recorder.host import describe_host, kvm_params
from faultreplay.faulttrace.meta import Host, Meta, fingerprint_of
from faultreplay.replay.language.costs import (
    Cost,
    CostTable,
    Distribution,
    list_costs,
    load_costs,
    save_costs,
    shipped_for,
)
from faultreplay.replay.language.filed import filed_costs, filed_path

PVM = Host(kernel="6.18", cpu_model="A CPU", kvm_flavour="pvm", kvm_params={"kvm.tdp_mmu": "Y"})


def marked(host: Host) -> Host:
    return replace(host, fingerprint=fingerprint_of(host))


def cost_file(path: Path, fingerprint: str = "", provenance: str = "measured-host", ns: float = 61_600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = CostTable({"reenter": Cost(Distribution.constant(ns), provenance, "a test")})
    save_costs(table, path, title="t", fingerprint=fingerprint)
    return path


def test_a_pvm_trace_starts_from_costs_of_a_pvm_host_but_they_are_foreign() -> None:
    table, where = load_cost_files((), PVM)
    pvm = load_costs("pvm")
    assert table["exit_userspace"] == pvm["exit_userspace"]
    assert table["fetch"] == load_costs()["fetch"], "the lab cannot tell what the environment takes"
    assert where["exit_userspace"] == CostSource(Origin.OTHER_HOST, "costs/pvm.toml")
    assert where["exit_userspace"].foreign


def test_other_hosts_keep_the_default() -> None:
    for flavour in ("vmx", "svm", "none", "unknown"):
        table, where = load_cost_files((), Host(kvm_flavour=flavour))  # type: ignore[arg-type]
        assert dict(table) == dict(load_costs())
        assert all(source.foreign for source in where.values())
        assert where["exit_userspace"].origin is Origin.DERIVED
        assert where["reader_wakeup"].origin is Origin.ASSUMED
        assert where["memslot_delete"].origin is Origin.ASSUMED


def test_default_table_is_of_no_one_kind() -> None:
    assert not load_costs().kvm_flavour
    assert [table.name for table in shipped_for("pvm")] == ["pvm"]
    assert {"default", "pvm"} <= set(list_costs())


def test_what_was_filed_on_the_same_host_is_found_and_own() -> None:
    host = marked(PVM)
    cost_file(filed_path(host.fingerprint), host.fingerprint)
    table, where = load_cost_files((), host)
    assert table["reenter"].distribution.mean == 61_600
    assert where["reenter"] == CostSource(Origin.HOST)
    assert not where["reenter"].foreign
    for other in (
        replace(PVM, kernel="6.19"),
        replace(PVM, cpu_model="Another CPU"),
        replace(PVM, kvm_flavour="vmx"),
        replace(PVM, kvm_params={"kvm.tdp_mmu": "N"}),
        replace(PVM, mitigations={"retbleed": "Vulnerable"}),
    ):
        assert load_cost_files((), marked(other))[1]["reenter"].foreign, other
    assert load_cost_files((), PVM)[1]["reenter"].foreign, "a trace that does not say which host it is of"


def test_a_file_is_of_the_host_that_it_names(tmp_path: Path) -> None:
    host = marked(PVM)
    own = cost_file(tmp_path / "own.toml", host.fingerprint)
    other = cost_file(tmp_path / "other.toml", "0123456789ab")
    nobody = cost_file(tmp_path / "nobody.toml")
    said = cost_file(tmp_path / "said.toml", provenance="assumed")
    assert load_cost_files([str(own)], host)[1]["reenter"] == CostSource(Origin.HOST, str(own))
    for foreign in (other, nobody):
        assert load_cost_files([str(foreign)], host)[1]["reenter"] == CostSource(Origin.OTHER_HOST, str(foreign))
    assert load_cost_files([str(said)], host)[1]["reenter"] == CostSource(Origin.FILE, str(said))
    assert not CostSource(Origin.FILE).foreign, "who wrote a figure down answers for it"
    assert load_cost_files(["pvm"], host)[1]["reenter"].foreign, "a shipped table is nobody's own"
    assert load_costs(own).fingerprint == host.fingerprint


def test_this_host_has_a_fingerprint_that_meta_json_keeps() -> None:
    host = describe_host()
    assert host.fingerprint == fingerprint_of(host)
    assert len(host.fingerprint) == 12
    assert Meta.from_json(Meta(host=host).to_json()).host == host
    assert describe_host().fingerprint == host.fingerprint
    assert not fingerprint_of(Host())


def test_parameters_of_kvm_modules(tmp_path: Path) -> None:
    for module, key, value in (("kvm", "halt_poll_ns", "200000\n"), ("kvm_intel", "ept", "Y\n"), ("loop", "x", "1")):
        folder = tmp_path / module / "parameters"
        folder.mkdir(parents=True)
        (folder / key).write_text(value)
    assert kvm_params(tmp_path) == {"kvm.halt_poll_ns": "200000", "kvm_intel.ept": "Y"}


def test_under_sudo_it_is_filed_for_who_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert filed_path("abc") == Path.home() / ".config" / "faultreplay" / "costs" / "abc.toml"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1")  # daemon, on every Debian
    assert not filed_path("abc").is_relative_to(Path.home())
    assert filed_costs("abc") is None
