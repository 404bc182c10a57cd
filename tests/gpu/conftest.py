"""Tests that need a GPU are skipped without one, and said to be, loudly. With one, they share it and its two lanes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_box, gpu_machine
from benchmarks.gpu_box import Box
from benchmarks.gpu_lanes import NEARLY_HALF
from benchmarks.gpu_sheet import NotRunError, Sheet
from hasfaas.core.errors import HasFaasError

NO_DEVICE = "no device"
GPU = os.environ.get("HASFAAS_GPU", "0")
"""The GPU to test, by number or UUID."""


def absence() -> str:
    """Why there is no GPU to test; empty where there is one."""
    try:
        gpu_machine.find(GPU)
    except HasFaasError as exc:
        return str(exc)
    return "" if importlib.util.find_spec("cupy") else "CuPy is not installed: pip install 'hasfaas[cuda]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Looks for a GPU only where a test asks for one."""
    asking = [item for item in items if item.get_closest_marker("gpu")]
    why = absence() if asking else ""
    if why:
        for item in asking:
            item.add_marker(pytest.mark.skip(reason=f"{NO_DEVICE}: {why}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line that nobody overlooks."""
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in reports if "gpu" in report.keywords and NO_DEVICE in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU checks not run: {NO_DEVICE}", yellow=True, bold=True)


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    """Where a check writes."""
    return Sheet(tmp_path / "lines", GPU)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The GPU with two lanes of nearly half of it; with one lane where MPS is not there. One for all tests: a process can
    keep a GPU only once."""
    sheet = Sheet(tmp_path_factory.mktemp("home") / "lines", GPU)
    try:
        opened = gpu_box.box(sheet, (NEARLY_HALF, NEARLY_HALF))
        home = opened.__enter__()
    except NotRunError:
        opened = gpu_box.box(sheet)
        home = opened.__enter__()
    try:
        yield home
    finally:
        opened.__exit__(None, None, None)


@pytest.fixture(scope="session")
def torch_with_cuda() -> None:
    """Skips where torch is not there, or is of no use on a GPU."""
    try:
        gpu_box.needs_torch()
    except NotRunError as exc:
        pytest.skip(str(exc))
