"""Keeps the replicas that each function should have: starts, replaces, sizes, drains and ends them.

It stands between the router (who calls for replicas) and the node agents (who make them). A function that a scaler governs
has the replicas which that adds and retires. Of any other the wanted number is what an operator set, else the least of the
function's `replicas`, else one from the first call on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
from google.rpc import status_pb2

from hasfaas.backends.bench import Bench
from hasfaas.backends.member import Deployed, Member
from hasfaas.backends.nodes import NodeLostError, Nodes, Replica
from hasfaas.backends.shown import device_views, replica_view
from hasfaas.backends.starts import Starts, SupersededError, want_of
from hasfaas.core.errors import (
    BackendError,
    ConflictError,
    HasFaasError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
    PlacementError,
)
from hasfaas.core.signing import load_or_create_key, sign, verify
from hasfaas.core.state import ReplicaState, move
from hasfaas.executor.config import EXIT_DEVICE_FAILED
from hasfaas.node.lanes import Want
from hasfaas.serving.channel import ChannelEvents
from hasfaas.serving.ports import DeviceView, FunctionRecord, ReplicaView, Sizing, Store
from hasfaas.serving.router import Router
from hasfaas.wire.frames import Measured, RawPayload, Started
from hasfaas.wire.status import from_status

log = logging.getLogger("hasfaas.fleet")


class Fleet:
    """Control (serving/ports.py) over the nodes that there are."""

    def __init__(
        self,
        store: Store,
        *,
        max_queue: int,
        key_path: Path,
        start_timeout_s: float,
        drain_timeout_s: float,
        make_nodes: Callable[[Callable[[str, float], None], Callable[[Replica], None]], Nodes],
        observed: Callable[[FunctionRecord, Replica, Sequence[tuple[int, int]]], None] | None = None,
    ) -> None:
        """`observed` is told (batch, hold in nanoseconds) of what a replica has served, about once a second."""
        self._store = store
        self._key_path = key_path
        self._drain_timeout_s = drain_timeout_s
        self._functions: dict[str, Deployed] = {}
        # All that live; those of deleted functions too, while they finish.
        self._members: dict[str, Member] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._stopping = False
        self._observed = observed or (lambda _record, _process, _holds: None)
        self._governs: Callable[[FunctionRecord], bool] = lambda _record: False
        self._ask: Callable[[str], None] = lambda _name: None
        self.router = Router(max_queue=max_queue, demand=self.need, now_s=time.monotonic)
        self.nodes = make_nodes(self._resized, self._exited)
        self.nodes.on_join = self._look_again
        self.router.why_none = self._why_none
        self._starts = Starts(
            store, self.nodes, self.router, self._functions, self._members, start_timeout_s, self._events, self._retire
        )

    async def start(self) -> None:
        """Starts the nodes and takes over what the store remembers. Replicas start with the first call, or now where the
        function has a least number of them."""
        await self.nodes.start()
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
        await self.nodes.stop()

    # -- Control -----------------------------------------------------------------------------------------------------

    def verify(self, bundle: bytes, signature: bytes) -> None:
        verify(load_or_create_key(self._key_path), bundle, signature)

    def sign(self, bundle: bytes) -> bytes:
        return sign(load_or_create_key(self._key_path), bundle)

    async def deploy(self, record: FunctionRecord, *, warm: bool) -> None:
        path = self._store.bundle_path(record.bundle_sha256)
        self.verify(path.read_bytes(), record.signature)
        differences = await self.nodes.check_bundle(record.python, record.packages, path)
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
        self.nodes.close_nurseries(record.name, keep_version=record.version)
        self._ensure(record.name)

    def _undo_deploy(self, deployed: Deployed, before: FunctionRecord | None) -> None:
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
                self.nodes.kill(member.process.replica_id)
            await asyncio.gather(*(self._retire(member) for member in list(deployed.members.values())))
            self.nodes.close_nurseries(name)

    async def scale(self, record: FunctionRecord, change: Sizing) -> float:
        deployed = self._functions[record.name]
        sizing = attrs.evolve(record.sizing, **{k: v for k, v in attrs.asdict(change).items() if v is not None})
        _check_sizing(record, sizing)
        began_s = time.monotonic()
        live = [m for m in deployed.members.values() if m.live]
        reshaped = [m for m in live if change.sm_percent is not None and m.want.sm_percent != change.sm_percent]
        kept = [m for m in live if m not in reshaped]
        count = len(live) if change.replicas is None else change.replicas
        if reshaped or count > len(live):
            # Before anything is touched: a size that cannot be had costs nobody a replica.
            self._starts.check_room(
                want_of(attrs.evolve(record, sizing=sizing)), count, kept, deployed, change.quota_percent
            )
        applied_ms = 0.0
        if sizing.sized:
            self._lift_caps(live)
        if change.quota_percent is not None and kept:
            self.nodes.check_resizes({m.process.replica_id: change.quota_percent for m in kept})
            for member in kept:
                self.nodes.resize(member.process.replica_id, change.quota_percent)
                member.want = attrs.evolve(member.want, quota_percent=change.quota_percent)
            await self._until_in_force(kept)
            applied_ms = (time.monotonic() - began_s) * 1000.0
        if change.lend is not None:
            for member in kept:
                self.nodes.lend(member.process.replica_id, change.lend)
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
        await self._store.commit(lambda: self._store.resize(record.name, sizing))
        if reshaped or change.replicas is not None:
            applied_ms = (time.monotonic() - began_s) * 1000.0
        return applied_ms

    async def release(self, record: FunctionRecord) -> float:
        began_s = time.monotonic()
        deployed = self._functions[record.name]
        sizing = Sizing(lend=record.sizing.lend)
        await self._store.commit(lambda: self._store.resize(record.name, sizing))
        deployed.record = attrs.evolve(deployed.record, sizing=sizing)
        if not self._governs(deployed.record):
            kept = [member for member in deployed.members.values() if member.live]
            for member in kept:
                self.nodes.unpin(member.process.replica_id)
                member.want = attrs.evolve(member.want, quota_percent=None)
            await self._until_in_force(kept)
        self._ensure(record.name)
        return (time.monotonic() - began_s) * 1000.0

    def _lift_caps(self, members: Iterable[Member]) -> None:
        """Batches are the function's own again: no scaler looks after it any more."""
        for member in members:
            member.batch = None
            self.router.rebatch(member.process.replica_id, None)

    async def _until_in_force(self, members: Sequence[Member]) -> None:
        """Waits, a second at most, until each replica has acted on its new quota. Later it still will, at its next gate:
        code without gates answers when its invocation ends."""
        give_up_s = time.monotonic() + 1.0
        while time.monotonic() < give_up_s:
            if all(self.nodes.in_force(m.process.replica_id) for m in members):
                return
            await asyncio.sleep(0.0005)

    def replicas(self, name: str) -> Sequence[ReplicaView]:
        deployed = self._functions.get(name)
        if deployed is None:
            return []
        benches = [m for m in self._members.values() if m.bench is not None and m.deployed is deployed]
        members = (*deployed.members.values(), *benches)
        return [replica_view(self.nodes, m) for m in members if m.process.replica_id in self.nodes.replicas]

    def devices(self) -> Sequence[DeviceView]:
        return device_views(self.nodes)

    async def bring_logs(self, name: str) -> None:
        deployed = self._functions.get(name)
        await self.nodes.bring_logs([replica_id for replica_id, _ in deployed.logs] if deployed else [])

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
        if deployed is None or not self._starts.is_current(deployed, record):
            raise ConflictError(f"{record.name}: deployed anew, or deleted, while it was measured; profile it again")
        bench = Bench()
        start = asyncio.ensure_future(self._starts.with_room(deployed, want, record, bench))
        try:
            await asyncio.shield(start)
            yield bench
        finally:
            await asyncio.shield(self._spawn(self._end_bench(start, bench)))

    async def _end_bench(self, start: asyncio.Future[Member], bench: Bench) -> None:
        """Kills the replica: it holds nothing that anybody waits for. A start that was left half-way is waited for, since
        only then there is a process to be ended."""
        await asyncio.wait({start})
        for member in [m for m in self._members.values() if m.bench is bench]:
            if member.live:
                member.state = move(member.state, ReplicaState.DRAINING)
            self.nodes.kill(member.process.replica_id)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.process.ended.wait(), 5.0)

    def serves(self, record: FunctionRecord) -> bool:
        """Whether this version of the function is the one that serves."""
        return record.name in self._functions and self._starts.is_current(self._functions[record.name], record)

    def resize_bench(self, bench: Bench, quota_percent: float) -> None:
        """Another quota, in place, in force with its next run. PlacementError when the lane has not that much."""
        self.nodes.resize(bench.replica_id, quota_percent)

    # -- under a scaler ----------------------------------------------------------------------------------------------

    def govern(self, governs: Callable[[FunctionRecord], bool], ask: Callable[[str], None]) -> None:
        """From now on a scaler adds and retires the replicas of those functions for which `governs`. `ask` tells it that
        one needs it now: its calls wait and none serves, or one has died."""
        self._governs, self._ask = governs, ask

    def functions(self) -> Sequence[Deployed]:
        """All that are deployed."""
        return tuple(self._functions.values())

    def member(self, replica_id: str) -> Member | None:
        """A replica; None before its process was forked, and after it ended."""
        return self._members.get(replica_id)

    def add(self, name: str, want: Want, batch: int, refused: Callable[[str], None]) -> None:
        """Starts a replica there and nowhere else, in batches of up to `batch`. `refused` is told why it came to nothing."""
        deployed = self._functions.get(name)
        if deployed is None or self._stopping:
            refused(f"{name} is not deployed any more")
        elif deployed.failure is not None and time.monotonic() < deployed.retry_at_s:
            refused(f"its last start failed, the next one waits: {deployed.failure}")
        else:
            self._spawn(self._add(deployed, self._starts.there(deployed, want, batch), refused))

    async def _add(self, deployed: Deployed, start: Awaitable[Member], refused: Callable[[str], None]) -> None:
        name = deployed.record.name
        try:
            await start
        except (PlacementError, SupersededError, NodeLostError) as exc:
            # The scaler sees at its next tick what there is; calls that wait do not wait for it to find another place.
            refused(str(exc))
            self.rescue(name)
        except HasFaasError as exc:
            log.warning("%s: no replica: %s", name, exc)
            refused(str(exc))
            if not deployed.serves():
                self.router.fail_waiting(name, exc)

    def resize(self, replica_id: str, quota_percent: float, *, lend: bool) -> None:
        """Another quota, in place, and whether idle time is lent. PlacementError when its lane has not that much,
        NotFoundError for one that has gone."""
        self.nodes.resize(replica_id, quota_percent)
        if (member := self._members.get(replica_id)) is not None:
            if member.want.lend != lend:
                self.nodes.lend(replica_id, lend)
            member.want = attrs.evolve(member.want, quota_percent=quota_percent, lend=lend)

    def rebatch(self, replica_id: str, batch: int) -> None:
        """Another greatest batch. NotFoundError for a replica that has gone, or is only just being forked."""
        member = self._members.get(replica_id)
        if member is None:
            raise NotFoundError(f"replica {replica_id!r} has gone, or is being forked", reason="REPLICA_NOT_FOUND")
        member.batch = batch
        self.router.rebatch(replica_id, batch)

    def retire(self, replica_id: str) -> None:
        """Sends a replica nothing more, and ends it once it has answered what it holds. NotFoundError as for `rebatch`."""
        member = self._members.get(replica_id)
        if member is None:
            raise NotFoundError(f"replica {replica_id!r} has gone, or is being forked", reason="REPLICA_NOT_FOUND")
        self._spawn(self._retire(member))

    def settle(self, name: str) -> None:
        """What there is now is what is wanted, should no scaler govern the function any more."""
        if (deployed := self._functions.get(name)) is not None:
            ready = sum(1 for m in deployed.members.values() if m.state is ReplicaState.READY)
            deployed.wanted = max(ready + deployed.starting, deployed.record.spec.min_replicas)

    # -- demand ------------------------------------------------------------------------------------------------------

    def need(self, name: str) -> None:
        """Calls wait and nobody serves: a scaler is asked, or a replica started, or who waits is told why none can be had."""
        deployed = self._functions.get(name)
        if deployed is None or deployed.starting or self._stopping:
            return
        if self._failed_lately(deployed):
            return
        deployed.wanted = max(1, deployed.wanted)
        self._ensure(name)

    def lacks(self, name: str) -> bool:
        """Whether calls wait and no replica serves or starts."""
        deployed = self._functions.get(name)
        if deployed is None or self._stopping or deployed.starting or deployed.serves():
            return False
        return self.router.depth(name) > 0

    def rescue(self, name: str) -> None:
        """After a scaler has decided: where calls still wait and no replica is to come, one starts as if there were none."""
        deployed = self._functions.get(name)
        if deployed is not None and self.lacks(name) and not self._failed_lately(deployed):
            deployed.wanted = 1
            self._spawn(self._start_quietly(deployed, self._starts.one(deployed)))

    def _failed_lately(self, deployed: Deployed) -> bool:
        """Whether it is too early to try again; then what waits is told why."""
        early = deployed.failure is not None and time.monotonic() < deployed.retry_at_s
        if early and deployed.failure is not None:
            self.router.fail_waiting(deployed.record.name, deployed.failure)
        return early

    def _ensure(self, name: str) -> None:
        """Starts what is missing of the wanted number; of a function that a scaler governs that one is asked."""
        deployed = self._functions.get(name)
        if deployed is None or self._stopping:
            return
        if self._governs(deployed.record):
            self._ask(name)
            return
        live = sum(1 for m in deployed.members.values() if m.state is ReplicaState.READY)
        for _ in range(deployed.wanted - live - deployed.starting):
            self._spawn(self._start_quietly(deployed, self._starts.one(deployed)))

    async def _start_quietly(self, deployed: Deployed, start: Awaitable[Member]) -> None:
        name = deployed.record.name
        try:
            await start
        except (SupersededError, NodeLostError):
            self._ensure(name)
        except HasFaasError as exc:
            log.warning("%s: no replica: %s", name, exc)
            if not deployed.serves() and not self._waits_for_room(deployed, exc):
                self.router.fail_waiting(name, exc)

    def _waits_for_room(self, deployed: Deployed, why: HasFaasError) -> bool:
        """Whether the calls of a function that has no room may wait for nodes that are yet to come."""
        now_s = time.monotonic()
        if not isinstance(why, PlacementError):
            deployed.short_since_s = None
            return False
        if deployed.short_since_s is None:
            deployed.short_since_s = now_s
        return now_s - deployed.short_since_s < self.nodes.patience_s(want_of(deployed.record))

    def tend(self) -> None:
        """About once a second: who waits for room tries again, and the nodes are told for what there is none."""
        short = [d for name, d in self._functions.items() if d.short_since_s is not None and self.lacks(name)]
        for deployed in self._functions.values():
            if deployed not in short and not deployed.starting:
                deployed.short_since_s = None
        self.nodes.lacks([want_of(deployed.record) for deployed in short])
        for deployed in short:
            self.rescue(deployed.record.name)

    def _why_none(self, name: str) -> str:
        deployed = self._functions.get(name)
        return "" if deployed is None or deployed.failure is None else deployed.failure.message

    def _look_again(self) -> None:
        """There are more devices: who waits, and who wants a least number of replicas, may have them now. Who can be on few
        comes first: others have a choice."""
        for deployed in sorted(self._functions.values(), key=lambda each: each.record.spec.device == "auto"):
            name = deployed.record.name
            if deployed.record.spec.min_replicas or deployed.wanted:
                self._ensure(name)
            self.rescue(name)

    async def _warm(self, deployed: Deployed) -> None:
        """At least one ready replica of the current version, or what keeps it from starting."""
        version = deployed.record.version
        if not any(m.state is ReplicaState.READY and m.record.version == version for m in deployed.members.values()):
            deployed.wanted = max(1, deployed.wanted)
            while True:
                try:
                    await self._starts.one(deployed)
                    return
                except NodeLostError as exc:
                    log.warning("%s: %s; starting another", deployed.record.name, exc)

    # -- events ------------------------------------------------------------------------------------------------------

    def _events(self, member: Member) -> ChannelEvents:
        return _Events(self, member)

    def became_ready(self, member: Member, started: Started) -> None:
        """The replica has loaded its function."""
        member.started = started
        if member.state is not ReplicaState.STARTING or member.channel is None:
            return
        if not self._starts.is_current(member.deployed, member.record):
            self._spawn(self._retire(member))
        elif member.bench is not None:
            member.state = move(member.state, ReplicaState.READY)
            member.bench.channel = member.channel
            member.ready.set_result(None)
        else:
            member.state = move(member.state, ReplicaState.READY)
            member.deployed.started(time.monotonic() - member.process.asked_s)
            quota = self.nodes.quota_percent(member.process.replica_id)
            self.router.attach(member.record.name, member.process.replica_id, member.channel, quota, member.batch)
            if not member.ready.done():
                member.ready.set_result(None)

    def start_failed(self, member: Member, status: bytes) -> None:
        """The replica could not load or build its function; its process ends by itself."""
        if member.state is ReplicaState.STARTING:
            member.state = move(member.state, ReplicaState.FAILED)
            if not member.ready.done():
                member.ready.set_exception(from_status(status_pb2.Status.FromString(status)))

    def channel_lost(self, member: Member) -> None:
        """The replica's socket closed: it died, or ended as told. What it held is settled once it is known how."""
        self.router.hold(member.process.replica_id)
        self.nodes.kill(member.process.replica_id)

    def observed(self, member: Member, holds: Sequence[tuple[int, int]]) -> None:
        """What a replica's executions have held its lane."""
        self._observed(member.record, member.process, holds)

    def _exited(self, process: Replica) -> None:
        name = process.request.function
        member = self._members.pop(process.replica_id, None)
        how = "ended" if process.exit_code == 0 else f"died ({process.lost or _cause(process.exit_code)})"
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
            self._starts.bench_left.set()
        if not member.ready.done():
            told = f"{name}: a replica {how} while it was starting"
            dead = BackendError(f"{told}; the end of its log:\n{_tail(process.log)}")
            member.ready.set_exception(NodeLostError(told) if process.lost else dead)
        elif not expected and member.bench is None:
            log.warning("%s: replica %s %s; starting another", name, process.replica_id, how)
            self._ensure(name)

    def _resized(self, replica_id: str, quota_percent: float) -> None:
        self.router.requota(replica_id, quota_percent)

    # -- ending ------------------------------------------------------------------------------------------------------

    async def _retire(self, member: Member) -> None:
        """Drain: send nothing more, wait for what it has, end it."""
        if not member.live:
            return
        member.state = move(member.state, ReplicaState.DRAINING)
        replica_id = member.process.replica_id
        await self.router.drain(replica_id, self._drain_timeout_s)
        if member.channel is not None:
            member.channel.shutdown()
        try:
            await asyncio.wait_for(member.process.ended.wait(), 5.0)
        except TimeoutError:
            self.nodes.kill(replica_id)

    async def _resize_fleet(self, deployed: Deployed, count: int | None) -> None:
        if count is None:
            return
        deployed.wanted = count
        live = [m for m in deployed.members.values() if m.state is ReplicaState.READY]
        missing = count - len(live) - deployed.starting
        if missing > 0:
            outcomes = await asyncio.gather(
                *(self._starts.one(deployed) for _ in range(missing)), return_exceptions=True
            )
            failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if failed:
                # All or nothing: those that did start go again.
                deployed.wanted = len(live)
                started = [outcome for outcome in outcomes if isinstance(outcome, Member)]
                await asyncio.gather(*(self._retire(member) for member in started))
                raise failed[0]
        # The youngest go first: the oldest have the warmest caches.
        await asyncio.gather(*(self._retire(member) for member in live[count:]))

    async def _reshape(self, deployed: Deployed, member: Member) -> None:
        """Another SM share is another process. Make before break; where both do not fit, break before make, and back to
        the old shape when the new one cannot be had."""
        try:
            await self._starts.one(deployed)
            await self._retire(member)
        except PlacementError:
            await self._retire(member)
            try:
                await self._starts.one(deployed)
            except HasFaasError:
                await self._starts.one(deployed, member.want)
                raise

    def _adopt(self, record: FunctionRecord) -> Deployed:
        wanted = record.sizing.replicas if record.sizing.replicas is not None else record.spec.min_replicas
        deployed = Deployed(record, wanted)
        self._functions[record.name] = deployed
        self.router.set_function(record.name, record.spec, streams=record.kind.streams)
        return deployed

    def _forget(self, name: str) -> None:
        del self._functions[name]
        self.router.drop_function(name, NotFoundError(f"function {name!r} was deleted while the call waited"))

    def _spawn(self, work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Events:
    """One channel's events, with whose they are."""

    def __init__(self, fleet: Fleet, member: Member) -> None:
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


def _cause(code: int | None) -> str:
    if code is None:
        return "its exit code is unknown"
    if code == EXIT_DEVICE_FAILED:
        return "its device failed; `hasfaas logs` has the error"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-2000:]
    except OSError:
        return ""
