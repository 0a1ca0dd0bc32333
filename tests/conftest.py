"""Shared pytest set-up: under FAULTREPLAY_REQUIRE_LIVE=1 a live test may not be skipped (CI has all it needs)."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRE_LIVE = os.environ.get("FAULTREPLAY_REQUIRE_LIVE") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_LIVE and report.skipped and item.get_closest_marker("live"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: this host must run it, but it was skipped: {report.longrepr}"
    return report
