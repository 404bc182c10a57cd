"""Where replicas fit: the lanes of all devices, their quotas and memory, while one decision is being made.

A device has at most MAX_LANES lanes. The SM shares of its lanes sum to at most 100 %, the quotas in a lane to at most 100 %,
and the memory of its replicas to at most its own. There are no free rectangles: lanes are all that a device can deliver.
"""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES, granted_units
from hasfaas.scaling.observation import Array, Observation

_ROUNDING = 1e-6


@attrs.define
class Lane:
    """One lane as the book knows it: its units, and what its replicas are promised. Quotas in percent."""

    units: int
    quota_percent: float = 0.0
    replicas: int = 0


@attrs.frozen
class Spot:
    """Room for one replica: a device (row number), a lane of it, and what that lane then still has to give, in percent."""

    device: int
    lane: int
    new: bool
    left_percent: float


@attrs.define
class Book:
    """What is taken. `free_units` and `free_bytes` have one entry a device."""

    units: Array
    free_units: Array
    free_bytes: Array
    lanes: dict[tuple[int, int], Lane]

    @classmethod
    def of(cls, observation: Observation) -> Book:
        """The book at one observation: replicas that start or drain hold their places too."""
        devices, replicas, functions = observation.devices, observation.replicas, observation.functions
        units = np.asarray(devices.units, int)
        book = cls(units, units.copy(), np.asarray(devices.memory_bytes, float).copy(), {})
        rows = zip(
            replicas.device.tolist(),
            replicas.lane.tolist(),
            replicas.sm_percent.tolist(),
            replicas.quota_percent.tolist(),
            functions.memory_bytes[replicas.function].tolist(),
            strict=True,
        )
        for device, lane, sm_percent, quota_percent, memory_bytes in rows:
            book.take(
                Spot(device, lane, (device, lane) not in book.lanes, 0.0), sm_percent, quota_percent, memory_bytes
            )
        return book

    def free_percent(self, device: int, lane: int) -> float:
        """Quota that a lane still has to give."""
        return max(0.0, 100.0 - self.lanes[device, lane].quota_percent)

    def spot(
        self,
        sm_percent: float,
        quota_percent: float,
        memory_bytes: float,
        *,
        devices: Array | None = None,
        alone: bool = False,
        most_lanes: int = MAX_LANES,
    ) -> Spot | None:
        """The best room for a replica, None where there is none.

        Fullest first, so that little is left in pieces: of the lanes with this share the one that it fills most; else a new
        lane on the device in use that has the fewest units left; else an empty device. `devices` [device] masks those allowed, `alone`
        wants a lane of its own, `most_lanes` bounds the lanes of a device.
        """
        best: tuple[tuple[float, ...], Spot] | None = None
        open_devices = range(len(self.units)) if devices is None else np.flatnonzero(devices).tolist()
        for device in open_devices:
            if self.free_bytes[device] < memory_bytes:
                continue
            asked = granted_units(int(self.units[device]), sm_percent)
            mine = {lane: value for (d, lane), value in self.lanes.items() if d == device}
            for lane, value in mine.items():
                left = 100.0 - value.quota_percent - quota_percent
                if not alone and value.units == asked and left >= -_ROUNDING:
                    best = _better(best, (0.0, left, self.free_bytes[device], device), Spot(device, lane, False, left))
            if len(mine) < most_lanes and self.free_units[device] >= asked and quota_percent <= 100.0 + _ROUNDING:
                lane = next(number for number in range(MAX_LANES) if number not in mine)
                order = (1.0 if mine else 2.0, self.free_units[device] - asked, self.free_bytes[device], device)
                best = _better(best, order, Spot(device, lane, True, 100.0 - quota_percent))
        return None if best is None else best[1]

    def take(self, spot: Spot, sm_percent: float, quota_percent: float, memory_bytes: float) -> None:
        """Seats a replica there."""
        key = (spot.device, spot.lane)
        if key not in self.lanes:
            self.lanes[key] = Lane(granted_units(int(self.units[spot.device]), sm_percent))
            self.free_units[spot.device] -= self.lanes[key].units
        self.lanes[key].quota_percent += quota_percent
        self.lanes[key].replicas += 1
        self.free_bytes[spot.device] -= memory_bytes

    def leave(self, device: int, lane: int, quota_percent: float, memory_bytes: float) -> None:
        """A replica has gone; a lane without replicas goes too."""
        value = self.lanes[device, lane]
        value.quota_percent -= quota_percent
        value.replicas -= 1
        self.free_bytes[device] += memory_bytes
        if value.replicas == 0:
            self.free_units[device] += value.units
            del self.lanes[device, lane]

    def resize(self, device: int, lane: int, old_percent: float, new_percent: float) -> float:
        """Changes one quota of a lane, as far as the lane has room; the quota that it then is."""
        value = self.lanes[device, lane]
        granted = min(new_percent, 100.0 - (value.quota_percent - old_percent))
        value.quota_percent += granted - old_percent
        return granted

    def sm_percent(self, device: int, lane: int) -> float:
        """The share that a lane really has: whole units."""
        return 100.0 * self.lanes[device, lane].units / float(self.units[device])


def _better(
    best: tuple[tuple[float, ...], Spot] | None, order: tuple[float, ...], spot: Spot
) -> tuple[tuple[float, ...], Spot]:
    return (order, spot) if best is None or order < best[0] else best
