"""Trains the launch-gated predictor: mean, covariance and noise of its state by EM over the measured models.

E-step: each model's state by Gauss-Newton on all its cells (Laplace approximation, Student weights). M-step: mean and
covariance, shrunk towards a simple kernel, since there are fewer models than dimensions. Probe design: greedy, least
sum of predictive standard deviations, linearised at the training models. Interval: some training models predicted from
their probes by the law without that model's own contribution. Deterministic, numpy alone.

Coefficients derive from the table of KontonGu/RaPP (Copyright 2025 HAS-GPU Authors, Apache-2.0 by its README).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.launch_gated import (
    CELL,
    CELLS,
    DEFAULT_PROBES,
    DESIGN_SHARPNESS,
    DEVIATIONS,
    FREEDOM,
    GPU,
    LEVELS,
    QUOTA_OF,
    SHAPE,
    LaunchGatedModel,
    LaunchLaw,
    Probe,
    cell_of,
    checked,
    launch_basis,
    pack,
    quantiles_of,
)
from hasfaas.rapp.table import BATCHES, SM_PERCENTS, read_table

Array = np.ndarray[Any, Any]

TABLE = "v100/v100_latency_sm_quota_batch.csv"
RANK = 8
ITERATIONS = 8
DESIGN = 40
CALIBRATED_AT = (11, 16)
# So many models, evenly among the training models, tell by how much the interval must be stretched.
CALIBRATED_ON = 16
NOMINAL = 0.9
# Weight of the kernel in the covariance, in models.
SHRINK_GPU, SHRINK_LEVEL, SHRINK_BATCH, SHRINK_SHARE = 40.0, 5.0, 10.0, 10.0

_QUOTA = np.arange(float(LEVELS))
_START_MS = np.array([300.0, 100.0, 60.0, 45.0, 33.0, 27.0, 22.0, 18.0, 16.5, 15.0])
_GPU, _LEVEL = slice(0, GPU), slice(GPU, GPU + LEVELS)
_BATCH = slice(GPU + LEVELS, GPU + LEVELS + DEVIATIONS)
_SHARE = slice(GPU + LEVELS + DEVIATIONS, None)


@attrs.frozen(eq=False)
class _Trained:
    """The law, each model's state [models, n], its second moments [models, n, n], and the shrinkage target."""

    law: LaunchLaw
    modes: Array
    states: Array
    spreads: Array
    target: Array


def fit(data: Path) -> dict[str, Array]:
    """Arrays for `LaunchGatedModel.from_arrays`, from the V100 table in the folder `data`, all models."""
    table = read_table(data / TABLE)
    return fit_log_ms(np.log(np.stack([table.grid(model) for model in table.models()])))


def fit_log_ms(log_ms: Array, design: int = DESIGN) -> dict[str, Array]:
    """As `fit`, from log latencies [models, 4, 20, 10] with NaN where not measured, with a design of so many points.

    Raises InvalidRequestError for fewer than 8 models or another shape.
    """
    if log_ms.ndim != 4 or log_ms.shape[1:] != SHAPE or len(log_ms) < 8:
        raise InvalidRequestError(
            f"log_ms has shape {log_ms.shape}: give at least 8 models on the grid {SHAPE}", reason="BAD_TABLE"
        )
    flat = log_ms.reshape(len(log_ms), CELLS)
    trained = _em(flat)
    chosen = _design(trained, np.isfinite(flat).mean(axis=0) > 0.9, design)
    law = trained.law
    return {
        "gpu_mean": law.gpu_mean,
        "launch_mean": law.launch_mean,
        "quota_modes": trained.modes,
        "covariance": pack(law.covariance).astype(np.float32),
        "gpu_variance": np.array(law.gpu_variance),
        "launch_variance": law.launch_variance,
        "design": chosen.astype(np.int16),
        "interval_scale": np.array(_interval_scale(trained, flat, chosen)),
    }


def _bell(x: Array, width: float) -> Array:
    bell: Array = np.exp(-0.5 * ((x[:, None] - x) / width) ** 2)
    return bell


def _gpu_kernel() -> tuple[Array, Array]:
    """First mean and covariance of log G: rises by 0.62 per doubling of the batch, falls with the SM share."""
    axes = np.meshgrid(np.log2(BATCHES), np.log(np.array(SM_PERCENTS) / 100.0), indexing="ij")
    batch, share = (axis.ravel() for axis in axes)
    smooth = 0.15**2 * _bell(batch, 1.5) * _bell(share, 1.0)
    lines = 0.1**2 * np.outer(batch - 1.5, batch - 1.5) + 0.15**2 * np.outer(share + 1.0, share + 1.0)
    return 2.0 + 0.62 * batch - 0.85 * share, 1.5**2 + lines + smooth + 0.03**2 * np.eye(GPU)


def _kernels() -> tuple[Array, Array, Array]:
    level = 0.7**2 + 0.3**2 * _bell(_QUOTA, 2.0) + 0.1**2 * np.eye(LEVELS)
    between = np.array([[1.0, 0.8, 0.8], [0.8, 1.0, 0.9], [0.8, 0.9, 1.0]])
    batch = np.kron(between, 0.06**2 + 0.04**2 * _bell(_QUOTA, 2.0) + 0.02**2 * np.eye(LEVELS))
    along = 0.6 * np.exp(-_lags() / 6.0) + 0.4 * np.eye(SHAPE[1])
    return level, batch, np.kron(along, np.diag(0.04**2 / (1.0 + np.arange(RANK))))


def _lags() -> Array:
    return np.abs(np.subtract.outer(np.arange(SHAPE[1]), np.arange(SHAPE[1])))


def _blocks(*parts: Array) -> Array:
    n = sum(len(part) for part in parts)
    out, start = 1e-7 * np.eye(n), 0
    for part in parts:
        out[start : start + len(part), start : start + len(part)] += part
        start += len(part)
    return out


def _modes() -> Array:
    vectors = np.linalg.eigh(0.5 + _bell(_QUOTA, 1.5))[1][:, ::-1][:, :RANK]
    # An eigenvector's sign is the library's choice; ours is that the largest entry is positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(RANK)])
    modes: Array = vectors * signs * np.sqrt(LEVELS)
    return modes


def _em(flat: Array) -> _Trained:
    gpu_mean, gpu_kernel = _gpu_kernel()
    kernels = (gpu_kernel, *_kernels())
    modes = _modes()
    law = LaunchLaw(
        gpu_mean,
        np.log(_START_MS)[QUOTA_OF],
        launch_basis(modes),
        _blocks(*kernels),
        0.012**2,
        np.full(LEVELS, 0.035**2),
    )
    states = np.stack([_first_state(row, law) for row in flat])
    for iteration in range(ITERATIONS):
        inverse = np.linalg.inv(law.covariance)
        found = [
            _state(row, law, state, inverse, 3 if iteration else 6) for row, state in zip(flat, states, strict=True)
        ]
        law, states, spreads, target = _update(law, kernels, found)
    return _Trained(law, modes, states, spreads, target)


def _first_state(row: Array, law: LaunchLaw) -> Array:
    grid, state = row.reshape(SHAPE), np.zeros(len(law.covariance))
    full = grid[:, :, -1].ravel()
    state[_GPU] = np.where(np.isfinite(full), full - 0.1 - law.gpu_mean, 0.0)
    state[_LEVEL] = np.nanmedian(grid[0], axis=0) - law.launch_mean[:LEVELS]
    return state


def _state(row: Array, law: LaunchLaw, state: Array, inverse: Array, steps: int) -> tuple[Array, Array, Array]:
    """A model's state from all its cells, its covariance, and [cells, 3]: weighted square, share of G, quota."""
    cells = CELL[np.isfinite(row)]
    for _ in range(steps):
        value, share = law.forward(state, cells)
        noise, residual = law.noise(share, cells), row[cells] - value
        robust = (FREEDOM + 1.0) / (FREEDOM + residual**2 / noise)
        weight = robust / noise
        jacobian = law.jacobian(share, cells)
        scaled = jacobian * np.sqrt(weight)[:, None]
        precision = inverse + scaled.T @ scaled
        change = np.linalg.solve(precision, jacobian.T @ (weight * residual) - inverse @ state)
        state = state + change * min(1.0, 1.0 / max(float(np.abs(change).max()), 1e-12))
    return state, np.linalg.inv(precision), np.stack([robust * residual**2, share, QUOTA_OF[cells]], axis=1)


def _update(
    law: LaunchLaw, kernels: tuple[Array, ...], found: list[tuple[Array, Array, Array]]
) -> tuple[LaunchLaw, Array, Array, Array]:
    states = np.stack([state for state, _, _ in found])
    count = len(states)
    mean = states.mean(axis=0)
    mean[_SHARE] *= count / (count + 10.0)
    states = states - mean
    spreads = np.stack([np.outer(s, s) + c for s, (_, c, _) in zip(states, found, strict=True)])
    target = _blocks(*kernels[:3], _share_kernel(spreads.sum(axis=0)[_SHARE, _SHARE] / count))
    cells = np.concatenate([cell for _, _, cell in found])
    gpu, launch = cells[cells[:, 1] > 0.95], cells[cells[:, 1] < 0.05]
    sums = np.bincount(launch[:, 2].astype(int), launch[:, 0], LEVELS)
    number = np.bincount(launch[:, 2].astype(int), minlength=LEVELS)
    return (
        LaunchLaw(
            law.gpu_mean + mean[_GPU],
            law.launch_mean + law.basis @ mean[GPU:],
            law.basis,
            _shrunk(spreads.sum(axis=0), count, target),
            max(float(gpu[:, 0].sum()) / max(len(gpu), 1), 0.004**2),
            np.maximum(sums / np.maximum(number, 1), 0.01**2),
        ),
        states,
        spreads,
        target,
    )


def _shrunk(total: Array, count: int, target: Array) -> Array:
    """Sum of second moments, block by block, shrunk towards the target."""
    out = np.zeros_like(total)
    pairs = ((_GPU, SHRINK_GPU), (_LEVEL, SHRINK_LEVEL), (_BATCH, SHRINK_BATCH), (_SHARE, SHRINK_SHARE))
    for block, weight in pairs:
        out[block, block] = (total[block, block] + weight * target[block, block]) / (count + weight)
    return out + 1e-7 * np.eye(len(out))


def _positive(matrix: Array, least: float) -> Array:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    positive: Array = (vectors * np.maximum(values, least)) @ vectors.T
    return positive


def _share_kernel(moments: Array) -> Array:
    """The nearest (SM share x SM share) times (mode x mode) product, half of it smoothed over the distance."""
    shares = SHAPE[1]
    four = moments.reshape(shares, RANK, shares, RANK)
    mode = np.eye(RANK) * np.trace(moments) / (shares * RANK)
    for _ in range(10):
        along = np.einsum("iajb,ba->ij", four, np.linalg.inv(mode)) / RANK
        along = _positive(along, 1e-4 * np.trace(along) / shares)
        along /= np.trace(along) / shares
        mode = np.einsum("iajb,ji->ab", four, np.linalg.inv(along + 0.02 * np.eye(shares))) / shares
        mode = _positive(mode, 1e-6)
    by_lag = np.array([along[_lags() == lag].mean() for lag in range(shares)])
    return np.kron(0.5 * along + 0.5 * _positive(by_lag[_lags()] / by_lag[0], 1e-6), mode)


def _design(trained: _Trained, allowed: Array, points: int) -> Array:
    """Cells in the order in which each lowers the sum over models and cells of the predictive deviation most."""
    law, joint, noises = trained.law, [], []
    for state in trained.states:
        _, share = law.forward(state, sharpness=DESIGN_SHARPNESS)
        jacobian = law.jacobian(share)
        joint.append(jacobian @ law.covariance @ jacobian.T)
        noises.append(law.noise(share))
    chosen: list[int] = []
    for _ in range(points):
        total = np.where(allowed, 0.0, np.inf)
        total[chosen] = np.inf
        for matrix, noise in zip(joint, noises, strict=True):
            own = np.diag(matrix)
            total += np.sqrt(np.maximum(own[:, None] - matrix**2 / (own + noise), 0.0)).sum(axis=0)
        best = int(np.argmin(total))
        chosen.append(best)
        for matrix, noise in zip(joint, noises, strict=True):
            column = matrix[:, best].copy()
            matrix -= np.outer(column, column) / (column[best] + noise[best])
    return np.array(chosen)


def _interval_scale(trained: _Trained, flat: Array, design: Array) -> float:
    """By how much the interval must be stretched to hold NOMINAL of the cells of a model that the law has not seen."""
    total, count, ratios = trained.spreads.sum(axis=0), len(flat), []
    for index in range(0, count, -(-count // CALIBRATED_ON)):
        row = flat[index]
        law = _without(trained, total - trained.spreads[index], trained.states[index], count - 1)
        model = LaunchGatedModel(law, design, 1.0)
        probes = probe(model, np.exp(row))
        for number in CALIBRATED_AT:
            cells, log_ms = checked(probes[:number])
            low, middle, high = quantiles_of(law.draws(law.condition(cells, log_ms)))
            known = np.isfinite(row)
            known[cells] = False
            off = row - middle
            ratios.append(np.where(off > 0, off / (high - middle), off / (low - middle))[known])
    return float(np.quantile(np.concatenate(ratios), NOMINAL))


def probe(model: LaunchGatedModel, latency_ms: Array, k: int = DEFAULT_PROBES) -> tuple[Probe, ...]:
    """Profiles a model whose latencies [4, 20, 10] in ms are known (NaN: not measured), as a device would be."""
    flat = latency_ms.ravel()
    return model.profile(lambda at: float(flat[cell_of(*at)]), k, np.isfinite(flat))


def _without(trained: _Trained, total: Array, state: Array, count: int) -> LaunchLaw:
    """The law as the other models give it: their states stay as they are, mean and covariance are theirs alone."""
    shift = -state / count
    return attrs.evolve(
        trained.law,
        gpu_mean=trained.law.gpu_mean + shift[_GPU],
        launch_mean=trained.law.launch_mean + trained.law.basis @ shift[GPU:],
        covariance=_shrunk(total, count, trained.target),
    )
