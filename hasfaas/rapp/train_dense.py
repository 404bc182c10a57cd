"""Learns the covariances of the dense smoother, by marginal likelihood over the models of the shared V100 table.

Source: KontonGu/RaPP (Apache-2.0, Copyright 2025 HAS-GPU Authors), `v100/v100_latency_sm_quota_batch.csv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasfaas.rapp.dense import COMPONENTS, JITTER, REGIMES, SCALE_STRENGTH, GridSmoother, factor, product
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, read_table

Array = np.ndarray[Any, Any]

LEFT_OUT = 0.2  # of the cells, so that training sees grids with gaps
STEPS = 25
EVERY = 2  # of the models takes part in the likelihood; the quantiles are calibrated on all
PRIOR_DEVIATION = 3.0  # of each parameter around its start, in logs
LEVELS = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995])

# Where the search starts, in the order of COMPONENTS: variance, and the lengths along log batch, log share, log quota.
START = (
    (1e-2, (3.0, 3.0, 1.0)),
    (8e-3, (0.3, 0.6, 0.15)),
    (5e-4, (1.0, 1.0, 1.0)),
    (3e-4, (1.0, 1.0, 1.0)),
    (2e-3, (1.0, 5.0, 5.0)),
    (5e-3, (1.0, 1.0, 0.25)),
    (2e-3, (1.0, 1.0, 1.0)),
    (2e-3, (1.0, 1.0, 0.5)),
    (1e-3, (1.0, 1.0, 1.0)),
    (5e-4, (1.0, 1.0, 1.0)),
    (5e-4, (1.0, 1.0, 0.5)),
    (3e-4, (1.0, 1.0, 1.0)),
    (2e-3, (1.0, 1.0, 1.0)),
    (2e-3, (2.0, 5.0, 0.2)),
    (8e-4, (1.0, 1.0, 1.0)),
)
_AXES = tuple(np.log(np.asarray(axis, float)) for axis in (BATCHES, SM_PERCENTS, QUOTA_PERCENTS))


def fit(data: Path) -> dict[str, Array]:
    """The trained arrays from the folder of shared data, for `GridSmoother.from_arrays`. Takes some minutes."""
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")
    grids = np.stack([table.grid(model) for model in table.models()])
    return fit_grids(np.where(np.random.default_rng(0).random(grids.shape) < LEFT_OUT, np.nan, grids))


def fit_grids(grids: Array) -> dict[str, Array]:
    """The trained arrays from latencies in ms [model, batch, SM share, quota], NaN where nothing was measured."""
    from scipy.optimize import minimize

    start = _pack(np.log([variance for variance, _ in START]), np.log([lengths for _, lengths in START]))
    plain = _smoother(start, np.zeros(len(LEVELS)))
    models = [_Model(plain, grid) for grid in grids[::EVERY]]
    found = minimize(_objective, start, args=(start, models), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    # Rounded: what the search leaves open lies far above this, and what differs between two machines far below it.
    parameters = np.round(found.x, 3)
    variance, lengths = _unpack(parameters)
    return {
        "log_variance": variance,
        "log_length": lengths,
        "levels": LEVELS.copy(),
        "scores": _scores(_smoother(parameters, np.zeros(len(LEVELS))), grids),
    }


def _scores(smoother: GridSmoother, grids: Array) -> Array:
    """The quantiles of the standardised errors of cells that were hidden from the smoother, a fifth of each grid."""
    # A stream of its own: with the seed of another draw, the hidden cells could be those that are missing already.
    generator = np.random.default_rng([20251124, 5])
    errors = []
    for grid in grids:
        hidden = np.isfinite(grid) & (generator.random(grid.shape) < LEFT_OUT)
        smooth = smoother.condition(np.where(hidden, np.nan, grid))
        errors.append(((np.log(grid) - smooth.log_median) / smooth.log_deviation)[hidden])
    return np.asarray(np.quantile(np.concatenate(errors), LEVELS))


class _Model:
    """What the likelihood needs of one model; none of it depends on the parameters."""

    def __init__(self, smoother: GridSmoother, grid: Array) -> None:
        logs = smoother.checked(grid)
        core = smoother.core(logs)
        self.known = np.flatnonzero(np.isfinite(logs).ravel())
        self.gates = {regime: gate[self.known] for regime, gate in core.gates().items()}
        self.rest = (logs - core.log_ms).ravel()[self.known]


def _smoother(parameters: Array, scores: Array) -> GridSmoother:
    variance, lengths = _unpack(parameters)
    return GridSmoother.from_arrays(
        {"log_variance": variance, "log_length": lengths, "levels": LEVELS, "scores": scores}
    )


# A length along an axis that is not smooth has no effect, and is left out of the search.
_SMOOTH = np.array([[kind == "m" for kind in kinds] for kinds, _ in COMPONENTS])


def _pack(variance: Array, lengths: Array) -> Array:
    return np.concatenate([variance, lengths[_SMOOTH]])


def _unpack(parameters: Array) -> tuple[Array, Array]:
    lengths = np.zeros(_SMOOTH.shape)
    lengths[_SMOOTH] = parameters[len(COMPONENTS) :]
    return parameters[: len(COMPONENTS)].copy(), lengths


def _objective(parameters: Array, start: Array, models: Sequence[_Model]) -> tuple[float, Array]:
    """The negative log likelihood of all models, with a weak prior, and its gradient."""
    terms, slopes = _terms(parameters)
    covariance = {
        regime: sum(term for (_, at), term in zip(COMPONENTS, terms, strict=True) if at == regime) for regime in REGIMES
    }
    value, weights = 0.0, {regime: np.zeros_like(terms[0]) for regime in REGIMES}
    for model in models:
        value += _add(model, covariance, weights)
    gradient = np.array([np.sum(weights[regime] * slope) for regime, slope in slopes])
    off = (parameters - start) / PRIOR_DEVIATION
    return value + 0.5 * float(off @ off), gradient + off / PRIOR_DEVIATION


def _terms(parameters: Array) -> tuple[list[Array], list[tuple[str, Array]]]:
    """The covariance of each component, and its derivative by each parameter with the regime that it belongs to."""
    variance, lengths = _unpack(parameters)
    terms, by_variance, by_length = [], [], []
    for (kinds, regime), size, length in zip(COMPONENTS, np.exp(variance), np.exp(lengths), strict=True):
        factors = [factor(*of) for of in zip(kinds, _AXES, length, strict=True)]
        terms.append(size * product(factors))
        by_variance.append((regime, terms[-1]))
        for axis, kind in enumerate(kinds):
            if kind == "m":
                distance = np.sqrt(3) * np.abs(_AXES[axis][:, None] - _AXES[axis]) / length[axis]
                slope = [*factors]
                slope[axis] = distance**2 * np.exp(-distance)
                by_length.append((regime, size * product(slope)))
    return terms, by_variance + by_length


def _add(model: _Model, covariance: dict[str, Any], weights: dict[str, Array]) -> float:
    """One model's negative log likelihood; its derivative by the covariances is added to `weights`.

    That of a Student-t process: each model has a scale of its own, so those that scatter most do not rule the others.
    """
    from scipy.linalg.lapack import dpotrf, dpotri

    square = np.ix_(model.known, model.known)
    outer = {regime: gate[:, None] * gate for regime, gate in model.gates.items()}
    among = sum(covariance[regime][square] * outer[regime] for regime in REGIMES)
    among[np.diag_indices_from(among)] += JITTER
    root, _ = dpotrf(among, lower=1)
    half, _ = dpotri(root, lower=1)
    inverse = np.tril(half) + np.tril(half, -1).T
    solved = inverse @ model.rest
    spread = float(model.rest @ solved) + SCALE_STRENGTH
    count = len(solved) + SCALE_STRENGTH
    slope = 0.5 * (inverse - np.outer(solved, solved) * (count / spread))
    for regime in REGIMES:
        weights[regime][square] += slope * outer[regime]
    return float(0.5 * count * np.log(spread) + np.sum(np.log(np.diag(root))))
