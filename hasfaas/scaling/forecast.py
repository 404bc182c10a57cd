"""What rate to expect, of all functions at once: a level that drifts, seen through Poisson counts.

A local-level Kalman filter with an adaptive drift (scaling reference, section 3), for counts x of an interval of dt seconds:

    R = max(m, 0.5) / dt     P' = P + Q R dt     v = x / dt - m     F = P' + R     K = P' / F
    Q <- clip(Q + 0.001 (v^2 - F) / R, 1e-4, 2)      m <- m + K v      P <- (1 - K) P'

Its upper bound over a horizon h is m + z sqrt(P + h Q R): the doubt about the level and its drift, without the noise of the
counts themselves, which the capacity rule has already counted. How far the level really strayed is learned for each
horizon: `spread` is an online quantile (pinball gradient) of the excess of the mean rate over the next h seconds, in units
of the filter's deviation with the noise of that mean.

A filter is slow where the load jumps. `least_rps` is not: the greatest rate that the last 1, 2 and 5 seconds prove, which is
their count less `proof` deviations.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]

LEAST_LEVEL_RPS = 0.5
DRIFT_STEP = 1e-3
LEAST_DRIFT, GREATEST_DRIFT = 1e-4, 2.0
FIRST_DRIFT = 0.05
WINDOWS_S = (1.0, 2.0, 5.0)
RING = 128


@attrs.frozen
class ForecastSettings:
    """`quantile` is that of the level which is planned for, `step` how fast its online estimate moves (in deviations), `proof`
    how many deviations a count must stand out by to prove a rate."""

    quantile: float = 0.9
    step: float = 0.05
    proof: float = 1.5
    least_spread: float = 0.0
    greatest_spread: float = 4.0

    def __attrs_post_init__(self) -> None:
        if not 0.5 <= self.quantile < 1.0:
            raise InvalidRequestError(
                f"quantile={self.quantile} of a forecast must lie in [0.5, 1): 0.9 is usual", reason="BAD_FORECAST"
            )


@attrs.define(eq=False)
class Forecast:
    """The filters of `count` functions. `level_rps`, `doubt` (P) and `drift` (Q) are [function]; `spread` is [horizon, function]."""

    horizons_s: tuple[float, ...]
    settings: ForecastSettings
    level_rps: Array
    doubt: Array
    drift: Array
    spread: Array
    seen: Array
    # The last RING intervals: their length, the counts, and the level and deviation that were believed at their end.
    lengths: Array
    counts: Array
    levels: Array
    deviations: Array
    rows: int = 0

    @classmethod
    def of(cls, count: int, horizons_s: tuple[float, ...], settings: ForecastSettings | None = None) -> Forecast:
        """Filters that have seen nothing."""
        settings = settings or ForecastSettings()
        horizons = len(horizons_s)
        zeros = np.zeros(count)
        return cls(
            horizons_s,
            settings,
            zeros.copy(),
            np.full(count, 1.0),
            np.full(count, FIRST_DRIFT),
            np.full((horizons, count), 1.0),
            zeros.copy(),
            np.zeros(RING),
            np.zeros((RING, count)),
            np.zeros((RING, count)),
            np.zeros((RING, horizons, count)),
        )

    def update(self, counts: Array, interval_s: float) -> None:
        """Takes in the counts [function] of an interval; what has no length is not counted."""
        if interval_s <= 0.0:
            return
        rate = counts / interval_s
        first = self.seen == 0.0
        level = np.where(first, rate, self.level_rps)
        noise = np.maximum(level, LEAST_LEVEL_RPS)
        measured = noise / interval_s
        doubt = np.where(first, measured, self.doubt + self.drift * noise * interval_s)
        surprise = rate - level
        total = doubt + measured
        gain = doubt / total
        drift = self.drift + DRIFT_STEP * (surprise**2 - total) / noise
        self.drift = np.where(first, self.drift, np.clip(drift, LEAST_DRIFT, GREATEST_DRIFT))
        self.level_rps = np.maximum(level + gain * surprise, 0.0)
        self.doubt = (1.0 - gain) * doubt
        self.seen += interval_s
        self._remember(counts, interval_s)

    def upper_rps(self, horizon: int) -> Array:
        """The planned quantile of the level over that horizon (its row number), and no less than what is proven."""
        level = self.level_rps + self.spread[horizon] * self._deviation(self.horizons_s[horizon])
        return np.asarray(np.maximum(level, self.least_rps()))

    def least_rps(self) -> Array:
        """The greatest rate that the last seconds prove."""
        best = np.zeros_like(self.level_rps)
        for window_s in WINDOWS_S:
            total, length_s = self.recent(window_s)
            if length_s > 0.0:
                proven = total - self.settings.proof * np.sqrt(total)
                best = np.maximum(best, proven / length_s)
        return best

    def recent(self, window_s: float) -> tuple[Array, float]:
        """Counts [function] of the last intervals that make up at least a window, and their length."""
        total, length_s, back = np.zeros_like(self.level_rps), 0.0, 0
        while length_s < window_s - 1e-9 and back < min(self.rows, RING):
            at = (self.rows - 1 - back) % RING
            total = total + self.counts[at]
            length_s += self.lengths[at]
            back += 1
        return total, length_s

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _deviation(self, horizon_s: float) -> Array:
        return np.sqrt(self.doubt + self.drift * np.maximum(self.level_rps, LEAST_LEVEL_RPS) * horizon_s)

    def _remember(self, counts: Array, interval_s: float) -> None:
        at = self.rows % RING
        self.lengths[at], self.counts[at], self.levels[at] = interval_s, counts, self.level_rps
        for row, horizon_s in enumerate(self.horizons_s):
            self.deviations[at, row] = self._deviation(horizon_s)
        self.rows += 1
        for row, horizon_s in enumerate(self.horizons_s):
            self._learn(row, horizon_s)

    def _learn(self, row: int, horizon_s: float) -> None:
        """The last horizon is over: was the level that was planned for at its beginning enough?"""
        total, length_s, back = np.zeros_like(self.level_rps), 0.0, 0
        while length_s < horizon_s - 1e-9:
            if back >= min(self.rows, RING) - 1:
                return
            at = (self.rows - 1 - back) % RING
            total = total + self.counts[at]
            length_s += self.lengths[at]
            back += 1
        at = (self.rows - 1 - back) % RING
        level, deviation = self.levels[at], self.deviations[at, row]
        noisy = np.sqrt(deviation**2 + np.maximum(level, LEAST_LEVEL_RPS) / length_s)
        excess = (total / length_s - level) / noisy
        quantile, step = self.settings.quantile, self.settings.step
        moved = self.spread[row] + step * np.where(excess > self.spread[row], quantile, quantile - 1.0)
        self.spread[row] = np.clip(moved, self.settings.least_spread, self.settings.greatest_spread)

    def select(self, rows: Array) -> Forecast:
        """The filters of these functions, in this order; row -1 stands for one that has seen nothing."""
        known = rows >= 0
        fresh = Forecast.of(len(rows), self.horizons_s, self.settings)
        for name in ("level_rps", "doubt", "drift", "seen"):
            getattr(fresh, name)[known] = getattr(self, name)[rows[known]]
        for name in ("spread", "counts", "levels", "deviations"):
            getattr(fresh, name)[..., known] = getattr(self, name)[..., rows[known]]
        fresh.lengths, fresh.rows = self.lengths.copy(), self.rows
        return fresh
