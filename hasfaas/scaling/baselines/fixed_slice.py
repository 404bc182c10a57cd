"""The honest adversary: one slice, chosen in hindsight, and as many of it as the last seconds needed.

It knows the mean load of each function before the trace begins. Its slice is the one of the least sm x quota of which one
replica takes f x mean load within the SLO, by our own capacity rule. Every 2 s

    n = max(1, ceil(rate of the last 2 s / (rho q b / t))),   held at the greatest n of the last 60 s

The best feasible setting of GRID per trace is what is reported (the project's scaling reference, B5).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.baselines.bounds import clamped
from hasfaas.scaling.baselines.draft import Draft, not_due
from hasfaas.scaling.baselines.history import History
from hasfaas.scaling.baselines.member import members
from hasfaas.scaling.baselines.option import between
from hasfaas.scaling.baselines.slices import Promise, least_slice, saturated_rps
from hasfaas.scaling.baselines.tick import Tick
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Array, Observation

TICK_S = RATE_S = 2.0
HELD_S = 60.0
FS, RHOS = (0.3, 0.6, 1.2, 2.0), (0.25, 0.4, 0.55, 0.7)
GRID: tuple[tuple[float, float], ...] = tuple(itertools.product(FS, RHOS))
"""The settings (f, rho) that hindsight chooses from."""
_ROUNDING = 1e-9


def _rates(values: Sequence[float]) -> Array:
    return np.asarray(values, float).ravel()


@attrs.define(eq=False)
class FixedSlice:
    """`mean_rps` [function] is the mean load of the whole trace, in the order of the observations.

    Raises InvalidRequestError (BAD_POLICY) for options out of range, and when it has another length than the functions.
    """

    mean_rps: Array = attrs.field(converter=_rates)
    f: float = attrs.field(default=1.2, validator=between(0.01))
    rho: float = attrs.field(default=0.55, validator=between(0.01, 1.0))
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _arrivals: History = attrs.field(factory=lambda: History(RATE_S), init=False)
    _wanted: History = attrs.field(factory=lambda: History(HELD_S), init=False)

    @mean_rps.validator
    def _sane(self, _attribute: attrs.Attribute[Array], value: Array) -> None:
        if not np.all(np.isfinite(value) & (value >= 0.0)):
            raise InvalidRequestError(f"mean_rps={value.tolist()} must be finite, not negative", reason="BAD_POLICY")

    def decide(self, observation: Observation) -> Decision:
        """As many of the function's slice as the last seconds needed at a utilisation of rho."""
        functions = observation.functions
        if len(self.mean_rps) != len(functions):
            raise InvalidRequestError(
                f"mean_rps has {len(self.mean_rps)} entries for {len(functions)} functions: give one each, in their order",
                reason="BAD_POLICY",
            )
        self._arrivals.push(observation, functions.arrivals)
        if not self._tick.due(observation.now_s):
            return not_due(self._tick.next_s)
        rate = self._arrivals.rate(RATE_S)
        draft, crews = Draft.of(observation), members(observation)
        unit, wanted = np.zeros(len(functions)), np.ones(len(functions))
        chosen = {}
        for row in draft.rows(profiled=True):
            promise = Promise.of(observation, row)
            assert promise is not None
            chosen[row] = least_slice(promise, self.f * float(self.mean_rps[row]))
            unit[row] = self.rho * saturated_rps(promise.surface, chosen[row])
            wanted[row] = max(1, math.ceil(rate[row] / unit[row] - _ROUNDING))
        self._wanted.push(observation, wanted)
        held = self._wanted.greatest(HELD_S)
        desired = np.array([len(crew) for crew in crews])
        for row, portion in chosen.items():
            desired[row] = clamped(observation, row, int(held[row]))
            reason = (
                f"{rate[row]:.2f} rps over 2 s, {unit[row]:.2f} a slice: {int(wanted[row])} now,"
                f" {int(held[row])} in the last 60 s ({portion})"
            )
            draft.scale_to(row, crews[row], int(desired[row]), portion, reason)
        return draft.decision(self._tick.next_s, rate_rps=rate, capacity_rps=desired * unit, desired=desired)
