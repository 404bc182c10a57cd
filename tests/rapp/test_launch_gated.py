"""The launch-gated predictor: conditioning, probe design, intervals, bad probes, and a hold-out of the measured table."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.evaluate import score
from hasfaas.rapp.launch_gated import (
    CELLS,
    FIRST_PROBES,
    GPU,
    SHAPE,
    LaunchGatedModel,
    Probe,
    cell_of,
    nearest_cells,
    pack,
    point,
    unpack,
)
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, read_table
from hasfaas.rapp.train_launch_gated import TABLE, fit_log_ms, probe

Array = np.ndarray[Any, Any]


def synthetic(count: int, seed: int = 0, noise: float = 0.02) -> Array:
    """Latencies in ms [count, 4, 20, 10] of made-up models that obey max(G, H)."""
    rng = np.random.default_rng(seed)
    batch = np.array(BATCHES, float)[:, None, None]
    share = np.array(SM_PERCENTS)[None, :, None] / 100.0
    quota = np.array(QUOTA_PERCENTS)[None, None, :] / 100.0
    out = []
    for _ in range(count):
        work, floor, launch = np.exp(rng.normal(0.5, 1.0)), rng.uniform(0.5, 2.0), np.exp(rng.normal(2.7, 0.5))
        gpu = work * batch**0.95 / share + floor
        host = launch * quota ** -rng.uniform(1.1, 1.4) * np.exp(0.03 * rng.standard_normal((1, 20, 1)))
        out.append(np.maximum(gpu, host) * np.exp(noise * rng.standard_normal(SHAPE)))
    return np.stack(out)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    return fit_log_ms(np.log(synthetic(12)))


@pytest.fixture(scope="module")
def model(arrays: dict[str, Array]) -> LaunchGatedModel:
    return LaunchGatedModel.from_arrays(arrays)


def probes_of(model: LaunchGatedModel, truth: Array, k: int) -> list[Probe]:
    return list(probe(model, truth, k))


def test_predicts_models_that_it_has_not_seen(model: LaunchGatedModel) -> None:
    errors, inside = [], []
    for truth in synthetic(6, seed=1):
        found = model.predict(probes_of(model, truth, 16))
        errors.append(np.abs(found.latency_ms / truth - 1.0).mean())
        inside.append(((truth >= found.quantiles_ms[0]) & (truth <= found.quantiles_ms[2])).mean())
    assert np.mean(errors) < 0.05
    assert 0.8 < np.mean(inside) < 0.99


def test_more_probes_leave_less_doubt(model: LaunchGatedModel) -> None:
    truth = synthetic(1, seed=2)[0]
    widths = []
    for k in (5, 11, 32):
        low, _, high = model.predict(probes_of(model, truth, k)).quantiles_ms
        widths.append(float(np.log(high / low).mean()))
    assert widths[0] > widths[1] > widths[2]


def test_a_prediction_is_the_same_at_each_call_and_in_any_order(model: LaunchGatedModel) -> None:
    probes = probes_of(model, synthetic(1, seed=3)[0], 16)
    first = model.predict(probes).latency_ms
    assert np.array_equal(first, model.predict(probes).latency_ms)
    np.testing.assert_allclose(model.predict(probes[::-1]).latency_ms, first, rtol=1e-6)


def test_quantiles_are_ordered_and_hold_the_prediction(model: LaunchGatedModel) -> None:
    found = model.predict(probes_of(model, synthetic(1, seed=4)[0], 11))
    low, middle, high = found.quantiles_ms
    assert found.latency_ms.shape == SHAPE
    assert (low < middle).all()
    assert (middle < high).all()
    assert ((found.latency_ms > low) & (found.latency_ms < high)).all()


def test_the_monotone_surface_never_rises_with_the_slice(model: LaunchGatedModel) -> None:
    found = model.predict(probes_of(model, synthetic(1, seed=5)[0], 11)).monotone()
    for values in (found.latency_ms, *found.quantiles_ms):
        assert (np.diff(values, axis=1) <= 1e-9).all()
        assert (np.diff(values, axis=2) <= 1e-9).all()


def test_an_odd_probe_bends_the_surface_only_a_little(model: LaunchGatedModel) -> None:
    truth = synthetic(1, seed=6)[0]
    probes = probes_of(model, truth, 32)
    clean = model.predict(probes).latency_ms
    odd = [*probes[:-1], attrs.evolve(probes[-1], latency_ms=probes[-1].latency_ms * 1.5)]
    assert np.abs(model.predict(odd).latency_ms / clean - 1.0).mean() < 0.05


def test_a_shorter_design_begins_the_longer_one(model: LaunchGatedModel) -> None:
    assert model.probe_points(11) == model.probe_points(16)[:11]
    assert len(set(model.probe_points(40))) == 40
    for k in (4, 41, 0):
        with pytest.raises(InvalidRequestError, match="k="):
            model.probe_points(k)


def test_a_cell_that_cannot_be_measured_gives_way_to_the_nearest(model: LaunchGatedModel) -> None:
    available = np.ones(SHAPE, bool)
    available[3] = False
    points = model.probe_points(16, available)
    assert len(set(points)) == 16
    assert all(batch < 8 for batch, _, _ in points)
    free = np.ones(CELLS, bool)
    free[cell_of(8, 50, 100)] = False
    nearest = nearest_cells(np.array([cell_of(8, 50, 100)]), free)
    assert point(int(nearest[0])) in {(8, 55, 100), (8, 45, 100), (8, 50, 90)}
    with pytest.raises(InvalidRequestError, match="16 are needed"):
        model.probe_points(16, np.zeros(SHAPE, bool))


def test_each_probe_is_a_new_cell_that_can_be_measured(model: LaunchGatedModel) -> None:
    truth = synthetic(1, seed=9)[0]
    truth[3] = np.nan
    truth[:, :2, :9] = np.nan
    points = [(p.batch, p.sm_percent, p.quota_percent) for p in probe(model, truth, 20)]
    assert len(set(points)) == 20
    assert all(np.isfinite(truth.ravel()[cell_of(*p)]) for p in points)


def test_what_is_probed_next_depends_on_what_was_measured(model: LaunchGatedModel) -> None:
    """Models that differ are probed differently after the common first five."""
    chosen = [
        tuple(p.latency_ms > 0 and (p.batch, p.sm_percent, p.quota_percent) for p in probe(model, truth, 12))
        for truth in synthetic(4, seed=10)
    ]
    assert len({points[:5] for points in chosen}) == 1
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("k", [4, 800])
def test_a_number_of_probes_out_of_range_is_told(model: LaunchGatedModel, k: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"k={k}"):
        model.profile(lambda _: 1.0, k)


def bent(probes: list[Probe], case: str) -> list[Probe]:
    head, *rest = probes
    p = (head.batch, head.sm_percent, head.quota_percent)
    slow = max(probes, key=lambda probe: probe.quota_percent * probe.sm_percent / probe.batch)
    return {
        "empty": [],
        "few": probes[:4],
        "nan": [Probe(*p, math.nan), *rest],
        "zero": [Probe(*p, 0.0), *rest],
        "negative": [Probe(*p, -1.0), *rest],
        "infinite": [Probe(*p, math.inf), *rest],
        "off_grid": [Probe(3, 50, 50, 1.0), *rest],
        "off_grid_sm": [Probe(1, 52, 50, 1.0), *rest],
        "disagree": [*probes, Probe(*p, head.latency_ms * 3.0)],
        "rises": [Probe(1, 100, 100, 1e5), *(probe for probe in probes if probe != slow)],
    }[case]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("empty", "NO_PROBES"),
        ("few", "TOO_FEW_PROBES"),
        ("nan", "BAD_PROBE"),
        ("zero", "BAD_PROBE"),
        ("negative", "BAD_PROBE"),
        ("infinite", "BAD_PROBE"),
        ("off_grid", "OFF_GRID"),
        ("off_grid_sm", "OFF_GRID"),
        ("disagree", "PROBES_DISAGREE"),
        ("rises", "PROBES_NOT_MONOTONE"),
    ],
)
def test_bad_probes_are_worded_errors(model: LaunchGatedModel, case: str, reason: str) -> None:
    probes = bent(probes_of(model, synthetic(1, seed=7)[0], 16), case)
    with pytest.raises(InvalidRequestError) as caught:
        model.predict(probes)
    assert caught.value.reason == reason
    assert ":" in caught.value.message


def test_repeats_are_averaged(model: LaunchGatedModel) -> None:
    probes = probes_of(model, synthetic(1, seed=8)[0], 8)
    first = probes[0]
    p = (first.batch, first.sm_percent, first.quota_percent)
    twice = [Probe(*p, first.latency_ms * 1.1), Probe(*p, first.latency_ms / 1.1), *probes[1:]]
    np.testing.assert_allclose(model.predict(twice).latency_ms, model.predict(probes).latency_ms, rtol=1e-6)


def test_training_is_deterministic_and_small(arrays: dict[str, Array]) -> None:
    again = fit_log_ms(np.log(synthetic(12)))
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, again[name])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    assert buffer.tell() < 400_000


def test_too_little_to_train_on_is_refused() -> None:
    for shape in ((3, *SHAPE), (12, 4, 20, 9)):
        with pytest.raises(InvalidRequestError, match="at least 8 models"):
            fit_log_ms(np.zeros(shape))


def test_incomplete_coefficients_are_refused(arrays: dict[str, Array]) -> None:
    for broken in ({}, {**arrays, "covariance": arrays["covariance"][:-1]}, {**arrays, "gpu_mean": np.zeros(GPU - 1)}):
        with pytest.raises(InvalidRequestError, match="rapp train"):
            LaunchGatedModel.from_arrays(broken)


def test_packing_keeps_a_symmetric_matrix() -> None:
    half = np.random.default_rng(0).standard_normal((5, 5))
    matrix = half + half.T
    np.testing.assert_array_equal(unpack(pack(matrix), 5), matrix)


def analytic(grid: Array) -> tuple[Array, Array]:
    """The reference's max(G_lin, H) of rapp.md section 5, and its probe cells."""
    top = int(np.flatnonzero(np.isfinite(grid[:, 0, -1]))[-1])
    shares = [0, 3, 19]
    curve = np.exp(np.interp(np.log(SM_PERCENTS), np.log(np.array(SM_PERCENTS)[shares]), np.log(grid[top, shares, -1])))
    gpu = curve[None, :, None] * (np.array(BATCHES) / BATCHES[top])[:, None, None]
    cells = [cell_of(1, 50, quota) for quota in QUOTA_PERCENTS]
    cells += [cell_of(BATCHES[b], SM_PERCENTS[s], 100) for b in (0, top) for s in shares]
    return np.maximum(gpu, grid[0, 9][None, None]), np.array(cells)


def test_beats_the_analytic_law_on_measured_models_held_out(data: Path) -> None:
    table = read_table(data / TABLE)
    names = table.models()
    held = names[::4]
    training = np.log(np.stack([table.grid(name) for name in names if name not in held]))
    model = LaunchGatedModel.from_arrays(fit_log_ms(training, FIRST_PROBES))
    ours: list[float] = []
    theirs: list[float] = []
    for name in held:
        grid = table.grid(name)
        baseline, cells = analytic(grid)
        tested = np.isfinite(grid).ravel()
        tested[cells] = False
        theirs.append(float(np.abs(baseline.ravel() / grid.ravel() - 1.0)[tested].mean()))
        (score_of,) = score(name, grid, model, (16,))
        ours.append(score_of.mape / 100.0)
    assert np.mean(ours) < 0.95 * np.mean(theirs)
