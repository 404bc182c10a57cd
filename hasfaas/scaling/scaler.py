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

from hasfaas.scaling.decision import Action, Decision
from hasfaas.scaling.forecast import Forecast
from hasfaas.scaling.frontiers import Frontiers
from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Observation
from hasfaas.scaling.plan import Load, Plan
from hasfaas.scaling.planner import act
from hasfaas.scaling.settings import ScalerSettings


class HybridScaler:
    """A Policy. `settings` are its only options."""

    def __init__(self, settings: ScalerSettings | None = None) -> None:
        self.settings = settings or ScalerSettings()
        self._memory = Memory.of((), Forecast.of(0, self.settings.forecasting))
        self._frontiers = Frontiers(self.settings)

    def decide(self, observation: Observation) -> Decision:
        """What to do now. The first observation of a function decides on what waits alone."""
        functions, settings = observation.functions, self.settings
        next_tick_s = observation.now_s + settings.tick_s
        if not len(functions):
            return Decision((), "no functions", next_tick_s)
        memory = self._recall(observation)
        stack = self._frontiers.stacked(observation)
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


def _reason(actions: Sequence[Action], refused: Sequence[str]) -> str:
    if refused:
        return "; ".join(("no room for all", *refused))
    return f"{len(actions)} changes" if actions else "steady"
