"""What every test run does: fixtures (see `services.py`), and an honest account of what did not run.

FLYWHEEL_REQUIRE_ALL=1 makes every skip a failure, but for a GPU and the test data, which the closing summary lists.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package, and the plugin below is loaded by name
pytest.register_assert_rewrite("services")

from services import MAY_BE_MISSING, REPOSITORY, unavailable  # noqa: E402

pytest_plugins = ("services",)

AnyReport = TypeVar("AnyReport", pytest.TestReport, pytest.CollectReport)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of test data that is not in the repository: FLYWHEEL_TEST_DATA, else ../shared/data beside it."""
    folder = Path(os.environ.get("FLYWHEEL_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        command = "FLYWHEEL_TEST_DATA=/path/to/data make test"
        unavailable(f"test data: there is no folder {folder}", command, may_be_missing=True)
    return folder


@pytest.fixture(scope="session")
def gpu() -> str:
    """The name of a CUDA device that torch can use."""
    torch = pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")
    if not torch.cuda.is_available():
        unavailable("a GPU that torch can use", "a machine with one and its driver", may_be_missing=True)
    return "cuda"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip within a test."""
    report = yield
    return report if hasattr(report, "wasxfail") else _judged(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A skip of a whole module."""
    return _judged((yield))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run, each reason once."""
    reasons = sorted({_reason(report) for report in terminalreporter.stats.get("skipped", [])})
    if reasons:
        terminalreporter.section("did not run here")
        for reason in reasons:
            terminalreporter.write_line(reason)


def _judged(report: AnyReport) -> AnyReport:
    """The report, as a failure if it is a skip that is not allowed."""
    required = os.environ.get("FLYWHEEL_REQUIRE_ALL") == "1"
    if report.skipped and required and not _reason(report).startswith(MAY_BE_MISSING):
        report.outcome = "failed"
        report.longrepr = f"FLYWHEEL_REQUIRE_ALL=1 and this was skipped: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it was skipped; pytest puts (path, line, reason) there."""
    told = report.longrepr
    text = told[2] if isinstance(told, tuple) else str(told)
    return text.removeprefix("Skipped: ")
