"""One machine's agent: its devices, token tables, zygotes and replica processes. This is its one door.

It acts on what it is told and reports what happened. Which replicas there are, and who sits where with what quota, is
decided elsewhere (`Seats` keeps it): this makes the token tables and processes agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hasfaas.core.allocation import MAX_LANES, PPM_PER_PERCENT, Usage
from hasfaas.core.errors import NotFoundError
from hasfaas.devices.base import Condition, DeviceInfo, DeviceSlice, module_of
from hasfaas.executor.config import EXIT_START_FAILED, ReplicaConfig
from hasfaas.executor.tokens import TokenTable
from hasfaas.node.kept import Kept
from hasfaas.node.lanes import Placement, Want
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
    env: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    secrets: Sequence[str] = ()


@attrs.frozen
class Order:
    """A new replica, by its name, and the seat that was found for it on a device of this machine."""

    replica_id: str
    request: ReplicaRequest
    seat: Placement


@attrs.frozen
class Launched:
    """A process that was forked, still loading. `channel` is our end of its socket, and whoever gets this closes it."""

    pid: int
    log: Path
    channel: socket.socket


class AgentEvents(Protocol):
    """What an agent tells its owner."""

    def exited(self, replica_id: str, code: int | None) -> None:
        """A replica's process has ended, and its slot is free; None where nobody knows how."""
        ...

    def condition(self, device_id: str, found: Condition) -> None:
        """A device's health, whenever it was looked at."""
        ...


@attrs.define(eq=False)
class _Process:
    """A replica process in its slot."""

    order: Order
    slot: int
    log: Path
    pid: int = 0
    pidfd: int = -1
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def replica_id(self) -> str:
        return self.order.replica_id

    @property
    def device_id(self) -> str:
        return self.order.seat.device_id

    @property
    def lane(self) -> int:
        return self.order.seat.lane


class NodeAgent:
    """Starts, re-sizes and ends replicas on this machine's devices, in the seats that it is given."""

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
        events: AgentEvents,
    ) -> None:
        self.devices = {device.device_id: device for device in devices}
        self._keepers = {device.device_id: Kept(module_of(device.kind).keeper(device)) for device in devices}
        self._conditions = {device.device_id: Condition() for device in devices}
        self._log_dir = log_dir
        self._work_dir = work_dir
        self._key_path = key_path
        self._window_ns = round(window_ms * 1e6)
        self._quantum_ns = round(quantum_ms * 1e6)
        self._start_timeout_s = start_timeout_s
        self._settings_json = settings_json
        self._events = events
        self._tables: dict[str, TokenTable] = {}
        self._zygotes: dict[Environment, asyncio.Task[Zygote]] = {}
        self._nurseries: dict[tuple[str, str], asyncio.Task[Zygote]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._processes: dict[str, _Process] = {}
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
        for process in list(self._processes.values()):
            self.kill(process.replica_id)
        forked = [process for process in self._processes.values() if process.pid]
        await asyncio.gather(*(asyncio.wait_for(p.ended.wait(), 5.0) for p in forked), return_exceptions=True)
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

    def admit(self, order: Order) -> None:
        """Gives a replica its seat, from now on its own, though its process is yet to be forked.

        Raises PlacementError when the device has no slot left.
        """
        seat = order.seat
        table = self._tables[seat.device_id]
        slot = table.admit(seat.lane, ppm(seat.quota_percent), lend=order.request.want.lend)
        log = self._log_dir / f"{order.replica_id}-{os.getpid()}.log"
        self._processes[order.replica_id] = _Process(order, slot, log)

    async def fork(self, replica_id: str) -> Launched:
        """Forks a replica that was admitted; it is still loading when this returns.

        Raises PlacementError when the device refuses the lane, BackendError or IncompatibleError when its zygote cannot run;
        then its seat is free again.
        """
        process = self._process(replica_id)
        seat, request = process.order.seat, process.order.request
        try:
            kept = self._keepers[seat.device_id]
            await kept.open_lane(seat.lane, seat.units)
            config = self._config(process, await kept.environment(seat.lane, request.want.memory_bytes))
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    await self._fork(process, config, theirs)
                except BaseException:
                    ours.close()
                    raise
        except BaseException:
            self._vacate(process)
            raise
        return Launched(process.pid, process.log, ours)

    def _config(self, process: _Process, environment: Mapping[str, str | None]) -> ReplicaConfig:
        seat, request = process.order.seat, process.order.request
        device = self.devices[seat.device_id]
        return ReplicaConfig(
            replica_id=process.replica_id,
            function=request.function,
            version=request.version,
            bundle_path=str(request.bundle_path),
            signature_hex=request.signature.hex(),
            key_path=str(self._key_path),
            work_dir=str(self._work_dir),
            part=DeviceSlice(
                device_id=device.device_id,
                kind=device.kind,
                lane=seat.lane,
                units=seat.units,
                sm_percent=seat.sm_percent,
                memory_bytes=request.want.memory_bytes,
                options=device.options,
                environment=environment,
            ),
            token_path=str(_table_path(seat.device_id)),
            slot=process.slot,
            batch_max=request.batch_max,
            cold_start_s=device.cold_start_s,
            settings_json=self._settings_json,
            idempotent=request.idempotent,
            env=request.env,
            secrets=request.secrets,
        )

    async def _fork(self, process: _Process, config: ReplicaConfig, channel: socket.socket) -> None:
        parent = await self._parent(process.order.request, config)
        log_fd = os.open(process.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process.pid = await parent.fork(config, (channel.fileno(), self._life_read, log_fd))
        finally:
            os.close(log_fd)
        try:
            process.pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # Told once whoever asked for it knows of it.
            asyncio.get_running_loop().call_soon(self._ended, process, None)
            return
        asyncio.get_running_loop().add_reader(process.pidfd, self._process_ended, process)

    def dismiss(self, replica_id: str) -> None:
        """Frees the seat of a replica that was admitted and will not be forked. Harmless when it has gone."""
        process = self._processes.get(replica_id)
        if process is not None and not process.pid:
            self._vacate(process)

    def set_quotas(self, quotas: Sequence[tuple[str, float]]) -> None:
        """Gives replicas other quotas, in percent, in place and in this order. `in_force` says when a process has acted on
        its own. One that has just gone is passed over: whoever asked is being told."""
        for replica_id, quota_percent in quotas:
            process = self._processes.get(replica_id)
            if process is not None:
                self._tables[process.device_id].resize(process.slot, ppm(quota_percent))

    def lend(self, replica_id: str, lend: bool) -> None:
        """Whether a replica runs on lane time that no other is entitled to."""
        process = self._process(replica_id)
        self._tables[process.device_id].set_lend(process.slot, lend)

    def in_force(self, replica_id: str) -> bool:
        """Whether a replica has acted on its latest quota; one that has nothing to run need not, and one that has gone."""
        process = self._processes.get(replica_id)
        return process is None or self._tables[process.device_id].in_force(process.slot)

    def kill(self, replica_id: str) -> None:
        """SIGKILL, once its work on the device has been ended; now, where the device needs none of that. Harmless when it has
        gone."""
        process = self._processes.get(replica_id)
        if process is None or process.pidfd < 0:
            return
        kept = self._keepers[process.device_id]
        if kept.acts:
            self._spawn(self._end(kept, process))
        else:
            _kill(process)

    async def _end(self, kept: Kept, process: _Process) -> None:
        try:
            await kept.before_kill(process.pid)
        finally:
            _kill(process)

    async def check(self) -> None:
        """Looks at the devices, about once a second: replicas that a fault has reached are killed, and until a device is
        ready again nobody is placed there."""
        await asyncio.gather(*(self._check(device_id) for device_id in self.devices))

    async def _check(self, device_id: str) -> None:
        kept = self._keepers[device_id]
        if not kept.acts:
            return
        before, found = self._conditions[device_id], await kept.check()
        self._conditions[device_id] = found
        self._events.condition(device_id, found)
        if (before.health, before.why) != (found.health, found.why):
            log.warning("%s is %s: %s. %s", device_id, found.health.value, found.why or "as before", found.cure)
        for process in list(self._processes.values()):
            if process.device_id == device_id and (found.lanes is None or process.lane in found.lanes):
                self.kill(process.replica_id)

    def usage(self, replica_id: str) -> Usage:
        """What a replica was granted and took so far. NotFoundError for one that has gone."""
        process = self._process(replica_id)
        return self._tables[process.device_id].usage(process.slot)

    def sweep(self) -> None:
        """Removes what processes that died left in shared memory, once nobody can be about to open it."""
        sweep_shm(older_than_s=SWEEP_AFTER_S)

    def trim_logs(self) -> None:
        """Empties logs that have grown past their bound; replicas append, so they go on at the new end."""
        for path in self._log_dir.glob("*.log"):
            if path.stat().st_size > MAX_LOG_BYTES:
                os.truncate(path, 0)

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None:
        """Ends the parents of a function's replicas, but for those of one version. Replicas go on without them."""
        for name, version in list(self._nurseries):
            if name == function and version != keep_version:
                task = self._nurseries.pop((name, version))
                if task.done() and not task.cancelled() and task.exception() is None:
                    task.result().close()
                else:
                    task.cancel()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _process(self, replica_id: str) -> _Process:
        if replica_id not in self._processes:
            raise NotFoundError(f"replica {replica_id!r} has gone", reason="REPLICA_NOT_FOUND")
        return self._processes[replica_id]

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
        for process in list(self._processes.values()):
            if process.pid == pid:
                self._ended(process, code)

    def _process_ended(self, process: _Process) -> None:
        """The kernel says so. The exit code comes from the zygote, unless that has died."""
        asyncio.get_running_loop().remove_reader(process.pidfd)
        asyncio.get_running_loop().call_later(0.2, self._ended, process, None)

    def _ended(self, process: _Process, code: int | None) -> None:
        if process.ended.is_set():
            return
        if process.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        self._end_group(process)
        self._vacate(process)
        process.ended.set()
        self._events.exited(process.replica_id, code)
        if code not in (0, EXIT_START_FAILED):
            self._spawn(self._check(process.device_id))

    def _end_group(self, process: _Process) -> None:
        """Processes that the user's code started would go on in a lane that is no longer theirs."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # there are none

    def _vacate(self, process: _Process) -> None:
        del self._processes[process.replica_id]
        device_id, lane = process.device_id, process.lane
        self._tables[device_id].free(process.slot)
        if not any((other.device_id, other.lane) == (device_id, lane) for other in self._processes.values()):
            self._spawn(self._keepers[device_id].close_lane(lane))


def _kill(process: _Process) -> None:
    if process.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)


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
