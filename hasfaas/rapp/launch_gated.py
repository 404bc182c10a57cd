"""Few-shot latency of a new model on a GPU whose quota gates kernel launches (the V100 table of KontonGu/RaPP).

The law is latency = max(G, H) (rapp.md 3.1): G(batch, SM share) is the work of the GPU, H(batch, SM share, quota) the
launch path that the quota gates. The logarithms of both are Gaussian vectors whose mean and covariance come from
models measured before: a model has a level per quota, a deviation per batch, and a deviation per SM share, since each
share was a process of its own. A few probes condition them (iterated Gauss-Newton, as in an extended Kalman filter),
so one equation gives the prediction, its uncertainty, and the probes that inform most. How much batches and processes
deviate differs from model to model: nine scalings of those parts are weighed by their evidence. The first probes are the
same for every model; each further one is chosen for this model, by what the probes before it left open. numpy alone.

This law is never used for our own lanes, which sell device time (`lane_law`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS

Array = np.ndarray[Any, Any]
Point = tuple[int, int, int]

SHAPE = (len(BATCHES), len(SM_PERCENTS), len(QUOTA_PERCENTS))
CELLS = math.prod(SHAPE)
GPU = SHAPE[0] * SHAPE[1]
LEVELS = SHAPE[2]
DEVIATIONS = (SHAPE[0] - 1) * LEVELS
QUANTILES = (0.05, 0.5, 0.95)
LEAST_PROBES = 5
DEFAULT_PROBES = 16
# So many probes are the same for every model; each further one is chosen after those before it.
FIRST_PROBES = 5
# How the deviations of batches and of SM shares may be scaled, with the belief in each.
SCALES = ((0.5, 0.3), (1.0, 0.5), (2.2, 0.2))

CELL = np.arange(CELLS)
BATCH_OF, SM_OF, QUOTA_OF = np.unravel_index(CELL, SHAPE)
GPU_OF = BATCH_OF * SHAPE[1] + SM_OF
# The choice of a probe looks at every second SM share: the others lie between.
_LOOKED_AT = CELL[SM_OF % 2 == 1]

# p of the smooth maximum (G^p + H^p)^(1/p); at equal parts it lies 7 % above either.
SHARPNESS = 10.0
# Degrees of freedom of Student's t: one odd probe shall not bend the whole surface.
FREEDOM = 6.0
# Softer for the choice of probes: near the crossing it is not known beforehand which part binds.
DESIGN_SHARPNESS = 6.0
_STEPS = 14
_DRAWS = 300
# Repeats of one cell, and larger slices against smaller ones, may differ by noise and by host, not by more than this.
_DISAGREEMENT = 2.0
_RISE = 4.0


def _bad(message: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason=reason)


@attrs.frozen
class Probe:
    """One measured latency in ms of a new model, at a point of the grid (batch, SM share in %, quota in %)."""

    batch: int
    sm_percent: int
    quota_percent: int
    latency_ms: float


@attrs.frozen(eq=False)
class LaunchGatedPrediction:
    """Latencies in ms on the grid [4 batches, 20 SM shares, 10 quotas].

    `latency_ms` has the least expected percentage error; `quantiles_ms` [3, 4, 20, 10] are the 5, 50 and 95 % points.
    """

    latency_ms: Array
    quantiles_ms: Array

    def monotone(self) -> LaunchGatedPrediction:
        """The same, never rising with the SM share or the quota, for a scaler that inverts the surface."""
        return LaunchGatedPrediction(_falling(self.latency_ms), _falling(self.quantiles_ms))


def _falling(values: Array) -> Array:
    upper = np.maximum.accumulate(np.maximum.accumulate(values[..., ::-1, ::-1], -1), -2)[..., ::-1, ::-1]
    lower = np.minimum.accumulate(np.minimum.accumulate(values, -1), -2)
    middle: Array = np.sqrt(upper * lower)
    return middle


def launch_basis(modes: Array) -> Array:
    """How the launch path's state makes log H [800 cells]: quota levels | deviation of each batch above 1 | of each
    SM share, along `modes` [10 quotas, r]."""
    rank = modes.shape[1]
    basis = np.zeros((CELLS, LEVELS + DEVIATIONS + SHAPE[1] * rank))
    basis[CELL, QUOTA_OF] = 1.0
    larger = BATCH_OF > 0
    basis[CELL[larger], LEVELS + (BATCH_OF[larger] - 1) * LEVELS + QUOTA_OF[larger]] = 1.0
    for mode in range(rank):
        basis[CELL, LEVELS + DEVIATIONS + SM_OF * rank + mode] = modes[QUOTA_OF, mode]
    return basis


@attrs.frozen(eq=False)
class Mixture:
    """The state of one model after some probes, under each scaling: `weights` [scaling], `states` [scaling, n]."""

    weights: Array
    states: Array
    covariances: Array
    cross: Array
    innovation: Array

    def left(self, scaling: int) -> Array:
        """The covariance [n, n] that the probes left, under one scaling."""
        cross = self.cross[scaling]
        left: Array = self.covariances[scaling] - cross @ np.linalg.solve(self.innovation[scaling], cross.T)
        return left


@attrs.frozen(eq=False, slots=False)
class LaunchLaw:
    """Mean, covariance and noise of the state: 80 values of log G, then those of `launch_basis`."""

    gpu_mean: Array
    launch_mean: Array
    basis: Array
    covariance: Array
    gpu_variance: float
    launch_variance: Array

    def forward(self, state: Array, cells: Array = CELL, sharpness: float = SHARPNESS) -> tuple[Array, Array]:
        """Log latency at `cells` for states [..., n], and the share of G in the maximum."""
        gpu = state[..., GPU_OF[cells]] + self.gpu_mean[GPU_OF[cells]]
        launch = state[..., GPU:] @ self.basis[cells].T + self.launch_mean[cells]
        gap = gpu - launch
        value = np.maximum(gpu, launch) + np.log1p(np.exp(-sharpness * np.abs(gap))) / sharpness
        return value, 1.0 / (1.0 + np.exp(np.clip(-sharpness * gap, -50.0, 50.0)))

    def noise(self, share: Array, cells: Array = CELL) -> Array:
        """Variance of a measured log latency."""
        launch: Array = share**2 * self.gpu_variance + (1.0 - share) ** 2 * self.launch_variance[QUOTA_OF[cells]]
        return launch

    def jacobian(self, share: Array, cells: Array = CELL) -> Array:
        """Derivative of the log latency at `cells` by the state, [..., cells, n]."""
        out = np.zeros((*share.shape, len(self.covariance)))
        out[..., np.arange(len(cells)), GPU_OF[cells]] = share
        out[..., GPU:] = (1.0 - share)[..., None] * self.basis[cells]
        return out

    def condition(self, cells: Array, log_ms: Array) -> Mixture:
        """The state, given the log latencies of a few cells, under each scaling.

        The maximum starts soft and hardens step by step, so that a wrong first guess of which part binds is undone.
        """
        covariances, beliefs = self._scaled
        states = np.zeros(covariances.shape[:2])
        for step in range(_STEPS):
            value, share = self.forward(states, cells, min(SHARPNESS, 2.0 * 1.35**step))
            noise, residual = self.noise(share, cells), log_ms - value
            if step > 5:
                noise = noise * (FREEDOM + residual**2 / noise) / (FREEDOM + 1.0)
            jacobian = self.jacobian(share, cells)
            cross = covariances @ jacobian.swapaxes(1, 2)
            innovation = jacobian @ cross + noise[:, :, None] * np.eye(len(cells))
            off = residual + np.einsum("spn,sn->sp", jacobian, states)
            solved = np.linalg.solve(innovation, off[..., None])[..., 0]
            change = np.einsum("snp,sp->sn", cross, solved) - states
            largest = np.abs(change).max(axis=1, keepdims=True)
            states = states + change * (
                1.0 if step >= _STEPS - 2 else np.minimum(1.0, 1.5 / np.maximum(largest, 1e-12))
            )
        evidence = beliefs - 0.5 * np.einsum("sp,sp->s", off, solved) - 0.5 * np.linalg.slogdet(innovation)[1]
        weights = np.exp(evidence - evidence.max())
        return Mixture(weights / weights.sum(), states, covariances, cross, innovation)

    @functools.cached_property
    def _scaled(self) -> tuple[Array, Array]:
        """The covariance with its deviations scaled [scaling, n, n], and the log of the belief in each scaling."""
        batch, share = slice(GPU + LEVELS, GPU + LEVELS + DEVIATIONS), slice(GPU + LEVELS + DEVIATIONS, None)
        covariances, beliefs = [], []
        for (of_batch, first), (of_share, second) in itertools.product(SCALES, SCALES):
            factor = np.ones(len(self.covariance))
            factor[batch], factor[share] = of_batch, of_share
            covariances.append(self.covariance * np.outer(factor, factor))
            beliefs.append(math.log(first * second))
        return np.stack(covariances), np.array(beliefs)

    def next_cell(self, cells: Array, log_ms: Array, available: Array) -> int:
        """The available cell whose probe would lower the predictive deviations most, after those at `cells`."""
        found = self.condition(cells, log_ms)
        best = int(np.argmax(found.weights))
        _, share = self.forward(found.states[best], sharpness=DESIGN_SHARPNESS)
        jacobian = self.jacobian(share)
        moved = found.left(best) @ jacobian.T
        own, looked_at = np.einsum("cn,nc->c", jacobian, moved), _LOOKED_AT[available[_LOOKED_AT]]
        cross = jacobian[looked_at] @ moved
        left = np.sqrt(np.maximum(own[looked_at][:, None] - cross**2 / (own + self.noise(share)), 0.0)).sum(axis=0)
        left[~available] = np.inf
        left[cells] = np.inf
        return int(np.argmin(left))

    def draws(self, found: Mixture) -> Array:
        """Sorted log latencies [about 600, 800] as a new measurement might give them. The same at each call."""
        pairs = [round(weight * _DRAWS) for weight in found.weights]
        logs = np.concatenate(
            [self._draws(found.states[i], found.left(i), number) for i, number in enumerate(pairs) if number]
        )
        logs.sort(axis=0)
        return logs

    def _draws(self, state: Array, covariance: Array, pairs: int) -> Array:
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
        # An eigenvector's sign is the library's choice; ours is that the largest entry is positive.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
        shift = _normals()[:pairs, : len(state)] @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        logs, share = self.forward(np.concatenate([state + shift, state - shift]))
        error = _normals()[:pairs, -CELLS:]
        noisy: Array = logs + np.concatenate([error, -error]) * np.sqrt(self.noise(share))
        return noisy


@functools.cache
def _normals() -> Array:
    # The legacy generator: its stream is frozen over numpy versions.
    return np.random.RandomState(0).standard_normal((_DRAWS, 600 + CELLS))


def least_percentage_error(logs: Array) -> Array:
    """The log latency of each column of sorted draws that minimises the mean of |prediction / latency - 1|: their
    median under weights 1 / latency."""
    weights = np.exp(logs[len(logs) // 2] - logs)
    reached = (np.cumsum(weights, axis=0) < 0.5 * weights.sum(axis=0)).sum(axis=0)
    best: Array = logs[reached, np.arange(logs.shape[1])]
    return best


def quantiles_of(logs: Array) -> Array:
    """The QUANTILES of sorted draws, [3, columns]."""
    return logs[[round(q * (len(logs) - 1)) for q in QUANTILES]]


@attrs.frozen(eq=False)
class LaunchGatedModel:
    """The trained predictor. `design` holds cell numbers, the most informative first; `interval_scale` stretches the
    interval so that 90 % of the cells of a model not trained on lie inside."""

    law: LaunchLaw
    design: Array
    interval_scale: float

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """From the arrays of `train_launch_gated.fit`. Raises InvalidRequestError if one is missing or misshapen."""
        try:
            modes = np.asarray(arrays["quota_modes"], float)
            basis = launch_basis(modes)
            law = LaunchLaw(
                np.asarray(arrays["gpu_mean"], float).reshape(GPU),
                np.asarray(arrays["launch_mean"], float).reshape(CELLS),
                basis,
                unpack(np.asarray(arrays["covariance"], float), GPU + basis.shape[1]),
                float(arrays["gpu_variance"]),
                np.asarray(arrays["launch_variance"], float).reshape(LEVELS),
            )
            return cls(law, np.asarray(arrays["design"], np.intp), float(arrays["interval_scale"]))
        except (KeyError, ValueError, IndexError) as exc:
            raise _bad(
                f"launch_gated coefficients are incomplete ({exc}): run hasfaas rapp train", "BAD_COEFFICIENTS"
            ) from exc

    def probe_points(self, k: int = FIRST_PROBES, available: Array | None = None) -> tuple[Point, ...]:
        """The k points that inform most about a model of which nothing is known, the most informative first.

        `available` [4, 20, 10] says which cells can be measured at all: in place of one that cannot, the nearest that
        can. Raises InvalidRequestError unless 5 <= k <= the length of the design, or if fewer cells are available.
        """
        if not LEAST_PROBES <= k <= len(self.design):
            raise _bad(f"k={k} must lie between {LEAST_PROBES} and {len(self.design)}", "BAD_PROBE_COUNT")
        return tuple(point(cell) for cell in nearest_cells(self.design[:k], _available(available, k)))

    def next_point(self, probes: Sequence[Probe], available: Array | None = None) -> Point:
        """The point that informs most about all others, after these probes. Raises InvalidRequestError as `predict`."""
        cells, log_ms = checked(probes)
        return point(self.law.next_cell(cells, log_ms, _available(available, len(cells) + 1)))

    def profile(
        self, measure: Callable[[Point], float], k: int = DEFAULT_PROBES, available: Array | None = None
    ) -> tuple[Probe, ...]:
        """Probes k points, each after the first few chosen after those before it; `measure` returns the ms at one."""
        if not LEAST_PROBES <= k < CELLS:
            raise _bad(f"k={k} must lie between {LEAST_PROBES} and {CELLS - 1}", "BAD_PROBE_COUNT")
        probes = [Probe(*at, measure(at)) for at in self.probe_points(FIRST_PROBES, available)]
        while len(probes) < k:
            at = self.next_point(probes, available)
            probes.append(Probe(*at, measure(at)))
        return tuple(probes)

    def predict(self, probes: Sequence[Probe]) -> LaunchGatedPrediction:
        """The whole surface from at least 5 probes.

        Raises InvalidRequestError for too few probes, a latency that is not finite and positive, a point off the
        grid, repeats that differ by more than a factor of 2, and a larger slice that is over 4 times slower.
        """
        cells, log_ms = checked(probes)
        return self.predict_cells(cells, log_ms)

    def predict_cells(self, cells: Array, log_ms: Array) -> LaunchGatedPrediction:
        """As `predict`, from cell numbers and log latencies, unchecked."""
        logs = self.law.draws(self.law.condition(cells, log_ms))
        best, quantiles = least_percentage_error(logs), quantiles_of(logs)
        quantiles = quantiles[1] + self.interval_scale * (quantiles - quantiles[1])
        return LaunchGatedPrediction(np.exp(best).reshape(SHAPE), np.exp(quantiles).reshape(len(QUANTILES), *SHAPE))


def _available(available: Array | None, least: int) -> Array:
    flat = np.ones(CELLS, bool) if available is None else np.asarray(available, bool).ravel()
    if flat.size != CELLS or flat.sum() < least:
        raise _bad(
            f"available holds {int(flat.sum())} cells of {CELLS}, {least} are needed: measure more cells",
            "TOO_FEW_PROBES",
        )
    return flat


def point(cell: int) -> Point:
    """Batch, SM share in % and quota in % of a cell number."""
    return BATCHES[BATCH_OF[cell]], SM_PERCENTS[SM_OF[cell]], QUOTA_PERCENTS[QUOTA_OF[cell]]


def cell_of(batch: int, sm_percent: int, quota_percent: int) -> int:
    """The number of a cell. Raises InvalidRequestError off the grid."""
    axes = (("batch", batch, BATCHES), ("sm_percent", sm_percent, SM_PERCENTS))
    for name, value, axis in (*axes, ("quota_percent", quota_percent, QUOTA_PERCENTS)):
        if value not in axis:
            raise _bad(
                f"{name}={value} is not on the grid {', '.join(map(str, axis))}: measure at its points", "OFF_GRID"
            )
    where = (BATCHES.index(batch), SM_PERCENTS.index(sm_percent), QUOTA_PERCENTS.index(quota_percent))
    return int(np.ravel_multi_index(where, SHAPE))


def nearest_cells(wanted: Array, available: Array) -> Array:
    """Each wanted cell, or the nearest free one (in log batch, log SM share, quota) where it is not available."""
    logs = np.stack([BATCH_OF, np.log(np.array(SM_PERCENTS))[SM_OF] / 0.7, QUOTA_OF / 2.5])
    free = available.copy()
    free[wanted] = False
    out = []
    for cell in wanted:
        if not available[cell]:
            distance = np.where(free, ((logs - logs[:, [cell]]) ** 2).sum(axis=0), np.inf)
            cell = int(np.argmin(distance))
            free[cell] = False
        out.append(int(cell))
    return np.array(out, np.intp)


def checked(probes: Sequence[Probe]) -> tuple[Array, Array]:
    """Cell numbers and log latencies, repeats averaged. Raises InvalidRequestError as `predict` says."""
    if not probes:
        raise _bad(f"probes are empty: measure at least {LEAST_PROBES} points", "NO_PROBES")
    found: dict[int, list[float]] = {}
    for probe in probes:
        if not (math.isfinite(probe.latency_ms) and probe.latency_ms > 0):
            raise _bad(f"latency_ms={probe.latency_ms} of {probe} is no positive number: repeat the run", "BAD_PROBE")
        cell = cell_of(probe.batch, probe.sm_percent, probe.quota_percent)
        found.setdefault(cell, []).append(math.log(probe.latency_ms))
    for cell, logs in found.items():
        if max(logs) - min(logs) > math.log(_DISAGREEMENT):
            raise _bad(
                f"probes of (batch, SM %, quota %)={point(cell)} range from {math.exp(min(logs)):.4g} to "
                f"{math.exp(max(logs)):.4g} ms: repeat them on an idle device",
                "PROBES_DISAGREE",
            )
    if len(found) < LEAST_PROBES:
        raise _bad(f"probes cover {len(found)} points: measure at least {LEAST_PROBES}", "TOO_FEW_PROBES")
    cells = np.array(list(found), np.intp)
    log_ms = np.array([float(np.mean(logs)) for logs in found.values()])
    _check_order(cells, log_ms)
    return cells, log_ms


def _check_order(cells: Array, log_ms: Array) -> None:
    more = (SM_OF[cells][:, None] >= SM_OF[cells]) & (QUOTA_OF[cells][:, None] >= QUOTA_OF[cells])
    more &= BATCH_OF[cells][:, None] <= BATCH_OF[cells]
    rise = np.where(more, log_ms[:, None] - log_ms, -np.inf)
    worst = np.unravel_index(int(np.argmax(rise)), rise.shape)
    if rise[worst] > math.log(_RISE):
        slow, fast = (f"{point(cells[i])}: {math.exp(log_ms[i]):.4g} ms" for i in worst)
        raise _bad(
            f"probes are not monotone: (batch, SM %, quota %)={slow} has no less of the device than {fast} and is over "
            f"{_RISE:g} times slower: check units and order, and measure both again",
            "PROBES_NOT_MONOTONE",
        )


def pack(covariance: Array) -> Array:
    """The lower triangle of a symmetric matrix, as one row."""
    row: Array = covariance[np.tril_indices(len(covariance))]
    return row


def unpack(triangle: Array, n: int) -> Array:
    """The symmetric matrix [n, n] of such a row. Raises ValueError if the length does not fit."""
    out = np.zeros((n, n))
    out[np.tril_indices(n)] = triangle
    return out + np.tril(out, -1).T
