"""What was in place over time: sampled at ticks, as often as memory allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES, PPM_PER_PERCENT
from hasfaas.simulator.scenario import Scenario

if TYPE_CHECKING:
    from hasfaas.simulator.fleet import Fleet

Array = np.ndarray[Any, Any]

# What a picture can show; and the numbers that one column may hold (16 MB).
_MOST_SAMPLES, _MOST = 1_000, 4_000_000


@attrs.frozen(eq=False)
class Column:
    """A series: `now_s` [sample]; `replicas` (ready or not), `ready`, `quota_percent` (their sum), `reserved` (sum of sm x
    quota, in devices) and `waiting` [sample, function]; `lane_sm_percent`, `lane_quota_percent` [sample, device, lane]."""

    now_s: Array
    replicas: Array
    ready: Array
    quota_percent: Array
    reserved: Array
    waiting: Array
    lane_sm_percent: Array
    lane_quota_percent: Array


class Series:
    """Collects samples; no more often than every `every_s`."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        widest = max(len(scenario.functions), len(scenario.devices) * MAX_LANES)
        self._every_s = scenario.duration_s / min(_MOST_SAMPLES, max(_MOST / widest, 1.0))
        self._samples: list[tuple[Any, ...]] = []
        self._last_s = -np.inf

    def sample(self, fleet: Fleet) -> None:
        """Takes down what is in place now, unless that was done a moment ago."""
        now_s = fleet.now_ns / 1e9
        if now_s - self._last_s < self._every_s:
            return
        self._last_s = now_s
        world, rows = fleet.world, fleet.rows
        slots, functions = world.slots, world.functions
        which, quota = slots["function"][rows], slots["quota_ppm"][rows] / PPM_PER_PERCENT
        units = np.repeat([device.units for device in self._scenario.devices], MAX_LANES)
        share = fleet.lane_units / units

        def by_function(weights: Array | None) -> Array:
            return np.bincount(which, weights, len(functions)).astype(np.float32)

        shape = (len(self._scenario.devices), MAX_LANES)
        self._samples.append(
            (
                np.float64(now_s),
                by_function(None),
                functions["ready"].astype(np.float32),
                by_function(quota),
                by_function(quota / 100.0 * share[slots["lane"][rows]]),
                (functions["arrived"] - functions["head"]).astype(np.float32),
                (100.0 * share).astype(np.float32).reshape(shape),
                (fleet.lane_ppm / PPM_PER_PERCENT).astype(np.float32).reshape(shape),
            )
        )

    def column(self) -> Column:
        """All samples."""
        return Column(*(np.array(each) for each in zip(*self._samples, strict=True)))
