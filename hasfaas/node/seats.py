"""Who sits where, on all devices that one control loop places replicas on: `lanes` has the arithmetic, this keeps the state.

Nothing here acts: a change of seats comes back as the quotas that change with it, and whoever asked makes them so.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from hasfaas.core.errors import NotFoundError, PlacementError
from hasfaas.devices.base import Condition, DeviceInfo, Health
from hasfaas.node import lanes as seating
from hasfaas.node.lanes import Lane, Placement, Seat, Want

Changes = tuple[tuple[str, float], ...]
"""(replica, new quota in percent), shrinking ones first, so that no lane ever passes 100."""


class Seats:
    """The devices, their health, and the lanes that somebody sits in."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceInfo] = {}
        self.conditions: dict[str, Condition] = {}
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._homes: dict[str, tuple[str, int]] = {}

    def open(self, devices: Iterable[DeviceInfo]) -> None:
        """Takes devices in, ready and empty; one of a known name is replaced."""
        for device in devices:
            self.devices[device.device_id] = device
            self.conditions[device.device_id] = Condition()

    def close(self, device_ids: Collection[str]) -> None:
        """Takes devices out; nobody may sit there any more."""
        assert not any(device_id in device_ids for device_id, _ in self._lanes), "somebody sits on a device that goes"
        for device_id in device_ids:
            self.devices.pop(device_id, None)
            self.conditions.pop(device_id, None)

    def find(self, replica_id: str, want: Want, others: Collection[str] = ()) -> Placement:
        """The best seat for a new replica on a device that is ready, on a node with few of the `others`. Raises
        PlacementError; changes nothing."""
        homes = [self._homes[other][0] for other in others if other in self._homes]
        crowd = Counter(self.devices[device_id].node for device_id in homes)
        return self._place(replica_id, want, self.lanes(), crowd)

    def sit(self, replica_id: str, placed: Placement, memory_bytes: int) -> Changes:
        """Takes a seat that was found; what its neighbours give up for it."""
        lane = self._lane_at(placed, self._lanes)
        self._lanes[placed.device_id, placed.lane] = _seated(lane, replica_id, placed, memory_bytes)
        self._homes[replica_id] = (placed.device_id, placed.lane)
        return placed.resizes

    def leave(self, replica_id: str) -> Changes:
        """Gives a seat up; what its neighbours grow to."""
        key = self._homes.pop(replica_id)
        lane = self._lanes[key]
        seats = seating.leave(lane, replica_id)
        if not seats:
            del self._lanes[key]
            return ()
        return self._set(lane, seats)

    def resize(self, replica_id: str, quota_percent: float) -> Changes:
        """Pins a replica's quota. Raises PlacementError when the lane has not that much, NotFoundError for a replica that has
        gone."""
        lane = self.lane_of(replica_id)
        return self._set(lane, seating.resize(lane, replica_id, quota_percent))

    def unpin(self, replica_id: str) -> Changes:
        """Gives a replica the share of its lane that one gets which nobody sized; it keeps its quota where that is none."""
        lane = self.lane_of(replica_id)
        with contextlib.suppress(PlacementError):
            return self._set(lane, seating.unpin(lane, replica_id))
        return ()

    def check_resizes(self, quotas: Mapping[str, float]) -> None:
        """Raises PlacementError unless all these quotas fit at once; changes nothing."""
        trial = dict(self._lanes)
        for replica_id, quota in quotas.items():
            lane = self.lane_of(replica_id)
            key = (lane.device_id, lane.lane)
            seats = tuple(
                attrs.evolve(s, quota_percent=quotas[s.replica_id], pinned=True) if s.replica_id in quotas else s
                for s in trial[key].seats
            )
            trial[key] = attrs.evolve(
                trial[key], seats=seating.resize(attrs.evolve(lane, seats=seats), replica_id, quota)
            )

    def check_room(self, wants: Sequence[Want], leaving: Collection[str], quotas: Mapping[str, float | None]) -> None:
        """Raises PlacementError unless all these replicas would have room once those `leaving` have gone, with these quotas
        of others (None: as they are); changes nothing."""
        trial = {}
        for key, lane in self._lanes.items():
            seats = tuple(
                seat
                if (quota := quotas.get(seat.replica_id)) is None
                else attrs.evolve(seat, quota_percent=quota, pinned=True)
                for seat in lane.seats
                if seat.replica_id not in leaving
            )
            if seats:
                trial[key] = attrs.evolve(lane, seats=seats)
        for number, want in enumerate(wants):
            name = f"trial-{number}"
            placed = self._place(name, want, tuple(trial.values()))
            lane = self._lane_at(placed, trial)
            trial[placed.device_id, placed.lane] = _seated(lane, name, placed, want.memory_bytes)

    def seat(self, replica_id: str) -> Seat:
        """A replica's place in its lane. NotFoundError for one that has gone."""
        return next(s for s in self.lane_of(replica_id).seats if s.replica_id == replica_id)

    def lane_of(self, replica_id: str) -> Lane:
        """The lane that a replica sits in. NotFoundError for one that has gone."""
        if replica_id not in self._homes:
            raise NotFoundError(f"replica {replica_id!r} has gone", reason="REPLICA_NOT_FOUND")
        return self._lanes[self._homes[replica_id]]

    def lanes(self) -> tuple[Lane, ...]:
        """All lanes that somebody sits in."""
        return tuple(self._lanes.values())

    # -- inside ------------------------------------------------------------------------------------------------------

    def _place(
        self, replica_id: str, want: Want, lanes: Sequence[Lane], crowd: Mapping[str, int] = seating.NOBODY
    ) -> Placement:
        out = {n: c for n, c in self.conditions.items() if c.health is not Health.READY}
        why = "; ".join(f"{name} is {c.health.value} ({c.why}; {c.cure or 'wait'})" for name, c in out.items())
        ready = [device for name, device in self.devices.items() if name not in out]
        if out and not any(device.is_called(want.device) for device in ready):
            raise PlacementError(f"no room for a replica of device {want.device}: {why}")
        try:
            return seating.place(replica_id, want, ready, lanes, crowd)
        except PlacementError as exc:
            if not out:
                raise
            raise PlacementError(f"{exc}; {why}", reason=exc.reason) from exc

    def _lane_at(self, placed: Placement, lanes: Mapping[tuple[str, int], Lane]) -> Lane:
        return lanes.get((placed.device_id, placed.lane)) or Lane(placed.device_id, placed.lane, placed.units)

    def _set(self, lane: Lane, seats: tuple[Seat, ...]) -> Changes:
        self._lanes[lane.device_id, lane.lane] = attrs.evolve(lane, seats=seats)
        return seating.changed(lane.seats, seats)


def _seated(lane: Lane, replica_id: str, placed: Placement, memory_bytes: int) -> Lane:
    """The lane with one more in it."""
    quotas = dict(placed.resizes)
    before = tuple(
        attrs.evolve(s, quota_percent=quotas[s.replica_id]) if s.replica_id in quotas else s for s in lane.seats
    )
    seat = Seat(replica_id, placed.quota_percent, placed.pinned, memory_bytes)
    return attrs.evolve(lane, seats=(*before, seat))
