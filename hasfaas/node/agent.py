"""One machine's agent: owns its devices, lanes, token tables, zygotes and replica processes. This is its one door.

It acts on what it is told and reports what happened; whether a replica should exist is decided elsewhere. Seats are
arithmetic in `lanes`; this file keeps them, and makes the token tables and processes agree with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path

import attrs

from hasfaas.core.allocation import MAX_LANES, PPM_PER_PERCENT, Usage
from hasfaas.core.errors import NotFoundError, PlacementError
from hasfaas.devices.base import Condition, DeviceInfo, DeviceSlice, Health, module_of
from hasfaas.executor.config import EXIT_START_FAILED, ReplicaConfig
from hasfaas.executor.tokens import TokenTable
from hasfaas.node import lanes as seating
from hasfaas.node.kept import Kept
from hasfaas.node.lanes import Lane, Seat, Want
from hasfaas.node.shm_files import shm_path, sweep_shm
from hasfaas.node.zygotes import Environment, Zygote

log = logging.getLogger("hasfaas.node")
# 48 client contexts is what one MPS server takes (Volta and later), so more seats would promise what a GPU cannot.
SLOTS = 48
# A result of a replica that died may be on its way to whoever asked for it.
SWEEP_AFTER_S = 30.0
MAX_LOG_BYTES = 16 * 2**20


@attrs.frozen
class ReplicaRequest:
    """What a new replica runs and what it asks for."""

    function: str
    version: str
    python: str
    packages: tuple[str, ...]
    bundle_path: Path
    signature: bytes
    batch_max: int | None
    want: Want
    share_init: bool = False
    idempotent: bool = False
    # The greatest batch that a scaler lets it have; the agent does nothing with it.
    batch_cap: int | None = None


@attrs.define(eq=False)
class Replica:
    """A replica process and its seat, asked for at `asked_s`. `socket` is the gateway's end of its channel until somebody
    takes it."""

    replica_id: str
    request: ReplicaRequest
    device_id: str
    lane: int
    sm_percent: float
    slot: int
    log: Path
    socket: socket.socket
    pid: int = 0
    pidfd: int = -1
    exit_code: int | None = None
    asked_s: float = attrs.field(factory=time.monotonic)
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)


class NodeAgent:
    """Starts, re-sizes and ends replicas on this machine's devices."""

    def __init__(
        self,
        devices: Sequence[DeviceInfo],
        *,
        log_dir: Path,
        work_dir: Path,
        key_path: Path,
        window_ms: float,
        quantum_ms: float,
        start_timeout_s: float,
        settings_json: str,
        resized: Callable[[str, float], None],
        exited: Callable[[Replica], None],
    ) -> None:
        self.devices = {device.device_id: device for device in devices}
        self._keepers = {device.device_id: Kept(module_of(device.kind).keeper(device)) for device in devices}
        self.conditions = {device.device_id: Condition() for device in devices}
        self._log_dir = log_dir
        self._work_dir = work_dir
        self._key_path = key_path
        self._window_ns = round(window_ms * 1e6)
        self._quantum_ns = round(quantum_ms * 1e6)
        self._start_timeout_s = start_timeout_s
        self._settings_json = settings_json
        self._on_resized = resized
        self._on_exited = exited
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._tables: dict[str, TokenTable] = {}
        self._zygotes: dict[Environment, asyncio.Task[Zygote]] = {}
        self._nurseries: dict[tuple[str, str], asyncio.Task[Zygote]] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[object]] = set()
        self.replicas: dict[str, Replica] = {}
        # Replicas hold the reading end. Nobody writes: the end of file tells them that this agent has died.
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)

    async def start(self) -> None:
        """Makes the folders, the devices and the token tables ready, and removes what dead agents left in shared memory.

        Raises what kept a device from starting.
        """
        for folder in (self._log_dir, self._work_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep_shm()
        await self._start_devices()
        for device_id in self.devices:
            self._tables[device_id] = TokenTable.create(
                _table_path(device_id),
                lanes=MAX_LANES,
                slots=SLOTS,
                window_ns=self._window_ns,
                quantum_ns=self._quantum_ns,
            )

    async def _start_devices(self) -> None:
        """All at once: each GPU takes seconds. If one fails, what the others made is taken back."""
        started = await asyncio.gather(*(kept.start() for kept in self._keepers.values()), return_exceptions=True)
        failed = next((found for found in started if isinstance(found, BaseException)), None)
        if failed is not None:
            await asyncio.gather(*(kept.stop() for kept in self._keepers.values()))
            raise failed
        self.devices = {found.device_id: found for found in started if isinstance(found, DeviceInfo)}

    async def stop(self) -> None:
        """Kills what is left, ends the zygotes and removes the token tables."""
        for replica in list(self.replicas.values()):
            self.kill(replica.replica_id)
        forked = [replica for replica in self.replicas.values() if replica.pid]
        await asyncio.gather(*(asyncio.wait_for(r.ended.wait(), 5.0) for r in forked), return_exceptions=True)
        for task in [*self._nurseries.values(), *self._zygotes.values()]:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()
            else:
                task.cancel()
        for table in self._tables.values():
            table.unlink()
            table.close()
        for pending in list(self._tasks):
            pending.cancel()
        await asyncio.gather(*(kept.stop() for kept in self._keepers.values()))
        sweep_shm(own=True)
        os.close(self._life_write)
        os.close(self._life_read)

    async def check_bundle(self, python: str, packages: Sequence[str], bundle: Path) -> tuple[str, ...]:
        """What keeps the function's interpreter from loading its bundle, found without loading it."""
        zygote = await self._zygote(Environment.of(python, packages))
        return await zygote.check(bundle)

    async def add(self, request: ReplicaRequest) -> Replica:
        """Seats and forks a replica; it is still loading when this returns.

        Raises PlacementError when nothing has room, BackendError or IncompatibleError when its zygote cannot run.
        """
        replica_id = f"{request.function}-{next(self._ids)}"
        placed = self._place(replica_id, request.want, self.lanes())
        device = self.devices[placed.device_id]
        key = (placed.device_id, placed.lane)
        lane = self._lanes.get(key) or Lane(placed.device_id, placed.lane, placed.units)
        seat = Seat(replica_id, placed.quota_percent, placed.pinned, request.want.memory_bytes)
        neighbours = self._with_resizes(lane, placed.resizes)
        self._apply(placed.device_id, placed.resizes)
        try:
            slot = self._tables[placed.device_id].admit(placed.lane, ppm(placed.quota_percent), lend=request.want.lend)
        except PlacementError:
            # Every slot of the table is taken; what the neighbours gave up is theirs again.
            self._apply(placed.device_id, seating.changed(neighbours, lane.seats))
            raise
        self._lanes[key] = attrs.evolve(lane, seats=(*neighbours, seat))
        ours, theirs = socket.socketpair()
        log = self._log_dir / f"{replica_id}-{os.getpid()}.log"
        replica = Replica(replica_id, request, placed.device_id, placed.lane, placed.sm_percent, slot, log, ours)
        self.replicas[replica_id] = replica
        kept = self._keepers[placed.device_id]
        try:
            await kept.open_lane(placed.lane, placed.units)
            environment = await kept.environment(placed.lane, request.want.memory_bytes)
        except BaseException:
            ours.close()
            theirs.close()
            self._vacate(replica)
            raise
        config = ReplicaConfig(
            replica_id=replica_id,
            function=request.function,
            version=request.version,
            bundle_path=str(request.bundle_path),
            signature_hex=request.signature.hex(),
            key_path=str(self._key_path),
            work_dir=str(self._work_dir),
            part=DeviceSlice(
                device_id=device.device_id,
                kind=device.kind,
                lane=placed.lane,
                units=placed.units,
                sm_percent=placed.sm_percent,
                memory_bytes=request.want.memory_bytes,
                options=device.options,
                environment=environment,
            ),
            token_path=str(_table_path(placed.device_id)),
            slot=slot,
            batch_max=request.batch_max,
            cold_start_s=device.cold_start_s,
            settings_json=self._settings_json,
            idempotent=request.idempotent,
        )
        try:
            await self._fork(replica, config, theirs)
        except BaseException:
            ours.close()
            self._vacate(replica)
            raise
        finally:
            theirs.close()
        return replica

    async def _fork(self, replica: Replica, config: ReplicaConfig, channel: socket.socket) -> None:
        parent = await self._parent(replica.request, config)
        log_fd = os.open(replica.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            replica.pid = await parent.fork(config, (channel.fileno(), self._life_read, log_fd))
        finally:
            os.close(log_fd)
        try:
            replica.pidfd = os.pidfd_open(replica.pid)
        except ProcessLookupError:
            self._ended(replica, None)
            return
        asyncio.get_running_loop().add_reader(replica.pidfd, self._process_ended, replica)

    def resize(self, replica_id: str, quota_percent: float) -> None:
        """Pins a replica's quota, in place. `in_force` says when its process has acted on it.

        Raises PlacementError when the lane has not that much, NotFoundError for a replica that has gone.
        """
        lane = self._lane_of(replica_id)
        seats = seating.resize(lane, replica_id, quota_percent)
        self._apply(lane.device_id, seating.changed(lane.seats, seats))
        self._lanes[lane.device_id, lane.lane] = attrs.evolve(lane, seats=seats)

    def unpin(self, replica_id: str) -> None:
        """Gives a replica the share of its lane that one gets which nobody sized; it keeps its quota where that is none."""
        lane = self._lane_of(replica_id)
        with contextlib.suppress(PlacementError):
            seats = seating.unpin(lane, replica_id)
            self._apply(lane.device_id, seating.changed(lane.seats, seats))
            self._lanes[lane.device_id, lane.lane] = attrs.evolve(lane, seats=seats)

    def lend(self, replica_id: str, lend: bool) -> None:
        """Whether a replica runs on lane time that no other is entitled to."""
        replica = self._replica(replica_id)
        self._tables[replica.device_id].set_lend(replica.slot, lend)

    def in_force(self, replica_id: str) -> bool:
        """Whether a replica has acted on its latest quota; one that has nothing to run need not, and one that has gone."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            return True
        return self._tables[replica.device_id].in_force(replica.slot)

    def check_resizes(self, quotas: dict[str, float]) -> None:
        """Raises PlacementError unless all these quotas fit at once; changes nothing."""
        trial = dict(self._lanes)
        for replica_id, quota in quotas.items():
            lane = self._lane_of(replica_id)
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
            lane = trial.get((placed.device_id, placed.lane)) or Lane(placed.device_id, placed.lane, placed.units)
            seat = Seat(name, placed.quota_percent, placed.pinned, want.memory_bytes)
            seats = (*self._with_resizes(lane, placed.resizes), seat)
            trial[placed.device_id, placed.lane] = attrs.evolve(lane, seats=seats)

    def kill(self, replica_id: str) -> None:
        """SIGKILL, once its work on the device has been ended; now, where the device needs none of that. Harmless when it has
        gone."""
        replica = self.replicas.get(replica_id)
        if replica is None or replica.pidfd < 0:
            return
        kept = self._keepers[replica.device_id]
        if kept.acts:
            self._spawn(self._end(kept, replica))
        else:
            _kill(replica)

    async def _end(self, kept: Kept, replica: Replica) -> None:
        try:
            await kept.before_kill(replica.pid)
        finally:
            _kill(replica)

    async def check(self) -> None:
        """Looks at the devices, about once a second: replicas that a fault has reached are killed, and until a device is
        ready again nobody is placed there."""
        await asyncio.gather(*(self._check(device_id) for device_id in self.devices))

    async def _check(self, device_id: str) -> None:
        kept = self._keepers[device_id]
        if not kept.acts:
            return
        before, found = self.conditions[device_id], await kept.check()
        self.conditions[device_id] = found
        if (before.health, before.why) != (found.health, found.why):
            log.warning("%s is %s: %s. %s", device_id, found.health.value, found.why or "as before", found.cure)
        for replica in list(self.replicas.values()):
            if replica.device_id == device_id and (found.lanes is None or replica.lane in found.lanes):
                self.kill(replica.replica_id)

    def usage(self, replica_id: str) -> Usage:
        """What a replica was granted and took so far."""
        replica = self._replica(replica_id)
        return self._tables[replica.device_id].usage(replica.slot)

    def quota_percent(self, replica_id: str) -> float:
        """A replica's quota as promised."""
        return self.seat(replica_id).quota_percent

    def seat(self, replica_id: str) -> Seat:
        """A replica's place in its lane. NotFoundError for one that has gone."""
        return next(s for s in self._lane_of(replica_id).seats if s.replica_id == replica_id)

    def lanes(self) -> tuple[Lane, ...]:
        """All lanes that somebody sits in."""
        return tuple(self._lanes.values())

    def sweep(self) -> None:
        """Removes what processes that died left in shared memory, once nobody can be about to open it."""
        sweep_shm(older_than_s=SWEEP_AFTER_S)

    def trim_logs(self) -> None:
        """Empties logs that have grown past their bound; replicas append, so they go on at the new end."""
        for path in self._log_dir.glob("*.log"):
            if path.stat().st_size > MAX_LOG_BYTES:
                os.truncate(path, 0)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _place(self, replica_id: str, want: Want, lanes: Sequence[Lane]) -> seating.Placement:
        out = {n: c for n, c in self.conditions.items() if c.health is not Health.READY}
        why = "; ".join(f"{name} is {c.health.value} ({c.why}; {c.cure or 'wait'})" for name, c in out.items())
        ready = [device for name, device in self.devices.items() if name not in out]
        if out and not any(want.device in ("auto", device.kind, device.device_id) for device in ready):
            raise PlacementError(f"no room for a replica of device {want.device}: {why}")
        try:
            return seating.place(replica_id, want, ready, lanes)
        except PlacementError as exc:
            if not out:
                raise
            raise PlacementError(f"{exc}; {why}", reason=exc.reason) from exc

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _replica(self, replica_id: str) -> Replica:
        if replica_id not in self.replicas:
            raise NotFoundError(f"replica {replica_id!r} has gone", reason="REPLICA_NOT_FOUND")
        return self.replicas[replica_id]

    def _lane_of(self, replica_id: str) -> Lane:
        replica = self._replica(replica_id)
        return self._lanes[replica.device_id, replica.lane]

    def _with_resizes(self, lane: Lane, resizes: Sequence[tuple[str, float]]) -> tuple[Seat, ...]:
        quotas = dict(resizes)
        return tuple(
            attrs.evolve(s, quota_percent=quotas[s.replica_id]) if s.replica_id in quotas else s for s in lane.seats
        )

    def _apply(self, device_id: str, resizes: Sequence[tuple[str, float]]) -> None:
        for replica_id, quota_percent in resizes:
            self._tables[device_id].resize(self.replicas[replica_id].slot, ppm(quota_percent))
            self._on_resized(replica_id, quota_percent)

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None:
        """Ends the parents of a function's replicas, but for those of one version. Replicas go on without them."""
        for name, version in list(self._nurseries):
            if name == function and version != keep_version:
                task = self._nurseries.pop((name, version))
                if task.done() and not task.cancelled() and task.exception() is None:
                    task.result().close()
                else:
                    task.cancel()

    async def _parent(self, request: ReplicaRequest, config: ReplicaConfig) -> Zygote:
        """What the replica forks from: its zygote, or, with `share_init`, a child of that which has run `__init__`."""
        zygote = await self._zygote(Environment.of(request.python, request.packages))
        if not request.share_init:
            return zygote
        key = (request.function, request.version)
        task = _usable(self._nurseries.get(key))
        if task is None:
            name = f"{request.function}-parent"
            log = self._log_dir / f"{name}-{os.getpid()}.log"
            born = zygote.nursery(attrs.evolve(config, replica_id=name), self._life_read, log, self._start_timeout_s)
            task = self._nurseries[key] = asyncio.ensure_future(born)
        return await asyncio.shield(task)

    async def _zygote(self, environment: Environment) -> Zygote:
        task = _usable(self._zygotes.get(environment))
        if task is None:
            log = self._log_dir / f"zygote-{os.getpid()}-{len(self._zygotes)}.log"
            task = asyncio.ensure_future(Zygote.start(environment, log, self._zygote_reports, self._start_timeout_s))
            self._zygotes[environment] = task
        return await asyncio.shield(task)

    def _zygote_reports(self, pid: int, code: int) -> None:
        for replica in list(self.replicas.values()):
            if replica.pid == pid:
                self._ended(replica, code)

    def _process_ended(self, replica: Replica) -> None:
        """The kernel says so. The exit code comes from the zygote, unless that has died."""
        asyncio.get_running_loop().remove_reader(replica.pidfd)
        asyncio.get_running_loop().call_later(0.2, self._ended, replica, None)

    def _ended(self, replica: Replica, code: int | None) -> None:
        if replica.ended.is_set():
            return
        replica.exit_code = code
        if replica.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(replica.pidfd)
            os.close(replica.pidfd)
            replica.pidfd = -1
        self._end_group(replica)
        self._vacate(replica)
        replica.ended.set()
        self._on_exited(replica)
        if code not in (0, EXIT_START_FAILED):
            self._spawn(self._check(replica.device_id))

    def _end_group(self, replica: Replica) -> None:
        """Processes that the user's code started would go on in a lane that is no longer theirs."""
        try:
            os.killpg(replica.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # there are none

    def _vacate(self, replica: Replica) -> None:
        del self.replicas[replica.replica_id]
        self._tables[replica.device_id].free(replica.slot)
        key = (replica.device_id, replica.lane)
        lane = self._lanes[key]
        seats = seating.leave(lane, replica.replica_id)
        if seats:
            self._lanes[key] = attrs.evolve(lane, seats=seats)
            self._apply(replica.device_id, seating.changed(lane.seats, seats))
        else:
            del self._lanes[key]
            self._spawn(self._keepers[replica.device_id].close_lane(replica.lane))


def _kill(replica: Replica) -> None:
    if replica.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(replica.pidfd, signal.SIGKILL)


def _usable(task: asyncio.Task[Zygote] | None) -> asyncio.Task[Zygote] | None:
    """A parent that is being made or lives; None for one that failed or has died."""
    if task is None or not task.done():
        return task
    return task if not task.cancelled() and task.exception() is None and task.result().alive else None


def _table_path(device_id: str) -> Path:
    return shm_path(os.getpid(), f"{device_id}.tokens")


def ppm(quota_percent: float) -> int:
    """A quota as the token table holds it, rounded down so that a full lane never sums to more than all of it."""
    return int(quota_percent * PPM_PER_PERCENT + 1e-6)
