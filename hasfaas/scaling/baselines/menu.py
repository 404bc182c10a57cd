"""What so many replicas of one SM share need at least, at any rate: the oracle's price list."""

from __future__ import annotations

import functools

import attrs
import numpy as np

from hasfaas.scaling.baselines.slices import WHOLE_PERCENT, Promise, batches, capacities_rps
from hasfaas.scaling.frontier import QUOTA_PERCENTS
from hasfaas.scaling.observation import Array

MOST_REPLICAS = 32


@attrs.frozen(eq=False)
class Menu:
    """`rps` [share, replicas, quota] is what is carried, at the batch that carries most, `batch` likewise. Row n of
    `replicas` stands for n + 1 of them. `rps` never falls with the quota."""

    sm_percents: Array
    rps: Array
    batch: Array

    @property
    def most(self) -> int:
        """Greatest number of replicas."""
        return int(self.rps.shape[1])

    @property
    def greatest_rps(self) -> float:
        """The most that anything on it carries; 0 where the promise cannot be kept."""
        return float(self.rps.max())

    def quota(self, share: int, replicas: int, rate_rps: float) -> tuple[float, int]:
        """Least quota in percent, and the batch, at which that many carry the rate; all of it where none does."""
        column = min(max(replicas, 1), self.most) - 1
        row = min(int(np.searchsorted(self.rps[share, column], rate_rps)), len(QUOTA_PERCENTS) - 1)
        return float(QUOTA_PERCENTS[row]), int(self.batch[share, column, row])

    def area(self, rates_rps: Array) -> Array:
        """Least occupancy [rate, share, replicas from 0] in whole devices; infinite where a rate is not carried."""
        quotas = np.append(np.asarray(QUOTA_PERCENTS, float), np.inf)
        area = np.full((len(rates_rps), len(self.sm_percents), self.most + 1), np.inf)
        area[rates_rps <= 0.0, :, 0] = 0.0
        for share, sm_percent in enumerate(self.sm_percents.tolist()):
            for column in range(self.most):
                quota = quotas[np.searchsorted(self.rps[share, column], rates_rps)]
                area[:, share, column + 1] = (column + 1) * sm_percent * quota / 1e4
        return area


@functools.lru_cache(maxsize=64)
def menu(promise: Promise, most: int = MOST_REPLICAS) -> Menu:
    """Of one promise, for up to `most` replicas. One that cannot be kept lists the whole device, which carries nothing."""
    table = capacities_rps(promise, range(1, most + 1))
    best = table.argmax(axis=1)
    rps = np.maximum.accumulate(table.max(axis=1), axis=-1).transpose(1, 0, 2)
    batch = np.asarray(batches(promise))[best].transpose(1, 0, 2)
    if not np.any(rps > 0.0):
        return Menu(
            np.array([WHOLE_PERCENT]), np.zeros((1, 1, len(QUOTA_PERCENTS))), np.ones((1, 1, len(QUOTA_PERCENTS)), int)
        )
    return Menu(np.asarray(promise.surface.sm_percents, float), rps, batch)
