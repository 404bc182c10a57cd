from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.forecast import DRIFT_STEP, FIRST_DRIFT, GREATEST_DRIFT, LEAST_DRIFT, Forecast, ForecastSettings


def fed(rates: np.ndarray, seed: int = 0) -> Forecast:
    """A filter that has seen Poisson counts of these rates [second, function]."""
    random = np.random.default_rng(seed)
    forecast = Forecast.of(rates.shape[1])
    for row in rates:
        forecast.update(random.poisson(row).astype(float), 1.0)
    return forecast


def one_by_one(counts: list[float]) -> tuple[float, float]:
    """The recursion of the docstring for one function, in plain numbers: (level, doubt)."""
    level = doubt = 0.0
    drift = FIRST_DRIFT
    for step, count in enumerate(counts):
        first = step == 0
        if first:
            level = count
        noise = max(level, 0.5)
        prior = noise if first else doubt + drift * noise
        surprise = count - level
        total = prior + noise
        gain = prior / total
        if not first:
            drift = min(max(drift + DRIFT_STEP * (surprise**2 - total) / noise, LEAST_DRIFT), GREATEST_DRIFT)
        level = max(level + gain * surprise, 0.0)
        doubt = (1.0 - gain) * prior
    return level, doubt


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40))
def test_all_functions_at_once_are_what_each_is_alone(counts: list[int]) -> None:
    forecast = Forecast.of(3)
    for count in counts:
        forecast.update(np.array([count, 2.0 * count, 0.0]), 1.0)
    for column, factor in ((0, 1.0), (1, 2.0), (2, 0.0)):
        level, doubt = one_by_one([factor * count for count in counts])
        assert forecast.level_rps[column] == pytest.approx(level)
        assert forecast.doubt[column] == pytest.approx(doubt)


def test_a_steady_load_is_found_and_its_bound_lies_close_above() -> None:
    forecast = fed(np.full((600, 2), [20.0, 200.0]))
    assert forecast.level_rps == pytest.approx([20.0, 200.0], rel=0.15)
    upper = forecast.upper_rps()
    assert np.all(upper >= forecast.level_rps)
    assert np.all(upper <= 1.4 * forecast.level_rps)


def test_a_jump_is_proven_by_the_first_second_that_shows_it() -> None:
    forecast = fed(np.full((300, 1), 20.0))
    before = float(forecast.upper_rps()[0])
    forecast.update(np.array([80.0]), 1.0)
    # 80 less two deviations of a Poisson count is 62.
    assert forecast.upper_rps()[0] >= 80.0 - 2.0 * np.sqrt(80.0)
    assert before < 40.0


def test_chance_clusters_of_a_steady_load_prove_little() -> None:
    random = np.random.default_rng(3)
    forecast = Forecast.of(1)
    proven = []
    for _ in range(600):
        forecast.update(random.poisson(20.0, 1).astype(float), 1.0)
        proven.append(float(forecast.least_rps()[0]))
    assert np.mean(np.array(proven[60:]) > 24.0) < 0.02


def test_peaks_are_remembered_and_fade() -> None:
    rates = np.full((100, 1), 5.0)
    rates[50:55] = 100.0
    forecast = fed(rates)
    soon = float(forecast.peak_rps()[0])
    assert soon > 70.0
    for _ in range(3600):
        forecast.update(np.array([5.0]), 1.0)
    assert float(forecast.peak_rps()[0]) < 0.25 * soon


def test_half_seconds_say_what_whole_ones_do() -> None:
    random = np.random.default_rng(1)
    whole, halves = Forecast.of(1), Forecast.of(1)
    for _ in range(400):
        first, second = random.poisson(15.0, 2)
        whole.update(np.array([float(first + second)]), 1.0)
        halves.update(np.array([float(first)]), 0.5)
        halves.update(np.array([float(second)]), 0.5)
    assert halves.level_rps[0] == pytest.approx(whole.level_rps[0], rel=0.15)


def test_an_interval_without_length_is_left_out() -> None:
    forecast = Forecast.of(1)
    forecast.update(np.array([5.0]), 0.0)
    assert forecast.rows == 0 and forecast.level_rps[0] == 0.0


def test_functions_that_come_and_go_keep_their_own() -> None:
    forecast = fed(np.full((100, 3), [5.0, 50.0, 500.0]))
    chosen = forecast.select(np.array([2, -1, 0]))
    assert chosen.level_rps[0] == forecast.level_rps[2]
    assert chosen.level_rps[2] == forecast.level_rps[0]
    assert chosen.level_rps[1] == 0.0 and chosen.seen_s[1] == 0.0
    chosen.update(np.array([500.0, 7.0, 5.0]), 1.0)
    assert chosen.level_rps[1] == 7.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_what_is_planned_covers_about_the_share_that_was_asked_for(seed: int) -> None:
    """On a load that wanders, the mean rate of the next two seconds exceeds the learned quantile about as often as it should.
    The bound itself leaves the noise of that mean out, so it is the excess that is tested."""
    random = np.random.default_rng(seed)
    rates = 50.0 * np.exp(np.cumsum(random.normal(0.0, 0.03, 900)))[:, None]
    forecast = Forecast.of(1, ForecastSettings(quantile=0.9))
    counts = random.poisson(np.clip(rates, 1.0, 500.0)).astype(float)
    over = []
    for step in range(len(counts) - 2):
        forecast.update(counts[step], 1.0)
        deviation = np.hypot(forecast.deviation()[0], np.sqrt(max(forecast.level_rps[0], 0.5) / 2.0))
        bound = forecast.level_rps[0] + forecast.spread[0] * deviation
        over.append(counts[step + 1 : step + 3].mean() > bound)
    assert 0.03 < np.mean(over[200:]) < 0.2


def test_a_quantile_below_the_median_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"quantile=0.3"):
        ForecastSettings(quantile=0.3)
