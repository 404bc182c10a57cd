"""What a function will do on the cheapest slice for a rate, before anything runs: latency, capacity, cost."""

from __future__ import annotations

import math

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError, SLOInfeasibleError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.capacity import slice_rps
from hasfaas.scaling.frontier import BATCHES, QUOTA_PERCENTS, Shape, feasible

P95 = 0.95
# A latency is told to a hundredth of itself.
PRECISION = 1.01
SECONDS_PER_HOUR = 3600.0


@attrs.frozen
class Outlook:
    """The cheapest slice for `rps`. `p95_ms` is what 95 of 100 calls keep within, by the capacity rule and the median hold.
    `idle_ms` is one call's on all of the device."""

    rps: float
    shape: Shape
    p95_ms: float
    idle_ms: float

    def cost_per_hour(self, price: float) -> float:
        """What the slice costs an hour, where a whole device costs `price` an hour."""
        return self.shape.area * price

    def cost_per_1000(self, price: float) -> float:
        """What a thousand requests cost at this rate."""
        return self.cost_per_hour(price) / SECONDS_PER_HOUR / self.rps * 1000.0


def outlook(
    surface: Surface, slo_ms: float, late_share: float, timing: Timing, rps: float, *, batch_max: int, replicas_max: int
) -> Outlook:
    """The outlook for `rps` within a promise: at most `late_share` of the calls later than `slo_ms`.

    Raises SLOInfeasibleError where no slice keeps the promise, with the nearest SLO that one keeps, and where
    `replicas_max` replicas do not carry the rate; InvalidRequestError (BAD_RATE) for a rate that is not positive.
    """
    if not 0.0 < rps < math.inf:
        raise InvalidRequestError(
            f"rps={rps:g} must be positive: give the calls per second to plan for", reason="BAD_RATE"
        )
    frontier = feasible(surface, slo_ms, late_share, timing, batch_max=batch_max)
    shape = frontier.cheapest(rps)
    if shape is None or shape.replicas > replicas_max:
        most = frontier.most_rps(replicas_max)
        raise SLOInfeasibleError(
            f"rps={rps:g}: {replicas_max} replicas carry at most {most:.4g} rps within slo_ms={slo_ms:g}; allow more with "
            "replicas=(least, most), a longer slo_ms, or batch=",
            reason="RATE_INFEASIBLE",
        )
    return Outlook(rps, shape, latency_ms(surface, shape, timing, rps, P95), surface.hold(1, surface.sm_percents[-1]))


def latency_ms(surface: Surface, shape: Shape, timing: Timing, rps: float, quantile: float) -> float:
    """The latency in ms that this share of the calls keeps within: the least deadline at which the capacity rule lets the
    shape carry `rps`. Infinite where it does not carry that at any."""
    # Not all of the quota need be used: what less of it can carry counts as well.
    batches = [*(b for b in BATCHES if b < shape.batch), shape.batch]
    holds_ms = np.array([surface.hold(b, shape.sm_percent) for b in batches])
    quotas = np.array([*(q for q in QUOTA_PERCENTS if q < shape.quota_percent), shape.quota_percent]) / 100.0

    def carries(deadline_ms: float) -> bool:
        late_share = 1.0 - quantile
        carried = slice_rps(shape.replicas, batches, holds_ms, quotas, deadline_ms, timing, late_share=late_share)
        return bool(carried.max() >= rps)

    low, high = surface.hold(1, shape.sm_percent), 1e7
    if not carries(high):
        return math.inf
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if carries(middle) else (middle, high)
    return high
