"""What rate to expect, of all functions at once: a level that drifts, seen through Poisson counts.

A local-level Kalman filter with an adaptive drift (scaling reference, section 3), for counts x of an interval of dt seconds:

    R = max(m, 0.5) / dt     P' = P + Q m dt     v = x / dt - m     F = P' + R     K = P' / F
    Q <- clip(Q + 0.001 (v^2 - F) / max(m, 0.5), 1e-4, 2)      m <- m + K v      P <- (1 - K) P'

`upper_rps`, what is planned for now, is m + spread sqrt(P + h Q m): the doubt about the level and its drift within a short
horizon h, without the noise of the counts themselves, which the capacity rule has already counted. `spread` is an online
quantile (pinball gradient) of how far the mean rate of the next h seconds lies off, in deviations with the noise of
that mean. A filter is slow where the load jumps, so the bound is never less than what is proven: the count of the last 1, 2
and 5 seconds less `proof` deviations.

`peak_rps`, what must be possible before another replica could serve, is the greatest rate proven of late: loads return to
where they were. That memory fades towards the level within `memory_s`. It is no less than `reserve` times what is planned.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]

LEAST_LEVEL_RPS = 0.5
DRIFT_STEP = 1e-3
LEAST_DRIFT, GREATEST_DRIFT, FIRST_DRIFT = 1e-4, 2.0, 0.05
WINDOWS_S = (1.0, 2.0, 5.0)
RING = 128


def _share(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0.5 <= value < 1.0:
        raise InvalidRequestError(f"{attribute.name}={value} must lie in [0.5, 1)", reason="BAD_FORECAST")


@attrs.frozen
class ForecastSettings:
    """`quantile` is the level of the online quantile, `step` how fast it moves, in deviations. `proof` is by how many
    deviations a count must stand out to prove a rate. `memory_s` is how long peaks are remembered."""

    quantile: float = attrs.field(default=0.65, validator=_share)
    step: float = 0.05
    horizon_s: float = 2.0
    proof: float = 2.0
    greatest_spread: float = 4.0
    memory_s: float = 1200.0


@attrs.define(eq=False)
class Forecast:
    """The filters of all functions. Columns are [function], those of the ring [interval, function]."""

    settings: ForecastSettings
    level_rps: Array
    doubt: Array
    drift: Array
    spread: Array
    envelope_rps: Array
    seen_s: Array
    # The last RING intervals: length, counts, and what was believed at their end.
    lengths_s: Array
    counts: Array
    levels: Array
    deviations: Array
    rows: int = 0

    @classmethod
    def of(cls, count: int, settings: ForecastSettings | None = None) -> Forecast:
        """Filters that have seen nothing."""
        settings = settings or ForecastSettings()

        def full(value: float) -> Array:
            return np.full(count, float(value))

        counts, levels, deviations = (np.zeros((RING, count)) for _ in range(3))
        return cls(
            settings=settings,
            level_rps=full(0.0),
            doubt=full(1.0),
            drift=full(FIRST_DRIFT),
            spread=full(1.0),
            envelope_rps=full(0.0),
            seen_s=full(0.0),
            lengths_s=np.zeros(RING),
            counts=counts,
            levels=levels,
            deviations=deviations,
        )

    def update(self, counts: Array, interval_s: float) -> None:
        """Takes in the counts [function] of an interval; one without length is left out."""
        if interval_s <= 0.0:
            return
        rate = counts / interval_s
        first = self.seen_s == 0.0
        level = np.where(first, rate, self.level_rps)
        noise = np.maximum(level, LEAST_LEVEL_RPS)
        measured = noise / interval_s
        doubt = np.where(first, measured, self.doubt + self.drift * noise * interval_s)
        surprise = rate - level
        total = doubt + measured
        gain = doubt / total
        drift = np.clip(self.drift + DRIFT_STEP * (surprise**2 - total) / noise, LEAST_DRIFT, GREATEST_DRIFT)
        self.drift = np.where(first, self.drift, drift)
        self.level_rps = np.maximum(level + gain * surprise, 0.0)
        self.doubt = (1.0 - gain) * doubt
        self.seen_s += interval_s
        at = self.rows % RING
        self.lengths_s[at], self.counts[at], self.levels[at] = interval_s, counts, self.level_rps
        self.deviations[at] = self.deviation()
        self.rows += 1
        faded = self.level_rps + (self.envelope_rps - self.level_rps) * np.exp(-interval_s / self.settings.memory_s)
        self.envelope_rps = np.maximum(faded, self.least_rps())
        self._learn_spread()

    def upper_rps(self) -> Array:
        """What is planned for now [function], requests per second."""
        return np.asarray(np.maximum(self.level_rps + self.spread * self.deviation(), self.least_rps()))

    def least_rps(self) -> Array:
        """The greatest rate that the last seconds prove."""
        best = np.zeros_like(self.level_rps)
        for window_s in WINDOWS_S:
            total, length_s = self.recent(window_s)
            if length_s > 0.0:
                best = np.maximum(best, (total - self.settings.proof * np.sqrt(total)) / length_s)
        return best

    def peak_rps(self, reserve: float = 1.0) -> Array:
        """What must be possible before another replica could serve [function], requests per second: the last peak, and
        `reserve` times what is planned."""
        return np.asarray(np.maximum(self.upper_rps() * reserve, self.envelope_rps))

    def deviation(self) -> Array:
        """Of the level over the short horizon, in requests per second."""
        drift = self.drift * np.maximum(self.level_rps, LEAST_LEVEL_RPS) * self.settings.horizon_s
        return np.sqrt(self.doubt + drift)

    def recent(self, window_s: float) -> tuple[Array, float]:
        """Counts [function] of the last intervals that make up at least a window, and their length in seconds."""
        rows = self._last(window_s)
        return self.counts[rows].sum(axis=0), float(self.lengths_s[rows].sum())

    def select(self, rows: Array) -> Forecast:
        """The filters of these functions, in this order; row -1 stands for one that has seen nothing."""
        known = rows >= 0
        chosen = Forecast.of(len(rows), self.settings)
        for name in ("level_rps", "doubt", "drift", "spread", "envelope_rps", "seen_s"):
            getattr(chosen, name)[known] = getattr(self, name)[rows[known]]
        for name in ("counts", "levels", "deviations"):
            getattr(chosen, name)[:, known] = getattr(self, name)[:, rows[known]]
        chosen.lengths_s, chosen.rows = self.lengths_s.copy(), self.rows
        return chosen

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _last(self, window_s: float) -> Array:
        """Rows of the ring that make up at least the window, newest first; all there are if it is longer."""
        known = min(self.rows, RING)
        rows = (self.rows - 1 - np.arange(known)) % RING
        lengths = np.cumsum(self.lengths_s[rows])
        return np.asarray(rows[: int(np.searchsorted(lengths, window_s - 1e-9)) + 1])

    def _learn_spread(self) -> None:
        """The last short horizon is over: was what was planned for at its beginning enough?"""
        rows = self._last(self.settings.horizon_s)
        before = (int(rows[-1]) - 1) % RING
        if self.rows <= len(rows):
            return
        length_s = float(self.lengths_s[rows].sum())
        level, deviation = self.levels[before], self.deviations[before]
        noisy = np.sqrt(deviation**2 + np.maximum(level, LEAST_LEVEL_RPS) / length_s)
        excess = (self.counts[rows].sum(axis=0) / length_s - level) / noisy
        quantile = self.settings.quantile
        moved = self.spread + self.settings.step * np.where(excess > self.spread, quantile, quantile - 1.0)
        self.spread = np.clip(moved, 0.0, self.settings.greatest_spread)
