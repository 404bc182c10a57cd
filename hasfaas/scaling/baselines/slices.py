"""What one replica may be given, and what it can do with it on our lanes: hold t of a full batch, throughput q b / t.

Those that choose freely (the fixed slice, the oracle) choose from the grid that our own scaler has (`scaling.frontier`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling import capacity
from hasfaas.scaling.frontier import BATCHES, QUOTA_PERCENTS
from hasfaas.scaling.observation import Array, Observation

WHOLE_PERCENT = 100.0


@attrs.frozen
class Slice:
    """SM share and quota in percent, and the greatest batch."""

    sm_percent: float
    quota_percent: float
    batch: int

    @property
    def area(self) -> float:
        """Share of a whole device in [0, 1]."""
        return self.sm_percent * self.quota_percent / 1e4

    def __str__(self) -> str:
        return f"SM {self.sm_percent:g} % x quota {self.quota_percent:g} %, batches of {self.batch}"


@attrs.frozen
class Promise:
    """What a capacity is worked out for, hashable: the profile (by identity), the time left, the late share, the batch."""

    surface: Surface
    deadline_ms: float
    late_share: float
    batch_max: int
    timing: Timing

    @classmethod
    def of(cls, observation: Observation, row: int) -> Promise | None:
        """That of one function; None without a profile. The deadline is the SLO less what passes outside the lane."""
        functions = observation.functions
        surface = functions.surfaces[row]
        if surface is None:
            return None
        deadline_ms = float(functions.slo_ms[row] - functions.overhead_ms[row])
        return cls(
            surface, deadline_ms, float(functions.late_share[row]), int(functions.batch_max[row]), observation.timing
        )


@functools.lru_cache(maxsize=65_536)
def hold_ms(surface: Surface, batch: int, sm_percent: float) -> float:
    """Median time that a full batch holds its lane."""
    return surface.hold(batch, sm_percent)


def saturated_rps(surface: Surface, portion: Slice) -> float:
    """Requests per second of a replica that never idles, in full batches: q b / t."""
    hold = hold_ms(surface, portion.batch, portion.sm_percent)
    return portion.quota_percent / 100.0 * portion.batch / hold * 1e3


def batches(promise: Promise) -> tuple[int, ...]:
    """The batch caps to choose from: those that the function allows and the profile knows."""
    most = max(1, min(promise.batch_max, promise.surface.batches[-1]))
    return tuple(batch for batch in BATCHES if batch <= most)


def capacities_rps(promise: Promise, replicas: Sequence[int]) -> Array:
    """By the rule of `scaling.capacity`: [replicas, batch, SM share, quota], over `replicas`, `batches(promise)`, the shares
    of the profile and QUOTA_PERCENTS; from median holds."""
    surface, caps = promise.surface, batches(promise)
    return capacity.lane_rps(
        np.asarray(replicas, float)[:, None, None, None],
        np.asarray(caps, float)[:, None, None],
        surface.over(caps, surface.sm_percents).hold_ms[:, :, None],
        np.asarray(QUOTA_PERCENTS, float) / 100.0,
        promise.deadline_ms,
        promise.timing,
        late_share=promise.late_share,
    )


@functools.lru_cache(maxsize=1024)
def _of_one_rps(promise: Promise) -> Array:
    table: Array = capacities_rps(promise, (1,))[0]
    return table


@functools.lru_cache(maxsize=4096)
def least_slice(promise: Promise, rps: float) -> Slice:
    """The slice of the least sm x quota of which one replica takes `rps` within the promise.

    Where no single replica does, the one with the largest capacity per area; where the promise cannot be kept at all,
    a whole device, one call at a time. Ties go to the larger capacity, then to the smaller SM share.
    """
    table = _of_one_rps(promise)
    shares = np.asarray(promise.surface.sm_percents)
    if not np.any(table > 0.0):
        return Slice(WHOLE_PERCENT, WHOLE_PERCENT, 1)
    area = np.broadcast_to(np.outer(shares, QUOTA_PERCENTS), table.shape)
    enough = table >= max(rps, np.finfo(float).tiny)
    first = np.where(enough, area, np.inf) if enough.any() else -table / area
    order = np.lexsort((area.ravel(), -table.ravel(), first.ravel()))
    batch, share, quota = np.unravel_index(int(order[0]), table.shape)
    return Slice(float(shares[share]), float(QUOTA_PERCENTS[quota]), batches(promise)[batch])
