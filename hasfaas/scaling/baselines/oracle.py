"""The rate-clairvoyant oracle: it knows every second's mean rate in advance, not when each call comes.

For each function it takes the cheapest course through its load (`timetable`): replicas x SM share x quota x batch, by our own
capacity rule at the greatest rate of this and the next second, each new replica paid for the length of its cold start.
Replicas are ordered that long before they are needed and drained when they are not needed before a new one could replace
them; quotas and batches follow each second. `free=True` plans as if replicas appeared and went at no cost: for a scenario
whose cold start is 0, which makes it the least-area configuration of each second (the project's scaling reference, O1).

Each replica has a lane of its own, so that its quota can always rise. Functions are planned one by one: it does not pool, and
it does not know of devices that are full (what finds no room is reported as unplaced and asked for again).
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.baselines.bounds import clamped
from hasfaas.scaling.baselines.draft import Draft, not_due
from hasfaas.scaling.baselines.member import Member, members
from hasfaas.scaling.baselines.menu import Menu, menu
from hasfaas.scaling.baselines.slices import Promise, Slice
from hasfaas.scaling.baselines.tick import Tick
from hasfaas.scaling.baselines.timetable import Timetable, cheapest
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Array, Observation

TICK_S = 1.0
# How much before it is needed a replica is ordered, beyond its cold start: one tick, and what an action takes.
AHEAD_S = 2.0


def _table(values: object) -> Array:
    return np.atleast_2d(np.asarray(values, float))


@attrs.frozen(eq=False)
class _Course:
    menu: Menu
    timetable: Timetable
    rates_rps: Array

    def rate(self, second: int) -> float:
        return float(self.rates_rps[min(max(second, 0), len(self.rates_rps) - 1)])

    def need(self, first: int, last: int) -> dict[int, int]:
        """Greatest number of replicas of each share in those seconds."""
        found: dict[int, int] = {}
        for second in range(first, last + 1):
            share, count = self.timetable.at(second)
            found[share] = max(found.get(share, 0), count)
        return found


@attrs.define(eq=False)
class Oracle:
    """`rates_rps` [function, second], second 0 beginning at time 0, rows in the order of the observations; its last goes on.

    Raises InvalidRequestError (BAD_POLICY) for rates that are negative or no numbers, and for the wrong number of rows.
    """

    rates_rps: Array = attrs.field(converter=_table)
    free: bool = False
    _tick: Tick = attrs.field(factory=lambda: Tick(TICK_S), init=False)
    _courses: dict[tuple[str, Promise], _Course] = attrs.field(factory=dict, init=False)

    @rates_rps.validator
    def _sane(self, _attribute: attrs.Attribute[Array], value: Array) -> None:
        if value.ndim != 2 or not value.size or not np.all(np.isfinite(value) & (value >= 0.0)):
            raise InvalidRequestError(
                f"rates_rps of shape {value.shape} must be [function, second], finite and not negative",
                reason="BAD_POLICY",
            )

    def decide(self, observation: Observation) -> Decision:
        """What the load to come needs."""
        functions, now_s = observation.functions, observation.now_s
        if len(self.rates_rps) != len(functions):
            raise InvalidRequestError(
                f"rates_rps has {len(self.rates_rps)} rows for {len(functions)} functions: give one each, in their order",
                reason="BAD_POLICY",
            )
        if not self._tick.due(now_s):
            return not_due(self._tick.next_s)
        second = max(0, math.floor(now_s + 1e-6))
        draft, crews = Draft.of(observation), members(observation)
        rate, desired = np.zeros(len(functions)), np.array([len(crew) for crew in crews])
        for row in draft.rows(profiled=True):
            course = self._course(observation, row)
            rate[row], desired[row] = course.rate(second), course.timetable.at(second)[1]
            self._follow(draft, row, crews[row], course, second)
        return draft.decision(self._tick.next_s, rate_rps=rate, desired=desired)

    def _course(self, observation: Observation, row: int) -> _Course:
        promise = Promise.of(observation, row)
        assert promise is not None
        key = (observation.functions.names[row], promise)
        if key not in self._courses:
            cold_start_s = 0.0 if self.free else float(observation.functions.cold_start_s[row])
            least = clamped(observation, row, 0)
            most = int(observation.functions.max_replicas[row])
            self._courses[key] = _planned(menu(promise), self.rates_rps[row], cold_start_s, least, most)
        return self._courses[key]

    def _follow(self, draft: Draft, row: int, crew: list[Member], course: _Course, second: int) -> None:
        ahead_s = 0 if self.free else math.ceil(draft.observation.functions.cold_start_s[row] + AHEAD_S)
        need = course.need(second, second + ahead_s)
        of_share = {share: self._of(draft, crew, float(course.menu.sm_percents[share])) for share in need}
        now_share, now_count = course.timetable.at(second)
        serving = [member for member in of_share[now_share] if member.ready]
        for share, count in need.items():
            for _ in range(count - len(of_share[share])):
                coming = self._slice(course, share, second, ahead_s)
                draft.add(row, coming, f"{count} of SM {coming.sm_percent:g} % within {ahead_s} s", alone=True)
        surplus = _surplus(of_share[now_share], need[now_share])
        # Before the next shape serves, the last one stays.
        if self.free or len(serving) >= now_count:
            kept = {member.id for there in of_share.values() for member in there}
            surplus += [member for member in crew if member.id not in kept]
            for share in need.keys() - {now_share}:
                surplus += _surplus(of_share[share], need[share])
        for member in surplus:
            draft.drain(member, f"not needed within {ahead_s} s")
        serving = [member for member in serving if member not in surplus]
        rate = course.rate(second)
        # What is free is there as soon as it is asked for.
        count = now_count if self.free else len(serving)
        quota_percent, batch = course.menu.quota(now_share, count, rate)
        for member in serving:
            draft.resize(member, quota_percent, f"{count} replicas carry {rate:.2f} rps")
            draft.rebatch(member, batch, f"{count} replicas carry {rate:.2f} rps")

    @staticmethod
    def _of(draft: Draft, crew: list[Member], sm_percent: float) -> list[Member]:
        """Those of this share: as many whole units."""

        def units(member: Member, percent: float) -> int:
            return draft.book.granted_on(member.device, percent)

        return [member for member in crew if units(member, member.sm_percent) == units(member, sm_percent)]

    @staticmethod
    def _slice(course: _Course, share: int, second: int, ahead_s: int) -> Slice:
        """What a replica is ordered with: the quota and batch of the latest second ahead that has its share."""
        begins = (s for s in range(second + ahead_s, second - 1, -1) if course.timetable.at(s)[0] == share)
        begin = next(begins)
        quota_percent, batch = course.menu.quota(share, course.timetable.at(begin)[1], course.rate(begin))
        return Slice(float(course.menu.sm_percents[share]), quota_percent, batch)


def _surplus(there: list[Member], needed: int) -> list[Member]:
    return sorted(there, key=lambda m: m.retires_late)[: max(0, len(there) - needed)]


def _planned(listed: Menu, rates_rps: Array, cold_start_s: float, least: int, most: int) -> _Course:
    """The cheapest course; rates beyond all capacity are planned as the greatest that there is."""
    rates = np.maximum(rates_rps, np.append(rates_rps[1:], rates_rps[-1:]))
    most = max(1, min(most, listed.most))
    listed = Menu(listed.sm_percents, listed.rps[:, :most], listed.batch[:, :most])
    if listed.greatest_rps > 0.0:
        rates = np.minimum(rates, listed.greatest_rps)
    begins = np.flatnonzero(np.append(True, np.diff(rates) != 0.0))
    lengths_s = np.diff(np.append(begins, len(rates)))
    area = listed.area(rates[begins])
    area[:, :, : min(least, most)] = np.inf
    if listed.greatest_rps <= 0.0:
        # The promise cannot be kept: one whole device is what there is to give.
        area[...] = np.inf
        area[:, :, max(1, min(least, most))] = 1.0
    return _Course(listed, cheapest(area, lengths_s, cold_start_s), rates)
