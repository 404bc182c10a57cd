"""A decision while it is being made: actions, the room that they take, and the replicas that found none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES
from hasfaas.scaling.baselines.member import Member
from hasfaas.scaling.baselines.slices import Slice
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Array, Observation
from hasfaas.scaling.placement import MOST_REPLICAS, Book, Spot

_ROUNDING_PERCENT = 1e-6


@attrs.define(eq=False)
class Draft:
    """Draining replicas keep their room, so what drains in this decision makes none in it.

    `unplaced` [function] counts replicas that were wanted and found no room.
    """

    observation: Observation
    book: Book
    unplaced: Array
    _drains: list[Action] = attrs.field(factory=list, init=False)
    _shrinks: list[Action] = attrs.field(factory=list, init=False)
    _others: list[Action] = attrs.field(factory=list, init=False)
    _unprofiled: list[str] = attrs.field(factory=list, init=False)
    _notes: list[str] = attrs.field(factory=list, init=False)
    # What has found no room. Additions only take room, so it need not be looked for again before a quota changes.
    _hopeless: set[tuple[object, ...]] = attrs.field(factory=set, init=False)

    @classmethod
    def of(cls, observation: Observation) -> Draft:
        """An empty one."""
        return cls(observation, Book.of(observation), np.zeros(len(observation.functions), int))

    def rows(self, *, profiled: bool) -> Iterator[int]:
        """Functions to decide about: not those that were sized by hand, nor, if `profiled`, those without a surface."""
        functions = self.observation.functions
        for row, by_hand in enumerate(functions.by_hand.tolist()):
            if not by_hand and profiled and functions.surfaces[row] is None:
                self._unprofiled.append(functions.names[row])
            elif not by_hand:
                yield row

    def add(
        self, row: int, portion: Slice, reason: str, *, alone: bool = False, most_lanes: int = MAX_LANES
    ) -> Spot | None:
        """One replica more where the book finds room; None, and one unplaced, where it finds none."""
        functions = self.observation.functions
        memory_bytes, devices = float(functions.memory_bytes[row]), functions.devices[row]
        sm, quota = portion.sm_percent, portion.quota_percent
        wish = (sm, quota, memory_bytes, devices.tobytes(), alone, most_lanes)
        spot = None
        if wish not in self._hopeless:
            spot = self.book.spot(
                sm,
                quota,
                memory_bytes,
                devices=devices,
                most_replicas=1 if alone else MOST_REPLICAS,
                most_lanes=most_lanes,
            )
        if spot is None:
            self._hopeless.add(wish)
            self.unplaced[row] += 1
        else:
            self.add_at(row, spot, portion, reason)
        return spot

    def add_at(self, row: int, spot: Spot, portion: Slice, reason: str) -> None:
        """One replica more in that spot, which must have the room."""
        functions, devices = self.observation.functions, self.observation.devices
        self.book.take(spot, portion.sm_percent, portion.quota_percent, float(functions.memory_bytes[row]))
        # A lane that was cut in advance may be larger than what was asked for.
        fixed = self.book.is_fixed[spot.device]
        sm_percent = self.book.sm_percent(spot.device, spot.lane) if fixed else portion.sm_percent
        self._others.append(
            AddReplica(
                functions.names[row],
                devices.ids[spot.device],
                spot.lane,
                sm_percent,
                portion.quota_percent,
                portion.batch,
                reason,
            )
        )

    def resize(self, member: Member, quota_percent: float, reason: str) -> float:
        """Another quota, as far as its lane has room; the quota that it then is."""
        self._hopeless.clear()
        old = member.quota_percent
        granted = self.book.resize(member.device, member.lane, old, quota_percent)
        if abs(granted - old) > _ROUNDING_PERCENT:
            (self._shrinks if granted < old else self._others).append(Resize(member.id, granted, reason))
        return granted

    def rebatch(self, member: Member, batch: int, reason: str) -> None:
        """Another greatest batch, if it is another."""
        if batch != member.batch:
            self._others.append(Rebatch(member.id, batch, reason))

    def drain(self, member: Member, reason: str) -> None:
        """No further calls for it."""
        self._drains.append(DrainReplica(member.id, reason))

    def scale_to(
        self,
        row: int,
        crew: Sequence[Member],
        desired: int,
        portion: Slice,
        reason: str,
        *,
        alone: bool = False,
        most_lanes: int = MAX_LANES,
    ) -> None:
        """As many replicas of one slice: more of them, or the first to go drained."""
        for member in sorted(crew, key=lambda m: m.retires_late)[: max(0, len(crew) - desired)]:
            self.drain(member, reason)
        for _ in range(desired - len(crew)):
            self.add(row, portion, reason, alone=alone, most_lanes=most_lanes)

    def note(self, text: str) -> None:
        """Something about the decision as a whole that its reason must tell."""
        self._notes.append(text)

    def decision(self, next_tick_s: float, **columns: Array) -> Decision:
        """All of it: drains, quotas that shrink, then the rest in the order in which it came."""
        actions = (*self._drains, *self._shrinks, *self._others)
        parts = [f"{len(actions)} actions" if actions else "steady"]
        names = self.observation.functions.names
        short = [f"{count} of {name}" for name, count in zip(names, self.unplaced.tolist(), strict=True) if count]
        if short:
            parts.append(f"no room for {', '.join(short)}")
        if self._unprofiled:
            parts.append(f"left alone without a profile: {', '.join(self._unprofiled)}")
        return Decision(actions, "; ".join([*parts, *self._notes]), next_tick_s, {"unplaced": self.unplaced, **columns})


def not_due(next_tick_s: float) -> Decision:
    """What a scaler answers that is asked before its tick."""
    return Decision((), "not due yet", next_tick_s)
