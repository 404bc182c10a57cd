"""Starts replicas: where there is room, where some can be made, or at one place alone; and remembers what failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from hasfaas.backends.bench import Bench
from hasfaas.backends.member import Deployed, Member
from hasfaas.backends.nodes import NodeLostError, Nodes
from hasfaas.core.errors import BackendError, ConflictError, HasFaasError, PlacementError
from hasfaas.node.agent import ReplicaRequest
from hasfaas.node.lanes import Want, could_hold
from hasfaas.serving.channel import ChannelEvents
from hasfaas.serving.ports import FunctionRecord, Store
from hasfaas.serving.router import Router

log = logging.getLogger("hasfaas.fleet")
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
KEPT_LOGS = 20


class SupersededError(ConflictError):
    """A start came to nothing since its version is no longer the one that serves."""


class Starts:
    """Starts for one fleet, whose `functions` and `members` it shares."""

    def __init__(
        self,
        store: Store,
        nodes: Nodes,
        router: Router,
        functions: Mapping[str, Deployed],
        members: dict[str, Member],
        timeout_s: float,
        events: Callable[[Member], ChannelEvents],
        retire: Callable[[Member], Awaitable[None]],
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._router = router
        self._functions = functions
        self._members = members
        self._start_timeout_s = timeout_s
        self._events = events
        self._retire = retire
        # Set whenever a replica that was measured has gone: starts that found no room beside it try again.
        self.bench_left = asyncio.Event()

    def one(self, deployed: Deployed, want: Want | None = None) -> Awaitable[Member]:
        """A start that counts from now on, and not only from when it is awaited: who looks meanwhile starts no other."""
        deployed.starting += 1
        wanted = want or want_of(deployed.record)
        return self._started(deployed, deployed.record, self.with_room(deployed, wanted, deployed.record))

    def there(self, deployed: Deployed, want: Want, batch: int) -> Awaitable[Member]:
        """A start at that place alone, for which nobody makes room; in batches of up to `batch`. It counts from now on."""
        deployed.starting += 1
        record = deployed.record
        return self._started(deployed, record, self._launch(deployed, want, record, batch=batch))

    async def _started(self, deployed: Deployed, record: FunctionRecord, launch: Awaitable[Member]) -> Member:
        try:
            member = await launch
            deployed.failure, deployed.failures = None, 0
            return member
        except NodeLostError:
            raise  # no fault of the function's, and no reason to wait
        except Exception as cause:
            if not self.is_current(deployed, record):
                why = f"{record.name}: deployed anew, or deleted, while a replica was starting"
                raise SupersededError(why) from cause
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

    def is_current(self, deployed: Deployed, record: FunctionRecord) -> bool:
        """Whether a replica of `record` may still serve: the name stands for the same function and version."""
        return self._functions.get(record.name) is deployed and deployed.record.version == record.version

    async def with_room(
        self, deployed: Deployed, want: Want, record: FunctionRecord, bench: Bench | None = None
    ) -> Member:
        """Where there is no room, idle replicas that nobody asked to keep make some, the longest idle first. Beside one
        that is measured a start waits until that has gone: it stays for seconds."""
        while True:
            try:
                return await self._launch(deployed, want, record, bench)
            except PlacementError:
                fits = could_hold(want, self._nodes.devices.values())
                idle = self._longest_idle(deployed if bench is None else None) if fits else None
                if idle is None and bench is None and fits and any(m.bench for m in self._members.values()):
                    self.bench_left.clear()
                    await self.bench_left.wait()
                    continue
                if idle is None:
                    raise
                log.info("%s makes room for %s", idle.process.replica_id, record.name)
                idle.deployed.wanted = 0
                await self._retire(idle)

    def check_room(
        self, want: Want, count: int, kept: Sequence[Member], deployed: Deployed, quota_percent: float | None
    ) -> None:
        """Raises PlacementError unless `count` replicas of the function could be had at once: those `kept`, at this quota if
        one is given, and new ones of this shape in place of its others and of whoever makes room. Changes nothing."""
        leaving = {m.process.replica_id for m in deployed.members.values()} | {
            member.process.replica_id for _, _, member in self._idle(deployed)
        }
        staying = {m.process.replica_id: quota_percent for m in kept}
        self._nodes.check_room([want] * (count - len(kept)), leaving - set(staying), staying)

    def _longest_idle(self, besides: Deployed | None) -> Member | None:
        candidates = self._idle(besides)
        return min(candidates)[2] if candidates else None

    def _idle(self, besides: Deployed | None) -> list[tuple[float, int, Member]]:
        """The replicas that can go, with since when: of other functions, which want none at least and whose number nobody
        set."""
        return [
            (since_s, number, member)
            for number, member in enumerate(self._members.values())
            if member.deployed is not besides
            and not member.deployed.record.sizing.sized
            and member.deployed.record.spec.min_replicas == 0
            and self._router.depth(member.record.name) == 0
            and (since_s := self._router.idle_since_s(member.process.replica_id)) is not None
        ]

    async def _launch(
        self,
        deployed: Deployed,
        want: Want,
        record: FunctionRecord,
        bench: Bench | None = None,
        batch: int | None = None,
    ) -> Member:
        process = await self._nodes.add(
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
                batch_cap=batch,
                env=record.spec.env,
                secrets=record.spec.secrets,
            )
        )
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        member = Member(deployed, record, want, process, ready, batch=batch, bench=bench)
        self._members[process.replica_id] = member
        if bench is None:
            deployed.members[process.replica_id] = member
        else:
            bench.replica_id, bench.sm_percent = process.replica_id, process.sm_percent
        deployed.logs = [*deployed.logs, (process.replica_id, process.log)][-KEPT_LOGS:]
        assert process.line is not None, "a replica that was forked can be reached"
        member.channel = await process.line.open(self._events(member))
        try:
            await asyncio.wait_for(asyncio.shield(ready), self._start_timeout_s)
        except TimeoutError as exc:
            self._nodes.kill(process.replica_id)
            ready.cancel()
            raise BackendError(
                f"{record.name}: a replica was not ready after {self._start_timeout_s:g} s (start_timeout_s); "
                f"see `hasfaas logs {record.name}`"
            ) from exc
        return member


def want_of(record: FunctionRecord) -> Want:
    """What a replica of the function asks for that no scaler places: what was set by hand, and nothing else."""
    return Want(
        memory_bytes=record.spec.memory_bytes,
        device=record.spec.device,
        sm_percent=record.sizing.sm_percent,
        quota_percent=record.sizing.quota_percent,
        lend=bool(record.sizing.lend),
    )


def _own_failure(deployed: Deployed, cause: Exception) -> BackendError:
    """A bug of ours must not leave calls waiting for a replica that nobody starts."""
    return BackendError(f"{deployed.record.name}: a replica could not be started: {type(cause).__name__}: {cause}")
