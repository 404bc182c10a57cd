"""The launch-path law of a quota: max(G, H(q)), its limits, and its fit to the measured table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.launch_law import LaunchLaw, compare
from hasfaas.rapp.table import LatencyTable, read_table

QUOTAS = np.arange(10.0, 101.0, 10.0)
LAW = LaunchLaw(QUOTAS, 10 * np.array([16.3, 5.8, 3.6, 3.0, 2.1, 1.74, 1.43, 1.18, 1.05, 1.0]))


@given(st.floats(1, 1e4), st.floats(1, 100))
def test_larger_of_the_two(gpu: float, quota: float) -> None:
    latency = float(LAW.latency_ms(gpu, quota))
    floor = float(LAW.floor_ms(quota))
    assert latency == max(gpu, floor)
    # The quota does not stretch GPU work.
    if gpu >= LAW.floor_ms(1):
        assert latency == gpu


@given(st.floats(1, 1e4), st.floats(0.5, 99), st.floats(0.01, 50))
def test_never_rises_with_the_quota(gpu: float, quota: float, more: float) -> None:
    assert LAW.latency_ms(gpu, min(100, quota + more)) <= LAW.latency_ms(gpu, quota) * (1 + 1e-12)


@given(st.floats(1e-2, 1e2), st.floats(1, 100))
def test_scale_goes_through(scale: float, quota: float) -> None:
    scaled = LaunchLaw(QUOTAS, scale * LAW.launch_ms)
    assert scaled.latency_ms(20 * scale, quota) == pytest.approx(scale * float(LAW.latency_ms(20, quota)))


def test_table_points_and_beyond() -> None:
    assert LAW.floor_ms(QUOTAS) == pytest.approx(LAW.launch_ms)
    assert LAW.floor_ms(5) == pytest.approx(163 * 2**1.5)
    assert LaunchLaw([20, 50], [6, 3]).floor_ms(100) == pytest.approx(3)
    assert LAW.throughput_per_s(8, 40, 100) == pytest.approx(200)
    assert LAW.latency_ms(np.array([[1.0], [1e4]]), QUOTAS).shape == (2, 10)


def test_monotone_view_removes_noise() -> None:
    law = LaunchLaw([10, 20, 30], [9, 3, 4]).monotone()
    assert law.launch_ms.tolist() == [9, 3, 3]


def test_from_cells_takes_launch_bound_ones() -> None:
    cells = LatencyTable(
        np.array(["a"] * 5),
        np.array([1, 1, 1, 8, 1]),
        np.array([40.0, 50.0, 60.0, 100.0, 5.0]),
        np.array([20.0, 20.0, 20.0, 20.0, 20.0]),
        np.array([5.0, 6.0, 9.0, 50.0, 70.0]),
    )
    law = LaunchLaw.from_cells(cells)
    assert law.quota_percent.tolist() == [20.0]
    assert law.launch_ms.tolist() == [6.0]
    with pytest.raises(InvalidRequestError, match="batch 1"):
        LaunchLaw.from_cells(cells.where(cells.batch == 8))


@pytest.mark.parametrize(
    ("quota", "launch", "reason"),
    [
        ([], [], "BAD_LAUNCH_TABLE"),
        ([10, 20], [3], "BAD_LAUNCH_TABLE"),
        ([20, 10], [3, 4], "BAD_LAUNCH_TABLE"),
        ([10, 20], [3, float("nan")], "BAD_LAUNCH_TABLE"),
        ([10, 20], [3, 0], "BAD_LAUNCH_TABLE"),
        ([0, 20], [3, 1], "BAD_QUOTA_PERCENT"),
    ],
)
def test_bad_tables_are_worded(quota: list[float], launch: list[float], reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        LaunchLaw(quota, launch)
    assert caught.value.reason == reason


def test_bad_arguments_are_worded() -> None:
    with pytest.raises(InvalidRequestError, match="quota_percent=0"):
        LAW.latency_ms(5, 0)
    with pytest.raises(InvalidRequestError, match="gpu_ms"):
        LAW.latency_ms([5, float("nan")], 50)


def test_composition_of_shared_table(data: Path) -> None:
    """rapp.md 3.1: 4.75 % over q < 100 with each cell's own G; latency / quota is ten times worse."""
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")
    errors, textbook = [], []
    for model in table.models():
        law = LaunchLaw.from_cells(table.of(model))
        grid = table.grid(model).reshape(-1, 10)
        for k in range(9):
            known = np.isfinite(grid[:, k]) & np.isfinite(grid[:, 9])
            full, measured = grid[known, 9], grid[known, k]
            errors.append(compare(law, full, QUOTAS[k], measured))
            textbook.append(100 * np.abs(full / (QUOTAS[k] / 100) / measured - 1))
    assert np.concatenate(errors).mean() == pytest.approx(4.75, abs=0.05)
    assert np.concatenate(textbook).mean() > 40
