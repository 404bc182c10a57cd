"""The dense smoother: what it recovers of a known surface, how it words bad input, how it fares on the shared table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import train_dense
from hasfaas.rapp.dense import COMPONENTS, GridSmoother, factor
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, read_table

SHAPE = (len(BATCHES), len(SM_PERCENTS), len(QUOTA_PERCENTS))
LEVELS = np.array([0.005, 0.05, 0.5, 0.95, 0.995])
SCORES = np.array([-2.6, -1.64, 0.0, 1.64, 2.6])


def arrays() -> dict[str, np.ndarray]:
    """The start of the training: good enough for the form of the answers."""
    return {
        "log_variance": np.log([variance for variance, _ in train_dense.START]),
        "log_length": np.log([lengths for _, lengths in train_dense.START]),
        "levels": LEVELS,
        "scores": SCORES,
    }


@pytest.fixture(scope="module")
def smoother() -> GridSmoother:
    return GridSmoother.from_arrays(arrays())


def surface(noise: float = 0.0) -> np.ndarray:
    """A function with 20 ms of launch path and 3 ms of GPU work per item and whole device."""
    batch = np.array(BATCHES, float)[:, None, None]
    share = np.array(SM_PERCENTS, float)[None, :, None] / 100
    launch = 20 * (np.array(QUOTA_PERCENTS, float) / 100) ** -1.2
    work = ((3 * batch / share) ** 3 + (1.5 * batch) ** 3) ** (1 / 3)
    scatter = np.exp(noise * np.random.default_rng(5).standard_normal(SHAPE))
    return np.asarray(np.maximum(work, launch) * scatter)


def gaps(share: float, seed: int = 1) -> np.ndarray:
    """Which cells are missing."""
    return np.asarray(np.random.default_rng(seed).random(SHAPE) < share)


def test_recovers_a_known_surface(smoother: GridSmoother) -> None:
    truth = surface()
    for missing, bound in ((gaps(0.2), 1.0), (gaps(0.8), 6.0)):
        found = smoother.condition(np.where(missing, np.nan, truth)).median_ms
        error = 100 * np.abs(found / truth - 1)
        assert error[missing].mean() < bound


def test_beats_the_core_alone(smoother: GridSmoother) -> None:
    truth, missing = surface(0.02), gaps(0.3)
    seen = np.where(missing, np.nan, truth)
    core = np.exp(smoother.core(np.log(seen)).log_ms)
    smooth = smoother.condition(seen).median_ms
    assert np.abs(smooth / truth - 1)[missing].mean() < np.abs(core / truth - 1)[missing].mean()


def test_scale_of_the_latency_goes_through(smoother: GridSmoother) -> None:
    seen = np.where(gaps(0.4), np.nan, surface(0.03))
    one, ten = smoother.condition(seen), smoother.condition(10 * seen)
    assert ten.median_ms == pytest.approx(10 * one.median_ms, rel=1e-9)
    assert ten.log_deviation == pytest.approx(one.log_deviation, rel=1e-6)


def test_quantiles_are_ordered_and_widen_without_cells(smoother: GridSmoother) -> None:
    missing = gaps(0.1)
    missing[:, 5:12] = True
    smooth = smoother.condition(np.where(missing, np.nan, surface(0.03)))
    assert (smooth.quantile_ms(0.05) < smooth.median_ms).all()
    assert (smooth.median_ms < smooth.quantile_ms(0.95)).all()
    assert smooth.log_deviation[:, 8].mean() > 1.1 * smooth.log_deviation[:, 3].mean()
    with pytest.raises(InvalidRequestError, match=r"level=0\.999"):
        smooth.quantile_ms(0.999)


def test_a_batch_without_cells_is_scaled_from_its_neighbour(smoother: GridSmoother) -> None:
    truth = surface()
    missing = np.zeros(SHAPE, bool)
    missing[3] = True
    found = smoother.condition(np.where(missing, np.nan, truth)).median_ms
    assert np.isfinite(found).all()
    assert np.abs(found / truth - 1)[3].mean() < 0.2


def test_one_wild_cell_moves_its_neighbours_little(smoother: GridSmoother) -> None:
    truth = surface()
    spoilt = truth.copy()
    spoilt[1, 9, 5] *= 1.5
    away = np.ones(SHAPE, bool)
    away[1, 9, 5] = False
    clean, moved = smoother.condition(truth).median_ms, smoother.condition(spoilt).median_ms
    assert np.abs(moved / clean - 1)[away].mean() < 0.005


def test_other_grids(smoother: GridSmoother) -> None:
    """A small grid of its own axes is answered as the same cells of the large one are, about."""
    small = GridSmoother.from_arrays(arrays(), batches=(1, 4), sm_percents=(10, 50, 100), quota_percents=(50, 100))
    cells = np.ix_([0, 2], [1, 9, 19], [4, 9])
    found = small.condition(surface()[cells]).median_ms
    assert found == pytest.approx(smoother.condition(surface()).median_ms[cells], rel=0.05)
    for bad in ((), (2, 1), (0, 1), (1, float("inf"))):
        with pytest.raises(InvalidRequestError, match="batches="):
            GridSmoother.from_arrays(arrays(), batches=bad)


def test_bad_grids_are_worded(smoother: GridSmoother) -> None:
    with pytest.raises(InvalidRequestError, match="shape"):
        smoother.condition(np.ones((4, 20)))
    with pytest.raises(InvalidRequestError, match="few-shot"):
        smoother.condition(np.where(gaps(0.95), np.nan, surface()))
    with pytest.raises(InvalidRequestError, match="few-shot"):
        smoother.condition(np.full(SHAPE, np.nan))
    for value in (0.0, -1.0, np.inf):
        grid = surface()
        grid[0, 0, 0] = value
        with pytest.raises(InvalidRequestError, match="no positive number"):
            smoother.condition(grid)


def test_any_tenth_of_the_grid_gives_numbers(smoother: GridSmoother) -> None:
    truth = surface()
    only_large = np.full(SHAPE, np.nan)
    only_large[3] = truth[3]
    only_small_shares = np.full(SHAPE, np.nan)
    only_small_shares[:, :4] = truth[:, :4]
    only_small_quotas = np.full(SHAPE, np.nan)
    only_small_quotas[:, :, :2] = truth[:, :, :2]
    for seen in (only_large, only_small_shares, only_small_quotas):
        assert np.isfinite(smoother.condition(seen).median_ms).all()


def test_factors_are_correlations() -> None:
    axis = np.log(np.array(SM_PERCENTS, float))
    for kind in "md1":
        matrix = factor(kind, axis, 0.5)
        assert np.diag(matrix) == pytest.approx(1)
        assert np.linalg.eigvalsh(matrix).min() > -1e-9
    assert len(COMPONENTS) == len(train_dense.START)


def test_gradient_of_the_likelihood() -> None:
    start = train_dense._pack(arrays()["log_variance"], arrays()["log_length"])
    plain = train_dense._smoother(start, np.zeros(len(train_dense.LEVELS)))
    models = [train_dense._Model(plain, np.where(gaps(0.8), np.nan, surface(0.05)))]
    _, gradient = train_dense._objective(start, start, models)
    for at in (5, 14, len(start) - 1):
        step = np.zeros(len(start))
        step[at] = 1e-5
        up, down = (train_dense._objective(start + sign * step, start, models)[0] for sign in (1, -1))
        assert gradient[at] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-3)


def test_training_on_shared_models(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in few steps on two models, it predicts held-out cells of others below RaPP's 4.70 %."""
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")
    grids = np.stack([table.grid(name) for name in ("resnet50", "convnext_small")])
    monkeypatch.setattr(train_dense, "STEPS", 2)
    monkeypatch.setattr(train_dense, "EVERY", 2)
    trained = train_dense.fit_grids(np.where(gaps(0.2), np.nan, grids))
    assert trained["log_variance"].shape == (len(COMPONENTS),)
    assert (np.diff(trained["scores"]) >= 0).all()
    smoother = GridSmoother.from_arrays(trained)
    errors, inside = [], []
    for name in ("vgg19", "efficientnet_b1", "mnasnet1_3"):
        grid, missing = table.grid(name), gaps(0.2, 3)
        smooth = smoother.condition(np.where(missing, np.nan, grid))
        errors.append(100 * np.abs(smooth.median_ms / grid - 1)[missing])
        inside.append(((smooth.quantile_ms(0.05) < grid) & (grid < smooth.quantile_ms(0.95)))[missing])
    assert np.concatenate(errors).mean() < 4.7
    assert 0.75 < np.concatenate(inside).mean() < 0.99


def test_fit_reads_the_shared_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path of the training, in one step on one model; the quantiles come from all models."""
    monkeypatch.setattr(train_dense, "STEPS", 1)
    monkeypatch.setattr(train_dense, "EVERY", 56)
    trained = train_dense.fit(data)
    assert set(trained) == {"log_variance", "log_length", "levels", "scores"}
    at = dict(zip(trained["levels"].tolist(), trained["scores"].tolist(), strict=True))
    assert -3 < at[0.05] < at[0.5] < at[0.95] < 3
