"""The hybrid scaler: every promise at the least device cost, by quotas first and by replicas second.

One tick: counts -> forecast -> what each function must carry now (`rate`) and before another replica could serve (`peak`)
-> the cheapest shapes -> actions. All functions at once, as columns; only those that change are looked at one by one.

    vertical     a quota rises at once to the least that carries `rate`, and falls once less has sufficed for a while
    horizontal   replicas are added when even whole lanes do not carry `peak`, and drained when fewer have sufficed
    reshape      another SM share is another process: made, then the old one drained; only once the saving that was
                 missed so far exceeds twice what the change costs (the ski-rental rule: no worse than a fixed factor)
    zero         the last replica goes when nobody has called for `keep_alive_s`

Nothing here reads a clock: the same observations give the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import Action, Decision
from hasfaas.scaling.forecast import Forecast
from hasfaas.scaling.frontier import Frontier, FrontierSettings
from hasfaas.scaling.lane_shares import LaneShares
from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Array, FixedLanes, Observation
from hasfaas.scaling.plan import Load, Plan, most_replicas
from hasfaas.scaling.planner import act
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import Stack

# In devices: of two shapes that cost nearly the same, the one of fewer replicas is better.
REPLICA_PRICE = 0.003
# HAS-GPU's search space.
HAS_SM_PERCENTS, HAS_BATCH = (30.0, 50.0), 4
POOLED_SM_PERCENTS = (5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0)


class HybridScaler:
    """A Policy. `settings` are its only options."""

    def __init__(self, settings: ScalerSettings | None = None) -> None:
        self.settings = settings or ScalerSettings()
        self._memory = Memory.of((), Forecast.of(0, self.settings.forecasting))
        # With each frontier the surface that it was made of: while it lives, nothing else has its id.
        self._frontiers: dict[tuple[object, ...], tuple[Surface, Frontier]] = {}
        self._surfaces: tuple[Surface | None, ...] = ()
        self._columns = np.zeros((0, 5))
        # The lanes cut in advance, and who may use which device; of no account where there are none.
        self._fixed_lanes: tuple[FixedLanes, Array | None] = (FixedLanes(), None)
        self._stack: Stack | None = None

    def decide(self, observation: Observation) -> Decision:
        """What to do now. The first observation of a function decides on what waits alone."""
        functions, settings = observation.functions, self.settings
        next_tick_s = observation.now_s + settings.tick_s
        if not len(functions):
            return Decision((), "no functions", next_tick_s)
        memory = self._recall(observation)
        stack = self._stacked(observation)
        load = self._load(observation, memory)
        plan = Plan.of(observation, stack, load, settings)
        plan.remember(memory)
        actions, refused = act(plan, memory)
        return Decision(actions, _reason(actions, refused), next_tick_s, plan.diagnostics(memory))

    # -- one tick -------------------------------------------------------------------------------------------------------

    def _recall(self, observation: Observation) -> Memory:
        functions, dt = observation.functions, observation.interval_s
        if functions.names != self._memory.names:
            self._memory = self._memory.select(functions.names)
        memory = self._memory
        memory.forecast.update(functions.arrivals, dt)
        busy = (functions.arrivals > 0) | (functions.waiting > 0) | (functions.in_flight > 0)
        memory.idle_s = np.where(busy, 0.0, memory.idle_s + dt)
        allowed = functions.late_share * self.settings.budget_factor * functions.completed
        missed_s = (functions.late - allowed) / np.maximum(memory.forecast.level_rps, 1.0)
        # What was late for want of a replica says nothing about the margin.
        missed_s = np.where(memory.settled_s >= self.settings.settle_s, missed_s, 0.0)
        low, high = np.log(self.settings.margin_range)
        memory.log_margin = np.clip(memory.log_margin + self.settings.margin_step * missed_s, low, high)
        return memory

    def _load(self, observation: Observation, memory: Memory) -> Load:
        functions, settings, forecast = observation.functions, self.settings, memory.forecast
        margin = np.exp(memory.log_margin)
        if settings.forecast:
            upper, peak = forecast.upper_rps(), forecast.peak_rps(settings.reserve)
        else:
            total, length_s = forecast.recent(10.0)
            upper = peak = 1.1 * total / max(length_s, 1e-9)
        # Who was late has met a jump, or a rule that promised too much: towards the last peak, or by the margin.
        towards = np.clip(memory.log_margin / np.log(settings.margin_range[1]) + settings.jump_share, 0.0, 1.0)
        rate = np.maximum(upper * margin, upper + towards * np.maximum(peak - upper, 0.0))
        # What waits beyond the calls of a moment is worked off within a second.
        backlog = np.maximum(functions.waiting - upper * functions.slo_ms / 1e3, 0.0)
        return Load(rate, rate + backlog, upper, np.maximum(peak, rate))

    def _stacked(self, observation: Observation) -> Stack:
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


def _reason(actions: Sequence[Action], refused: Sequence[str]) -> str:
    if refused:
        return "; ".join(("no room for all", *refused))
    return f"{len(actions)} changes" if actions else "steady"
