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
# No bound: more than any lane could seat.
MOST_REPLICAS = 1_000


@attrs.frozen
class Lane:
    """One lane as the book knows it: its units, and what its replicas are promised."""

    units: int
    quota_percent: float
    replicas: int


@attrs.frozen
class Spot:
    """Room for one replica: a device (row number), a lane of it, and what that lane then still has to give, in percent."""

    device: int
    lane: int
    new: bool
    left_percent: float


@attrs.define(eq=False)
class Book:
    """What is taken. `units`, `free_units` and `free_bytes` are [device]; `lane_units` (0: no such lane),
    `lane_quota_percent` and `lane_replicas` are [device, lane]."""

    units: Array
    free_units: Array
    free_bytes: Array
    lane_units: Array
    lane_quota_percent: Array
    lane_replicas: Array
    # How many replicas those of a lane put up with.
    lane_most: Array

    @classmethod
    def of(cls, observation: Observation, most_replicas: Array | None = None) -> Book:
        """The book at one observation: replicas that start or drain hold their places too. `most_replicas` [function] says
        with how many each may share a lane, itself included (None: with any number)."""
        devices, replicas, functions = observation.devices, observation.replicas, observation.functions
        units = np.asarray(devices.units, int)
        count = len(units)
        lane_units = np.zeros((count, MAX_LANES), int)
        quota, seats = np.zeros((count, MAX_LANES)), np.zeros((count, MAX_LANES), int)
        where = (replicas.device, replicas.lane)
        granted = np.ceil(units[replicas.device] * replicas.sm_percent / 100.0 - 1e-9).astype(int)
        np.maximum.at(lane_units, where, np.maximum(granted, 1))
        np.add.at(quota, where, replicas.quota_percent)
        np.add.at(seats, where, 1)
        most = np.full((count, MAX_LANES), MOST_REPLICAS)
        if most_replicas is not None:
            np.minimum.at(most, where, most_replicas[replicas.function])
        taken = np.bincount(replicas.device, functions.memory_bytes[replicas.function], minlength=count)
        free_bytes = np.asarray(devices.memory_bytes, float) - taken
        return cls(units, units - lane_units.sum(axis=1), free_bytes, lane_units, quota, seats, most)

    def free_percent(self, device: int, lane: int) -> float:
        """Quota that a lane still has to give."""
        return max(0.0, 100.0 - float(self.lane_quota_percent[device, lane]))

    def copy(self) -> Book:
        """Another book, to try things in."""
        return Book(*(column.copy() for column in attrs.astuple(self, recurse=False)))

    @property
    def lanes(self) -> dict[tuple[int, int], Lane]:
        """All lanes, by device and number. For those who look at few."""
        return {
            (int(d), int(n)): Lane(
                int(self.lane_units[d, n]), float(self.lane_quota_percent[d, n]), int(self.lane_replicas[d, n])
            )
            for d, n in zip(*np.nonzero(self.lane_units), strict=True)
        }

    def used(self) -> Array:
        """[device] whether anybody has a place there."""
        return np.asarray(self.lane_units.any(axis=1))

    def spot(
        self,
        sm_percent: float,
        quota_percent: float,
        memory_bytes: float,
        *,
        devices: Array | None = None,
        most_replicas: int = MOST_REPLICAS,
        most_lanes: int = MAX_LANES,
    ) -> Spot | None:
        """The best room for a replica, None where there is none.

        Fullest first, so that little is left in pieces: of the lanes with this share the one that it fills most; else a new
        lane on the device in use that has the fewest units left; else an empty device. `devices` [device] masks those
        allowed, `most_replicas` bounds those of a lane (1: a lane of its own), `most_lanes` bounds the lanes of a device.
        """
        asked = np.maximum(1, np.ceil(self.units * sm_percent / 100.0 - 1e-9).astype(int))
        fits = self.free_bytes >= memory_bytes
        if devices is not None:
            fits = fits & devices.astype(bool)
        if most_replicas > 1:
            left = 100.0 - self.lane_quota_percent - quota_percent
            room = self.lane_replicas < np.minimum(self.lane_most, most_replicas)
            shared = fits[:, None] & room & (self.lane_units == asked[:, None]) & (left >= -_ROUNDING)
            if shared.any():
                device, lane = divmod(int(np.where(shared, left, np.inf).argmin()), left.shape[1])
                return Spot(device, lane, False, float(left[device, lane]))
        lanes = (self.lane_units > 0).sum(axis=1)
        fits = fits & (lanes < most_lanes) & (self.free_units >= asked)
        if not fits.any() or quota_percent > 100.0 + _ROUNDING:
            return None
        # An empty device comes after all that are in use.
        order = (self.free_units - asked) + np.where(lanes > 0, 0, self.units.max() + 1)
        device = int(np.where(fits, order, np.iinfo(int).max).argmin())
        return Spot(device, int((self.lane_units[device] == 0).argmax()), True, 100.0 - quota_percent)

    def take(
        self,
        spot: Spot,
        sm_percent: float,
        quota_percent: float,
        memory_bytes: float,
        most_replicas: int = MOST_REPLICAS,
    ) -> None:
        """Seats a replica there, that shares its lane with so many at most."""
        at = (spot.device, spot.lane)
        if self.lane_units[at] == 0:
            self.lane_units[at] = granted_units(int(self.units[spot.device]), sm_percent)
            self.free_units[spot.device] -= self.lane_units[at]
        self.lane_quota_percent[at] += quota_percent
        self.lane_replicas[at] += 1
        self.lane_most[at] = min(int(self.lane_most[at]), most_replicas)
        self.free_bytes[spot.device] -= memory_bytes

    def leave(self, device: int, lane: int, quota_percent: float, memory_bytes: float) -> None:
        """A replica has gone; a lane without replicas goes too."""
        at = (device, lane)
        self.lane_quota_percent[at] -= quota_percent
        self.lane_replicas[at] -= 1
        self.free_bytes[device] += memory_bytes
        if self.lane_replicas[at] == 0:
            self.free_units[device] += self.lane_units[at]
            self.lane_units[at], self.lane_quota_percent[at], self.lane_most[at] = 0, 0.0, MOST_REPLICAS

    def resize(self, device: int, lane: int, old_percent: float, new_percent: float) -> float:
        """Changes one quota of a lane, as far as the lane has room; the quota that it then is."""
        others = float(self.lane_quota_percent[device, lane]) - old_percent
        granted = min(new_percent, 100.0 - others)
        self.lane_quota_percent[device, lane] = others + granted
        return granted

    def sm_percent(self, device: int, lane: int) -> float:
        """The share that a lane really has: whole units."""
        return 100.0 * float(self.lane_units[device, lane]) / float(self.units[device])
