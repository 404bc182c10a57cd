"""What a replica holds of a device: an SM partition, a share of the time of that partition's lane, and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from hasfaas.core.errors import InvalidRequestError

PPM_PER_PERCENT = 10_000
MAX_LANES = 8
"""Lanes that one device can have."""


def granted_units(units: int, sm_percent: float) -> int:
    """Whole units (SMs, cores) of a device of `units` for a share, rounded up, as MPS rounds to its chunks. At least one."""
    return max(1, math.ceil(units * sm_percent / 100.0 - 1e-9))


def lane_units(units: int, percents: Sequence[float]) -> tuple[int, ...]:
    """Whole units for lanes of these SM percents that are cut in advance, at least one each: rounded up, and where that is
    more than there is, those that gained most by it rounded down (15 chunks for 50, 25 and 25 %: 7, 4 and 4). Raises
    InvalidRequestError where the percents are more than the device."""
    most = min(MAX_LANES, units)
    if not (
        1 <= len(percents) <= most and all(percent > 0.0 for percent in percents) and sum(percents) <= 100.0 + 1e-9
    ):
        raise InvalidRequestError(
            f"lanes={list(percents)} cannot be cut from {units} units; give 1 to {most} SM percents above 0 that sum to at "
            "most 100",
            reason="BAD_OPTION",
        )
    counts = [granted_units(units, percent) for percent in percents]
    while sum(counts) > units:
        gains = [
            count - units * percent / 100.0 if count > 1 else -1.0
            for count, percent in zip(counts, percents, strict=True)
        ]
        counts[gains.index(max(gains))] -= 1
    return tuple(counts)


def _percent(name: str, value: float, *, low: float) -> None:
    if not low <= value <= 100.0:
        raise InvalidRequestError(f"{name}={value!r} is not a percentage in [{low:g}, 100]", reason="BAD_ALLOCATION")


@attrs.frozen
class Allocation:
    """A slice of a device.

    `sm_percent`: share of the streaming multiprocessors (of the cores, on a CPU device), fixed while a replica lives.
    `quota_percent`: share of the lane's device time, re-sized in place. `memory_bytes`: the memory wall.
    """

    sm_percent: float
    quota_percent: float
    memory_bytes: int

    def __attrs_post_init__(self) -> None:
        _percent("sm_percent", self.sm_percent, low=1.0)
        _percent("quota_percent", self.quota_percent, low=0.0)
        if self.memory_bytes <= 0:
            raise InvalidRequestError(f"memory_bytes={self.memory_bytes} must be positive", reason="BAD_ALLOCATION")

    @property
    def occupancy(self) -> float:
        """Fraction of the whole device in [0, 1]: sm x quota (HAS-GPU's HGO of one pod)."""
        return self.sm_percent * self.quota_percent / 10_000.0

    @property
    def quota_ppm(self) -> int:
        """The quota in parts per million, as the token table holds it."""
        return round(self.quota_percent * PPM_PER_PERCENT)


@attrs.frozen
class Usage:
    """What one replica was granted and took, in nanoseconds since it started. All but `quota_ppm` only ever grow."""

    quota_ppm: int = 0
    granted_ns: int = 0
    used_ns: int = 0
    throttled_ns: int = 0
    wait_ns: int = 0
    overrun_ns: int = 0
    lent_ns: int = 0
    grants: int = 0
