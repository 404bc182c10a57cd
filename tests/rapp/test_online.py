"""Online correction: follows a lasting change, not outliers, and says when the profile no longer holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.online import Correction, Observation, apply, probes_of, start, update
from hasfaas.rapp.surface import Surface

BATCHES, SHARES = (1, 2, 4, 8), (20.0, 50.0, 100.0)
Batch = tuple[int, float, float]


def surface(sigma: float = 0.04) -> Surface:
    b, s = np.meshgrid(BATCHES, SHARES, indexing="ij")
    return Surface(BATCHES, SHARES, (1.0 + b) * (1.0 + 20.0 / s), np.full(b.shape, sigma))


def batches(
    count: int, factor: Callable[[int, float], float], seed: int, *, noise: float = 0.03, outliers: float = 0.05
) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        batch, share = int(rng.choice(BATCHES)), float(rng.choice(SHARES))
        wild = 3.0 if rng.random() < outliers else 1.0
        hold_ms = surface().hold(batch, share) * factor(batch, share) * wild * np.exp(noise * rng.standard_normal())
        made.append((batch, share, float(hold_ms)))
    return made


def after(correction: Correction, seen: list[Batch], profiled: Surface) -> Correction:
    for one in seen:
        correction = update(correction, profiled, *one)
    return correction


def worst_error(correction: Correction, profiled: Surface, factor: float) -> float:
    return float(np.abs(apply(profiled, correction).hold_ms / (factor * surface().hold_ms) - 1.0).max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_slowdown_of_30_percent_is_followed_within_50_batches(seed: int, noise: float) -> None:
    profiled = surface()
    before = after(start(profiled), batches(200, lambda b, s: 1.0, seed, noise=noise), profiled)
    assert not before.drifted
    assert before.reason == ""
    now = after(before, batches(50, lambda b, s: 1.3, 100 + seed, noise=noise), profiled)
    assert np.abs(apply(profiled, now).hold_ms / (1.3 * surface().hold_ms) - 1.0).mean() < 0.10
    assert now.drifted
    assert "% longer than the profile says" in now.reason
    # And back again, when the machine is as it was.
    back = after(now, batches(100, lambda b, s: 1.0, 200 + seed, noise=noise), profiled)
    assert not back.drifted
    assert back.reason == ""
    assert worst_error(back, profiled, 1.0) < 0.10


@pytest.mark.parametrize("seed", range(5))
def test_outliers_move_nothing(seed: int) -> None:
    profiled = surface()
    correction = after(start(profiled), batches(30, lambda b, s: 1.0, seed, outliers=0.0), profiled)
    for one in batches(500, lambda b, s: 1.0, 50 + seed, outliers=0.05):
        correction = update(correction, profiled, *one)
        assert not correction.drifted
        assert abs(apply(profiled, correction).hold_ms / surface().hold_ms - 1.0).mean() < 0.06


def test_where_nothing_happened_the_surface_stays() -> None:
    profiled = surface(0.2)
    same = apply(profiled, start(profiled))
    assert same.hold_ms == pytest.approx(profiled.hold_ms, rel=1e-12)
    assert same.log_sigma == pytest.approx(profiled.log_sigma, rel=1e-9)


def test_a_local_change_stays_local_and_all_become_more_certain() -> None:
    profiled = surface(0.25)
    seen = batches(400, lambda b, s: 1.25 if b == 8 else 1.0, 7, noise=0.02, outliers=0.0)
    corrected = apply(profiled, after(start(profiled), seen, profiled))
    ratio = corrected.hold_ms / profiled.hold_ms
    assert ratio[3] == pytest.approx(1.25, abs=0.06)
    assert ratio[0] == pytest.approx(1.0, abs=0.06)
    assert np.all(corrected.log_sigma < 0.1)


def test_what_was_not_seen_stays_less_certain() -> None:
    profiled = surface(0.25)
    seen = [(1, 100.0, surface().hold(1, 100.0))] * 60
    corrected = apply(profiled, after(start(profiled), seen, profiled))
    assert corrected.log_sigma[0, 2] < 0.06
    assert corrected.log_sigma[3, 0] > 2.0 * corrected.log_sigma[0, 2]


def test_a_poor_profile_is_no_drift_when_it_said_so() -> None:
    profiled = surface(0.4)
    correction = after(start(profiled), batches(100, lambda b, s: 1.3, 3), profiled)
    assert not correction.drifted
    assert worst_error(correction, profiled, 1.3) < 0.10


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.8, 1.25))
def test_the_order_of_batches_matters_little(seed: int, factor: float) -> None:
    profiled = surface(0.2)
    seen = batches(80, lambda b, s: factor, seed, noise=0.02, outliers=0.0)
    one = apply(profiled, after(start(profiled), seen, profiled))
    random.Random(seed).shuffle(seen)
    other = apply(profiled, after(start(profiled), seen, profiled))
    assert np.abs(np.log(one.hold_ms / other.hold_ms)).max() < 0.06


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(1, 100), st.floats(1e-3, 1e4)), min_size=1, max_size=60))
def test_whatever_comes_the_state_stays_sound(seen: list[Batch]) -> None:
    profiled = surface()
    correction = after(start(profiled), seen, profiled)
    assert np.isfinite(correction.theta).all()
    assert np.linalg.eigvalsh(correction.covariance).min() > -1e-9
    assert len(correction.recent) <= 16
    apply(profiled, correction)  # a Surface checks itself
    back = Correction.from_dict(json.loads(json.dumps(correction.to_dict())))
    assert back.to_dict() == correction.to_dict()


@pytest.mark.parametrize("bad", [(0, 50.0, 1.0), (1, float("nan"), 1.0), (1, 50.0, float("nan")), (1, 50.0, -1.0)])
def test_a_bad_batch_is_refused(bad: Batch) -> None:
    with pytest.raises(InvalidRequestError, match="must be positive and finite"):
        update(start(surface()), surface(), *bad)


@pytest.mark.parametrize("change", [{"theta": [0.0]}, {"x": 1}])
def test_a_state_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="correction"):
        Correction.from_dict({**start(surface()).to_dict(), **change})


# -- probes from live batches


def test_probes_of_live_batches() -> None:
    rng = np.random.default_rng(2)
    holds = 5.0 * np.exp(0.02 * rng.standard_normal(40))
    holds[::10] *= 4.0
    seen = [Observation(4, 50.0, float(h), 30.0) for h in holds] + [Observation(1, 50.0, 2.0)] * 7
    assert probes_of(seen[-7:]) == ()
    (probe,) = probes_of(seen)
    assert (probe.point.batch, probe.point.sm_percent, probe.point.quota_percent) == (4, 50.0, 30.0)
    assert probe.hold_ms == pytest.approx(5.0, rel=0.03)
    assert probe.log_spread == pytest.approx(0.02, abs=0.02)
    assert probe.runs == 40
    assert len(probes_of(seen, fewest_runs=7)) == 2
    random.Random(1).shuffle(seen)
    assert probes_of(seen) == (probe,)
