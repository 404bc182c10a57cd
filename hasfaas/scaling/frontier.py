"""Which slices keep a function's promise, at what rate, and which of them is cheapest.

The capacity rule (`capacity.slice_rps`) over a grid of replicas x SM share x quota, at the batch that carries most, from a
quantile of the predicted hold. A frontier is made once for a surface; reading it is a lookup.

    area = replicas x sm x quota            what it costs, in whole devices
    best [peak, rate]                       the cheapest (replicas, sm) whose quota can be raised to carry peak x rate

The second line is what vertical scaling asks of a shape: today's quota is paid, but the lane must have room for the
rate that may come before another replica could serve.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError, SLOInfeasibleError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.capacity import GREATEST_UTILISATION, slice_rps

Array = np.ndarray[Any, Any]

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
QUOTA_PERCENTS = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
    14,
    16,
    18,
    20,
    23,
    26,
    30,
    34,
    38,
    42,
    46,
    50,
    55,
    60,
    65,
    70,
    75,
    80,
    85,
    90,
    95,
    100,
)
SM_PERCENTS = tuple(float(share) for share in range(5, 101, 5))
REPLICAS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
RATES_RPS = np.geomspace(0.05, 20_000.0, 160)
PEAKS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


@attrs.frozen
class FrontierSettings:
    """`late_factor` scales what the promise allows (0.5 plans for half of it), `hold_quantile` is that of the predicted hold,
    `neighbours` how many other replicas a lane is shared with. `insurance` is what may be paid more, as a share, for a shape
    that can carry greater peaks. `replica_price` is what each replica costs beside its area, in devices: its memory,
    its lane, its
    cold start; `least_quota` is the part of its lane that it counts for at least. `sm_percents` replaces the
    surface's own shares. `most` [sm] is how many lanes of each share there are: more replicas than that carry no more (None:
    as many as one likes)."""

    late_factor: float = 0.5
    insurance: float = 0.15
    hold_quantile: float = 0.9
    neighbours: int = 0
    replica_price: float = 0.003
    least_quota: float = 0.0
    sm_percents: tuple[float, ...] | None = None
    most: tuple[int, ...] | None = None


@attrs.frozen
class Shape:
    """So many replicas of one slice."""

    replicas: int
    sm_percent: float
    quota_percent: float
    batch: int
    capacity_rps: float

    @property
    def area(self) -> float:
        """Whole devices that it occupies: replicas x sm x quota."""
        return self.replicas * self.sm_percent * self.quota_percent / 1e4


@attrs.frozen(eq=False)
class Frontier:
    """`rps` and `batch` [replicas, sm, quota]: what a slice carries within the promise, and at which greatest batch.

    `rps` never falls with the quota. `limit_rps` is what replicas that never idle serve at that batch, less a tenth.
    `best` [peak, rate] holds flat (replicas, sm) indices of the cheapest shape, -1 where none carries it; `last` is then the
    one to take.
    """

    sm_percents: Array
    rps: Array
    limit_rps: Array
    batch: Array
    best: Array
    settings: FrontierSettings
    last: int = 0

    @classmethod
    def of(
        cls,
        surface: Surface,
        slo_ms: float,
        late_share: float,
        timing: Timing,
        *,
        batch_max: int = 1,
        overhead_ms: float = 0.0,
        settings: FrontierSettings | None = None,
    ) -> Frontier:
        """The frontier of a surface within a promise: at most `late_share` of the calls later than `slo_ms`."""
        settings = settings or FrontierSettings()
        shares = surface.sm_percents if settings.sm_percents is None else settings.sm_percents
        # Batches that the surface knows nothing of would be a guess about the future of the promise.
        batches = tuple(b for b in BATCHES if b <= min(batch_max, surface.batches[-1]))
        read = surface.over(batches, shares)
        hold_ms = read.quantile_ms(settings.hold_quantile).T
        rps = slice_rps(
            np.asarray(REPLICAS)[:, None, None],
            np.asarray(batches),
            hold_ms[None, :, None, :],
            np.asarray(QUOTA_PERCENTS) / 100.0,
            max(slo_ms - overhead_ms, 0.0),
            timing,
            late_share=np.clip(late_share * settings.late_factor, 1e-5, 0.9),
            neighbours=settings.neighbours,
        )
        chosen = rps.argmax(axis=-1)
        most = np.maximum.accumulate(rps.max(axis=-1), axis=-1)
        sm = np.asarray(shares, float)
        quotas, counts = np.asarray(QUOTA_PERCENTS) / 100.0, np.asarray(REPLICAS, float)
        items = np.asarray(batches)[chosen]
        per_item_ms = hold_ms[np.arange(len(sm))[:, None], chosen] / items
        limit = GREATEST_UTILISATION * counts[:, None, None] * quotas / per_item_ms * 1e3
        last = 0
        if settings.most is not None:
            most, limit, items = (_bounded(each, settings.most) for each in (most, limit, items))
            # What carries most; the largest lane where the promise cannot be kept at all.
            last = int(most[..., -1].argmax()) if most.any() else len(sm) - 1
        return cls(sm, most, limit, items, _cheapest(most, sm, settings), settings, last)

    def need(self, replicas: int, sm_percent: float, rate_rps: float) -> Shape | None:
        """So many replicas of this share at the least quota that carries the rate; None where 100 % does not."""
        row, share = _count(replicas), self._share(sm_percent)
        enough = self.rps[row, share] >= rate_rps
        return self._shape(row, share, int(enough.argmax())) if enough[-1] else None

    def cheapest(self, rate_rps: float, peak_rps: float | None = None) -> Shape | None:
        """The shape of least area that carries `rate_rps`, and `peak_rps` once its quota is raised; None where none does."""
        peak_rps = rate_rps if peak_rps is None else max(peak_rps, rate_rps)
        enough = self.rps >= rate_rps
        quota = enough.argmax(axis=-1)
        able = enough[..., -1] & (self.rps[..., -1] >= peak_rps)
        area = np.where(able, _price(self.sm_percents, quota, self.settings), np.inf)
        row, share = np.unravel_index(int(area.argmin()), area.shape)
        return self._shape(int(row), int(share), int(quota[row, share])) if np.isfinite(area[row, share]) else None

    def most_rps(self, replicas: int) -> float:
        """The greatest rate that so many replicas of any shape carry."""
        return float(self.rps[: _count(replicas) + 1].max())

    def _share(self, sm_percent: float) -> int:
        return int(np.abs(self.sm_percents - sm_percent).argmin())

    def _shape(self, row: int, share: int, quota: int) -> Shape:
        return Shape(
            REPLICAS[row],
            float(self.sm_percents[share]),
            float(QUOTA_PERCENTS[quota]),
            int(self.batch[row, share, quota]),
            float(self.rps[row, share, quota]),
        )


def feasible(
    surface: Surface,
    slo_ms: float,
    late_share: float,
    timing: Timing,
    *,
    batch_max: int = 1,
    overhead_ms: float = 0.0,
    settings: FrontierSettings | None = None,
) -> Frontier:
    """The frontier, where any slice keeps the promise at all.

    Raises SLOInfeasibleError that names the nearest SLO that could be kept.
    """

    def made(slo_ms: float) -> Frontier:
        return Frontier.of(
            surface, slo_ms, late_share, timing, batch_max=batch_max, overhead_ms=overhead_ms, settings=settings
        )

    frontier = made(slo_ms)
    if frontier.rps[0].max() > RATES_RPS[0]:
        return frontier
    low, high = slo_ms, 2.0 * slo_ms
    while made(high).rps[0].max() <= RATES_RPS[0]:
        low, high = high, 2.0 * high
        if high > 1e9:
            raise InvalidRequestError(f"slo_ms={slo_ms:g}: no SLO can be kept on this device", reason="BAD_SURFACE")
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if made(middle).rps[0].max() > RATES_RPS[0] else (middle, high)
    raise SLOInfeasibleError(
        f"slo_ms={slo_ms:g} cannot be kept on this device, whatever slice: one call takes "
        f"{surface.hold(1, 100.0):.3g} ms on all of it; the nearest SLO that can is {high:.3g} ms"
    )


# -- leaves -------------------------------------------------------------------------------------------------------------


def _count(replicas: int) -> int:
    """The row of the greatest known number that is not above `replicas`."""
    return max(0, int(np.searchsorted(REPLICAS, replicas, side="right")) - 1)


def _bounded(values: Array, most: tuple[int, ...]) -> Array:
    """[replicas, sm, quota] where further replicas than there are lanes of a share change nothing."""
    rows = np.minimum(np.arange(len(REPLICAS))[:, None], [_count(lanes) for lanes in most])
    return np.asarray(values[rows, np.arange(len(most))])


def _price(sm_percents: Array, quota: Array, settings: FrontierSettings) -> Array:
    """What shapes [replicas, sm, ...] at these quota rows count for: area, and the price of each replica."""
    count = np.asarray(REPLICAS, float).reshape(-1, *(1,) * (quota.ndim - 1))
    share = np.maximum(np.asarray(QUOTA_PERCENTS, float)[quota] / 100.0, settings.least_quota)
    return np.asarray(count * (sm_percents * share / 100.0 + settings.replica_price))


def _cheapest(rps: Array, sm_percents: Array, settings: FrontierSettings) -> Array:
    """[peak, rate] flat (replicas, sm) indices. Of all shapes that cost at most the insurance more than the cheapest one for
    a peak, it is that for the greatest peak: unforeseen jumps are then met by a quota."""
    by_shape = rps.reshape(-1, rps.shape[-1])
    # The first quota that carries each rate [rate, shape]; one beyond the last where none does.
    quota = np.stack([np.searchsorted(own, RATES_RPS) for own in by_shape], axis=1)
    rows = np.broadcast_to(np.arange(len(QUOTA_PERCENTS)), (len(REPLICAS), len(sm_percents), len(QUOTA_PERCENTS)))
    prices = np.moveaxis(_price(sm_percents[:, None], rows, settings), -1, 0).reshape(len(QUOTA_PERCENTS), -1)
    prices = np.concatenate([prices, np.full((1, len(by_shape)), np.inf)])
    price = prices[quota, np.arange(len(by_shape))]
    peaks = np.asarray(PEAKS)[:, None] * RATES_RPS
    able = np.stack([np.where(by_shape[:, -1] >= peak[:, None], price, np.inf) for peak in peaks])
    found, least = able.argmin(axis=-1), able.min(axis=-1)
    # [own peak, greater or smaller peak, rate]
    affordable = least <= least[:, None] * (1.0 + settings.insurance)
    greatest = len(PEAKS) - 1 - affordable[:, ::-1].argmax(axis=1)
    best = np.take_along_axis(found, greatest, axis=0)
    return np.where(np.isfinite(least), best, -1).astype(np.int32)
