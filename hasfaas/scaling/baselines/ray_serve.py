"""Ray Serve's autoscaler over whole devices.

Rules and constants: ray 00590c45, python/ray/serve/autoscaling_policy.py. With the mean of the ongoing calls (waiting and in
flight) over a look-back:

    error    = ongoing / (target_ongoing x replicas that are ready)
    desired  = ceil(ready x (1 + (error - 1) x factor)), one less where only the factor keeps it from falling
    act      once desired has been above (below) the present target for upscale_delay (downscale_delay) without a break;
             to zero only from 1; from zero at once when a call waits

Defaults: 2 calls a replica, delays 30 s and 600 s, look-back 30 s, factors 1. `tuned`: 3 s, 60 s and 10 s. Ray loops every
0.1 s; we are asked once a second, which is as fine as the delays need. Ray samples its replicas every 10 s by default; we
average what is seen when asked. The bounds are the functions' own (Ray's default of at most 1 would not scale at all).
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from hasfaas.scaling.baselines.bounds import clamped
from hasfaas.scaling.baselines.draft import Draft, not_due
from hasfaas.scaling.baselines.history import History
from hasfaas.scaling.baselines.member import members
from hasfaas.scaling.baselines.option import between
from hasfaas.scaling.baselines.slices import WHOLE_PERCENT, Slice
from hasfaas.scaling.baselines.tick import Tick
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Observation

TICK_S = 1.0
MAX_ONGOING = 5
INITIAL_REPLICAS = 1
LONGEST_LOOK_BACK_S = 600.0
_ROUNDING_S = 1e-6


@attrs.frozen
class Delays:
    """Seconds that a wish must last before it is acted upon, and over which the ongoing calls are averaged."""

    upscale_s: float
    downscale_s: float
    look_back_s: float


DEFAULT, TUNED = Delays(30.0, 600.0, 30.0), Delays(3.0, 60.0, 10.0)


@attrs.define
class _Wish:
    """In which direction one function has wanted to go (1, -1, 0), and since when."""

    direction: int = 0
    since_s: float = 0.0

    def lasts_s(self, now_s: float, direction: int) -> float:
        if direction != self.direction:
            self.direction, self.since_s = direction, now_s
        return now_s - self.since_s


@attrs.define(eq=False)
class RayServe:
    """`target_ongoing` calls a replica; `tuned` takes the short delays. Raises InvalidRequestError (BAD_POLICY)."""

    tuned: bool = False
    target_ongoing: float = attrs.field(default=2.0, validator=between(0.01))
    upscaling_factor: float = attrs.field(default=1.0, validator=between(0.01))
    downscaling_factor: float = attrs.field(default=1.0, validator=between(0.01))
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _ongoing: History = attrs.field(factory=lambda: History(LONGEST_LOOK_BACK_S), init=False)
    _wishes: dict[str, _Wish] = attrs.field(factory=dict, init=False)

    @property
    def delays(self) -> Delays:
        """Those in force."""
        return TUNED if self.tuned else DEFAULT

    def decide(self, observation: Observation) -> Decision:
        """As many whole devices as the ongoing calls have asked for, for long enough."""
        functions, now_s = observation.functions, observation.now_s
        self._ongoing.push(observation, functions.waiting + functions.in_flight)
        if not self._tick.due(now_s):
            return not_due(self._tick.next_s)
        ongoing = self._ongoing.mean(self.delays.look_back_s)
        draft, crews = Draft.of(observation), members(observation)
        desired = np.array([len(crew) for crew in crews])
        for row in draft.rows(profiled=False):
            crew, name = crews[row], functions.names[row]
            target, ready = len(crew), sum(member.ready for member in crew)
            first = name not in self._wishes
            wish = self._wishes.setdefault(name, _Wish(since_s=now_s))
            if first or not ready:
                wake = first or functions.waiting[row] > 0
                wish.lasts_s(now_s, 0)
                count, why = max(target, INITIAL_REPLICAS) if wake else target, "first replica"
            else:
                wanted = clamped(observation, row, self._wanted(float(ongoing[row]), ready))
                direction = (wanted > target) - (wanted < target)
                lasted_s = wish.lasts_s(now_s, direction)
                delay_s = self.delays.upscale_s if direction > 0 else self.delays.downscale_s
                acts = direction != 0 and lasted_s >= delay_s - _ROUNDING_S
                # Zero is a step of its own: two replicas first become one.
                count = (max(wanted, 1) if target > 1 else wanted) if acts else target
                if acts:
                    wish.direction = 0
                why = (
                    f"{ongoing[row]:.2f} ongoing over {self.delays.look_back_s:g} s, {wanted} wanted for {lasted_s:g} s"
                )
            desired[row] = clamped(observation, row, count)
            batch = min(MAX_ONGOING, int(functions.batch_max[row]))
            whole = Slice(WHOLE_PERCENT, WHOLE_PERCENT, batch)
            draft.scale_to(row, crew, int(desired[row]), whole, why, alone=True, most_lanes=1)
        return draft.decision(self._tick.next_s, desired=desired, ongoing=ongoing)

    def _wanted(self, ongoing: float, ready: int) -> int:
        error = ongoing / (self.target_ongoing * ready)
        factor = self.upscaling_factor if error >= 1.0 else self.downscaling_factor
        wanted = math.ceil(ready * (1.0 + (error - 1.0) * factor))
        stuck = math.ceil(ready * error) < ready and wanted == ready
        return wanted - 1 if stuck else wanted
