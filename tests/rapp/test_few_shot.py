"""From a few probes to the surface: exact where it can be, near where it must be, and honest about the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.few_shot import fit
from hasfaas.rapp.probe import Point, Probe, choose
from hasfaas.rapp.surface import Surface
from hasfaas.rapp.table import BATCHES, SM_PERCENTS, read_table

Law = Callable[[float, float], float]


def smooth(batch: float, share: float) -> float:
    s = share / 100.0
    return float((((1.0 + 3.0 * batch) / s) ** 2.5 + (6.0 + 0.8 * batch) ** 2.5) ** (1 / 2.5))


def cliff(batch: float, share: float) -> float:
    """A cache that batch 4 no longer fits in, as on a CPU."""
    return smooth(batch, share) * (2.2 if batch > 2 else 1.0)


def measured(law: Law, points: tuple[Point, ...], noise: float, seed: int = 0) -> list[Probe]:
    rng = np.random.default_rng(seed)
    return [
        Probe(p, law(p.batch, p.sm_percent) * float(np.exp(noise * rng.standard_normal())), None, 10, max(noise, 0.005))
        for p in points
    ]


def truth(law: Law, batches: tuple[int, ...], shares: tuple[float, ...]) -> np.ndarray:
    return np.array([[law(b, s) for s in shares] for b in batches])


def test_a_function_that_follows_the_core_is_read_from_16_points() -> None:
    surface = fit(measured(smooth, choose(16, BATCHES, SM_PERCENTS, (50, 100)), 0.01), BATCHES, SM_PERCENTS)
    errors = np.abs(surface.hold_ms / truth(smooth, BATCHES, SM_PERCENTS) - 1.0)
    assert errors.mean() < 0.02
    assert errors.max() < 0.08


def test_more_probes_are_no_worse_and_more_certain() -> None:
    def error_and_doubt(count: int) -> tuple[float, float]:
        surface = fit(measured(smooth, choose(count, BATCHES, SM_PERCENTS, (100,)), 0.02, 3), BATCHES, SM_PERCENTS)
        errors = np.abs(np.log(surface.hold_ms / truth(smooth, BATCHES, SM_PERCENTS)))
        return float(errors.mean()), float(surface.log_sigma.mean())

    few, many = error_and_doubt(4), error_and_doubt(24)
    assert many[0] < few[0]
    assert many[1] < few[1]


def test_a_cliff_is_followed_by_the_probes() -> None:
    shares = (50.0, 100.0)
    surface = fit(measured(cliff, choose(8, BATCHES, shares, (100,)), 0.01), BATCHES, shares)
    assert surface.hold_ms == pytest.approx(truth(cliff, BATCHES, shares), rel=0.05)


def test_a_single_share_and_a_single_batch() -> None:
    line = fit(measured(smooth, choose(4, BATCHES, (100,), (50, 100)), 0.01), BATCHES, (100.0,))
    assert line.hold_ms == pytest.approx(truth(smooth, BATCHES, (100.0,)), rel=0.05)
    point = fit(measured(smooth, (Point(1, 100.0),), 0.01), (1,), (100.0,))
    assert point.hold_ms[0, 0] == pytest.approx(smooth(1, 100.0), rel=0.05)


def test_doubt_grows_away_from_the_probes_and_is_no_less_than_the_spread() -> None:
    probes = [Probe(Point(1, 100.0), 10.0, None, 10, 0.03), Probe(Point(1, 50.0), 15.0, None, 10, 0.03)]
    sigma = fit(probes, (1, 8, 64), (5.0, 50.0, 100.0)).log_sigma
    assert np.all(np.diff(sigma[:, 2]) > 0.0)
    assert sigma[0, 0] > 2.0 * sigma[0, 1]
    assert sigma.min() >= 0.03
    # Nothing is known of batch 64 after two probes at batch 1.
    assert sigma[2, 2] > 0.3


def test_one_wild_function_is_not_called_certain() -> None:
    rng = np.random.default_rng(5)
    points = choose(16, BATCHES, SM_PERCENTS, (100,))
    wild = {p: float(np.exp(0.12 * rng.standard_normal())) for p in points}
    probes = [Probe(p, smooth(p.batch, p.sm_percent) * wild[p], None, 30, 0.3) for p in points]
    assert fit(probes, BATCHES, SM_PERCENTS).log_sigma.min() >= 0.3


def test_a_prior_counts_where_probes_are_few() -> None:
    shares = (5.0, 20.0, 50.0, 100.0)
    doubt = np.full((4, 4), 0.25)
    prior = Surface(BATCHES, shares, 1.4 * truth(smooth, BATCHES, shares), doubt)
    (probe,) = measured(smooth, (Point(1, 100.0),), 0.01)
    alone, helped = fit([probe], BATCHES, shares), fit([probe], BATCHES, shares, prior)
    missed = [np.abs(np.log(s.hold_ms / truth(smooth, BATCHES, shares))).mean() for s in (alone, helped)]
    assert missed[1] < 0.5 * missed[0]
    assert helped.log_sigma.mean() < alone.log_sigma.mean()
    # With many probes even a prior of another function does little harm.
    misled = Surface(BATCHES, shares, np.tile(5.0 * np.array(BATCHES)[:, None] ** 0.1, (1, 4)), doubt)
    probes = measured(smooth, choose(12, BATCHES, shares, (100,)), 0.01)
    assert fit(probes, BATCHES, shares, misled).hold_ms == pytest.approx(truth(smooth, BATCHES, shares), rel=0.08)


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(4, 12), st.integers(0, 99))
def test_the_order_of_probes_does_not_matter(shuffle: object, count: int, seed: int) -> None:
    probes = measured(smooth, choose(count, BATCHES, (10, 30, 100), (50, 100)), 0.05, seed)
    first = fit(probes, BATCHES, (10, 30, 100))
    shuffle.shuffle(probes)  # type: ignore[attr-defined]
    again = fit(probes, BATCHES, (10, 30, 100))
    assert np.array_equal(first.hold_ms, again.hold_ms)
    assert np.array_equal(first.log_sigma, again.log_sigma)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0.05, 500.0), min_size=2, max_size=8))
def test_whatever_passes_the_check_gives_a_monotone_surface(holds: list[float]) -> None:
    cells = [(b, s) for s, b in itertools.product((100.0, 40.0), BATCHES)]
    probes = [Probe(Point(*cell), hold, None, 5, 0.02) for cell, hold in zip(cells, sorted(holds), strict=False)]
    surface = fit(probes, (1, 2, 4, 8, 16), (10.0, 40.0, 100.0))
    assert np.all(np.diff(surface.hold_ms, axis=0) >= -1e-9 * surface.hold_ms[1:])
    assert np.all(np.diff(surface.hold_ms, axis=1) <= 1e-9 * surface.hold_ms[:, 1:])


def test_bad_probes_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        fit([], BATCHES, SM_PERCENTS)
    with pytest.raises(InvalidRequestError, match="at least one value each"):
        fit(measured(smooth, (Point(1, 100.0),), 0.01), (), SM_PERCENTS)


def test_on_measured_models_the_90_percent_interval_holds_about_90_percent(data: Path) -> None:
    """Every ninth model of the V100 table at quota 100 %: its holds come from 20 processes of their own, so a few
    percent between neighbours are noise."""
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")
    errors, inside = [], []
    for model in table.models()[::9]:
        grid_ms = table.grid(model)[:, :, -1]
        if not np.isfinite(grid_ms).all():
            continue
        points = choose(16, BATCHES, SM_PERCENTS, (100,))
        places = [(BATCHES.index(p.batch), SM_PERCENTS.index(int(p.sm_percent))) for p in points]
        probes = [Probe(p, float(grid_ms[at]), None, 10, 0.02) for p, at in zip(points, places, strict=True)]
        surface = fit(probes, BATCHES, SM_PERCENTS)
        unseen = np.ones(grid_ms.shape, bool)
        unseen[tuple(np.transpose(places))] = False
        errors.append(np.abs(surface.hold_ms / grid_ms - 1.0)[unseen].mean())
        inside.append((np.abs(np.log(grid_ms / surface.hold_ms)) < 1.645 * surface.log_sigma)[unseen].mean())
    assert len(errors) >= 5
    assert np.mean(errors) < 0.06
    assert 0.83 < np.mean(inside) < 0.97
