"""The frontiers of all functions, made when what they depend on changes: surfaces, promises, and lanes cut in advance."""

from __future__ import annotations

import numpy as np

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.frontier import Frontier, FrontierSettings
from hasfaas.scaling.lane_shares import LaneShares
from hasfaas.scaling.observation import Array, FixedLanes, Observation
from hasfaas.scaling.plan import most_replicas
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import Stack

# In devices: of two shapes that cost nearly the same, the one of fewer replicas is better.
REPLICA_PRICE = 0.003
# HAS-GPU's search space.
HAS_SM_PERCENTS, HAS_BATCH = (30.0, 50.0), 4
POOLED_SM_PERCENTS = (5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0)


class Frontiers:
    """Remembers those of the last observation."""

    def __init__(self, settings: ScalerSettings) -> None:
        self.settings = settings
        # With each frontier the surface that it was made of: while it lives, nothing else has its id.
        self._frontiers: dict[tuple[object, ...], tuple[Surface, Frontier]] = {}
        self._surfaces: tuple[Surface | None, ...] = ()
        self._columns = np.zeros((0, 5))
        # The lanes cut in advance, and who may use which device; of no account where there are none.
        self._fixed_lanes: tuple[FixedLanes, Array | None] = (FixedLanes(), None)
        self._stack: Stack | None = None

    def stacked(self, observation: Observation) -> Stack:
        """Those of an observation; the same object as last time where nothing has changed that they depend on."""
        functions = observation.functions
        # What a frontier depends on. Overheads move all the time, so they count in whole milliseconds.
        columns = np.stack(
            [
                functions.slo_ms,
                functions.late_share,
                functions.batch_max,
                np.round(functions.overhead_ms),
                functions.memory_bytes,
            ],
            axis=1,
        )
        known = self._stack is not None and functions.surfaces == self._surfaces
        known = known and self._same_lanes(observation)
        if known and np.array_equal(columns, self._columns):
            assert self._stack is not None
            return self._stack
        shares = self._shares(observation)
        keys = [
            (id(surface), *values, share)
            for surface, values, share in zip(functions.surfaces, columns.tolist(), shares, strict=True)
        ]
        used: dict[tuple[object, ...], tuple[Surface, Frontier]] = {}
        rows: dict[tuple[object, ...], int] = {}
        kind = np.full(len(functions), -1)
        for row, (own, surface) in enumerate(zip(keys, functions.surfaces, strict=True)):
            if surface is None:
                continue
            if own not in used:
                used[own] = self._frontiers.get(own) or (surface, self._frontier(observation, row, shares[row]))
            kind[row] = rows.setdefault(own, len(rows))
        self._frontiers = used
        self._surfaces, self._columns = functions.surfaces, columns
        self._fixed_lanes = (observation.fixed_lanes, functions.devices if len(observation.fixed_lanes) else None)
        self._stack = Stack.of(kind, [frontier for _, frontier in used.values()])
        return self._stack

    def _same_lanes(self, observation: Observation) -> bool:
        fixed, devices = self._fixed_lanes
        if not fixed.same(observation.fixed_lanes):
            return False
        return (
            devices is None
            or devices is observation.functions.devices
            or np.array_equal(devices, observation.functions.devices)
        )

    def _shares(self, observation: Observation) -> list[LaneShares | None]:
        """The SM shares to plan with [function]; None without a surface."""
        functions, settings = observation.functions, self.settings
        bounded = settings.sm_percents is not None or not settings.frontier
        known: dict[tuple[object, ...], LaneShares] = {}
        found: list[LaneShares | None] = []
        for row, surface in enumerate(functions.surfaces):
            if surface is None:
                found.append(None)
                continue
            key = (surface.sm_percents, functions.devices[row].tobytes() if len(observation.fixed_lanes) else b"")
            if key not in known:
                known[key] = LaneShares.of(observation, row, self._wanted(surface), bounded=bounded)
            found.append(known[key])
        return found

    def _wanted(self, surface: Surface) -> tuple[float, ...] | None:
        settings = self.settings
        if not settings.frontier:
            return HAS_SM_PERCENTS
        if settings.pooling and settings.sm_percents is None:
            # Lanes are shared by replicas of one share, so there are few of them.
            return tuple(share for share in surface.sm_percents if share in POOLED_SM_PERCENTS) or None
        return settings.sm_percents

    def _frontier(self, observation: Observation, row: int, shares: LaneShares | None) -> Frontier:
        functions, settings = observation.functions, self.settings
        surface = functions.surfaces[row]
        assert surface is not None and shares is not None
        batch_max = int(functions.batch_max[row])
        return Frontier.of(
            surface,
            float(functions.slo_ms[row]),
            float(functions.late_share[row]),
            observation.timing,
            batch_max=batch_max if settings.frontier else min(HAS_BATCH, batch_max),
            overhead_ms=float(functions.overhead_ms[row]),
            settings=FrontierSettings(
                late_factor=settings.late_factor,
                insurance=settings.insurance,
                hold_quantile=settings.hold_quantile,
                neighbours=1 if settings.pooling else 0,
                replica_price=self._replica_price(observation, row),
                # A lane that few may share is never full.
                least_quota=1.0 / float(most_replicas(observation)[row]) if settings.pooling else 0.0,
                sm_percents=shares.sm_percents,
                most=shares.most,
            ),
        )

    def _replica_price(self, observation: Observation, row: int) -> float:
        """Of functions that share devices, memory is what fills them: a replica costs its part of that."""
        if not self.settings.pooling:
            return REPLICA_PRICE
        part = observation.functions.memory_bytes[row] / observation.devices.memory_bytes.max()
        return max(REPLICA_PRICE, float(part) * self.settings.memory_weight)
