"""Unseen configurations: a tenth of the V100 table, drawn at random, predicted from four fifths of it (rapp.md 6.5 A)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.rapp_row import Row, row
from hasfaas.rapp import train_dense
from hasfaas.rapp.dense import GridSmoother
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, LatencyTable, read_table

WITHOUT_FEATURES = ("efficientnet_b6", "efficientnet_b7")


def rows(data: Path, seeds: Sequence[int], report: Callable[[str], None]) -> list[Row]:
    """One figure: trained anew for each seed on that seed's training cells alone."""
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv").without(WITHOUT_FEATURES)
    by_seed, inside, by_model = [], [], []
    for seed in seeds:
        errors, covered, per_model = evaluate(table, seed)
        report(f"unseen configurations, seed {seed}: {errors.mean():.2f} % over {len(errors)} cells")
        by_seed.append(errors)
        inside.append(covered)
        by_model.append(per_model)
    names = table.models()
    groups = [(name, float(mean)) for name, mean in zip(names, np.nanmean(by_model, axis=0), strict=True)]
    return [
        row(
            "unseen_config_mape",
            "a random 10 % of the cells of 54 models, profile cells not counted, from another 80 %; "
            "the remaining 10 % are not used",
            by_seed,
            target=3.5,
            published="RaPP 4.70, DIPPM 10.14",
            group_errors=groups,
            coverage=float(np.concatenate(inside).mean()),
            note="interpolation on a dense grid: it says little about new functions",
        )
    ]


def evaluate(table: LatencyTable, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors in % and whether the 90 % interval holds, per test cell; the mean error per model."""
    draw = LatencyTable(table.model, table.batch, table.sm_percent, table.quota_percent, _draw(len(table), seed))
    grids = np.stack([table.grid(model) for model in table.models()])
    u = np.stack([draw.grid(model) for model in table.models()])
    training, test = u >= 0.2, (u < 0.1) & ~profile_cells()
    known = np.where(training, grids, np.nan)
    smoother = GridSmoother.from_arrays(train_dense.fit_grids(known))
    errors, inside, means = [], [], []
    for grid, seen, held in zip(grids, known, test, strict=True):
        smooth = smoother.condition(seen)
        error = 100 * np.abs(smooth.median_ms[held] / grid[held] - 1)
        errors.append(error)
        means.append(error.mean() if len(error) else np.nan)
        inside.append((smooth.quantile_ms(0.05)[held] <= grid[held]) & (grid[held] <= smooth.quantile_ms(0.95)[held]))
    return np.concatenate(errors), np.concatenate(inside), np.array(means)


def _draw(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(count)


def profile_cells() -> np.ndarray:
    """RaPP's 11-point profile on the grid: b = 1 at six SM shares and full quota, b = 4, all SMs, at five quotas."""
    cells = np.zeros((len(BATCHES), len(SM_PERCENTS), len(QUOTA_PERCENTS)), bool)
    for sm in (5, 10, 30, 60, 80, 100):
        cells[BATCHES.index(1), SM_PERCENTS.index(sm), QUOTA_PERCENTS.index(100)] = True
    for quota in (20, 40, 60, 80, 100):
        cells[BATCHES.index(4), SM_PERCENTS.index(100), QUOTA_PERCENTS.index(quota)] = True
    return cells
