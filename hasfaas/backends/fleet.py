"""Keeps the replicas that each function should have: starts, replaces, sizes, drains and ends them.

It stands between the router (who calls for replicas) and a node agent (who makes them). Until a scaler decides, the wanted
number is what an operator set, else the least of the function's `replicas`, else one from the first call on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
from google.rpc import status_pb2

from hasfaas.core.errors import (
    BackendError,
    ConflictError,
    HasFaasError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
    PlacementError,
    UnavailableError,
)
from hasfaas.core.signing import load_or_create_key, verify
from hasfaas.core.state import ReplicaState, move
from hasfaas.node.agent import NodeAgent, Replica, ReplicaRequest
from hasfaas.node.lanes import Want
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.serving.ports import DeviceView, FunctionRecord, LaneView, ReplicaView, Sizing, Store
from hasfaas.serving.router import Router
from hasfaas.wire.frames import Measure, Measured, RawPayload
from hasfaas.wire.status import from_status

log = logging.getLogger("hasfaas.fleet")
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
KEPT_LOGS = 20


@attrs.define(eq=False)
class _Member:
    """A replica, from its start to its end."""

    deployed: _Deployed
    record: FunctionRecord
    want: Want
    process: Replica
    ready: asyncio.Future[None]
    state: ReplicaState = ReplicaState.STARTING
    channel: ReplicaChannel | None = None
    # Serves no calls: it was started to be measured.
    bench: Bench | None = None


@attrs.define(eq=False)
class _Deployed:
    record: FunctionRecord
    wanted: int
    members: dict[str, _Member] = attrs.field(factory=dict)
    starting: int = 0
    failures: int = 0
    failure: HasFaasError | None = None
    retry_at_s: float = 0.0
    logs: list[tuple[str, Path]] = attrs.field(factory=list)


@attrs.define(eq=False)
class Bench:
    """A replica that serves no calls, where a function is measured. Only whoever has started it ends it."""

    replica_id: str = ""
    sm_percent: float = 0.0
    channel: ReplicaChannel | None = None
    asked: dict[int, asyncio.Future[Measured]] = attrs.field(factory=dict)
    ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    lost: str = ""

    async def measure(self, measure: Measure) -> Measured:
        """The figures of one point. UnavailableError when the replica dies; what the user's code raises."""
        if self.channel is None or self.lost:
            raise self._gone()
        number = next(self.ids)
        answer: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
        self.asked[number] = answer
        self.channel.measure(number, measure)
        try:
            return await answer
        finally:
            del self.asked[number]

    def measured(self, call_id: int, measured: Measured) -> None:
        """The replica's answer."""
        answer = self.asked.get(call_id)
        if answer is not None and not answer.done():
            answer.set_result(measured)

    def failed(self, call_id: int, status: bytes) -> None:
        """The replica's refusal, or what the user's code raised."""
        answer = self.asked.get(call_id)
        if answer is not None and not answer.done():
            answer.set_exception(from_status(status_pb2.Status.FromString(status)))

    def died(self, how: str) -> None:
        """Its process has ended; who waits for figures is told."""
        self.lost = how
        for answer in self.asked.values():
            if not answer.done():
                answer.set_exception(self._gone())

    def _gone(self) -> UnavailableError:
        how = self.lost or "never started"
        return UnavailableError(
            f"the replica {self.replica_id} {how} while it was measured; `hasfaas logs` shows what it wrote, and "
            "`hasfaas profile` measures anew",
            reason="EXECUTOR_CRASHED",
        )


class _SupersededError(ConflictError):
    """A start came to nothing since its version is no longer the one that serves."""


class Fleet:
    """Control (serving/ports.py) over one node agent."""

    def __init__(
        self,
        store: Store,
        *,
        max_queue: int,
        key_path: Path,
        start_timeout_s: float,
        drain_timeout_s: float,
        make_agent: Callable[[Callable[[str, float], None], Callable[[Replica], None]], NodeAgent],
        observed: Callable[[FunctionRecord, Replica, Sequence[tuple[int, int]]], None] | None = None,
    ) -> None:
        """`observed` is told (batch, hold in nanoseconds) of what a replica has served, about once a second."""
        self._store = store
        self._key_path = key_path
        self._start_timeout_s = start_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._functions: dict[str, _Deployed] = {}
        # All that live; those of deleted functions too, while they finish.
        self._members: dict[str, _Member] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._stopping = False
        self._observed = observed or (lambda _record, _process, _holds: None)
        # Set whenever a replica that was measured has gone: starts that found no room beside it try again.
        self._bench_left = asyncio.Event()
        self.router = Router(max_queue=max_queue, demand=self.need, now_s=time.monotonic)
        self.agent = make_agent(self._resized, self._exited)

    async def start(self) -> None:
        """Starts the agent and takes over what the store remembers. Replicas start with the first call, or now where the
        function has a least number of them."""
        self.agent.start()
        for record in self._store.all():
            self._adopt(record)
            if record.spec.min_replicas:
                self._ensure(record.name)

    async def stop(self) -> None:
        """Drains every replica, then ends them all."""
        self._stopping = True
        await asyncio.gather(*(self._retire(member) for member in list(self._members.values())), return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await self.agent.stop()

    # -- Control -----------------------------------------------------------------------------------------------------

    def verify(self, bundle: bytes, signature: bytes) -> None:
        verify(load_or_create_key(self._key_path), bundle, signature)

    async def deploy(self, record: FunctionRecord, *, warm: bool) -> None:
        path = self._store.bundle_path(record.bundle_sha256)
        self.verify(path.read_bytes(), record.signature)
        differences = await self.agent.check(record.python, record.packages, path)
        if differences:
            lines = "".join(f"\n  - {line}" for line in differences)
            raise IncompatibleError(f"{record.name} cannot be loaded by {record.python}:{lines}")
        known = self._functions.get(record.name)
        before = known.record if known else None
        deployed = known or self._adopt(record)
        old = [m for m in deployed.members.values() if m.record.version != record.version]
        deployed.record = record
        deployed.failure, deployed.failures, deployed.retry_at_s = None, 0, 0.0
        self.router.set_function(record.name, record.spec, streams=record.kind.streams)
        try:
            if warm or old:
                await self._warm(deployed)
        except HasFaasError:
            self._undo_deploy(deployed, before)
            raise
        await asyncio.gather(*(self._retire(member) for member in old))
        self.agent.close_nurseries(record.name, keep_version=record.version)
        self._ensure(record.name)

    def _undo_deploy(self, deployed: _Deployed, before: FunctionRecord | None) -> None:
        """What cannot start is not left as deployed, and what was deployed before still is."""
        name = deployed.record.name
        if self._functions.get(name) is not deployed:
            return  # deleted meanwhile
        if before is None:
            self._forget(name)
        else:
            deployed.record, deployed.failure = before, None
            self.router.set_function(name, before.spec, streams=before.kind.streams)

    async def delete(self, name: str) -> None:
        deployed = self._functions.get(name)
        if deployed is not None:
            self._forget(name)
            for member in [m for m in self._members.values() if m.bench is not None and m.deployed is deployed]:
                self.agent.kill(member.process.replica_id)
            await asyncio.gather(*(self._retire(member) for member in list(deployed.members.values())))
            self.agent.close_nurseries(name)

    async def scale(self, record: FunctionRecord, change: Sizing) -> float:
        deployed = self._functions[record.name]
        sizing = attrs.evolve(record.sizing, **{k: v for k, v in attrs.asdict(change).items() if v is not None})
        _check_sizing(record, sizing)
        began_s = time.monotonic()
        live = [m for m in deployed.members.values() if m.state in (ReplicaState.STARTING, ReplicaState.READY)]
        reshaped = [m for m in live if change.sm_percent is not None and m.want.sm_percent != change.sm_percent]
        kept = [m for m in live if m not in reshaped]
        applied_ms = 0.0
        if change.quota_percent is not None and kept:
            self.agent.check_resizes({m.process.replica_id: change.quota_percent for m in kept})
            for member in kept:
                self.agent.resize(member.process.replica_id, change.quota_percent)
                member.want = attrs.evolve(member.want, quota_percent=change.quota_percent)
            await self._until_in_force(kept)
            applied_ms = (time.monotonic() - began_s) * 1000.0
        if change.lend is not None:
            for member in kept:
                self.agent.lend(member.process.replica_id, change.lend)
                member.want = attrs.evolve(member.want, lend=change.lend)
        before = deployed.record
        deployed.record = attrs.evolve(before, sizing=sizing)
        try:
            for member in reshaped:
                await self._reshape(deployed, member)
            await self._resize_fleet(deployed, change.replicas)
        except HasFaasError:
            deployed.record = before
            raise
        self._store.resize(record.name, sizing)
        if reshaped or change.replicas is not None:
            applied_ms = (time.monotonic() - began_s) * 1000.0
        return applied_ms

    async def _until_in_force(self, members: Sequence[_Member]) -> None:
        """Waits, a second at most, until each replica has acted on its new quota. Later it still will, at its next gate:
        code without gates answers when its invocation ends."""
        give_up_s = time.monotonic() + 1.0
        while time.monotonic() < give_up_s:
            if all(self.agent.in_force(m.process.replica_id) for m in members):
                return
            await asyncio.sleep(0.0005)

    def replicas(self, name: str) -> Sequence[ReplicaView]:
        deployed = self._functions.get(name)
        if deployed is None:
            return []
        benches = [m for m in self._members.values() if m.bench is not None and m.deployed is deployed]
        members = (*deployed.members.values(), *benches)
        return [self._view(m) for m in members if m.process.replica_id in self.agent.replicas]

    def devices(self) -> Sequence[DeviceView]:
        lanes = self.agent.lanes()
        views = []
        for device in self.agent.devices.values():
            mine = [lane for lane in lanes if lane.device_id == device.device_id]
            units = len(device.units)
            views.append(
                DeviceView(
                    device_id=device.device_id,
                    kind=device.kind,
                    units=units,
                    memory_bytes=device.memory_bytes,
                    memory_used_bytes=sum(s.memory_bytes for lane in mine for s in lane.seats),
                    lanes=tuple(LaneView(x.lane, x.units, 100.0 * len(x.units) / units, x.quota_percent) for x in mine),
                    occupancy=sum(len(x.units) / units * x.quota_percent / 100.0 for x in mine),
                )
            )
        return views

    def logs(self, name: str) -> Sequence[tuple[str, Path]]:
        deployed = self._functions.get(name)
        return list(deployed.logs) if deployed else []

    # -- measuring ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def bench(self, record: FunctionRecord, want: Want) -> AsyncIterator[Bench]:
        """A replica of the function for the time of the block, outside of the routing set. Idle replicas that nobody asked
        to keep make room for it, the function's own too.

        Raises PlacementError where it still has none, ConflictError for a version that no longer serves, and what keeps
        the replica from starting.
        """
        deployed = self._functions.get(record.name)
        if deployed is None or not self._is_current(deployed, record):
            raise ConflictError(f"{record.name}: deployed anew, or deleted, while it was measured; profile it again")
        bench = Bench()
        start = asyncio.ensure_future(self._launch_with_room(deployed, want, record, bench))
        try:
            await asyncio.shield(start)
            yield bench
        finally:
            await asyncio.shield(self._spawn(self._end_bench(start, bench)))

    async def _end_bench(self, start: asyncio.Future[_Member], bench: Bench) -> None:
        """Kills the replica: it holds nothing that anybody waits for. A start that was left half-way is waited for, since
        only then there is a process to be ended."""
        await asyncio.wait({start})
        for member in [m for m in self._members.values() if m.bench is bench]:
            if member.state in (ReplicaState.STARTING, ReplicaState.READY):
                member.state = move(member.state, ReplicaState.DRAINING)
            self.agent.kill(member.process.replica_id)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.process.ended.wait(), 5.0)

    def serves(self, record: FunctionRecord) -> bool:
        """Whether this version of the function is the one that serves."""
        return record.name in self._functions and self._is_current(self._functions[record.name], record)

    def resize_bench(self, bench: Bench, quota_percent: float) -> None:
        """Another quota, in place, in force with its next run. PlacementError when the lane has not that much."""
        self.agent.resize(bench.replica_id, quota_percent)

    # -- demand ------------------------------------------------------------------------------------------------------

    def need(self, name: str) -> None:
        """Calls wait and nobody serves: starts a replica, or says at once why none can be had."""
        deployed = self._functions.get(name)
        if deployed is None or deployed.starting or self._stopping:
            return
        if deployed.failure is not None and time.monotonic() < deployed.retry_at_s:
            self.router.fail_waiting(name, deployed.failure)
            return
        deployed.wanted = max(1, deployed.wanted)
        self._ensure(name)

    def _ensure(self, name: str) -> None:
        """Starts what is missing of the wanted number."""
        deployed = self._functions.get(name)
        if deployed is None or self._stopping:
            return
        live = sum(1 for m in deployed.members.values() if m.state is ReplicaState.READY)
        for _ in range(deployed.wanted - live - deployed.starting):
            self._spawn(self._start_quietly(deployed, self._start_member(deployed)))

    async def _start_quietly(self, deployed: _Deployed, start: Awaitable[_Member]) -> None:
        name = deployed.record.name
        try:
            await start
        except _SupersededError:
            self._ensure(name)
        except HasFaasError as exc:
            log.warning("%s: no replica: %s", name, exc)
            if not any(m.state is ReplicaState.READY for m in deployed.members.values()):
                self.router.fail_waiting(name, exc)

    async def _warm(self, deployed: _Deployed) -> None:
        """At least one ready replica of the current version, or what keeps it from starting."""
        version = deployed.record.version
        if not any(m.state is ReplicaState.READY and m.record.version == version for m in deployed.members.values()):
            deployed.wanted = max(1, deployed.wanted)
            await self._start_member(deployed)

    def _start_member(self, deployed: _Deployed, want: Want | None = None) -> Awaitable[_Member]:
        """A start that counts from now on, and not only from when it is awaited: who looks meanwhile starts no other."""
        deployed.starting += 1
        return self._started(deployed, want or _want(deployed.record), deployed.record)

    async def _started(self, deployed: _Deployed, want: Want, record: FunctionRecord) -> _Member:
        try:
            member = await self._launch_with_room(deployed, want, record)
            deployed.failure, deployed.failures = None, 0
            return member
        except Exception as cause:
            if not self._is_current(deployed, record):
                why = f"{record.name}: deployed anew, or deleted, while a replica was starting"
                raise _SupersededError(why) from cause
            exc = cause if isinstance(cause, HasFaasError) else _own_failure(deployed, cause)
            deployed.failures += 1
            deployed.failure = exc
            delay_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (deployed.failures - 1))
            if isinstance(exc, PlacementError):
                delay_s = 0.0  # asking again costs nothing, and room may be had at any time
            deployed.retry_at_s = time.monotonic() + delay_s
            raise exc from cause
        finally:
            deployed.starting -= 1

    def _is_current(self, deployed: _Deployed, record: FunctionRecord) -> bool:
        """Whether a replica of `record` may still serve: the name stands for the same function and version."""
        return self._functions.get(record.name) is deployed and deployed.record.version == record.version

    async def _launch_with_room(
        self, deployed: _Deployed, want: Want, record: FunctionRecord, bench: Bench | None = None
    ) -> _Member:
        """Where there is no room, idle replicas that nobody asked to keep make some, the longest idle first. Beside one
        that is measured a start waits until that has gone: it stays for seconds."""
        while True:
            try:
                return await self._launch(deployed, want, record, bench)
            except PlacementError:
                fits = any(want.memory_bytes <= device.memory_bytes for device in self.agent.devices.values())
                idle = self._longest_idle(deployed if bench is None else None) if fits else None
                if idle is None and bench is None and fits and any(m.bench for m in self._members.values()):
                    self._bench_left.clear()
                    await self._bench_left.wait()
                    continue
                if idle is None:
                    raise
                log.info("%s makes room for %s", idle.process.replica_id, record.name)
                idle.deployed.wanted = 0
                await self._retire(idle)

    def _longest_idle(self, besides: _Deployed | None) -> _Member | None:
        """The replica that can go: of another function, which wants none at least and whose number nobody set."""
        candidates = [
            (since_s, number, member)
            for number, member in enumerate(self._members.values())
            if member.deployed is not besides
            and not member.deployed.record.sizing.sized
            and member.deployed.record.spec.min_replicas == 0
            and self.router.depth(member.record.name) == 0
            and (since_s := self.router.idle_since_s(member.process.replica_id)) is not None
        ]
        return min(candidates)[2] if candidates else None

    async def _launch(
        self, deployed: _Deployed, want: Want, record: FunctionRecord, bench: Bench | None = None
    ) -> _Member:
        process = await self.agent.add(
            ReplicaRequest(
                function=record.name,
                version=record.version,
                python=record.python,
                packages=record.packages,
                bundle_path=self._store.bundle_path(record.bundle_sha256),
                signature=record.signature,
                batch_max=record.spec.batch.max_size if record.spec.batch else None,
                want=want,
                share_init=record.spec.share_init,
                idempotent=record.spec.idempotent,
            )
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        member = _Member(deployed, record, want, process, ready, bench=bench)
        self._members[process.replica_id] = member
        if bench is None:
            deployed.members[process.replica_id] = member
        else:
            bench.replica_id, bench.sm_percent = process.replica_id, process.sm_percent
        deployed.logs = [*deployed.logs, (process.replica_id, process.log)][-KEPT_LOGS:]
        member.channel = await ReplicaChannel.open(process.socket, _Events(self, member))
        try:
            await asyncio.wait_for(asyncio.shield(ready), self._start_timeout_s)
        except TimeoutError as exc:
            self.agent.kill(process.replica_id)
            ready.cancel()
            raise BackendError(
                f"{record.name}: a replica was not ready after {self._start_timeout_s:g} s (start_timeout_s); "
                f"see `hasfaas logs {record.name}`"
            ) from exc
        return member

    # -- events ------------------------------------------------------------------------------------------------------

    def became_ready(self, member: _Member) -> None:
        """The replica has loaded its function."""
        if member.state is not ReplicaState.STARTING or member.channel is None:
            return
        if not self._is_current(member.deployed, member.record):
            self._spawn(self._retire(member))
        elif member.bench is not None:
            member.state = move(member.state, ReplicaState.READY)
            member.bench.channel = member.channel
            member.ready.set_result(None)
        else:
            member.state = move(member.state, ReplicaState.READY)
            quota = self.agent.quota_percent(member.process.replica_id)
            self.router.attach(member.record.name, member.process.replica_id, member.channel, quota)
            if not member.ready.done():
                member.ready.set_result(None)

    def start_failed(self, member: _Member, status: bytes) -> None:
        """The replica could not load or build its function; its process ends by itself."""
        if member.state is ReplicaState.STARTING:
            member.state = move(member.state, ReplicaState.FAILED)
            if not member.ready.done():
                member.ready.set_exception(from_status(status_pb2.Status.FromString(status)))

    def channel_lost(self, member: _Member) -> None:
        """The replica's socket closed: it died, or ended as told. What it held is settled once it is known how."""
        self.router.hold(member.process.replica_id)
        self.agent.kill(member.process.replica_id)

    def observed(self, member: _Member, holds: Sequence[tuple[int, int]]) -> None:
        """What a replica's executions have held its lane."""
        self._observed(member.record, member.process, holds)

    def _exited(self, process: Replica) -> None:
        name = process.request.function
        member = self._members.pop(process.replica_id, None)
        how = "ended" if process.exit_code == 0 else f"died ({_cause(process.exit_code)})"
        self.router.detach(process.replica_id, how)
        if member is None:
            return
        member.deployed.members.pop(process.replica_id, None)
        expected = member.state in (ReplicaState.DRAINING, ReplicaState.FAILED)
        if member.channel is not None:
            member.channel.close()
        member.state = move(member.state, ReplicaState.ENDED)
        if member.bench is not None:
            member.bench.died(how)
            self._bench_left.set()
        if not member.ready.done():
            tail = _tail(process.log)
            member.ready.set_exception(
                BackendError(f"{name}: a replica {how} while it was starting; the end of its log:\n{tail}")
            )
        elif not expected and member.bench is None:
            log.warning("%s: replica %s %s; starting another", name, process.replica_id, how)
            self._ensure(name)

    def _resized(self, replica_id: str, quota_percent: float) -> None:
        self.router.requota(replica_id, quota_percent)

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _retire(self, member: _Member) -> None:
        """Drain: send nothing more, wait for what it has, end it."""
        if member.state not in (ReplicaState.STARTING, ReplicaState.READY):
            return
        member.state = move(member.state, ReplicaState.DRAINING)
        replica_id = member.process.replica_id
        await self.router.drain(replica_id, self._drain_timeout_s)
        if member.channel is not None:
            member.channel.shutdown()
        try:
            await asyncio.wait_for(member.process.ended.wait(), 5.0)
        except TimeoutError:
            self.agent.kill(replica_id)

    async def _resize_fleet(self, deployed: _Deployed, count: int | None) -> None:
        if count is None:
            return
        deployed.wanted = count
        live = [m for m in deployed.members.values() if m.state is ReplicaState.READY]
        missing = count - len(live) - deployed.starting
        if missing > 0:
            outcomes = await asyncio.gather(
                *(self._start_member(deployed) for _ in range(missing)), return_exceptions=True
            )
            failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if failed:
                # All or nothing: those that did start go again.
                deployed.wanted = len(live)
                started = [outcome for outcome in outcomes if isinstance(outcome, _Member)]
                await asyncio.gather(*(self._retire(member) for member in started))
                raise failed[0]
        # The youngest go first: the oldest have the warmest caches.
        await asyncio.gather(*(self._retire(member) for member in live[count:]))

    async def _reshape(self, deployed: _Deployed, member: _Member) -> None:
        """Another SM share is another process. Make before break; where both do not fit, break before make, and back to
        the old shape when the new one cannot be had."""
        try:
            await self._start_member(deployed)
            await self._retire(member)
        except PlacementError:
            await self._retire(member)
            try:
                await self._start_member(deployed)
            except HasFaasError:
                await self._start_member(deployed, member.want)
                raise

    def _adopt(self, record: FunctionRecord) -> _Deployed:
        wanted = record.sizing.replicas if record.sizing.replicas is not None else record.spec.min_replicas
        deployed = _Deployed(record, wanted)
        self._functions[record.name] = deployed
        self.router.set_function(record.name, record.spec, streams=record.kind.streams)
        return deployed

    def _forget(self, name: str) -> None:
        del self._functions[name]
        self.router.drop_function(name, NotFoundError(f"function {name!r} was deleted while the call waited"))

    def _view(self, member: _Member) -> ReplicaView:
        process = member.process
        return ReplicaView(
            replica_id=process.replica_id,
            version=member.record.version,
            state=member.state.value if member.bench is None else "profiling",
            device_id=process.device_id,
            lane=process.lane,
            sm_asked_percent=member.want.sm_percent or process.sm_percent,
            sm_granted_percent=process.sm_percent,
            quota_percent=self.agent.quota_percent(process.replica_id),
            memory_bytes=member.want.memory_bytes,
            pid=process.pid,
            usage=self.agent.usage(process.replica_id),
            lends=member.want.lend,
        )

    def _spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Events:
    """One channel's events, with whose they are."""

    def __init__(self, fleet: Fleet, member: _Member) -> None:
        replica_id = member.process.replica_id
        router = fleet.router
        self.ready = partial(fleet.became_ready, member)
        self.failed = partial(fleet.start_failed, member)
        self.lost = partial(fleet.channel_lost, member)
        self.result: Callable[[int, RawPayload], None] = partial(router.on_result, replica_id)
        self.item: Callable[[int, RawPayload], None] = partial(router.on_item, replica_id)
        self.end: Callable[[int], None] = partial(router.on_end, replica_id)
        self.error: Callable[[int, bytes], None] = partial(router.on_error, replica_id)
        self.measured: Callable[[int, Measured], None] = lambda _call_id, _measured: None
        self.observed: Callable[[Sequence[tuple[int, int]]], None] = partial(fleet.observed, member)
        if member.bench is not None:
            self.measured, self.error = member.bench.measured, member.bench.failed


def _want(record: FunctionRecord) -> Want:
    return Want(
        memory_bytes=record.spec.memory_bytes,
        device=record.spec.device,
        sm_percent=record.sizing.sm_percent,
        quota_percent=record.sizing.quota_percent,
        lend=bool(record.sizing.lend),
    )


def _check_sizing(record: FunctionRecord, sizing: Sizing) -> None:
    for name, value in (("quota", sizing.quota_percent), ("sm", sizing.sm_percent)):
        low = 0.0 if name == "quota" else 1.0
        if value is not None and not low <= value <= 100.0:
            raise InvalidRequestError(f"{name}={value:g} is not a percentage from {low:g} to 100", reason="BAD_OPTION")
    if sizing.replicas is not None and sizing.replicas > record.spec.max_replicas:
        raise InvalidRequestError(
            f"replicas={sizing.replicas} is above the function's most, {record.spec.max_replicas}; "
            "deploy it with replicas=(least, most) that allow it",
            reason="BAD_OPTION",
        )


def _own_failure(deployed: _Deployed, cause: Exception) -> BackendError:
    """A bug of ours must not leave calls waiting for a replica that nobody starts."""
    return BackendError(f"{deployed.record.name}: a replica could not be started: {type(cause).__name__}: {cause}")


def _cause(code: int | None) -> str:
    if code is None:
        return "its exit code is unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-2000:]
    except OSError:
        return ""
