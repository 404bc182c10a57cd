"""The bounded queue of each function, its replica table, and who gets what next.

Everything here runs on the gateway's event loop, so there are no locks. The decisions are `batching.decide` and
`policies.pick`; this file keeps the state they are asked about, and acts on their answers.

Law: an accepted call ends exactly once, as a result, an error or a cancellation; one whose deadline has passed, or that
was taken back, is never sent to a replica. Only the replica that holds a call can answer it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import attrs

from hasfaas.core.errors import (
    CancelledError,
    DeadlineError,
    HasFaasError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from hasfaas.core.spec import Batch, FunctionSpec
from hasfaas.serving import batching, policies
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.serving.ports import Demand, Sink
from hasfaas.wire.frames import RawPayload
from hasfaas.wire.payload import blob_bytes
from hasfaas.wire.segments import Segment, SegmentReader
from hasfaas.wire.status import to_status

MAX_ATTEMPTS = 3
STREAM_CREDIT = 16
MAX_QUEUED_BYTES = 1 << 30
# Larger arguments are not kept to measure a function with.
MAX_SAMPLE_BYTES = 4 << 20
# Latencies that are kept for whoever asks.
MOST_ANSWERED = 4096
# A call that is sent within this time of its arrival has not waited.
AT_ONCE_S = 0.001


@attrs.define(eq=False)
class Call:
    """One accepted call. `replica` is None while it waits. Its function stays the same one, even when the name is dropped
    or deployed anew."""

    call_id: int
    function: _Function
    arguments: RawPayload
    arrived_s: float
    deadline_s: float
    sink: Sink
    attempts: int = 0
    items: int = 0
    done: bool = False
    alone: bool = False
    replica: _Replica | None = None
    timer: asyncio.TimerHandle | None = None


@attrs.define
class Counts:
    """What has become of the calls of one function. `slo_met` counts completed calls within the promise."""

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    redispatched: int = 0
    slo_met: int = 0


@attrs.frozen
class Answered:
    """One call that was answered. `alone`: it met an idle replica and was sent to it at once, by itself."""

    latency_ms: float
    alone: bool


@attrs.define(eq=False)
class _Replica:
    replica_id: str
    channel: ReplicaChannel
    quota_percent: float
    used_s: float
    # The greatest batch that a scaler lets it have; None leaves it to the function's own.
    batch_max: int | None = None
    began_s: float = 0.0
    executions: list[set[int]] = attrs.field(factory=list)
    draining: bool = False
    idle: asyncio.Event = attrs.field(factory=asyncio.Event)


@attrs.define(eq=False)
class _Function:
    name: str
    spec: FunctionSpec
    streams: bool
    heap: list[tuple[float, int, Call]] = attrs.field(factory=list)
    waiting: int = 0
    replicas: dict[str, _Replica] = attrs.field(factory=dict)
    counts: Counts = attrs.field(factory=Counts)
    sample: RawPayload | None = None
    answered: deque[Answered] = attrs.field(factory=lambda: deque(maxlen=MOST_ANSWERED))
    pump_timer: asyncio.TimerHandle | None = None


class Router:
    """Queues and the replica table. `demand(name)` is called when calls wait and no replica serves."""

    def __init__(self, *, max_queue: int, demand: Demand, now_s: Callable[[], float]) -> None:
        self._max_queue = max_queue
        self._demand = demand
        self._now_s = now_s
        self._functions: dict[str, _Function] = {}
        # By replica, not by name: a replica may outlive the name of its function while it finishes.
        self._homes: dict[str, _Function] = {}
        self._calls: dict[int, Call] = {}
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._queued_bytes = 0
        self.why_none: Callable[[str], str] = lambda _name: ""
        """What keeps a function from having a replica, as far as it is known."""

    # -- functions ---------------------------------------------------------------------------------------------------

    def set_function(self, name: str, spec: FunctionSpec, *, streams: bool) -> None:
        """Adds a function, or changes the options of one; its queue and counts stay."""
        known = self._functions.get(name)
        if known is None:
            self._functions[name] = _Function(name, spec, streams)
        else:
            known.spec, known.streams, known.sample = spec, streams, None

    def drop_function(self, name: str, why: HasFaasError) -> None:
        """Ends a function: what waits gets `why`, what its replicas hold runs to its end."""
        function = self._functions.pop(name, None)
        if function is not None:
            self._stop_timer(function)
            self._fail_waiting(function, why)

    def depth(self, name: str) -> int:
        """Calls that wait."""
        function = self._functions.get(name)
        return function.waiting if function else 0

    def counts(self, name: str) -> Counts:
        """The counts of one function, live; zeros for one that is not here (its deployment may be under way)."""
        function = self._functions.get(name)
        return function.counts if function else Counts()

    def answered(self, name: str) -> list[Answered]:
        """The calls that were answered since this was last asked; the latest 4,096 at most."""
        function = self._functions.get(name)
        if function is None:
            return []
        found = list(function.answered)
        function.answered.clear()
        return found

    def sample(self, name: str) -> RawPayload | None:
        """The arguments of a call that this deployment has answered, None before the first (and of at most 4 MiB)."""
        function = self._functions.get(name)
        return function.sample if function else None

    def in_flight(self, replica_id: str) -> int:
        """Calls that a replica holds."""
        replica = self._replica(replica_id)
        return sum(len(batch) for batch in replica.executions) if replica else 0

    def idle_since_s(self, replica_id: str) -> float | None:
        """When a ready replica last had work, None for one that has some, or is not ready."""
        replica = self._replica(replica_id)
        return None if replica is None or replica.executions or replica.draining else replica.used_s

    @property
    def outstanding(self) -> int:
        """Accepted calls that have not ended, of all functions."""
        return len(self._calls)

    # -- calls -------------------------------------------------------------------------------------------------------

    def submit(self, name: str, arguments: RawPayload, *, timeout_s: float | None, sink: Sink) -> Call:
        """Accepts a call, or raises: NotFoundError; OverloadedError when the queue is full; DeadlineError when no time is
        left. An accepted call answers through `sink`."""
        function = self._functions.get(name)
        if function is None:
            raise NotFoundError(f"function {name!r} is not deployed; `hasfaas ps` lists what is")
        now_s = self._now_s()
        budget_s = function.spec.timeout_s if timeout_s is None else timeout_s
        if not budget_s > 0.0:
            function.counts.expired += 1
            raise DeadlineError(f"{name}: the caller's time was over on arrival", reason="DEADLINE_IN_QUEUE")
        if function.waiting >= self._max_queue or self._queued_bytes + arguments.nbytes > MAX_QUEUED_BYTES:
            function.counts.refused += 1
            raise OverloadedError(
                f"{name}: {function.waiting} calls wait, at most {self._max_queue} may "
                f"({self._queued_bytes >> 20} MiB of arguments, at most {MAX_QUEUED_BYTES >> 20}); "
                "slow down, add replicas with `hasfaas scale`, or raise local.max_queue",
                retry_after_s=max(0.05, function.spec.slo_ms / 1000.0),
            )
        call = Call(next(self._ids), function, arguments, now_s, now_s + budget_s, sink)
        self._calls[call.call_id] = call
        function.counts.accepted += 1
        self._queue(call)
        self.pump(name)
        if not call.done:  # after the sending: a replica works meanwhile
            call.timer = asyncio.get_running_loop().call_later(budget_s, self._expire, call)
        return call

    def cancel(self, call: Call) -> None:
        """Takes a call back; harmless when it has ended."""
        if not call.done:
            call.function.counts.cancelled += 1
            self._abandon(call)
            self._error(call, CancelledError(f"{call.function.name}: the call was cancelled"))

    def credit(self, call: Call, items: int) -> None:
        """The reader of a stream has taken `items` more."""
        if not call.done and call.replica is not None:
            call.replica.channel.credit(call.call_id, items)

    # -- replicas ----------------------------------------------------------------------------------------------------

    def attach(
        self,
        name: str,
        replica_id: str,
        channel: ReplicaChannel,
        quota_percent: float,
        batch_max: int | None = None,
    ) -> None:
        """A replica is ready to serve, in batches of up to `batch_max` (None: the function's own greatest)."""
        function = self._functions.get(name)
        if function is None:
            channel.shutdown()
            return
        assert replica_id not in self._homes, f"replica {replica_id} is attached already"
        function.replicas[replica_id] = _Replica(replica_id, channel, quota_percent, self._now_s(), batch_max)
        self._homes[replica_id] = function
        self.pump(name)

    def requota(self, replica_id: str, quota_percent: float) -> None:
        """A replica's quota has changed."""
        replica = self._replica(replica_id)
        if replica is not None:
            replica.quota_percent = quota_percent
            self.pump(self._homes[replica_id].name)

    def rebatch(self, replica_id: str, batch_max: int | None) -> None:
        """A replica's greatest batch has changed, from its next execution on."""
        replica = self._replica(replica_id)
        if replica is not None:
            replica.batch_max = batch_max
            self.pump(self._homes[replica_id].name)

    def hold(self, replica_id: str) -> None:
        """Sends a replica nothing more."""
        replica = self._replica(replica_id)
        if replica is not None:
            replica.draining = True

    async def drain(self, replica_id: str, timeout_s: float) -> bool:
        """Sends a replica nothing more and waits for what it has; whether all of it ended in time."""
        self.hold(replica_id)
        replica = self._replica(replica_id)
        if replica is not None and replica.executions:
            try:
                await asyncio.wait_for(replica.idle.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def detach(self, replica_id: str, why: str) -> None:
        """A replica is gone. Calls it held run again elsewhere where the function is idempotent, else they fail."""
        function = self._homes.pop(replica_id, None)
        if function is None:
            return
        replica = function.replicas.pop(replica_id)
        held = [self._calls[i] for batch in replica.executions for i in batch if i in self._calls]
        replica.executions.clear()
        replica.idle.set()
        dropped = self._functions.get(function.name) is not function
        for call in held:
            call.replica = None
            if function.spec.idempotent and not dropped and call.attempts < MAX_ATTEMPTS and call.items == 0:
                function.counts.redispatched += 1
                self._queue(call)
            else:
                function.counts.failed += 1
                self._error(call, _lost_error(call, why, dropped=dropped))
        self.pump(function.name)

    def fail_waiting(self, name: str, why: HasFaasError) -> None:
        """No replica can be had: what waits gets `why`."""
        function = self._functions.get(name)
        if function is not None:
            self._fail_waiting(function, why)

    # -- answers from channels ---------------------------------------------------------------------------------------

    def on_result(self, replica_id: str, call_id: int, payload: RawPayload) -> None:
        """The one answer of a call."""
        call = self._finish(replica_id, call_id)
        if call is not None:
            self._complete(call)
            call.sink.result(payload)
        else:
            give_back(payload)

    def on_item(self, replica_id: str, call_id: int, payload: RawPayload) -> None:
        """An item of a stream."""
        call = self._held(replica_id, call_id)
        if call is not None:
            call.items += 1
            call.sink.item(payload)
        else:
            give_back(payload)

    def on_end(self, replica_id: str, call_id: int) -> None:
        """A stream has ended well."""
        call = self._finish(replica_id, call_id)
        if call is not None:
            self._complete(call)
            call.sink.end()

    def on_error(self, replica_id: str, call_id: int, status: bytes) -> None:
        """A call has failed in its replica, or a replica confirms that one which was taken back never started."""
        call = self._finish(replica_id, call_id)
        if call is not None:
            call.function.counts.failed += 1
            self._end(call)
            call.sink.error(status)

    # -- inside ------------------------------------------------------------------------------------------------------

    def pump(self, name: str) -> None:
        """Sends what may be sent."""
        function = self._functions.get(name)
        if function is None:
            return
        self._stop_timer(function)
        while function.waiting:
            replicas = [r for r in function.replicas.values() if not r.draining]
            if not replicas:
                self._demand(name)
                return
            most = 1 if function.streams else batching.PIPELINE_DEPTH
            loads = [policies.ReplicaLoad(len(r.executions), r.quota_percent, r.began_s) for r in replicas]
            chosen = policies.pick(loads, most=most)
            if chosen is None:
                return
            replica = replicas[chosen]
            batch = batching.capped(function.spec.batch, replica.batch_max)
            match batching.decide(
                function.waiting,
                self._oldest_wait_s(function, batch),
                batch,
                len(replica.executions),
                streams=function.streams,
            ):
                case batching.Send(count):
                    self._send(function, replica, count)
                case batching.Wait(delay_s):
                    if delay_s is not None:
                        loop = asyncio.get_running_loop()
                        function.pump_timer = loop.call_later(delay_s, partial(self.pump, name))
                    return

    def _send(self, function: _Function, replica: _Replica, count: int) -> None:
        calls = list(itertools.islice(self._take(function), count))
        if not calls:
            return
        for call in calls:
            call.replica = replica
            call.attempts += 1
        if not replica.executions:
            replica.began_s = self._now_s()
            calls[0].alone = len(calls) == 1 and replica.began_s - calls[0].arrived_s < AT_ONCE_S
        replica.executions.append({call.call_id for call in calls})
        replica.idle.clear()
        replica.channel.execute([(call.call_id, call.arguments) for call in calls])
        if function.streams:
            for call in calls:
                replica.channel.credit(call.call_id, STREAM_CREDIT)

    def _take(self, function: _Function) -> Iterable[Call]:
        """Waiting calls, the most urgent first. One whose time is over ends here, should its timer be late."""
        now_s = self._now_s()
        while function.heap:
            call = heapq.heappop(function.heap)[2]
            if call.done or call.replica is not None:
                continue
            if call.deadline_s <= now_s:
                self._expire(call)
                continue
            function.waiting -= 1
            self._queued_bytes -= call.arguments.nbytes
            yield call

    def _oldest_wait_s(self, function: _Function, batch: Batch | None) -> float:
        """How long the longest waiting call has waited, as far as that matters: the heap is in order of urgency, so all of
        it is looked at, but only while a batch is incomplete."""
        if batch is None or batch.max_wait_ms == 0.0 or function.waiting >= batch.max_size:
            return 0.0
        now_s = self._now_s()
        return max((now_s - call.arrived_s for _, _, call in function.heap if not call.done), default=0.0)

    def _stop_timer(self, function: _Function) -> None:
        if function.pump_timer is not None:
            function.pump_timer.cancel()
            function.pump_timer = None

    def _queue(self, call: Call) -> None:
        # Earliest deadline first; the promise is the deadline, so that a caller's long time-out is no handicap.
        function = call.function
        due_s = min(call.deadline_s, call.arrived_s + function.spec.slo_ms / 1000.0)
        heapq.heappush(function.heap, (due_s, next(self._order), call))
        function.waiting += 1
        self._queued_bytes += call.arguments.nbytes

    def _unqueue(self, call: Call) -> None:
        """A waiting call leaves; its heap entry is skipped later."""
        function = call.function
        function.waiting -= 1
        self._queued_bytes -= call.arguments.nbytes
        if len(function.heap) > 2 * function.waiting + 64:
            # Ended calls leave the heap lazily; without this, arguments of expired ones would pile up in it.
            function.heap = [entry for entry in function.heap if not entry[2].done and entry[2] is not call]
            heapq.heapify(function.heap)

    def _abandon(self, call: Call) -> None:
        if call.replica is None:
            self._unqueue(call)
        else:
            # Its place in the replica is free once the replica says so: it may be running.
            call.replica.channel.cancel(call.call_id)

    def _expire(self, call: Call) -> None:
        if call.done:
            return
        call.function.counts.expired += 1
        waited = call.replica is None
        self._abandon(call)
        spent_ms = (self._now_s() - call.arrived_s) * 1000.0
        where = self._why_waited(call.function) if waited else "after it was sent to a replica; its result is dropped"
        reason = "DEADLINE_IN_QUEUE" if waited else "DEADLINE_IN_EXECUTION"
        self._error(
            call,
            DeadlineError(f"{call.function.name}: the caller's {spent_ms:.0f} ms ran out {where}", reason=reason),
        )

    def _why_waited(self, function: _Function) -> str:
        replicas = function.replicas.values()
        if not replicas and (why := self.why_none(function.name)):
            return f"while it waited; it never ran: {why}"
        if replicas and all(replica.quota_percent <= 0.0 for replica in replicas):
            return "while it waited; it never ran: the quota is 0 (`hasfaas scale NAME --quota` sets another)"
        return "while it waited; it never ran"

    def _replica(self, replica_id: str) -> _Replica | None:
        home = self._homes.get(replica_id)
        return home.replicas[replica_id] if home else None

    def _held(self, replica_id: str, call_id: int) -> Call | None:
        """The call, when it has not ended (cancelled, expired) and this replica holds it."""
        call = self._calls.get(call_id)
        held = call is not None and call.replica is not None and call.replica is self._replica(replica_id)
        return call if held else None

    def _finish(self, replica_id: str, call_id: int) -> Call | None:
        """Frees the call's place in the replica; the call, where it still waits for this answer."""
        call = self._held(replica_id, call_id)
        replica = self._replica(replica_id)
        if replica is not None:
            for batch in replica.executions:
                batch.discard(call_id)
            left = [batch for batch in replica.executions if batch]
            if len(left) < len(replica.executions):
                replica.began_s = self._now_s()
            replica.executions = left
            if not replica.executions:
                replica.used_s = self._now_s()
                replica.idle.set()
            asyncio.get_running_loop().call_soon(self.pump, self._homes[replica_id].name)
        return call

    def _complete(self, call: Call) -> None:
        counts = call.function.counts
        counts.completed += 1
        if call.function.sample is None:
            call.function.sample = _sample(call.arguments)
        latency_ms = (self._now_s() - call.arrived_s) * 1000.0
        call.function.answered.append(Answered(latency_ms, call.alone))
        if latency_ms <= call.function.spec.slo_ms:
            counts.slo_met += 1
        self._end(call)

    def _end(self, call: Call) -> None:
        call.done = True
        if call.timer is not None:
            call.timer.cancel()
        self._calls.pop(call.call_id, None)

    def _error(self, call: Call, why: HasFaasError) -> None:
        self._end(call)
        call.sink.error(to_status(why).SerializeToString())

    def _fail_waiting(self, function: _Function, why: HasFaasError) -> None:
        for call in list(self._take(function)):
            function.counts.failed += 1
            self._error(call, why)


def _sample(arguments: RawPayload) -> RawPayload | None:
    """A call's arguments, to keep; a caller's segment is copied while it is still lent. None where that is too much."""
    if not arguments.segment:
        return arguments if arguments.nbytes <= MAX_SAMPLE_BYTES else None
    nbytes = blob_bytes(arguments.sizes)
    if nbytes > MAX_SAMPLE_BYTES:
        return None
    try:
        blob = bytes(SegmentReader().view(Segment(arguments.segment, nbytes), private=True))
    except (HasFaasError, MemoryError):
        return None  # its caller has just gone
    return attrs.evolve(arguments, chunks=(blob,), segment="")


def _lost_error(call: Call, why: str, *, dropped: bool) -> UnavailableError:
    if dropped:
        cure = "the function was deleted, so it does not run again"
    elif not call.function.spec.idempotent:
        cure = "it may have run in part: declare idempotent=True to have such calls run again"
    elif call.items:
        cure = "a stream that has given items is not begun again"
    else:
        cure = f"it was tried {call.attempts} times"
    return UnavailableError(
        f"{call.function.name}: the replica {why} with the call in it; {cure}", reason="EXECUTOR_CRASHED"
    )


def give_back(payload: RawPayload) -> None:
    """Nobody will read this answer: whoever made its segment may reuse it."""
    if payload.owner is not None:
        payload.owner.release(payload.segment)
