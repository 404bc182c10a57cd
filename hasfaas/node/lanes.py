"""Who sits where on a machine's devices, as arithmetic. Nothing here acts.

A lane is a set of whole units (SMs, cores) whose replicas take turns by quota; quotas of one lane sum to at most 100.
A replica whose quota somebody set is *pinned*; the others share what is left of their lane in equal parts, and are
re-sized as neighbours come and go. That is what an unprofiled function gets: the largest slice that fits.

Where a device's lanes were cut in advance (`DeviceInfo.fixed_lanes`) there are no others: a lane's number is its place among
them, and an SM share is met by the smallest one with room that has at least so many units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import attrs

from hasfaas.core import allocation
from hasfaas.core.allocation import MAX_LANES
from hasfaas.core.errors import PlacementError
from hasfaas.devices.base import DeviceInfo

NO_SUCH_LANE = "NO_SUCH_LANE"
"""The reason of a PlacementError where no device could hold the replica, whoever left: its lanes are too small."""
# A replica that nobody sized keeps at least this much, so that a pinned neighbour cannot starve it silently.
LEAST_AUTO_QUOTA_PERCENT = 1.0
NOBODY: Mapping[str, int] = MappingProxyType({})


@attrs.frozen
class Want:
    """What is asked for a new replica; None leaves a number to us. `device` is "auto", a kind or a device's name. `lane` is
    the number of a lane there: one that nobody is in is made."""

    memory_bytes: int
    device: str = "auto"
    sm_percent: float | None = None
    quota_percent: float | None = None
    lend: bool = False
    lane: int | None = None


@attrs.frozen
class Seat:
    """A replica's place in a lane."""

    replica_id: str
    quota_percent: float
    pinned: bool
    memory_bytes: int


@attrs.frozen
class Lane:
    """A lane of one device with those who sit in it."""

    device_id: str
    lane: int
    units: tuple[int, ...]
    seats: tuple[Seat, ...] = ()

    @property
    def quota_percent(self) -> float:
        """Sum of the quotas promised in this lane."""
        return sum(seat.quota_percent for seat in self.seats)


@attrs.frozen
class Placement:
    """Where a new replica goes, and what its neighbours' quotas become."""

    device_id: str
    lane: int
    units: tuple[int, ...]
    sm_percent: float
    quota_percent: float
    pinned: bool
    resizes: tuple[tuple[str, float], ...] = ()


def granted_units(device: DeviceInfo, sm_percent: float) -> int:
    """Whole units for a share, rounded up, as MPS rounds to its chunks. At least one."""
    return allocation.granted_units(len(device.units), sm_percent)


def share(seats: Iterable[Seat]) -> tuple[Seat, ...] | None:
    """The seats with their quotas dealt: pinned ones keep theirs, the others split the rest evenly. None: no room."""
    given = tuple(seats)
    pinned = sum(seat.quota_percent for seat in given if seat.pinned)
    autos = sum(1 for seat in given if not seat.pinned)
    rest = 100.0 - pinned
    if rest < -1e-6 or (autos and rest / autos < LEAST_AUTO_QUOTA_PERCENT):
        return None
    # Rounded down to 0.0001 %, a part per million, so that a lane never sums to more than all of it.
    part = math.floor(rest / autos * 10_000.0) / 10_000.0 if autos else 0.0
    return tuple(seat if seat.pinned else attrs.evolve(seat, quota_percent=part) for seat in given)


def changed(before: Iterable[Seat], after: Iterable[Seat]) -> tuple[tuple[str, float], ...]:
    """(replica, new quota) of those whose quota differs: shrinking ones first, so that no sum ever passes 100."""
    old = {seat.replica_id: seat.quota_percent for seat in before}
    moved = [s for s in after if s.replica_id in old and abs(old[s.replica_id] - s.quota_percent) > 1e-9]
    moved.sort(key=lambda seat: seat.quota_percent - old[seat.replica_id])
    return tuple((seat.replica_id, seat.quota_percent) for seat in moved)


def place(
    replica_id: str,
    want: Want,
    devices: Sequence[DeviceInfo],
    lanes: Sequence[Lane],
    crowd: Mapping[str, int] = NOBODY,
) -> Placement:
    """The best seat for a new replica: the largest slice for one that nobody sized; for a sized one a lane where no
    neighbour has to give, then the fullest. Of equal ones the one on the least crowded node: `crowd` counts replicas of the
    same function by node.

    Raises PlacementError, saying for each device why not (NO_SUCH_LANE where only other lanes would help).
    """
    best: tuple[tuple[float, ...], Placement] | None = None
    refusals: list[str] = []
    for device in devices:
        if not device.is_called(want.device):
            refusals.append(f"{device.device_id} is not {want.device!r}")
            continue
        mine = [lane for lane in lanes if lane.device_id == device.device_id]
        used = sum(seat.memory_bytes for lane in mine for seat in lane.seats)
        if used + want.memory_bytes > device.memory_bytes:
            refusals.append(
                f"{device.device_id} has {(device.memory_bytes - used) >> 20} MiB of memory left, "
                f"{want.memory_bytes >> 20} MiB are asked"
            )
            continue
        found = [s for lane in _open_lanes(device, mine, want) if (s := _seat(replica_id, want, device, lane))]
        if not found:
            refusals.append(f"{device.device_id} has {_missing(device, want)}")
        for placement, merits in found:
            score = (*merits, -float(crowd.get(device.node, 0)))
            if best is None or score > best[0]:
                best = (score, placement)
    if best is None:
        asked = f"sm {_percent(want.sm_percent)}, quota {_percent(want.quota_percent)}"
        why = "; ".join(refusals) or "there is no device"
        reason = None if could_hold(want, devices) or not _lane_lacks(want, devices) else NO_SUCH_LANE
        raise PlacementError(
            f"no room for a replica with {asked}: {why}. {_cure(want, devices, refusals)}", reason=reason
        )
    return best[1]


def could_hold(want: Want, devices: Iterable[DeviceInfo]) -> bool:
    """Whether any of the devices would have room for it if nobody else were there: memory, and a lane large enough."""
    return any(
        device.is_called(want.device) and want.memory_bytes <= device.memory_bytes and bool(_large_enough(device, want))
        for device in devices
    )


def _lane_lacks(want: Want, devices: Sequence[DeviceInfo]) -> bool:
    """Whether lanes are what keeps the devices asked for from ever holding it."""
    asked = [device for device in devices if device.is_called(want.device)]
    return any(want.memory_bytes <= device.memory_bytes for device in asked)


def _missing(device: DeviceInfo, want: Want) -> str:
    """What a device without a seat lacks, in words."""
    which = "no lane" if want.lane is None else f"no lane {want.lane}"
    if device.fixed_lanes is None:
        return f"{which} with room"
    if not _large_enough(device, want):
        size = "" if want.sm_percent is None else f" of SM {want.sm_percent:g} % or more"
        return f"{which}{size}: its lanes were cut in advance, {_listed(device)}"
    return f"{which} with room among those cut in advance, {_listed(device)}"


def _listed(device: DeviceInfo) -> str:
    """Fixed lanes in words, such as "0 (50 %), 1 (25 %)"."""
    shares = [100.0 * len(units) / len(device.units) for units in device.fixed_lanes or ()]
    return ", ".join(f"{number} ({share:.3g} %)" for number, share in enumerate(shares))


def _percent(value: float | None) -> str:
    return "auto" if value is None else f"{value:g} %"


def _cure(want: Want, devices: Sequence[DeviceInfo], refusals: Sequence[str]) -> str:
    if not any(device.is_called(want.device) for device in devices):
        known = ", ".join(f"{device.device_id} ({device.kind})" for device in devices)
        return (
            f"Devices here: {known or 'none'}; name one of them with device=, or add one to the configuration "
            "(`hasfaas doctor` says what keeps a GPU from being used)"
        )
    if all(want.memory_bytes > device.memory_bytes for device in devices if device.is_called(want.device)):
        return "No device has so much: declare less memory=, or add a larger device"
    if any("memory left" in refusal for refusal in refusals):
        return (
            "End what holds memory (`hasfaas scale NAME --replicas 0`, `hasfaas delete NAME`), or declare less memory="
        )
    if not could_hold(want, devices):
        return (
            "Ask for no larger lane than there is (`hasfaas scale NAME --sm`), or cut others with lanes= of the device"
        )
    return "Lower a neighbour with `hasfaas scale NAME --quota`, or add a device"


def _large_enough(device: DeviceInfo, want: Want) -> list[int]:
    """The numbers of lanes that a device can have for this want, whoever is in them. One that was cut for a share serves a
    request for it, also where whole units came to a little less (of 15 chunks, a lane for 50 % has 7)."""
    count = 1 if want.sm_percent is None else granted_units(device, want.sm_percent)
    sizes = [len(units) for units in device.fixed_lanes] if device.fixed_lanes is not None else [count] * MAX_LANES
    cut_for = device.lane_percents or (0.0,) * len(sizes)
    large = [size >= count or cut >= (want.sm_percent or 0.0) for size, cut in zip(sizes, cut_for, strict=True)]
    return [number for number, fits in enumerate(large) if fits and want.lane in (None, number)]


def _open_lanes(device: DeviceInfo, lanes: Sequence[Lane], want: Want) -> list[Lane]:
    if device.fixed_lanes is not None:
        there = {lane.lane: lane for lane in lanes}
        return [
            there.get(number) or Lane(device.device_id, number, device.fixed_lanes[number])
            for number in _large_enough(device, want)
        ]
    asked = want.sm_percent if want.sm_percent is not None else device.auto_sm_percent
    count = granted_units(device, asked)
    fitting = [lane for lane in lanes if want.sm_percent is None or len(lane.units) == count]
    taken = {unit for lane in lanes for unit in lane.units}
    free = tuple(unit for unit in device.units if unit not in taken)
    if len(lanes) < MAX_LANES and free and (len(free) >= count or (want.sm_percent is None and not lanes)):
        numbers = [n for n in range(MAX_LANES) if n not in {lane.lane for lane in lanes}]
        number = want.lane if want.lane in numbers else numbers[0]
        fitting.append(Lane(device.device_id, number, free[:count]))
    return [lane for lane in fitting if want.lane in (None, lane.lane)]


def _seat(replica_id: str, want: Want, device: DeviceInfo, lane: Lane) -> tuple[Placement, tuple[float, ...]] | None:
    pinned = want.quota_percent is not None
    new = Seat(replica_id, want.quota_percent or 0.0, pinned, want.memory_bytes)
    seats = share((*lane.seats, new))
    if seats is None:
        return None
    sm_percent = 100.0 * len(lane.units) / len(device.units)
    placement = Placement(
        device_id=lane.device_id,
        lane=lane.lane,
        units=lane.units,
        sm_percent=sm_percent,
        quota_percent=seats[-1].quota_percent,
        pinned=pinned,
        resizes=changed(lane.seats, seats),
    )
    # The smallest that is large enough, before anything else: of fixed lanes, and of devices with few units.
    beyond = 0.0 if want.sm_percent is None else sm_percent - want.sm_percent
    if pinned:
        return placement, (-beyond, -float(len(placement.resizes)), lane.quota_percent)
    return placement, (-beyond, sm_percent * placement.quota_percent, -float(len(lane.seats)))


def resize(lane: Lane, replica_id: str, quota_percent: float) -> tuple[Seat, ...]:
    """The lane's seats once `replica_id` is pinned at `quota_percent`.

    Raises PlacementError when the lane has not that much left.
    """
    seats = share(
        attrs.evolve(s, quota_percent=quota_percent, pinned=True) if s.replica_id == replica_id else s
        for s in lane.seats
    )
    if seats is None:
        others = [s for s in lane.seats if s.replica_id != replica_id]
        taken = sum(s.quota_percent for s in others if s.pinned)
        kept = LEAST_AUTO_QUOTA_PERCENT * sum(1 for s in others if not s.pinned)
        raise PlacementError(
            f"quota {quota_percent:g} % does not fit lane {lane.lane} of {lane.device_id}: {taken:g} % are set for other "
            f"replicas, those that nobody sized keep {kept:g} % at least, and quotas of one lane sum to at most 100; "
            f"ask for at most {max(0.0, 100.0 - taken - kept):g} %",
            reason="QUOTA_EXCEEDED",
        )
    return seats


def unpin(lane: Lane, replica_id: str) -> tuple[Seat, ...]:
    """The lane's seats once nobody sizes `replica_id` any more: it shares what the pinned ones leave.

    Raises PlacementError when they leave too little.
    """
    seats = share(attrs.evolve(s, pinned=False) if s.replica_id == replica_id else s for s in lane.seats)
    if seats is None:
        raise PlacementError(f"lane {lane.lane} of {lane.device_id} is full: {replica_id} keeps the quota it was given")
    return seats


def leave(lane: Lane, replica_id: str) -> tuple[Seat, ...]:
    """The lane's seats once `replica_id` has left: what nobody pinned grows into its room."""
    left = share(seat for seat in lane.seats if seat.replica_id != replica_id)
    assert left is not None, "a lane never becomes too full by somebody leaving"
    return left
