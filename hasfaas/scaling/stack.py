"""The frontiers of all functions in one block, so that a tick reads them with a few array look-ups."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.scaling.frontier import PEAKS, QUOTA_PERCENTS, RATES_RPS, REPLICAS, Frontier
from hasfaas.scaling.observation import Array

QUOTAS = np.asarray(QUOTA_PERCENTS, float)
COUNTS = np.asarray(REPLICAS)
_ROW_OF = np.maximum(np.searchsorted(COUNTS, np.arange(COUNTS[-1] + 1), side="right") - 1, 0)


def count_rows(replicas: Array) -> Array:
    """The row of the greatest known number of replicas that is not above each of these."""
    return np.asarray(_ROW_OF[np.clip(replicas, 0, COUNTS[-1])])


def quota_rows(quota_percent: Array) -> Array:
    """The row of the greatest quota of the grid that is not above each of these."""
    return np.maximum(np.searchsorted(QUOTAS, quota_percent + 1e-6, side="right") - 1, 0)


@attrs.frozen(eq=False)
class Stack:
    """`kind` [function] is the row of a function's frontier in the other columns, -1 where it has none.

    `rps`, `limit_rps` and `batch` are [kind, replicas, sm, quota], `best` is [kind, peak, rate], `replica_price` and
    `least_quota` are [kind], `sm_percents` is [kind, sm] (0 where a frontier has fewer shares than others: nothing is carried
    there). `last` [kind] is the flat (replicas, sm) index for a rate that none carries; `bounded` [kind] marks the frontiers
    of lanes that were cut in advance.
    """

    kind: Array
    rps: Array
    limit_rps: Array
    batch: Array
    best: Array
    sm_percents: Array
    replica_price: Array
    least_quota: Array
    last: Array
    bounded: Array

    @classmethod
    def of(cls, kind: Array, frontiers: Sequence[Frontier]) -> Stack:
        """Piles frontiers up; those with fewer SM shares are padded."""
        most = max((len(f.sm_percents) for f in frontiers), default=1)
        count = max(1, len(frontiers))
        rps = np.zeros((count, len(COUNTS), most, len(QUOTAS)))
        limit = np.zeros_like(rps)
        batch = np.ones((count, len(COUNTS), most, len(QUOTAS)), np.int32)
        shares = np.zeros((count, most))
        best = np.full((count, len(PEAKS), len(RATES_RPS)), -1, np.int64)
        last = np.zeros(count, np.int64)
        for row, frontier in enumerate(frontiers):
            wide = len(frontier.sm_percents)
            rps[row, :, :wide], batch[row, :, :wide] = frontier.rps, frontier.batch
            limit[row, :, :wide] = frontier.limit_rps
            shares[row, :wide] = frontier.sm_percents
            # Flat indices of the narrow block, restated for the wide one.
            replicas, sm = np.divmod(frontier.best, wide)
            best[row] = np.where(frontier.best >= 0, replicas * most + sm, -1)
            last[row] = frontier.last // wide * most + frontier.last % wide
        price = np.array([f.settings.replica_price for f in frontiers] or [0.0])
        least = np.array([f.settings.least_quota for f in frontiers] or [0.0])
        bounded = np.array([f.settings.most is not None for f in frontiers] or [False])
        return cls(kind, rps, limit, batch, best, shares, price, least, last, bounded)

    def cheapest(self, rate: Array, peak: Array) -> tuple[Array, Array, Array]:
        """(row of replicas, row of sm, known) [function] of the cheapest shape that carries `rate`, and `peak` when
        raised."""
        column = np.minimum(np.searchsorted(RATES_RPS, rate), len(RATES_RPS) - 1)
        ratio = np.minimum(np.searchsorted(PEAKS, peak / np.maximum(rate, 1e-9) - 1e-9), len(PEAKS) - 1)
        flat = np.where(self.kind >= 0, self.best[self.kind, ratio, column], -1)
        # Where no shape has room for such a peak, the one with the most room.
        for _ in range(len(PEAKS) - 1):
            ratio = np.where(flat < 0, np.maximum(ratio - 1, 0), ratio)
            flat = np.where((flat < 0) & (self.kind >= 0), self.best[self.kind, ratio, column], flat)
        count, share = np.divmod(np.where(flat >= 0, flat, self.last[self.kind]), self.rps.shape[2])
        return count, share, flat >= 0

    def price(self, count: Array, sm_percent: Array, quota_percent: Array) -> Array:
        """What a shape of each function counts for, in devices."""
        quota = np.maximum(quota_percent / 100.0, self.least_quota[self.kind])
        return np.asarray(count * (sm_percent * quota / 100.0 + self.replica_price[self.kind]))

    def price_of(self, row: int, count: int, sm_percent: float, quota_percent: float) -> float:
        """`price` of one function (its row)."""
        kind = self.kind[row]
        quota = max(quota_percent / 100.0, float(self.least_quota[kind]))
        return count * (sm_percent * quota / 100.0 + float(self.replica_price[kind]))

    def share_row(self, sm_percent: Array) -> Array:
        """The row of the SM share nearest to what each function has."""
        return np.asarray(np.abs(self.sm_percents[self.kind] - sm_percent[:, None]).argmin(axis=1))

    def whole_rps(self, row: int, share: int, replicas: int) -> float:
        """What so many replicas of one share carry with whole lanes, for one function (its row)."""
        return float(self.rps[self.kind[row], _ROW_OF[min(replicas, int(COUNTS[-1]))], share, -1])

    def replicas_for(self, row: int, share: int, rate: float) -> int:
        """The least number of this share that carries the rate with whole lanes, else that which carries most, for one
        function (its row)."""
        whole = self.rps[self.kind[row], :, share, -1]
        return int(COUNTS[int((whole >= min(rate, float(whole.max()))).argmax())])

    def quota_row(self, count: Array, share: Array, rate: Array, least: Array | None = None) -> Array:
        """The row of the least quota at which (replicas, sm) carry the rate, and can at all serve `least` requests per
        second; the last one where none does."""
        enough = self.rps[self.kind, count, share] >= rate[:, None]
        if least is not None:
            enough &= self.limit_rps[self.kind, count, share] >= least[:, None]
        return np.where(enough[:, -1], enough.argmax(axis=1), len(QUOTAS) - 1)

    def count_row(self, share: Array, rate: Array, quota_percent: Array | None = None) -> Array:
        """The row of the least number of replicas of this share that carry the rate, with whole lanes or at these quotas."""
        quota = -1 if quota_percent is None else quota_rows(quota_percent)
        whole = self.rps[self.kind, :, share, quota]
        enough = whole >= rate[:, None]
        return np.where(enough[:, -1], enough.argmax(axis=1), len(COUNTS) - 1)
