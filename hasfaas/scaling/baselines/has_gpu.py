"""HAS-GPU's scaler (arXiv 2505.01968), as published and repaired.

Rules and constants: KontonGu/HAS-GPU fe7105e5, as the project's HAS-GPU reference (sections 5 and 8) writes them down. Every
2 s, for each function with a pod that is ready, with C the capacity of its pods and p the forecast from the rate of 10 s:

    p > 0.9 C     up by p - 0.9 C: quotas in steps of 10 points, the largest SM share first; then pods on devices in use;
                  then one on an unused device; last, where there is none, one of quota 10 on the least occupied device
    p < 0.3 C     and 10 s since the last time: down by 0.9 C - p: quotas in steps of 10, the smallest SM share first; then
                  pods of SM <= 50 that can be missed, never the last one
    else          nothing

A device has two rows, lanes here, with one SM share each. Occupancy (HGO) is the sum of sm x quota. A function starts with
one pod of SM 30, quota 30, batches of 4 (8 for shufflenet), and never goes to zero.

Defects of the published code (numbers of the reference), and whether `repaired=False` has them:
  1 occupancy by integer division: yes, it is 0 for every device          repaired: as it is
  2 one filter for all functions: yes                                      repaired: one each
  3 a forecast 6.08 rps too high at any load: yes                          kept: it is the published algorithm
  4 scaling down nearly unreachable, which follows from 3: yes             kept
  5, 6 profiles that never load, a table that lacks models: no; capacities come from the surface in both, as from RaPP
  7 35 rps out of reach, so the first configuration is 30/30/4: yes        kept where the formula says so
  8 a panic when it would take an unused device: yes, none is taken and the function gets no more in this tick
                                                                           repaired: the device is taken
  9 the largest quota for a new pod: yes                                   repaired: the least that suffices
  10, 11, 12, 13, 14 concern the token scheduler, the load balancer and FaST: not expressed

Else than in the original, the SM shares of the two rows must sum to at most 100 %: lanes can do no other. A row that does
not fit is passed over. C counts pods that start, or each tick of a cold start would add another one.
"""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.baselines.draft import Draft, not_due
from hasfaas.scaling.baselines.has_pods import Pods
from hasfaas.scaling.baselines.history import History
from hasfaas.scaling.baselines.load_filter import LoadFilter
from hasfaas.scaling.baselines.member import members
from hasfaas.scaling.baselines.tick import Tick
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Observation

TICK_S, RATE_S = 2.0, 10.0
UP_SHARE, DOWN_SHARE = 0.9, 0.3
DOWN_COOLDOWN_S = 10.0
_ROUNDING = 1e-9


@attrs.define(eq=False)
class HasGpu:
    """`repaired` as above. No other options: all constants are the published ones."""

    repaired: bool = False
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _arrivals: History = attrs.field(factory=lambda: History(RATE_S), init=False)
    _filters: dict[str, LoadFilter] = attrs.field(factory=dict, init=False)
    _last_down_s: dict[str, float] = attrs.field(factory=dict, init=False)

    def decide(self, observation: Observation) -> Decision:
        """Quotas up or down, then pods, where the forecast leaves 0.3 to 0.9 of the capacity."""
        functions = observation.functions
        self._arrivals.push(observation, functions.arrivals)
        if not self._tick.due(observation.now_s):
            return not_due(self._tick.next_s)
        rate = self._arrivals.rate(RATE_S)
        draft, crews = Draft.of(observation), members(observation)
        forecast, capacity = np.zeros(len(functions)), np.zeros(len(functions))
        for row in draft.rows(profiled=True):
            crew, surface = crews[row], functions.surfaces[row]
            assert surface is not None
            pods = Pods(draft, row, surface, crew, self.repaired)
            capacity[row] = pods.capacity_rps
            if not crew:
                pods.first()
            elif any(member.ready for member in crew):
                forecast[row] = self._filter(functions.names[row]).step(float(rate[row]))
                self._scale(pods, float(forecast[row]), observation)
        return draft.decision(self._tick.next_s, rate_rps=rate, forecast_rps=forecast, capacity_rps=capacity)

    def _filter(self, name: str) -> LoadFilter:
        return self._filters.setdefault(name if self.repaired else "", LoadFilter())

    def _scale(self, pods: Pods, forecast: float, observation: Observation) -> None:
        name, capacity = observation.functions.names[pods.row], pods.capacity_rps
        said = f"forecast {forecast:.2f} rps, capacity {capacity:.2f}"
        since_s = observation.now_s - self._last_down_s.get(name, -np.inf)
        if forecast > UP_SHARE * capacity:
            pods.up(forecast - UP_SHARE * capacity, said)
        elif forecast < DOWN_SHARE * capacity and since_s >= DOWN_COOLDOWN_S - _ROUNDING:
            self._last_down_s[name] = observation.now_s
            pods.down(UP_SHARE * capacity - forecast, said)
