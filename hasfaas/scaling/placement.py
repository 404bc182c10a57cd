"""Where replicas fit: the lanes of all devices, their quotas and memory, while one decision is being made.

A device has at most MAX_LANES lanes. The SM shares of its lanes sum to at most 100 %, the quotas in a lane to at most 100 %,
and the memory of its replicas to at most its own. There are no free rectangles: lanes are all that a device can deliver.
Where lanes were cut in advance there are no others: a request is met by the smallest of them that is large enough.
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
    """What is taken. `units`, `free_units` and `free_bytes` are [device]; `lane_units` (0: nobody is there),
    `lane_quota_percent` and `lane_replicas` are [device, lane]. `fixed_units` [device, lane] are those of the lanes that were
    cut in advance (0: no such lane), of the devices that `is_fixed` [device] marks. `node` [device] is each one's node."""

    units: Array
    free_units: Array
    free_bytes: Array
    lane_units: Array
    lane_quota_percent: Array
    lane_replicas: Array
    # How many replicas those of a lane put up with.
    lane_most: Array
    fixed_units: Array
    is_fixed: Array
    node: Array

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
        fixed, fixed_units = observation.fixed_lanes, np.zeros((count, MAX_LANES), int)
        fixed_units[fixed.device, fixed.lane] = fixed.units
        free_units, is_fixed = units - lane_units.sum(axis=1), np.asarray(fixed_units.any(axis=1))
        node = np.asarray(devices.node, int)
        return cls(units, free_units, free_bytes, lane_units, quota, seats, most, fixed_units, is_fixed, node)

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

    def granted(self, sm_percent: float, *, exact: bool = False) -> Array:
        """The units that a request for this share gets on each device [device]: whole ones; of lanes cut in advance the
        smallest that has as many, with `exact` one that has just as many. More than a device has where it has no such lane.
        """
        asked = np.asarray(np.maximum(1, np.ceil(self.units * sm_percent / 100.0 - 1e-9).astype(int)))
        if not self.is_fixed.any():
            return asked
        able = self.fixed_units == asked[:, None] if exact else self.fixed_units >= asked[:, None]
        smallest = np.where(able, self.fixed_units, self.units[:, None] + 1).min(axis=1)
        return np.asarray(np.where(self.is_fixed, smallest, asked))

    def granted_on(self, device: int, sm_percent: float) -> int:
        """`granted` on one device."""
        asked = granted_units(int(self.units[device]), sm_percent)
        if not self.is_fixed[device]:
            return asked
        return min((n for n in self.fixed_units[device].tolist() if n >= asked), default=int(self.units[device]) + 1)

    def new_lane(self, device: int, units: int) -> int | None:
        """The number of the lane that would be opened there with so many units; None where none can be."""
        free = self.lane_units[device] == 0
        if self.is_fixed[device]:
            free = free & (self.fixed_units[device] == units)
        return int(free.argmax()) if free.any() and self.free_units[device] >= units else None

    def spot(
        self,
        sm_percent: float,
        quota_percent: float,
        memory_bytes: float,
        *,
        devices: Array | None = None,
        most_replicas: int = MOST_REPLICAS,
        most_lanes: int = MAX_LANES,
        exact: bool = False,
        held: Array | None = None,
    ) -> Spot | None:
        """The best room for a replica, None where there is none.

        Fullest first, so that little is left in pieces: of the lanes with this share the one that it fills most; else a new
        lane on the device in use that has the fewest units left; else an empty device. `devices` [device] masks those
        allowed, `most_replicas` bounds those of a lane (1: a lane of its own), `most_lanes` bounds the lanes of a device.

        Units of lanes cut in advance are of no other use, so there neighbours are spread: an empty lane of a device in use,
        then the emptiest. With `exact` such a lane must have this very share.

        `held` [device] marks the devices of nodes that hold one of the same function (None: none does). Where it opens as
        many lanes, room on another node comes before all that, so that a function outlives a node.
        """
        elsewhere = np.zeros(len(self.units), bool) if held is None or held.all() else ~held
        asked = self.granted(sm_percent, exact=exact)
        fits = self.free_bytes >= memory_bytes
        if devices is not None:
            fits = fits & devices.astype(bool)
        lanes = (self.lane_units > 0).sum(axis=1)
        opens = fits & (lanes < most_lanes) & (self.free_units >= asked)
        if self.is_fixed.any():
            free = (self.lane_units == 0) & (self.fixed_units == asked[:, None])
            opens &= free.any(axis=1) | ~self.is_fixed
            now = opens & self.is_fixed & ((lanes > 0) | elsewhere)
            if now.any() and quota_percent <= 100.0 + _ROUNDING:
                return self._opened(now, asked, quota_percent, elsewhere)
        if most_replicas > 1:
            left = 100.0 - self.lane_quota_percent - quota_percent
            room = self.lane_replicas < np.minimum(self.lane_most, most_replicas)
            shared = fits[:, None] & room & (self.lane_units == asked[:, None]) & (left >= -_ROUNDING)
            if shared.any():
                order = np.where(self.is_fixed[:, None], 200.0 - left, left) - 400.0 * elsewhere[:, None]
                device, lane = divmod(int(np.where(shared, order, np.inf).argmin()), left.shape[1])
                return Spot(device, lane, False, float(left[device, lane]))
        if not opens.any() or quota_percent > 100.0 + _ROUNDING:
            return None
        return self._opened(opens, asked, quota_percent, elsewhere)

    def _opened(self, opens: Array, asked: Array, quota_percent: float, elsewhere: Array) -> Spot:
        """A new lane on one of these devices, with what is asked of it."""
        # An empty device comes after all that are in use, one on a node that holds another replica after all others.
        step = int(self.units.max()) + 1
        order = (self.free_units - asked) + step * (~self.lane_units.any(axis=1) + 2 * ~elsewhere)
        device = int(np.where(opens, order, np.iinfo(int).max).argmin())
        lane = self.new_lane(device, int(asked[device]))
        assert lane is not None, "a device that opens one has it"
        return Spot(device, lane, True, 100.0 - quota_percent)

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
            fixed = int(self.fixed_units[at])
            assert fixed or not self.is_fixed[spot.device], f"lane {spot.lane} of device {spot.device} was not cut"
            self.lane_units[at] = fixed or granted_units(int(self.units[spot.device]), sm_percent)
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
        units = self.fixed_units if self.is_fixed[device] else self.lane_units
        return 100.0 * float(units[device, lane]) / float(self.units[device])
