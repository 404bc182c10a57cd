"""How many devices the replicas of a run were spread over, and how few could hold them, however they were packed.

Law: the bound is never above what is reached. It counts, for the very same replicas, each thing that a device has on its
own, and takes the greatest: memory; units, where replicas of one SM share fill as few lanes as their quotas leave; lanes; and
slots. Whatever the packing, no device gives more than all of each. Several must fit at once, neither a lane nor memory comes
in pieces, replicas cannot move while they serve, and a promise bounds the neighbours: so no packing need reach it.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES
from hasfaas.simulator.records import SLOTS_OF_DEVICE
from hasfaas.simulator.result import NS_PER_S, Result

Array = np.ndarray[Any, Any]

# Quotas were summed and kept with seven digits.
_ROUNDING = 1e-4


@attrs.frozen
class Packing:
    """Means over the samples of a run after its warm-up: devices in use, and the least that could hold the same replicas
    (`by_memory`, `by_units` say which of the bounds is the tight one). `memory_share` and `units_share` are how full the
    devices in use are, `quota_share` which part of their lanes' time is promised."""

    replicas: float
    devices: float
    bound: float
    by_memory: float
    by_units: float
    memory_share: float
    units_share: float
    quota_share: float

    @classmethod
    def of(cls, result: Result) -> Packing | None:
        """That of a run; None where nothing was in use."""
        series, devices = result.series, result.scenario.devices
        chosen = series.now_s >= result.scenario.warmup_s
        units = np.array([device.units for device in devices])
        most_bytes = max(device.memory_bytes for device in devices)
        lane_units = np.rint(series.lane_sm_percent[chosen] / 100.0 * units[:, None]).astype(np.int64)
        quota = series.lane_quota_percent[chosen].astype(float)
        in_use = (lane_units > 0).any(axis=2)
        used = in_use.sum(axis=1)
        if not used.any():
            return None
        held_bytes, seats = _held(result, series.now_s[chosen])
        least_units, least_lanes = _lanes(lane_units, quota)
        by_memory, by_units = np.ceil(held_bytes / most_bytes), np.ceil(least_units / units.max())
        bound = np.max(
            [by_memory, by_units, np.ceil(least_lanes / MAX_LANES), np.ceil(seats / SLOTS_OF_DEVICE)], axis=0
        )
        there_bytes = in_use @ np.array([float(device.memory_bytes) for device in devices])
        there_units, taken = (in_use @ units).sum(), lane_units.sum()
        return cls(
            replicas=float(seats.mean()),
            devices=float(used.mean()),
            bound=float(bound.mean()),
            by_memory=float(by_memory.mean()),
            by_units=float(by_units.mean()),
            memory_share=float(held_bytes.sum() / there_bytes.sum()),
            units_share=float(taken / there_units),
            quota_share=float((lane_units * quota).sum() / 100.0 / taken),
        )

    @property
    def quality(self) -> float:
        """The bound over what is in use: 1 could not be better."""
        return self.bound / self.devices


# -- leaves -------------------------------------------------------------------------------------------------------------


def _held(result: Result, now_s: Array) -> tuple[Array, Array]:
    """(bytes, replicas) at each instant, of all replicas that hold a place."""
    came = np.array([life.asked_ns for life in result.replicas], np.int64)
    went = np.array([life.gone_ns if life.gone_ns is not None else 1 << 62 for life in result.replicas], np.int64)
    own = np.array([result.scenario.functions[life.function].memory_bytes for life in result.replicas], float)
    now_ns = np.rint(now_s * NS_PER_S).astype(np.int64)
    bytes_there, there = np.zeros(len(now_s)), np.zeros(len(now_s))
    for instants, sign in ((came, 1.0), (went, -1.0)):
        order = np.argsort(instants, kind="stable")
        passed = np.searchsorted(instants[order], now_ns, side="right")
        bytes_there += sign * np.concatenate([[0.0], np.cumsum(own[order])])[passed]
        there += sign * passed
    return bytes_there, there


def _lanes(lane_units: Array, quota: Array) -> tuple[Array, Array]:
    """(units, lanes) [sample] that the replicas need at least: those of one size fill as few as their quotas leave."""
    least_units, least_lanes = np.zeros(len(lane_units)), np.zeros(len(lane_units))
    for size in np.unique(lane_units[lane_units > 0]).tolist():
        mine = lane_units == size
        needed = np.ceil((quota * mine).sum(axis=(1, 2)) / 100.0 - _ROUNDING)
        needed = np.maximum(needed, mine.any(axis=(1, 2)))
        least_units += size * needed
        least_lanes += needed
    return least_units, least_lanes
