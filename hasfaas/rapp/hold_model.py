"""What is thought of a hold before it is measured: a parametric core over batch and SM share, and how far it may err.

    t(b, s) = ((A(b) / s)^p + B(b)^p)^(1/p),   A(b) = A (1 - u + u b^c),   B(b) = B (1 - v + v b^c)

A is work that SMs share, B is what they do not shorten (memory, launches); both have a fixed part and one that grows
with the batch. Source of the form: rapp.md 3.3 (p-norm in the SM share) and 3.4 (batch). What the core does not catch
(cache cliffs, thread counts, waves) is a Gaussian process over (log2 b, log2 s). `few_shot` fits it, `probe` asks it
which points inform most.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

Array = np.ndarray[Any, Any]

# log A relative to the probes' level, log B/A, logit u, logit v, log p, log c: wide beliefs, each in natural logarithms.
MEAN = np.array([0.0, -1.0, 1.0, -0.5, 0.9, 0.0])
SPREAD = np.array([3.0, 1.5, 1.5, 1.5, 0.6, 0.12])
_STEP = 1e-5


@attrs.frozen
class Residual:
    """One Gaussian process: `amplitude` of the logarithm, reach in doublings of batch and SM share, and `nugget`, by
    which two cells differ that lie side by side (another process, another placement).
    """

    amplitude: float
    batch_reach: float
    sm_reach: float
    nugget: float

    def covariance(self, one: Array, other: Array) -> Array:
        """Covariance [n, m] of places [n, 2] and [m, 2] (log2 b, log2 s), without the nugget. Matern, 3/2."""
        scaled = (one[:, None, :] - other[None, :, :]) / np.array([self.batch_reach, self.sm_reach])
        distance = np.sqrt(3.0 * (scaled**2).sum(axis=-1))
        return np.asarray(self.amplitude**2 * (1.0 + distance) * np.exp(-distance))


TYPICAL = Residual(amplitude=0.05, batch_reach=2.0, sm_reach=1.5, nugget=0.02)


def places(batches: Array, sm_percents: Array) -> Array:
    """Coordinates [n, 2]: log2 of the batch and of the SM share (1 = the whole device)."""
    return np.asarray(np.log2(np.stack([np.asarray(batches, float), np.asarray(sm_percents, float) / 100.0], axis=-1)))


def log_hold(theta: Array, where: Array) -> Array:
    """The core: natural logarithm of the hold [n] at places [n, 2]."""
    log_a, ratio, u, v, log_p, log_c = theta
    growth = np.exp2(where[:, 0] * np.exp(log_c))
    scalable = log_a + _grown(u, growth) - where[:, 1] * np.log(2.0)
    fixed = log_a + ratio + _grown(v, growth)
    p = np.exp(log_p)
    return np.asarray(np.logaddexp(p * scalable, p * fixed) / p)


def _grown(logit: float, growth: Array) -> Array:
    share = 1.0 / (1.0 + np.exp(-logit))
    return np.asarray(np.log1p(share * (growth - 1.0)))


def slopes(theta: Array, where: Array) -> Array:
    """Derivatives [n, parameter] of the core, by central differences."""
    columns = []
    for index in range(len(theta)):
        step = np.zeros(len(theta))
        step[index] = _STEP
        columns.append((log_hold(theta + step, where) - log_hold(theta - step, where)) / (2.0 * _STEP))
    return np.stack(columns, axis=-1)


def prior_covariance(where: Array, residual: Residual = TYPICAL) -> Array:
    """Covariance [n, n] of the log hold at places [n, 2] before anything is measured."""
    jacobian = slopes(MEAN, where) * SPREAD
    return np.asarray(jacobian @ jacobian.T + residual.covariance(where, where))
