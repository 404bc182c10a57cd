"""The cheapest course of replicas through a load that is known in advance.

At each second a function has n replicas of one SM share; that second costs the area that carries its rate. A replica that is
new costs its area for the length of a cold start as well; one that goes costs nothing. Dynamic programming over (share, n)
finds the least sum (Bellman 1957); seconds of equal rates are taken together.
"""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.observation import Array


@attrs.frozen(eq=False)
class Timetable:
    """`share` (an index) and `replicas` [second]."""

    share: Array
    replicas: Array
    cost: float

    def at(self, second: int) -> tuple[int, int]:
        """(share, replicas) of one second; after the last one, of the last."""
        second = min(max(second, 0), len(self.share) - 1)
        return int(self.share[second]), int(self.replicas[second])


def cheapest(area: Array, lengths_s: Array, cold_start_s: float) -> Timetable:
    """For `area` [run, share, replicas from 0] in whole devices, each run `lengths_s` seconds long.

    Every run needs a finite entry. The replicas of the first run cost no cold start.
    """
    runs, shares, counts = area.shape
    number = np.arange(counts, dtype=float)
    came_from = np.zeros((runs, shares * counts), np.int32)
    total = area[0] * lengths_s[0]
    flat = np.arange(shares * counts).reshape(shares, counts)
    for run in range(1, runs):
        start = cold_start_s * _each(area[run])[:, None]
        # Fewer of the same share, or as many: nothing is paid.
        kept, kept_from = _least_from_above(total)
        # More of it: each new one is paid, so V(m) - m c falls out of the minimum over m <= n.
        more, more_from = _least_from_below(total - number * start)
        more = more + number * start
        # Another share: all are new.
        origin = int(total.argmin())
        other = total.flat[origin] + number * start
        choices = np.stack([kept, more, other])
        taken = choices.argmin(axis=0)
        sources = np.stack([flat[:, :1] + kept_from, flat[:, :1] + more_from, np.full_like(flat, origin)])
        came_from[run] = np.take_along_axis(sources, taken[None], 0)[0].ravel()
        total = np.take_along_axis(choices, taken[None], 0)[0] + area[run] * lengths_s[run]
    state = int(total.argmin())
    cost, states = float(total.flat[state]), np.empty(runs, int)
    for run in range(runs - 1, -1, -1):
        states[run] = state
        state = int(came_from[run, state])
    seconds = np.repeat(states, lengths_s.astype(int))
    return Timetable(seconds // counts, seconds % counts, cost)


def _each(area: Array) -> Array:
    """What one replica of each share occupies in the cheapest way for that share to carry the rate; 0 where none does."""
    each = area[:, 1:] / np.arange(1, area.shape[1])
    best = area[:, 1:].argmin(axis=1)
    found = each[np.arange(len(each)), best]
    return np.where(np.isfinite(found), found, 0.0)


def _least_from_below(values: Array) -> tuple[Array, Array]:
    """Running minimum along the last axis, and where it is."""
    least = np.minimum.accumulate(values, axis=1)
    index = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    at = np.where(values <= least, index, 0)
    return least, np.maximum.accumulate(at, axis=1)


def _least_from_above(values: Array) -> tuple[Array, Array]:
    least, at = _least_from_below(values[:, ::-1])
    return least[:, ::-1], values.shape[1] - 1 - at[:, ::-1]
