"""The latency of a function measured at points of (batch, SM share, quota): a table, for devices that gate launches only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]


def _axis(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _array(values: object) -> Array:
    return np.array(values, float)


@attrs.frozen(eq=False)
class LatencyGrid:
    """Latency in ms [batch, sm, quota] with its three rising axes; shares and quotas in percent.

    Raises InvalidRequestError (BAD_GRID) for axes that do not rise, and for values that are not positive and finite.
    """

    batches: tuple[float, ...] = attrs.field(converter=_axis)
    sm_percents: tuple[float, ...] = attrs.field(converter=_axis)
    quota_percents: tuple[float, ...] = attrs.field(converter=_axis)
    latency_ms: Array = attrs.field(converter=_array)

    def __attrs_post_init__(self) -> None:
        axes = (self.batches, self.sm_percents, self.quota_percents)
        for name, axis in zip(("batches", "sm_percents", "quota_percents"), axes, strict=True):
            if not axis or axis[0] <= 0.0 or any(a >= b for a, b in itertools.pairwise(axis)):
                raise _bad(f"{name}={axis} must be positive and rise")
        shape = tuple(map(len, axes))
        if self.latency_ms.shape != shape:
            raise _bad(f"latency_ms has the shape {self.latency_ms.shape}, it needs {shape}: batch x SM share x quota")
        if not np.all((self.latency_ms > 0.0) & (self.latency_ms < np.inf)):
            raise _bad("latency_ms must be positive and finite everywhere")

    def latency(self, batch: float, sm_percent: float, quota_percent: float) -> float:
        """The latency in ms at any point: linear in the logarithms of all three and of the latency, clamped at the edges."""
        values = np.log(self.latency_ms)
        for axis, at in ((self.batches, batch), (self.sm_percents, sm_percent), (self.quota_percents, quota_percent)):
            low, high, part = _bracket(axis, at)
            values = (1.0 - part) * values[low] + part * values[high]
        return math.exp(float(values))


def _bracket(axis: Sequence[float], value: float) -> tuple[int, int, float]:
    high = min(int(np.searchsorted(axis, value)), len(axis) - 1)
    low = max(high - 1, 0)
    if low == high or value <= axis[low]:
        return low, low, 0.0
    return low, high, min(1.0, math.log(value / axis[low]) / math.log(axis[high] / axis[low]))


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_GRID")
