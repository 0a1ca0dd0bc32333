"""Shared pytest set-up: under FAULTREPLAY_REQUIRE_LIVE=1 a live test may not be skipped (CI has all it needs)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from browser import CHROMIUM
from hypothesis import settings

# CI judges a commit: the same examples each time. Elsewhere hypothesis goes on looking for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

REQUIRE_LIVE = os.environ.get("FAULTREPLAY_REQUIRE_LIVE") == "1"


# What the lab's programs need of a host.
LAB_NEEDS = (
    (os.access("/dev/kvm", os.R_OK | os.W_OK), "needs KVM: /dev/kvm may not be opened"),
    (os.geteuid() == 0, "needs root: userfaultfd of kernel faults"),
    (shutil.which("cc") is not None, "needs a C compiler (cc)"),
)


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that were filed for this user, and the width of the terminal at hand, are nothing to a test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker("live")
            reason = "needs Chromium: scripts/install-debian.sh --tests"
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason=reason))
        if item.get_closest_marker("lab"):
            item.add_marker("live")
            for there, reason in LAB_NEEDS:
                item.add_marker(pytest.mark.skipif(not there, reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_LIVE and report.skipped and item.get_closest_marker("live"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: this host must run it, but it was skipped: {report.longrepr}"
    return report


def _built(tmp_path_factory: pytest.TempPathFactory, name: str) -> str:
    program = tmp_path_factory.mktemp("csrc") / name
    source = Path(__file__).parent / "csrc" / f"{name}.c"
    subprocess.run(["cc", "-O1", "-o", program, source, "-lpthread"], check=True)
    return str(program)


@pytest.fixture(scope="session")
def handed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program whose userfaults another process takes."""
    return _built(tmp_path_factory, "handed")


@pytest.fixture(scope="session")
def userfaults(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that takes exactly as many userfaults as it is told."""
    return _built(tmp_path_factory, "userfaults")


@pytest.fixture(scope="session")
def vm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real guest that touches, and whose memory is zapped, on order."""
    return _built(tmp_path_factory, "vm")
