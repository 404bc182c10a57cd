"""From many measured cells of one function's grid to all of them: smoothing, and what remains uncertain.

log L = log max(G(b, s), H(q)) + a Gaussian process over (batch, SM share, quota). The core is read off the measured cells
themselves; the process learns what it leaves over. Its kernel is a sum of products of one factor per axis, and most
terms act only where the GPU, or only where the launch path, is the slower of the two. Factors that are independent
from one SM share to the next stand for the scatter between the processes that measured them (rapp.md, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS

Array = np.ndarray[Any, Any]

# One factor per axis (batch, SM share, quota): m smooth, d independent from point to point, 1 constant.
# The regime in which the term acts: gpu, launch, or both.
COMPONENTS: tuple[tuple[str, str], ...] = (
    ("mm1", "gpu"),
    ("mmm", "gpu"),
    ("dd1", "gpu"),
    ("ddd", "gpu"),
    ("mmm", "launch"),
    ("11m", "launch"),
    ("1d1", "launch"),
    ("1dm", "launch"),
    ("1dd", "launch"),
    ("dd1", "launch"),
    ("ddm", "launch"),
    ("d1d", "launch"),
    ("ddd", "launch"),
    ("mmm", "both"),
    ("ddd", "both"),
)
REGIMES = ("gpu", "launch", "both")
AXES = ("batches", "sm_percents", "quota_percents")
NOISE = "ddd"  # independent in every cell: the scatter of one measurement, which is not carried over to the answer

LEAST_SHARE = 0.1  # of the grid that has to be measured
JITTER = 1e-6
# d log L / d log H of a p-norm of G and H with this p: how sharply one regime goes over into the other.
REGIME_SHARPNESS = 6.0
# Below this quota a cell says little about G: the launch path is the slower one in most models.
LEAST_QUOTA_FOR_WORK = 60
LAUNCH_BOUND_SM_PERCENT = 40
# L(2b, s) is about 1.84 L(b, s) where the GPU is the slower one (rapp.md 3.4); for batches without any cell.
BATCH_SLOPE = 0.88
SCALE_STRENGTH = 50.0  # so many cells' worth of belief that one model scatters like the others


@attrs.frozen(eq=False)
class Core:
    """The analytic part, in logs: `work` [batch, SM] for G and `launch` [quota] for H."""

    work: Array
    launch: Array

    @property
    def log_ms(self) -> Array:
        """log max(G, H) as [batch, SM, quota]."""
        return np.asarray(np.maximum(self.work[:, :, None], self.launch))

    def gates(self) -> dict[str, Array]:
        """How far each regime holds in each cell, in 0..1, as flat arrays."""
        launch = 1 / (1 + np.exp(np.clip(REGIME_SHARPNESS * (self.work[:, :, None] - self.launch), -50, 50)))
        return {"gpu": 1 - launch.ravel(), "launch": launch.ravel(), "both": np.ones(launch.size)}


@attrs.frozen(eq=False)
class SmoothedGrid:
    """All cells of one grid. `log_median` and `log_deviation` are [batch, SM, quota]; `levels`, `scores` give quantiles."""

    log_median: Array
    log_deviation: Array
    levels: Array
    scores: Array

    @property
    def median_ms(self) -> Array:
        """The latency that a run takes in the middle of all cases, [batch, SM, quota] in ms."""
        return np.asarray(np.exp(self.log_median))

    def quantile_ms(self, level: float) -> Array:
        """The latency that a new measurement of each cell stays below with probability `level`, in ms.

        Raises InvalidRequestError outside of 0.5 .. 99.5 %, where nothing was calibrated.
        """
        if not self.levels[0] <= level <= self.levels[-1]:
            raise InvalidRequestError(
                f"level={level!r} is outside {self.levels[0]:g}..{self.levels[-1]:g}, the calibrated range",
                reason="BAD_LEVEL",
            )
        score = float(np.interp(level, self.levels, self.scores))
        return np.asarray(np.exp(self.log_median + score * self.log_deviation))


@attrs.frozen(eq=False)
class GridSmoother:
    """The smoother for one grid of batches, SM shares and quotas, with trained covariances.

    `covariance` holds one matrix [cells, cells] per regime; `noise` the variance of pure noise per regime; `levels` and
    `scores` the calibrated quantiles of (measured - predicted) / deviation.
    """

    batches: Array
    sm_percents: Array
    quota_percents: Array
    covariance: dict[str, Array]
    noise: dict[str, float]
    levels: Array
    scores: Array

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Array],
        batches: Sequence[float] = BATCHES,
        sm_percents: Sequence[float] = SM_PERCENTS,
        quota_percents: Sequence[float] = QUOTA_PERCENTS,
    ) -> Self:
        """From the trained arrays `log_variance` [c], `log_length` [c, 3], `levels` and `scores`; c = len(COMPONENTS).

        Raises InvalidRequestError for an axis that is empty, does not rise, or holds a value that is not positive.
        """
        axes = [_axis(*of) for of in zip(AXES, (batches, sm_percents, quota_percents), strict=True)]
        covariance = {regime: np.zeros((1, 1)) for regime in REGIMES}
        noise = dict.fromkeys(REGIMES, 0.0)
        for (kinds, regime), variance, lengths in zip(
            COMPONENTS, np.exp(arrays["log_variance"]), np.exp(arrays["log_length"]), strict=True
        ):
            factors = [factor(*of) for of in zip(kinds, map(np.log, axes), lengths, strict=True)]
            covariance[regime] = covariance[regime] + variance * product(factors)
            noise[regime] += float(variance) if kinds == NOISE else 0.0
        return cls(
            axes[0], axes[1], axes[2], covariance, noise, np.asarray(arrays["levels"]), np.asarray(arrays["scores"])
        )

    def condition(self, latency_ms: Array) -> SmoothedGrid:
        """All cells from the measured ones: `latency_ms` [batch, SM, quota], NaN where nothing was measured.

        A measured cell is smoothed, too: one measurement scatters. Raises InvalidRequestError if the shape is not that of
        the grid, less than a tenth of it is measured, or a latency is not positive.
        """
        logs = self.checked(latency_ms)
        core = self.core(logs)
        posterior = self.posterior(logs, core)
        return SmoothedGrid(
            core.log_ms + posterior.mean.reshape(logs.shape),
            np.sqrt(posterior.variance).reshape(logs.shape) * posterior.scale,
            self.levels,
            self.scores,
        )

    def checked(self, latency_ms: Array) -> Array:
        """The logs of the measured cells, or an InvalidRequestError."""
        shape = (len(self.batches), len(self.sm_percents), len(self.quota_percents))
        grid = np.asarray(latency_ms, float)
        if grid.shape != shape:
            raise InvalidRequestError(
                f"latency_ms has the shape {grid.shape}, the grid {shape}: order it batch, SM share, quota",
                reason="BAD_GRID",
            )
        bad = ~np.isnan(grid) & ~(np.isfinite(grid) & (grid > 0))
        if bad.any():
            raise InvalidRequestError(
                f"latency_ms={grid[bad][0]:g} is no positive number: put NaN where nothing was measured",
                reason="BAD_LATENCY",
            )
        if np.isfinite(grid).mean() < LEAST_SHARE:
            raise InvalidRequestError(
                f"latency_ms holds {np.isfinite(grid).sum()} of {grid.size} cells, {100 * LEAST_SHARE:g} % are needed: "
                "measure more, or use the few-shot model",
                reason="TOO_FEW_CELLS",
            )
        return np.asarray(np.log(grid))

    def core(self, logs: Array) -> Core:
        """G and H read off the measured cells. H: median over b = 1, large SM shares; G: cells brought to full quota."""
        launch = self._launch(logs)
        # Where the launch path is the slower one, a cell at quota q stands for one at full quota by H(full) / H(q).
        bound = 1 / (1 + np.exp(np.clip(12 * (logs - launch - 0.12), -50, 50)))
        correction = np.clip(launch - launch[-1], 0, None) * bound
        telling = (correction < 0.08) & (self.quota_percents >= LEAST_QUOTA_FOR_WORK)
        work = _median(np.where(telling, logs - correction, np.nan))
        work = np.stack([_filled(np.log(self.sm_percents), row) for row in work])
        work = self._borrowed(work)
        if np.isnan(work).any():
            work = np.full(work.shape, np.nanmin(logs))
        # No cell of a row is faster than its work.
        return Core(np.fmin(work, _least(logs)), launch)

    def _launch(self, logs: Array) -> Array:
        """H over the quotas: rising to small quotas, never missing."""
        first = logs[: 1 + int(np.argmin(self.batches)), self.sm_percents >= LAUNCH_BOUND_SM_PERCENT]
        if not np.isfinite(first).any():
            first = logs[:, self.sm_percents >= np.median(self.sm_percents)]
        if not np.isfinite(first).any():
            first = logs
        launch = _median(first.reshape(-1, logs.shape[2]).T)
        return np.asarray(np.minimum.accumulate(_filled(np.log(self.quota_percents), launch)))

    def _borrowed(self, work: Array) -> Array:
        """A batch without any cell takes the nearest batch's work, scaled."""
        known = np.flatnonzero(np.isfinite(work).all(axis=1))
        out = work.copy()
        logs = np.log(self.batches)
        for row in np.flatnonzero(np.isnan(work).any(axis=1)):
            if len(known):
                near = known[np.argmin(np.abs(logs[known] - logs[row]))]
                out[row] = work[near] + BATCH_SLOPE * (logs[row] - logs[near])
        return out

    def posterior(self, logs: Array, core: Core) -> Posterior:
        """The process given the measured cells; means and variances for all cells, flat."""
        known = np.flatnonzero(np.isfinite(logs).ravel())
        gates = core.gates()
        among, across = self._between(gates, known, known), self._between(gates, np.arange(logs.size), known)
        noise, prior = np.zeros(logs.size), np.zeros(logs.size)
        for regime, gate in gates.items():
            noise += self.noise[regime] * gate**2
            prior += np.diag(self.covariance[regime]) * gate**2
        # What is noise in a measured cell is not the cell's own.
        across[known, np.arange(len(known))] -= noise[known]
        among[np.diag_indices_from(among)] += JITTER
        inverse = np.linalg.inv(among)
        rest = (logs - core.log_ms).ravel()[known]
        weights = inverse @ rest
        own = np.sqrt((rest @ weights + SCALE_STRENGTH) / (len(known) + SCALE_STRENGTH))
        variance = prior - np.sum((across @ inverse) * across, axis=1)
        return Posterior(
            across @ weights,
            np.maximum(variance, JITTER),
            float(own),
        )

    def _between(self, gates: Mapping[str, Array], left: Array, right: Array) -> Array:
        total = np.zeros((len(left), len(right)))
        for regime in REGIMES:
            gate = gates[regime]
            total += self.covariance[regime][np.ix_(left, right)] * gate[left][:, None] * gate[right]
        return total


@attrs.frozen(eq=False)
class Posterior:
    """Mean and variance per cell in logs; `scale` is how widely this model scatters beside the others."""

    mean: Array
    variance: Array
    scale: float


def _axis(name: str, points: Sequence[float]) -> Array:
    axis = np.asarray(points, float)
    if axis.ndim != 1 or len(axis) == 0 or not (axis[0] > 0 and np.isfinite(axis).all() and (np.diff(axis) > 0).all()):
        raise InvalidRequestError(
            f"{name}={list(points)} is no axis of the grid: give positive numbers that rise", reason="BAD_AXIS"
        )
    return axis


def factor(kind: str, axis: Array, length: float) -> Array:
    """The correlation along one axis [n] of logs: m Matern-3/2 of this length, d independent, 1 constant."""
    if kind == "1":
        return np.ones((len(axis), len(axis)))
    if kind == "d":
        return np.eye(len(axis))
    distance = np.sqrt(3) * np.abs(axis[:, None] - axis) / length
    return np.asarray((1 + distance) * np.exp(-distance))


def product(factors: Sequence[Array]) -> Array:
    """The covariance over the whole grid, batch outermost, quota innermost."""
    return np.kron(np.kron(factors[0], factors[1]), factors[2])


def _median(values: Array) -> Array:
    """Along the last axis, over what is no NaN; NaN where nothing is left."""
    ordered = np.sort(values, axis=-1)  # NaNs last
    count = np.isfinite(values).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    return np.asarray(np.where(count > 0, (low + high) / 2, np.nan)[..., 0])


def _least(logs: Array) -> Array:
    """The smallest measured value over the quotas; NaN where there is none."""
    least = np.min(np.where(np.isnan(logs), np.inf, logs), axis=-1)
    return np.where(np.isfinite(least), least, np.nan)


def _filled(x: Array, values: Array) -> Array:
    """NaNs replaced by interpolation over x, flat beyond the ends; left alone if all are NaN."""
    known = np.isfinite(values)
    return np.interp(x, x[known], values[known]) if known.any() else values
