"""The p-norm law of the SM share: its form, its fit, what it refuses, and what three points predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import sm_law, train_sm_law
from hasfaas.rapp.sm_law import SmLaw, SmPrior
from hasfaas.rapp.table import read_table

SHARES = np.arange(5.0, 101.0, 5.0)
UNIFORM = SmPrior(sm_law.P_GRID, np.zeros(len(sm_law.P_GRID)), 0.02)

laws = st.builds(SmLaw, st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(1, 12))


@given(laws)
def test_falls_with_the_share_and_keeps_its_bounds(law: SmLaw) -> None:
    latency = law.latency_ms(SHARES)
    assert (np.diff(latency) <= 1e-12 * latency[:-1]).all()
    larger = np.maximum(100 * law.work / SHARES, law.floor)
    total = 100 * law.work / SHARES + law.floor
    assert (latency >= larger * (1 - 1e-12)).all()
    assert (latency <= total * (1 + 1e-12)).all()


@given(st.floats(0.1, 1e3), st.floats(1, 12))
def test_limits(size: float, p: float) -> None:
    assert SmLaw(size, size * 1e-6, p).latency_ms(50) == pytest.approx(2 * size, rel=1e-5)
    assert SmLaw(size * 1e-6, size, p).latency_ms(SHARES) == pytest.approx(np.full(20, size), rel=1e-4)
    assert SmLaw(size, size, 1).latency_ms(100) == pytest.approx(2 * size)


@given(laws, st.floats(1e-2, 1e2))
def test_scale_of_the_latency_goes_through(law: SmLaw, scale: float) -> None:
    scaled = SmLaw(law.work * scale, law.floor * scale, law.p)
    assert scaled.latency_ms(SHARES) == pytest.approx(scale * law.latency_ms(SHARES), rel=1e-9)


@given(st.floats(0.2, 5), st.sampled_from([1.0, 2.0, 4.0, 10.0]), st.floats(1e-2, 1e2))
def test_fit_finds_a_law_at_any_scale(ratio: float, p: float, scale: float) -> None:
    law = SmLaw(scale, ratio * scale, p)
    for prior in (None, UNIFORM):
        found = sm_law.fit(SHARES, law.latency_ms(SHARES), prior)
        assert found.latency_ms(SHARES) == pytest.approx(law.latency_ms(SHARES), rel=0.02)


def test_two_points_are_met() -> None:
    found = sm_law.fit([10, 100], [50.0, 12.0])
    assert found.latency_ms([10, 100]) == pytest.approx([50.0, 12.0], rel=0.02)


def test_order_of_the_points_does_not_matter() -> None:
    assert sm_law.fit([100, 5, 30], [6, 40, 9]) == sm_law.fit([5, 30, 100], [40, 9, 6])


def test_one_outlier_moves_the_fit_little() -> None:
    law = SmLaw(2.0, 8.0, 3.0)
    latency = law.latency_ms(SHARES)
    spoilt = latency.copy()
    spoilt[12] *= 1.6
    assert sm_law.fit(SHARES, spoilt).latency_ms(SHARES) == pytest.approx(latency, rel=0.04)


@pytest.mark.parametrize(
    ("shares", "latencies", "reason", "word"),
    [
        ([], [], "TOO_FEW_PROBES", "two different shares"),
        ([50], [3.0], "TOO_FEW_PROBES", "50"),
        ([50, 50], [3.0, 3.1], "TOO_FEW_PROBES", "two different"),
        ([5, 50], [3.0], "BAD_PROBES", "2 values and latencies_ms 1"),
        ([5, 50], [3.0, float("nan")], "BAD_LATENCY", "sm_percent=50"),
        ([5, 50], [-3.0, 1.0], "BAD_LATENCY", "-3"),
        ([0, 50], [3.0, 1.0], "BAD_SM_PERCENT", "(0, 100]"),
        ([5, 101], [3.0, 1.0], "BAD_SM_PERCENT", "101"),
        ([5, 50, 100], [10.0, 4.0, 12.0], "NON_MONOTONE_PROBES", "3.00 times"),
    ],
)
def test_bad_probes_are_worded(shares: list[float], latencies: list[float], reason: str, word: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sm_law.fit(shares, latencies)
    assert caught.value.reason == reason
    assert word in caught.value.message


def test_noise_is_no_error() -> None:
    assert sm_law.fit([5, 50, 100], [10.0, 4.0, 4.4]).floor > 3


def test_three_points_of_shared_curves(data: Path) -> None:
    """A prior from the one half of the models predicts the other half; the benchmark has the full figure."""
    curves = train_sm_law.curves(read_table(data / "v100" / "v100_latency_sm_quota_batch.csv"))
    assert len(curves) == 223
    names = sorted({curve[0] for curve in curves})
    known = [curve for curve in curves if curve[0] in names[::2]][::4]
    unseen = [curve for curve in curves if curve[0] in names[1::2]]
    arrays = train_sm_law.fit_curves(known)
    assert np.exp(arrays["log_prior"]).sum() == pytest.approx(1)
    prior = SmPrior.from_arrays(arrays)
    mean = float(np.mean([train_sm_law.error_from_three(curve, prior).mean() for curve in unseen]))
    sum_law = float(np.mean([np.abs(_sum_law(curve[1], curve[2])).mean() for curve in unseen]))
    assert mean < 6.0
    assert mean < sum_law


def _sum_law(sm: np.ndarray, latency: np.ndarray) -> np.ndarray:
    """Errors in % of A/s + B, the textbook's law, fitted to relative errors of the same three points."""
    probed = np.zeros(len(sm), bool)
    probed[[0, len(sm) // 3, -1]] = True
    design = np.stack([1 / sm, np.ones(len(sm))], axis=1)
    solved = np.linalg.lstsq(design[probed] / latency[probed, None], np.ones(3), rcond=None)[0]
    return np.asarray(100 * ((design @ solved)[~probed] / latency[~probed] - 1))
