"""From a few probe runs to the whole latency surface, with an honest uncertainty.

A handful of models is fitted to the log holds: the parametric core of `hold_model`, or a prior surface (zero-shot)
that may be shifted and tilted, each with Gaussian-process residuals of several amplitudes and reaches. Each model
counts by its evidence, so a function whose holds follow the core is read from the core, and one whose holds jump is
interpolated between its probes. The spread is scaled by how far each probe lies from what the others say about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import hold_model
from hasfaas.rapp.hold_model import Array, Residual
from hasfaas.rapp.probe import Probe, check
from hasfaas.rapp.surface import Surface, monotone

AMPLITUDES = (0.02, 0.07, 0.25)
# In doublings of batch and SM share. The shortest are for cliffs: a cache that the next batch no longer fits in jumps at
# every SM share alike, within less than one doubling of the batch.
REACHES = ((0.4, 1.0), (0.4, 4.0), (1.0, 1.0), (3.0, 1.5), (3.0, 4.0))
NUGGETS = (0.004, 0.02, 0.05)
RESIDUALS = tuple(
    Residual(amplitude, batch_reach, sm_reach, nugget)
    for amplitude, (batch_reach, sm_reach), nugget in itertools.product(AMPLITUDES, REACHES, NUGGETS)
)
# The leave-one-out scale counts as if that many probes had been exactly as far off as the models say.
_SCALE_PROBES = 6.0
_SCALE_BOUNDS = (0.7, 3.0)
_ROUNDS = 25
# A prior surface may be off by this factor as a whole (log), and by these powers of batch and SM share.
_SHIFT, _TILT = 1.0, 0.15
_LEAST_SIGMA = 1e-3


@attrs.frozen(eq=False)
class _Mean:
    """A mean that is linear in parameters around one place: values and slopes at the probes and on the grid."""

    at_probes: Array
    at_grid: Array
    slopes_probes: Array
    slopes_grid: Array


@attrs.frozen(eq=False)
class _Fitted:
    """One model after the probes: its evidence, mean and variance on the grid, and for each probe left out."""

    log_evidence: float
    mean: Array
    variance: Array
    out_mean: Array
    out_variance: Array


def fit(
    probes: Sequence[Probe], batches: Sequence[int], sm_percents: Sequence[float], prior: Surface | None = None
) -> Surface:
    """The surface over `batches` x `sm_percents` (both rising) that the probes tell of.

    Probes may lie at any quota, since each carries its hold, and anywhere on the axes. The order of the probes does
    not matter. `log_sigma` is that of one further run: it grows away from the probes, and is nowhere less than their
    spread from run to run. `prior` is what was predicted without probes; the fewer there are, the more it counts.
    Raises InvalidRequestError as `check` does.
    """
    check(probes)
    if not batches or not sm_percents:
        raise InvalidRequestError("batches and sm_percents must hold at least one value each", reason="BAD_PROBES")
    ordered = sorted(probes, key=lambda p: (p.point, p.hold_ms, p.log_spread, p.runs))
    where = hold_model.places(
        np.array([p.point.batch for p in ordered]), np.array([p.point.sm_percent for p in ordered])
    )
    grid = hold_model.places(*(axis.ravel() for axis in np.meshgrid(batches, sm_percents, indexing="ij")))
    log_holds = np.log([p.hold_ms for p in ordered])
    noise = np.array([p.log_noise for p in ordered])
    fitted = [_conditioned(mean, residual, where, grid, log_holds, noise)
              for residual in RESIDUALS
              for mean in _means(residual, where, grid, log_holds, noise, prior)]  # fmt: skip
    shape = (len(batches), len(sm_percents))
    mean, variance = _mixed(fitted, [(f.mean, f.variance) for f in fitted])
    spread = float(np.median([p.log_spread for p in ordered]))
    sigma = np.sqrt(variance * _scale(fitted, log_holds) ** 2 + spread**2)
    return Surface(
        tuple(int(b) for b in batches),
        tuple(float(s) for s in sm_percents),
        np.exp(monotone(mean.reshape(shape))),
        np.maximum(sigma, _LEAST_SIGMA).reshape(shape),
    )


def _means(
    residual: Residual, where: Array, grid: Array, log_holds: Array, noise: Array, prior: Surface | None
) -> list[_Mean]:
    means = [_core(residual, where, grid, log_holds, noise)]
    if prior is not None:
        means.append(_around(prior, where, grid))
    return means


def _core(residual: Residual, where: Array, grid: Array, log_holds: Array, noise: Array) -> _Mean:
    """The core at its most probable parameters, as a linear model around them whose prior is the original one."""
    centre = hold_model.MEAN.copy()
    # The level is all but free: it starts where a function of typical shape would have it.
    centre[0] = float(np.median(log_holds - hold_model.log_hold(hold_model.MEAN, where)))
    factor = np.linalg.inv(np.linalg.cholesky(_of_probes(residual, where, noise)))
    theta = _most_probable(factor, where, log_holds, centre)
    slopes_probes, slopes_grid = hold_model.slopes(theta, where), hold_model.slopes(theta, grid)
    back = centre - theta
    return _Mean(
        hold_model.log_hold(theta, where) + slopes_probes @ back,
        hold_model.log_hold(theta, grid) + slopes_grid @ back,
        slopes_probes * hold_model.SPREAD,
        slopes_grid * hold_model.SPREAD,
    )


def _most_probable(factor: Array, where: Array, log_holds: Array, centre: Array) -> Array:
    """Levenberg-Marquardt on whitened residuals and the distance from the prior."""

    def misfit(theta: Array) -> Array:
        missed = factor @ (log_holds - hold_model.log_hold(theta, where))
        return np.concatenate([missed, (centre - theta) / hold_model.SPREAD])

    theta, damping = centre.copy(), 1e-2
    now = misfit(theta)
    for _ in range(_ROUNDS):
        jacobian = np.vstack([factor @ hold_model.slopes(theta, where), np.diag(1.0 / hold_model.SPREAD)])
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), jacobian.T @ now)
        then = misfit(theta + step)
        if then @ then < now @ now:
            gained = now @ now - then @ then
            theta, now, damping = theta + step, then, damping * 0.2
            if gained < 1e-9:
                break
        else:
            damping *= 8.0
    return theta


def _around(prior: Surface, where: Array, grid: Array) -> _Mean:
    """A prior surface, off by a factor and by small powers of batch and SM share, as far as it doubts itself."""

    def read(at: Array) -> Array:
        return np.log([prior.hold(2.0**b, 100.0 * 2.0**s) for b, s in at])

    doubt = float(np.median(prior.log_sigma))
    shift, tilt = min(max(doubt, 0.05), _SHIFT), min(max(0.2 * doubt, 0.02), _TILT)
    spread = np.array([shift, tilt, tilt])
    middle = grid.mean(axis=0)

    def slopes(at: Array) -> Array:
        return np.asarray(np.concatenate([np.ones((len(at), 1)), at - middle], axis=1) * spread)

    return _Mean(read(where), read(grid), slopes(where), slopes(grid))


def _of_probes(residual: Residual, where: Array, noise: Array) -> Array:
    """Covariance of the probes around the mean. Two probes of one cell share its nugget."""
    same = (where[:, None, :] == where[None, :, :]).all(axis=-1)
    return np.asarray(residual.covariance(where, where) + residual.nugget**2 * same + np.diag(noise**2))


def _conditioned(mean: _Mean, residual: Residual, where: Array, grid: Array, log_holds: Array, noise: Array) -> _Fitted:
    """The Gaussian process given the probes, and given all but one of them."""
    total = _of_probes(residual, where, noise) + mean.slopes_probes @ mean.slopes_probes.T
    same = (grid[:, None, :] == where[None, :, :]).all(axis=-1)
    cross = residual.covariance(grid, where) + residual.nugget**2 * same + mean.slopes_grid @ mean.slopes_probes.T
    own = residual.amplitude**2 + residual.nugget**2 + (mean.slopes_grid**2).sum(axis=1)
    inverse = np.linalg.inv(total)
    missed = log_holds - mean.at_probes
    pulled = inverse @ missed
    out_variance = 1.0 / np.diag(inverse)
    return _Fitted(
        log_evidence=float(-0.5 * missed @ pulled - 0.5 * np.linalg.slogdet(total)[1]),
        mean=mean.at_grid + cross @ pulled,
        variance=np.maximum(own - np.einsum("gp,pq,gq->g", cross, inverse, cross), 1e-8),
        out_mean=log_holds - pulled * out_variance,
        out_variance=out_variance,
    )


def _mixed(fitted: Sequence[_Fitted], parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Mean and variance of the mixture of (mean, variance), each model weighted by its evidence."""
    evidence = np.array([f.log_evidence for f in fitted])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    means = np.stack([mean for mean, _ in parts])
    variances = np.stack([variance for _, variance in parts])
    mean = weights @ means
    return mean, weights @ (variances + (means - mean) ** 2)


def _scale(fitted: Sequence[_Fitted], log_holds: Array) -> float:
    """By how much the spread must grow (or may shrink) for the probes that were left out to lie inside it."""
    mean, variance = _mixed(fitted, [(f.out_mean, f.out_variance) for f in fitted])
    squares = (log_holds - mean) ** 2 / variance
    # One wild probe shall not blow up the whole surface: its own neighbourhood is uncertain already.
    seen = float(np.minimum(squares, 9.0).sum())
    return float(np.clip(np.sqrt((seen + _SCALE_PROBES) / (len(squares) + _SCALE_PROBES)), *_SCALE_BOUNDS))
