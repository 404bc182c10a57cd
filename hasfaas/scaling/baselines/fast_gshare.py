"""FaST-GShare's scaler as published: slices that never change, more or fewer of them.

Rules: KontonGu/FaST-GShare-Autoscaler f3e88c78, ICPP 2023. Every 10 s, with the rate of the last 10 s and the capacity
(the profiled throughput of every slice in use, summed):

    rate - capacity > 20 % of capacity   floor(gap / rps of the slice) of the slice, and one for what is left
    capacity - rate > 20 % of capacity   floor(gap / rps of the slice) fewer, never the last

`slice="artefact"` is what the released runs used, SM 30 %, quota 50 %, batches of 4, for both. `slice="efficient"` starts
with the most efficient slice of its profiling grid (throughput per sm x quota) and fills what is left with the smallest
slice that has more than that, as the paper says.

Here the profiled throughput is that of our lanes, q b / t, at full load. By that law the efficiency does not depend on the
quota, so of equals the smallest area is taken of which a batch still takes at most the SLO (t / q). Packing is by lanes
(FaST packs rectangles). FaST lets a replica burst to its lane's whole time; whether idle time is lent is the scenario's.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.baselines.bounds import clamped
from hasfaas.scaling.baselines.draft import Draft, not_due
from hasfaas.scaling.baselines.history import History
from hasfaas.scaling.baselines.member import Member, members
from hasfaas.scaling.baselines.option import between
from hasfaas.scaling.baselines.slices import WHOLE_PERCENT, Promise, Slice, hold_ms, saturated_rps
from hasfaas.scaling.baselines.tick import Tick
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Observation

TICK_S = RATE_S = 10.0
GAP = 0.2
ARTEFACT_SM_PERCENT, ARTEFACT_QUOTA_PERCENT = 30.0, 50.0
GRID_SM_PERCENTS = (6.0, 12.0, 24.0, 50.0, 60.0, 80.0, 100.0)
GRID_QUOTA_PERCENTS = (20.0, 40.0, 60.0, 80.0, 100.0)
_ROUNDING = 1e-9


@attrs.define(eq=False)
class FastGShare:
    """`slice` is "artefact" or "efficient", `batch` the batch that slices were profiled with.

    Raises InvalidRequestError (BAD_POLICY) for other options.
    """

    slice: Literal["artefact", "efficient"] = attrs.field(default="artefact")
    batch: int = attrs.field(default=4, validator=between(1))
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _arrivals: History = attrs.field(factory=lambda: History(RATE_S), init=False)

    @slice.validator
    def _known(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in ("artefact", "efficient"):
            raise InvalidRequestError(
                f"slice={value!r} of FastGShare is unknown: use artefact or efficient", reason="BAD_POLICY"
            )

    def decide(self, observation: Observation) -> Decision:
        """More slices where the rate exceeds their throughput by a fifth, fewer where it falls short by one."""
        functions = observation.functions
        self._arrivals.push(observation, functions.arrivals)
        if not self._tick.due(observation.now_s):
            return not_due(self._tick.next_s)
        rate = self._arrivals.rate(RATE_S)
        draft, crews = Draft.of(observation), members(observation)
        capacity = np.zeros(len(functions))
        for row in draft.rows(profiled=True):
            promise = Promise.of(observation, row)
            assert promise is not None
            capacity[row] = sum(_rps(promise.surface, member) for member in crews[row])
            self._scale(draft, row, crews[row], promise, float(rate[row]), float(capacity[row]))
        return draft.decision(self._tick.next_s, rate_rps=rate, capacity_rps=capacity)

    def _scale(
        self, draft: Draft, row: int, crew: list[Member], promise: Promise, rate: float, capacity: float
    ) -> None:
        base = self._base(promise)
        gap = rate - capacity
        reason = f"{rate:.2f} rps against {capacity:.2f} of {len(crew)} slices"
        most = int(draft.observation.functions.max_replicas[row])
        if not crew:
            draft.add(row, base, "the first slice")
        elif gap > GAP * capacity:
            wanted = self._more(promise, base, gap)
            for portion in wanted[: max(0, most - len(crew))]:
                draft.add(row, portion, f"{reason}: add {portion}")
        elif -gap > GAP * capacity:
            self._fewer(draft, crew, promise, -gap, clamped(draft.observation, row, 1, 1), reason)

    def _base(self, promise: Promise) -> Slice:
        batch = min(self.batch, promise.batch_max)
        if self.slice == "artefact":
            return Slice(ARTEFACT_SM_PERCENT, ARTEFACT_QUOTA_PERCENT, batch)
        return min(_feasible(promise, batch), key=lambda s: (-_efficiency(promise.surface, s), s.area))

    def _more(self, promise: Promise, base: Slice, gap: float) -> list[Slice]:
        unit = saturated_rps(promise.surface, base)
        full = math.floor(gap / unit + _ROUNDING)
        left = gap - full * unit
        if left <= _ROUNDING:
            return [base] * full
        if self.slice == "artefact":
            return [base] * (full + 1)
        enough = [s for s in _feasible(promise, base.batch) if saturated_rps(promise.surface, s) > left]
        return [base] * full + [min(enough, key=lambda s: s.area, default=base)]

    @staticmethod
    def _fewer(draft: Draft, crew: list[Member], promise: Promise, gap: float, least: int, reason: str) -> None:
        for member in sorted(crew, key=lambda m: m.retires_late)[: max(0, len(crew) - least)]:
            unit = _rps(promise.surface, member)
            if gap >= unit - _ROUNDING:
                gap -= unit
                draft.drain(member, f"{reason}: one of {unit:.2f} rps too many")


def _rps(surface: Surface, member: Member) -> float:
    return saturated_rps(surface, Slice(member.sm_percent, member.quota_percent, member.batch))


def _efficiency(surface: Surface, portion: Slice) -> float:
    # Rounded, so that quotas of one share are the equals that the law makes them.
    return round(saturated_rps(surface, portion) / portion.area, 6)


@functools.lru_cache(maxsize=1024)
def _feasible(promise: Promise, batch: int) -> tuple[Slice, ...]:
    """Slices of the profiling grid of which one batch takes no longer than the deadline; a whole device if none does."""
    grid = (Slice(sm, quota, batch) for sm, quota in itertools.product(GRID_SM_PERCENTS, GRID_QUOTA_PERCENTS))
    found = tuple(
        s
        for s in grid
        if hold_ms(promise.surface, batch, s.sm_percent) * 100.0 / s.quota_percent <= promise.deadline_ms
    )
    return found or (Slice(WHOLE_PERCENT, WHOLE_PERCENT, batch),)
