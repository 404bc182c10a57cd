"""A surface corrected by every live batch: follows what changes, shrugs off outliers, says when it has drifted.

The logarithm of (measured hold / surface) is a level for the whole function plus a local part, bilinear between a few
knots of (log batch, log SM share). A Kalman filter tracks both; a batch far from what was expected counts less (Huber),
so single outliers move nothing. If batches keep erring to one side (CUSUM), the past is let go and the latest batches
are believed. Cost is that of a few products of 13 x 13 matrices per batch, whatever happened before.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.hold_model import Array, places
from hasfaas.rapp.probe import Point, Probe
from hasfaas.rapp.surface import Surface, monotone

MAX_BATCH_KNOTS, MAX_SM_KNOTS = 4, 3
# Standard deviations, in natural logarithms: least doubt of the level and of the local part before any live batch.
_LEVEL_SD, _LOCAL_SD = 0.05, 0.03
# Most that the level is believed to wander from one batch to the next.
_WANDER_SD = 0.004
_MOST_FORGOTTEN = 0.02
# Huber: beyond so many standard deviations a batch counts in proportion to 1/distance.
_HUBER = 2.0
_NOISE_BOUNDS = (0.005, 0.3)
_NOISE_START = 0.03
_NOISE_RATE = 0.03
# CUSUM: slack per batch and alarm, in standard deviations; errors are clipped, so that six batches in a row are needed.
_CLIP, _SLACK, _ALARM = 3.0, 0.75, 12.0
_RECENT = 16
# How doubtful the correction becomes at an alarm.
_ALARM_LEVEL_SD, _ALARM_LOCAL_SD = 0.5, 0.1
# The flag: a lasting departure from the profile by a tenth, or beyond what the profile itself doubts.
_DRIFT, _DRIFT_Z, _DRIFT_RATE = 0.10, 1.645, 0.1
FEWEST_RUNS = 8

KEYS = (
    "batch_knots",
    "sm_knots",
    "theta",
    "covariance",
    "prior",
    "log_noise",
    "batches",
    "rising",
    "falling",
    "rising_for",
    "falling_for",
    "recent",
    "departure",
    "drifted",
    "reason",
)


def _array(values: object) -> Array:
    array = np.array(values, float)
    array.flags.writeable = False
    return array


def _rows(values: object) -> Array:
    return _array(values).reshape(-1, 3)


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_CORRECTION")


@attrs.frozen(eq=False)
class Correction:
    """What live batches have taught about one surface. A value: `update` makes the next one.

    `theta` [k] holds the level and the local part at the knots (log2 of batch, log2 of SM share), `covariance` [k, k]
    their doubt, `prior` [k] the variances before any batch. `log_noise` is the spread of one batch around the
    corrected surface, `batches` their number. `rising` and `falling` are the CUSUM sums and `rising_for`,
    `falling_for` their lengths; `recent` [n, 3] are the latest batches (log2 b, log2 s, log ratio to the surface).
    `departure` is the smoothed log ratio of corrected to profiled hold where batches ran. `drifted` says that this has
    lastingly left what the profile allows, `reason` why, in words ("" otherwise).
    """

    batch_knots: tuple[float, ...]
    sm_knots: tuple[float, ...]
    theta: Array = attrs.field(converter=_array)
    covariance: Array = attrs.field(converter=_array)
    prior: Array = attrs.field(converter=_array)
    log_noise: float
    batches: int = 0
    rising: float = 0.0
    falling: float = 0.0
    rising_for: int = 0
    falling_for: int = 0
    recent: Array = attrs.field(default=(), converter=_rows)
    departure: float = 0.0
    drifted: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        values = {key: getattr(self, key) for key in KEYS}
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Correction:
        """From `to_dict`. Raises InvalidRequestError if keys or shapes are not those of a correction."""
        if not isinstance(data, Mapping) or set(data) != set(KEYS):
            found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise _bad(f"a correction has the keys {sorted(KEYS)}, this one has {found}")
        knots = {key: tuple(float(v) for v in data[key]) for key in ("batch_knots", "sm_knots")}
        made = cls(**{**data, **knots})
        size = 1 + len(made.batch_knots) * len(made.sm_knots)
        shapes = (made.theta.shape, made.covariance.shape, made.prior.shape)
        if shapes != ((size,), (size, size), (size,)):
            raise _bad(f"the arrays of a correction have the shapes {shapes}, the knots ask for {size} parameters")
        return made


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


@attrs.frozen
class Observation:
    """One live batch: its size, the replica's SM share and quota in percent, and how long it held the lane."""

    batch: int
    sm_percent: float
    hold_ms: float
    quota_percent: float = 100.0


def start(surface: Surface) -> Correction:
    """The correction of a surface before any live batch: none, doubted as far as the surface doubts itself."""
    batch_knots = _knots(np.log2(surface.batches), MAX_BATCH_KNOTS)
    sm_knots = _knots(np.log2(np.array(surface.sm_percents) / 100.0), MAX_SM_KNOTS)
    doubt = float(np.median(surface.log_sigma))
    local = len(batch_knots) * len(sm_knots)
    prior = np.array([max(0.9 * doubt, _LEVEL_SD) ** 2, *[max(0.5 * doubt, _LOCAL_SD) ** 2] * local])
    noise = float(np.clip(surface.log_sigma.min(), _NOISE_BOUNDS[0], _NOISE_START))
    return Correction(batch_knots, sm_knots, np.zeros(1 + local), np.diag(prior), prior, noise)


def update(correction: Correction, surface: Surface, batch: int, sm_percent: float, hold_ms: float) -> Correction:
    """The correction after one more live batch. `surface` is the profiled one, not the corrected one.

    Raises InvalidRequestError for a batch, share or hold that is not positive and finite.
    """
    for name, value in (("batch", batch), ("sm_percent", sm_percent), ("hold_ms", hold_ms)):
        if not 0 < value < math.inf:
            raise _bad(f"{name}={value} of a live batch must be positive and finite: leave that batch out")
    where = places(np.array([batch]), np.array([sm_percent]))
    ratio = math.log(hold_ms / surface.hold(batch, sm_percent))
    h = _basis(correction, where)[0]
    doubted = _forgotten(correction)
    of_basis = float(h @ doubted @ h)
    variance = of_basis + correction.log_noise**2
    error = ratio - float(h @ correction.theta)
    gain = doubted @ h / variance * _huber(error, variance)
    moved = attrs.evolve(
        correction,
        theta=correction.theta + gain * error,
        covariance=_symmetric(doubted - np.outer(gain, doubted @ h)),
        log_noise=_noise(correction.log_noise, error, variance, of_basis),
        batches=correction.batches + 1,
        recent=np.vstack([correction.recent, [*where[0], ratio]])[-_RECENT:],
        **_sums(correction, error / math.sqrt(variance)),
    )
    if max(moved.rising, moved.falling) >= _ALARM:
        moved = _begun_anew(moved)
    return _flagged(moved, surface, h, batch, sm_percent)


def apply(surface: Surface, correction: Correction) -> Surface:
    """The corrected surface: shifted, and more certain where live batches have run (less so after an alarm)."""
    grid = places(*(axis.ravel() for axis in np.meshgrid(surface.batches, surface.sm_percents, indexing="ij")))
    basis = _basis(correction, grid)
    left = np.einsum("nk,kl,nl->n", basis, correction.covariance, basis) / (basis**2 @ correction.prior)
    left = left.reshape(surface.hold_ms.shape)
    shift = (basis @ correction.theta).reshape(surface.hold_ms.shape)
    noise = np.clip(1.0 - left, 0.0, 1.0) * correction.log_noise**2
    sigma = np.sqrt(left * surface.log_sigma**2 + noise)
    hold_ms = np.exp(monotone(np.log(surface.hold_ms) + shift))
    return Surface(surface.batches, surface.sm_percents, hold_ms, sigma)


def probes_of(observations: Iterable[Observation], fewest_runs: int = FEWEST_RUNS) -> tuple[Probe, ...]:
    """Probes from live batches alone, for a function that nobody has profiled: one for each (batch, SM share) seen in
    at least `fewest_runs` batches, in rising order. Empty while there is none.

    The hold is the median, the spread comes from the median absolute deviation, so outliers count little.
    """
    cells: dict[tuple[int, float], list[Observation]] = defaultdict(list)
    for seen in observations:
        cells[seen.batch, seen.sm_percent].append(seen)
    return tuple(_probe(cell, seen) for cell, seen in sorted(cells.items()) if len(seen) >= fewest_runs)


# -- leaves -----------------------------------------------------------------------------------------------------------


def _probe(cell: tuple[int, float], seen: Sequence[Observation]) -> Probe:
    logs = np.log(np.sort([one.hold_ms for one in seen]))
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    quotas = Counter(one.quota_percent for one in seen)
    commonest = max(quotas, key=lambda quota: (quotas[quota], quota))
    return Probe(Point(*cell, commonest), math.exp(middle), None, len(seen), spread)


def _knots(axis: Array, most: int) -> tuple[float, ...]:
    """A few of the axis' values, both ends among them, evenly by their coordinate."""
    wanted = np.linspace(axis[0], axis[-1], min(most, len(axis)))
    nearest = {int(np.argmin(np.abs(axis - value))) for value in wanted}
    return tuple(float(axis[index]) for index in sorted(nearest))


def _basis(correction: Correction, where: Array) -> Array:
    """[n, k]: 1 for the level, then the weight of each knot."""
    on_batch = _hats(correction.batch_knots, where[:, 0])
    on_sm = _hats(correction.sm_knots, where[:, 1])
    local = (on_batch[:, :, None] * on_sm[:, None, :]).reshape(len(where), -1)
    return np.concatenate([np.ones((len(where), 1)), local], axis=1)


def _hats(knots: Sequence[float], values: Array) -> Array:
    """Weight of each knot at each value [value, knot], linear between knots and clamped beyond."""
    return np.stack([np.interp(values, knots, row) for row in np.eye(len(knots))], axis=-1)


def _forgotten(correction: Correction) -> Array:
    """The covariance one batch later: it relaxes towards the prior, so doubt is bounded where nothing runs."""
    rate = min(_WANDER_SD**2 / correction.prior[0], _MOST_FORGOTTEN)
    return np.asarray((1.0 - rate) * correction.covariance + rate * np.diag(correction.prior))


def _huber(error: float, variance: float) -> float:
    distance = abs(error) / math.sqrt(variance)
    return 1.0 if distance <= _HUBER else _HUBER / distance


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def _noise(log_noise: float, error: float, variance: float, of_basis: float) -> float:
    seen = max(min(error**2, _HUBER**2 * variance) - of_basis, 0.0)
    now = log_noise**2 + _NOISE_RATE * (seen - log_noise**2)
    return float(np.clip(math.sqrt(now), *_NOISE_BOUNDS))


def _sums(correction: Correction, distance: float) -> dict[str, Any]:
    step = max(-_CLIP, min(_CLIP, distance))
    rising = max(correction.rising + step - _SLACK, 0.0)
    falling = max(correction.falling - step - _SLACK, 0.0)
    return {
        "rising": rising,
        "falling": falling,
        "rising_for": correction.rising_for + 1 if rising else 0,
        "falling_for": correction.falling_for + 1 if falling else 0,
    }


def _begun_anew(correction: Correction) -> Correction:
    """After an alarm: doubts all, and learns again from the batches since the change, without their outliers."""
    since = correction.rising_for if correction.rising >= _ALARM else correction.falling_for
    rows = correction.recent[-min(since, _RECENT) :]
    basis = _basis(correction, rows[:, :2])
    missed = rows[:, 2] - basis @ correction.theta
    off = np.abs(missed - np.median(missed))
    kept = off <= max(3.0 * 1.4826 * float(np.median(off)), 3.0 * correction.log_noise)
    local = [max(variance, _ALARM_LOCAL_SD**2) for variance in correction.prior[1:]]
    theta = correction.theta
    covariance = np.diag([max(correction.prior[0], _ALARM_LEVEL_SD**2), *local])
    for h, ratio in zip(basis[kept], rows[kept, 2], strict=True):
        gain = covariance @ h / (h @ covariance @ h + correction.log_noise**2)
        theta = theta + gain * (ratio - h @ theta)
        covariance = _symmetric(covariance - np.outer(gain, covariance @ h))
    return attrs.evolve(
        correction,
        theta=theta,
        covariance=covariance,
        rising=0.0,
        falling=0.0,
        rising_for=0,
        falling_for=0,
        departure=float(basis[-1] @ theta),
    )


def _flagged(correction: Correction, surface: Surface, h: Array, batch: int, sm_percent: float) -> Correction:
    """Sets the flag above the bound, takes it back below half of it."""
    departure = correction.departure + _DRIFT_RATE * (float(h @ correction.theta) - correction.departure)
    bound = max(_DRIFT, _DRIFT_Z * surface.doubt(batch, sm_percent))
    drifted = abs(departure) > (0.5 * bound if correction.drifted else bound)
    reason = _why(departure, batch, sm_percent) if drifted else ""
    return attrs.evolve(correction, departure=departure, drifted=drifted, reason=reason)


def _why(departure: float, batch: int, sm_percent: float) -> str:
    percent = 100.0 * abs(math.expm1(departure))
    than = "longer" if departure > 0 else "shorter"
    return (
        f"batches hold the device {percent:.0f} % {than} than the profile says (latest: batch {batch}, "
        f"SM {sm_percent:g} %); predictions follow, and `hasfaas profile` measures it anew"
    )
