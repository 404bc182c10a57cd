"""Knative's pod autoscaler (KServe serverless) over whole devices.

Rules and constants: knative/serving 98e5ef90, pkg/autoscaler/scaling. Every 2 s the concurrency (calls that wait or are in
flight) is averaged over a stable window of 60 s and a panic window of 6 s, and divided by the target, 70 % of what a
replica takes (`cc`, containerConcurrency). With r = max(1, replicas that are ready):

    desired_s, desired_p = ceil(average / target), each within [floor(r / 2), ceil(1000 r)]
    panic                begins, and is renewed, when ceil(panic average / target) / r >= 2; ends 60 s after the last time
    in panic             the greatest of both so far, never less; else desired_s

To zero only after a whole stable window without traffic. What differs here: Knative samples once a second and averages in
its proxies; we average what is seen when it is asked, so the average of a load that comes between two instants is too
small, and a window with arrivals keeps one replica whatever was seen. The grace before zero (an upper bound for rerouting)
is none. A replica is a whole device, so there are never more than devices; what does not fit is reported as unplaced.
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

TICK_S = 2.0
STABLE_S, PANIC_S = 60.0, 6.0
TARGET_SHARE = 0.70
# What containerConcurrency 0, unlimited, counts as.
UNLIMITED = 100
PANIC_THRESHOLD = 2.0
MAX_UP, MAX_DOWN = 1000.0, 2.0
INITIAL_REPLICAS = 1


@attrs.define
class _Panic:
    """Since when one function panics, None if it does not, and the most that it has wanted meanwhile."""

    last_s: float | None = None
    most: int = 0

    def desired(self, now_s: float, over: bool, stable: int, panic: int) -> int:
        if over:
            self.last_s = now_s
        elif self.last_s is not None and now_s - self.last_s > STABLE_S:
            self.last_s, self.most = None, 0
        if self.last_s is None:
            return stable
        self.most = max(self.most, stable, panic)
        return self.most


@attrs.define(eq=False)
class Kpa:
    """`cc` is containerConcurrency (0: unlimited) and bounds the batch. `min_replicas` and `max_replicas` narrow the bounds
    of the functions: HAS-GPU compares itself with cc 15, at least 1 and at most 2 replicas.

    Raises InvalidRequestError (BAD_POLICY) for options out of range.
    """

    cc: int = attrs.field(default=8, validator=between(0))
    min_replicas: int = attrs.field(default=0, validator=between(0))
    max_replicas: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1)))
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _concurrency: History = attrs.field(factory=lambda: History(STABLE_S), init=False)
    _arrivals: History = attrs.field(factory=lambda: History(STABLE_S), init=False)
    _panics: dict[str, _Panic] = attrs.field(factory=dict, init=False)

    def decide(self, observation: Observation) -> Decision:
        """As many whole devices as the concurrency asks for."""
        functions, now_s = observation.functions, observation.now_s
        self._concurrency.push(observation, functions.waiting + functions.in_flight)
        self._arrivals.push(observation, functions.arrivals)
        if not self._tick.due(now_s):
            return not_due(self._tick.next_s)
        target = (self.cc or UNLIMITED) * TARGET_SHARE
        stable, panic = self._concurrency.mean(STABLE_S), self._concurrency.mean(PANIC_S)
        quiet = (self._arrivals.rate(STABLE_S) == 0.0) & (stable == 0.0) & self._arrivals.covers(STABLE_S)
        draft, crews = Draft.of(observation), members(observation)
        desired = np.array([len(crew) for crew in crews])
        for row in draft.rows(profiled=False):
            crew, name = crews[row], functions.names[row]
            ready = max(1, sum(member.ready for member in crew))
            wanted = [self._clamped(average / target, ready) for average in (stable[row], panic[row])]
            over = math.ceil(panic[row] / target) / ready >= PANIC_THRESHOLD
            state = self._panics.setdefault(name, _Panic())
            count = state.desired(now_s, over, *wanted)
            if not quiet[row]:
                count = max(count, INITIAL_REPLICAS)
            desired[row] = clamped(observation, row, count, self.min_replicas, self.max_replicas)
            mood = "panic" if state.last_s is not None else "stable"
            reason = (
                f"{mood}: concurrency {stable[row]:.2f} over 60 s, {panic[row]:.2f} over 6 s, target {target:.2f} each"
            )
            batch_max = int(functions.batch_max[row])
            whole = Slice(WHOLE_PERCENT, WHOLE_PERCENT, min(self.cc or batch_max, batch_max))
            draft.scale_to(row, crew, int(desired[row]), whole, reason, alone=True, most_lanes=1)
        return draft.decision(self._tick.next_s, desired=desired, stable=stable, panic=panic)

    @staticmethod
    def _clamped(replicas: float, ready: int) -> int:
        return int(min(max(math.ceil(replicas), ready // MAX_DOWN), math.ceil(MAX_UP * ready)))
