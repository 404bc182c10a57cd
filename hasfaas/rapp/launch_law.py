"""The launch-path law of a quota: L(q) = max(G, H(q)).

For devices on which the quota holds back the host's kernel launches and does not stretch the GPU's work (the V100 data
of HAS-GPU; rapp.md 3.1). G is the GPU-bound latency at full quota, H(q) what the launch path takes, a table per function.
It does not hold where the quota is GPU time, as hasfaas enforces it: that is the lane law. The device says which one
applies, and the two are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.table import LatencyTable

Array = np.ndarray[Any, Any]

# H(10) is H(20) x 2.8 in the median of the V100 data: below the smallest quota measured the law goes on as q^-1.5.
LOW_QUOTA_SLOPE = -1.5
LAUNCH_BOUND_SM_PERCENT = 40  # with so many SMs and one item, the launch path is the slower of the two


def _numbers(values: Any) -> Array:
    return np.atleast_1d(np.asarray(values, float))


@attrs.frozen(eq=False)
class LaunchLaw:
    """H(q) of one function: `quota_percent` [k] rising, in (0, 100], and `launch_ms` [k], positive.

    Raises InvalidRequestError if the two are not of this kind.
    """

    name: ClassVar[str] = "launch"

    quota_percent: Array = attrs.field(converter=_numbers)
    launch_ms: Array = attrs.field(converter=_numbers)

    def __attrs_post_init__(self) -> None:
        quota, launch = self.quota_percent, self.launch_ms
        if quota.ndim != 1 or quota.shape != launch.shape or len(quota) == 0:
            raise InvalidRequestError(
                f"quota_percent has {quota.size} values and launch_ms {launch.size}: give one time per quota, one at least",
                reason="BAD_LAUNCH_TABLE",
            )
        _check_quota(quota)
        if (np.diff(quota) <= 0).any():
            raise InvalidRequestError(
                f"quota_percent={quota.tolist()} does not rise: sort it, each quota once", reason="BAD_LAUNCH_TABLE"
            )
        if not (np.isfinite(launch) & (launch > 0)).all():
            raise InvalidRequestError(
                f"launch_ms={launch.tolist()} holds a value that is no positive number: leave that quota out",
                reason="BAD_LAUNCH_TABLE",
            )

    @classmethod
    def from_cells(cls, cells: LatencyTable) -> Self:
        """H(q) as the median of one function's cells with one item and an SM share of 40 % or more.

        Raises InvalidRequestError if there is no such cell.
        """
        bound = cells.where((cells.batch == 1) & (cells.sm_percent >= LAUNCH_BOUND_SM_PERCENT))
        if len(bound) == 0:
            raise InvalidRequestError(
                f"cells hold no run of batch 1 at sm_percent >= {LAUNCH_BOUND_SM_PERCENT}: measure one per quota",
                reason="BAD_LAUNCH_TABLE",
            )
        quotas = np.unique(bound.quota_percent)
        return cls(quotas, [np.median(bound.latency_ms[bound.quota_percent == quota]) for quota in quotas])

    def floor_ms(self, quota_percent: Any) -> Array:
        """H at each quota in (0, 100] %: log-log interpolation; as q^-1.5 below the table, flat above it."""
        quota = _check_quota(np.asarray(quota_percent, float))
        x = np.log(self.quota_percent)
        inside = np.interp(np.log(quota), x, np.log(self.launch_ms))
        return np.asarray(np.exp(inside + LOW_QUOTA_SLOPE * np.minimum(np.log(quota) - x[0], 0)))

    def latency_ms(self, gpu_ms: Any, quota_percent: Any) -> Array:
        """max(G, H(q)); `gpu_ms` and `quota_percent` broadcast against each other."""
        gpu = np.asarray(gpu_ms, float)
        if not (np.isfinite(gpu) & (gpu > 0)).all():
            raise InvalidRequestError("gpu_ms holds a value that is no positive number", reason="BAD_LATENCY")
        return np.asarray(np.maximum(gpu, self.floor_ms(quota_percent)))

    def throughput_per_s(self, batch: Any, gpu_ms: Any, quota_percent: Any) -> Array:
        """Items per second of one replica that runs batch after batch: batch / latency, for the quota is in it."""
        return np.asarray(1e3 * np.asarray(batch, float) / self.latency_ms(gpu_ms, quota_percent))

    def monotone(self) -> LaunchLaw:
        """The same law without the rises that noise left in the table: H never grows with the quota."""
        return LaunchLaw(self.quota_percent, np.minimum.accumulate(self.launch_ms))


def _check_quota(quota: Array) -> Array:
    bad = ~((quota > 0) & (quota <= 100))
    if bad.any():
        raise InvalidRequestError(
            f"quota_percent={quota[bad].flat[0]:g} is outside (0, 100]: give a quota in %", reason="BAD_QUOTA_PERCENT"
        )
    return quota


def compare(
    law: LaunchLaw, gpu_ms: Sequence[float] | Array, quota_percent: Sequence[float] | Array, measured_ms: Array
) -> Array:
    """The absolute percentage errors of the law against measured latencies, in %."""
    return np.asarray(100 * np.abs(law.latency_ms(gpu_ms, quota_percent) / np.asarray(measured_ms, float) - 1))
