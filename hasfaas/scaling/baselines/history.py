"""What a scaler of windows remembers: one column of numbers an observation, for as long as its longest window."""

from __future__ import annotations

from collections import deque

import attrs
import numpy as np

from hasfaas.scaling.observation import Array, Observation

_ROUNDING_S = 1e-6


@attrs.frozen(eq=False)
class _Entry:
    start_s: float
    end_s: float
    values: Array


@attrs.define(eq=False)
class History:
    """Columns with one entry a function, each with the interval that it is about. What ended `span_s` ago is forgotten.

    Functions may come and go: a new one has had zeros.
    """

    span_s: float
    _names: tuple[str, ...] = attrs.field(default=(), init=False)
    _entries: deque[_Entry] = attrs.field(factory=deque, init=False)

    def push(self, observation: Observation, values: Array) -> None:
        """Adds what was counted, or seen, in the interval that ends at `now_s`."""
        now_s, names = observation.now_s, observation.functions.names
        if names != self._names:
            self._align(names)
        self._entries.append(_Entry(now_s - observation.interval_s, now_s, np.asarray(values, float)))
        while self._entries[0].end_s <= now_s - self.span_s - _ROUNDING_S:
            self._entries.popleft()

    def rate(self, window_s: float) -> Array:
        """Counts per second [function] over the last `window_s`, or over what has been observed if that is less.

        An interval that began before the window counts in proportion.
        """
        now_s = self._entries[-1].end_s
        total, observed_s = np.zeros(len(self._names)), 0.0
        for entry in self._entries:
            inside_s = entry.end_s - max(entry.start_s, now_s - window_s)
            length_s = entry.end_s - entry.start_s
            if length_s > 0.0 and inside_s > _ROUNDING_S:
                total += entry.values * (inside_s / length_s)
                observed_s += inside_s
        return total / observed_s if observed_s > 0.0 else total

    def mean(self, window_s: float) -> Array:
        """Mean [function] of what was seen at the instants of the last `window_s`."""
        return np.asarray(np.mean(self._within(window_s), axis=0))

    def greatest(self, window_s: float) -> Array:
        """Greatest [function] of what was seen at the instants of the last `window_s`."""
        return np.asarray(np.max(self._within(window_s), axis=0))

    def covers(self, window_s: float) -> bool:
        """Whether as much has been observed."""
        return self._entries[-1].end_s - self._entries[0].start_s >= window_s - _ROUNDING_S

    def _within(self, window_s: float) -> list[Array]:
        since_s = self._entries[-1].end_s - window_s + _ROUNDING_S
        return [entry.values for entry in self._entries if entry.end_s > since_s]

    def _align(self, names: tuple[str, ...]) -> None:
        rows = {name: row for row, name in enumerate(self._names)}
        order = np.array([rows.get(name, -1) for name in names], int)
        for _ in range(len(self._entries)):
            entry = self._entries.popleft()
            values = np.append(entry.values, 0.0)[order]
            self._entries.append(_Entry(entry.start_s, entry.end_s, values))
        self._names = names
