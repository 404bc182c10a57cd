"""The node agents that a fleet has its replicas on, as one: who sits where is kept here, each agent acts in its part.

The local backend has one agent in this process, a cluster one on each of its nodes (`NodeDoor`). Nothing else differs between
them. An agent whose node is lost leaves with all its devices, and what ran there has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import BackendError, NotFoundError, UnavailableError
from hasfaas.devices.base import Condition, DeviceInfo
from hasfaas.node.agent import Order, ReplicaRequest
from hasfaas.node.lanes import Lane, Seat, Want
from hasfaas.node.seats import Changes, Seats
from hasfaas.serving.channel import ChannelEvents, ReplicaChannel


class NodeLostError(UnavailableError):
    """The node was lost on which something was to be done: another may do it."""

    def __init__(self, why: str) -> None:
        super().__init__(why, reason="NODE_LOST")


class Line(Protocol):
    """The way to a replica, until somebody takes it."""

    async def open(self, events: ChannelEvents) -> ReplicaChannel:
        """Takes it. Raises UnavailableError where it cannot be had any more."""
        ...


@attrs.frozen
class Born:
    """A replica process that its agent has forked: its number there, a file of this machine with its log, the way to it."""

    pid: int
    log: Path
    line: Line


class NodeDoor(Protocol):
    """One node's agent, wherever it runs. What it is told takes effect in this order, if not at once; devices are named as
    the fleet names them."""

    async def check_bundle(self, python: str, packages: Sequence[str], bundle: Path) -> tuple[str, ...]:
        """What keeps the function's interpreter there from loading its bundle."""
        ...

    async def launch(self, order: Order) -> Born:
        """Forks a replica in its seat. Raises PlacementError, BackendError, IncompatibleError, UnavailableError."""
        ...

    def set_quotas(self, quotas: Changes) -> None:
        """Gives replicas other quotas, in percent."""
        ...

    def lend(self, replica_id: str, lend: bool) -> None: ...

    def in_force(self, replica_id: str) -> bool:
        """Whether a replica is known to have acted on its latest quota."""
        ...

    def usage(self, replica_id: str) -> Usage:
        """What a replica took so far, as last heard. NotFoundError for one that has gone."""
        ...

    def kill(self, replica_id: str) -> None: ...

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None: ...

    async def bring_logs(self) -> None:
        """What replicas have printed so far is in their files when this returns. Raises UnavailableError."""
        ...

    async def check(self) -> None:
        """Looks at the devices, and tidies up; about once a second."""
        ...


@attrs.define(eq=False)
class Replica:
    """A replica and its seat, asked for at `asked_s`. `pid`, `log` and `line` are there once it was forked; `lost` says what
    took it where that was not its own end."""

    replica_id: str
    request: ReplicaRequest
    device_id: str
    lane: int
    sm_percent: float
    pid: int = 0
    log: Path = Path()
    line: Line | None = None
    exit_code: int | None = None
    lost: str = ""
    asked_s: float = attrs.field(factory=time.monotonic)
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)


class Nodes(ABC):
    """All agents. `resized` is told of each new quota, `exited` of each replica that has ended."""

    def __init__(self, resized: Callable[[str, float], None], exited: Callable[[Replica], None]) -> None:
        self.seats = Seats()
        self.replicas: dict[str, Replica] = {}
        self._doors: dict[str, NodeDoor] = {}
        self._on_resized = resized
        self._on_exited = exited
        self.on_join: Callable[[], None] = lambda: None
        """Called whenever there are more devices."""
        self._ids = itertools.count(1)

    @abstractmethod
    async def start(self) -> None:
        """Makes ready what this fleet begins with. Raises what kept it from that."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends every replica, and what else was started."""

    @abstractmethod
    def patience_s(self, want: Want) -> float:
        """How long calls may wait for room that is not there, since more nodes may come; 0 where none will."""

    @abstractmethod
    def lacks(self, wants: Sequence[Want]) -> None:
        """Told about once a second for what there is no room: nothing, for the most part."""

    @property
    def devices(self) -> Mapping[str, DeviceInfo]:
        """All devices, by name."""
        return self.seats.devices

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """The health of each."""
        return self.seats.conditions

    def join(self, door: NodeDoor, devices: Sequence[DeviceInfo]) -> None:
        """An agent is ready to act, on these devices, which are empty."""
        self.seats.open(devices)
        self._doors.update({device.device_id: door for device in devices})
        self.on_join()

    def part(self, door: NodeDoor, why: str) -> None:
        """An agent is lost: its devices go, and whatever ran there has ended, for us."""
        gone = {device_id for device_id, each in self._doors.items() if each is door}
        there = [replica for replica in self.replicas.values() if replica.device_id in gone]
        for replica in there:
            # All have left before anybody is told: who hears of it may start another at once.
            replica.lost = why
            self.seats.leave(replica.replica_id)
            del self.replicas[replica.replica_id]
        self.seats.close(gone)
        for device_id in gone:
            del self._doors[device_id]
        for replica in there:
            self._tell(replica)

    async def check_bundle(self, python: str, packages: Sequence[str], bundle: Path) -> tuple[str, ...]:
        """What keeps the function's interpreter from loading its bundle, found without loading it, on every node. One that is
        lost meanwhile has no say."""

        async def ask(door: NodeDoor) -> tuple[str, ...]:
            try:
                return await door.check_bundle(python, packages, bundle)
            except NodeLostError:
                return ()

        found = await asyncio.gather(*(ask(door) for door in dict.fromkeys(self._doors.values())))
        return tuple(dict.fromkeys(line for lines in found for line in lines))

    async def add(self, request: ReplicaRequest) -> Replica:
        """Seats and forks a replica; it is still loading when this returns.

        Raises PlacementError when nothing has room, and what keeps its agent from forking it.
        """
        replica_id = f"{request.function}-{next(self._ids)}"
        others = [each.replica_id for each in self.replicas.values() if each.request.function == request.function]
        placed = self.seats.find(replica_id, request.want, others)
        door = self._doors[placed.device_id]
        self._apply(placed.device_id, self.seats.sit(replica_id, placed, request.want.memory_bytes))
        replica = Replica(replica_id, request, placed.device_id, placed.lane, placed.sm_percent)
        self.replicas[replica_id] = replica
        try:
            born = await door.launch(Order(replica_id, request, placed))
        except BaseException:
            if replica_id in self.replicas:
                self._vacate(replica)
            raise
        if replica.ended.is_set():
            if replica.lost:
                raise NodeLostError(replica.lost)
            raise BackendError(f"{request.function}: a replica ended as it was started")
        replica.pid, replica.log, replica.line = born.pid, born.log, born.line
        return replica

    def resize(self, replica_id: str, quota_percent: float) -> None:
        """Pins a replica's quota, in place. `in_force` says when its process has acted on it.

        Raises PlacementError when the lane has not that much, NotFoundError for a replica that has gone.
        """
        device_id = self.seats.lane_of(replica_id).device_id
        self._apply(device_id, self.seats.resize(replica_id, quota_percent))

    def unpin(self, replica_id: str) -> None:
        """Gives a replica the share of its lane that one gets which nobody sized."""
        device_id = self.seats.lane_of(replica_id).device_id
        self._apply(device_id, self.seats.unpin(replica_id))

    def lend(self, replica_id: str, lend: bool) -> None:
        """Whether a replica runs on lane time that no other is entitled to."""
        self._door(replica_id).lend(replica_id, lend)

    def in_force(self, replica_id: str) -> bool:
        """Whether a replica has acted on its latest quota; one that has nothing to run need not, and one that has gone."""
        return replica_id not in self.replicas or self._door(replica_id).in_force(replica_id)

    def check_resizes(self, quotas: Mapping[str, float]) -> None:
        """Raises PlacementError unless all these quotas fit at once; changes nothing."""
        self.seats.check_resizes(quotas)

    def check_room(self, wants: Sequence[Want], leaving: Collection[str], quotas: Mapping[str, float | None]) -> None:
        """Raises PlacementError unless all these replicas would have room once those `leaving` have gone, with these quotas
        of others (None: as they are); changes nothing."""
        self.seats.check_room(wants, leaving, quotas)

    def kill(self, replica_id: str) -> None:
        """SIGKILL, once its work on the device has been ended. Harmless when it has gone."""
        if replica_id in self.replicas:
            self._door(replica_id).kill(replica_id)

    def usage(self, replica_id: str) -> Usage:
        """What a replica was granted and took so far."""
        return self._door(replica_id).usage(replica_id)

    def quota_percent(self, replica_id: str) -> float:
        """A replica's quota as promised."""
        return self.seat(replica_id).quota_percent

    def seat(self, replica_id: str) -> Seat:
        """A replica's place in its lane. NotFoundError for one that has gone."""
        return self.seats.seat(replica_id)

    def lanes(self) -> tuple[Lane, ...]:
        """All lanes that somebody sits in."""
        return self.seats.lanes()

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None:
        """Ends the parents of a function's replicas, but for those of one version. Replicas go on without them."""
        for door in dict.fromkeys(self._doors.values()):
            door.close_nurseries(function, keep_version=keep_version)

    async def bring_logs(self, replica_ids: Collection[str]) -> None:
        """What these have printed so far is in their files when this returns, but of those whose node does not answer."""
        doors = {self._doors[r.device_id] for r in self.replicas.values() if r.replica_id in replica_ids}
        await asyncio.gather(*(door.bring_logs() for door in doors), return_exceptions=True)

    async def check(self) -> None:
        """Looks at the devices of every node, about once a second."""
        await asyncio.gather(*(door.check() for door in dict.fromkeys(self._doors.values())))

    # -- what agents tell ----------------------------------------------------------------------------------------------

    def exited(self, replica_id: str, code: int | None) -> None:
        """A replica's process has ended."""
        replica = self.replicas.get(replica_id)
        if replica is not None:
            replica.exit_code = code
            self._vacate(replica)
            self._tell(replica)

    def condition(self, device_id: str, found: Condition) -> None:
        """A device's health."""
        if device_id in self.seats.conditions:
            self.seats.conditions[device_id] = found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _tell(self, replica: Replica) -> None:
        replica.ended.set()
        self._on_exited(replica)

    def _vacate(self, replica: Replica) -> None:
        del self.replicas[replica.replica_id]
        self._apply(replica.device_id, self.seats.leave(replica.replica_id))

    def _apply(self, device_id: str, changes: Changes) -> None:
        if changes:
            self._doors[device_id].set_quotas(changes)
        for replica_id, quota_percent in changes:
            self._on_resized(replica_id, quota_percent)

    def _door(self, replica_id: str) -> NodeDoor:
        replica = self.replicas.get(replica_id)
        if replica is None:
            raise NotFoundError(f"replica {replica_id!r} has gone", reason="REPLICA_NOT_FOUND")
        return self._doors[replica.device_id]
