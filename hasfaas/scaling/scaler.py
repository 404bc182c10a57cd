"""The hybrid scaler: every promise at the least device cost, by quotas first and by replicas second.

One tick: counts -> forecast -> what each function must carry now (`rate`) and before another replica could serve (`peak`)
-> the cheapest shapes -> actions. All functions at once, as columns; only those that change are looked at one by one.

    vertical     a quota rises at once to the least that carries `rate`, and falls once less has sufficed for a while
    horizontal   replicas are added when even whole lanes do not carry `peak`, and drained when fewer have sufficed
    reshape      another SM share is another process: made, then the old one drained; only once the saving that was
                 missed so far exceeds what the change costs (the ski-rental rule: never worse than twice the best)
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
from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Array, Observation
from hasfaas.scaling.planner import Plan, act
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import Stack


class HybridScaler:
    """A Policy. `settings` are its only options."""

    def __init__(self, settings: ScalerSettings | None = None) -> None:
        self.settings = settings or ScalerSettings()
        self._memory = Memory.of((), Forecast.of(0, self.settings.forecasting))
        # With each frontier the surface that it was made of: while it lives, nothing else has its id.
        self._frontiers: dict[tuple[object, ...], tuple[Surface, Frontier]] = {}
        self._stack_key: tuple[object, ...] = ()
        self._stack: Stack | None = None

    def decide(self, observation: Observation) -> Decision:
        """What to do now. The first observation of a function decides on what waits alone."""
        functions, settings = observation.functions, self.settings
        next_tick_s = observation.now_s + settings.tick_s
        if not len(functions):
            return Decision((), "no functions", next_tick_s)
        memory = self._recall(observation)
        stack = self._stacked(observation)
        rate, peak = self._rates(observation, memory)
        plan = Plan.of(observation, stack, rate, peak, settings)
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
        step, (low, high) = self.settings.margin_step, self.settings.margin_range
        allowed = functions.late_share * self.settings.late_factor
        # A burst of late calls says once that there was a burst; more of them would say no more.
        missed = np.minimum(functions.late, 5.0) - allowed * functions.completed
        memory.log_margin = np.clip(memory.log_margin + step * missed, np.log(low), np.log(high))
        return memory

    def _rates(self, observation: Observation, memory: Memory) -> tuple[Array, Array]:
        """(rate, peak) [function] in requests per second: to be carried now, and before another replica could serve."""
        functions, settings, forecast = observation.functions, self.settings, memory.forecast
        margin = np.exp(memory.log_margin)
        if settings.forecast:
            rate, peak = forecast.upper_rps(), forecast.peak_rps()
        else:
            total, length_s = forecast.recent(10.0)
            rate = peak = 1.1 * total / max(length_s, 1e-9)
        # What waits beyond the calls of a moment is worked off within a second.
        backlog = np.maximum(functions.waiting - rate * functions.slo_ms / 1e3, 0.0)
        rate = rate * margin + backlog
        return rate, np.maximum(peak * np.maximum(margin, 1.0), rate)

    def _stacked(self, observation: Observation) -> Stack:
        functions = observation.functions
        rounded = np.round(functions.overhead_ms, 0).tolist()
        keys = [
            (id(surface), slo, share, int(batch), overhead)
            for surface, slo, share, batch, overhead in zip(
                functions.surfaces,
                functions.slo_ms.tolist(),
                functions.late_share.tolist(),
                functions.batch_max.tolist(),
                rounded,
                strict=True,
            )
        ]
        key = tuple(keys)
        if self._stack is not None and key == self._stack_key:
            return self._stack
        used: dict[tuple[object, ...], tuple[Surface, Frontier]] = {}
        rows: dict[tuple[object, ...], int] = {}
        kind = np.full(len(functions), -1)
        for row, (own, surface) in enumerate(zip(keys, functions.surfaces, strict=True)):
            if surface is None:
                continue
            if own not in used:
                used[own] = self._frontiers.get(own) or (surface, self._frontier(observation, row))
            kind[row] = rows.setdefault(own, len(rows))
        self._frontiers = used
        self._stack_key, self._stack = key, Stack.of(kind, [frontier for _, frontier in used.values()])
        return self._stack

    def _frontier(self, observation: Observation, row: int) -> Frontier:
        functions, settings = observation.functions, self.settings
        surface = functions.surfaces[row]
        assert surface is not None
        sm_percents, batch_max = settings.sm_percents, int(functions.batch_max[row])
        if not settings.frontier:
            # HAS-GPU's search space: SM 30 and 50 %, batches of 4.
            sm_percents, batch_max = (30.0, 50.0), min(4, batch_max)
        return Frontier.of(
            surface,
            float(functions.slo_ms[row]),
            float(functions.late_share[row]),
            observation.timing,
            batch_max=batch_max,
            overhead_ms=float(functions.overhead_ms[row]),
            settings=FrontierSettings(
                settings.late_factor, settings.hold_quantile, 2 if settings.pooling else 0, sm_percents
            ),
        )


def _reason(actions: Sequence[Action], refused: Sequence[str]) -> str:
    if refused:
        return "; ".join(("no room for all", *refused))
    return f"{len(actions)} changes" if actions else "steady"
