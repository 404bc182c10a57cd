"""A router with everything around it made of memory: replicas that record what they are sent, callers that
record what they are answered, and an event loop whose time is turned by hand.

The loop is asyncio's own; only its clock is ours, so that its timers fire when a test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import attrs
from google.rpc import status_pb2

from hasfaas.core.errors import HasFaasError
from hasfaas.core.spec import FunctionSpec
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.serving.router import Call, Router
from hasfaas.wire.frames import RawPayload
from hasfaas.wire.status import from_status, to_status

T = TypeVar("T")
NAME = "app.f"


class ManualLoop(asyncio.SelectorEventLoop):
    """asyncio's loop by a clock of ours."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s


def payload(nbytes: int = 8, mark: int = 0) -> RawPayload:
    """A payload that holds so many bytes."""
    return RawPayload(1, b"", (nbytes,), (bytes([mark % 256]) * nbytes,))


@attrs.define(eq=False)
class RecordingSink:
    """One caller. `ends` must come to hold exactly one entry."""

    items: list[RawPayload] = attrs.field(factory=list)
    ends: list[RawPayload | HasFaasError | None] = attrs.field(factory=list)

    def result(self, payload: RawPayload) -> None:
        self.ends.append(payload)

    def item(self, payload: RawPayload) -> None:
        assert not self.ends, "an item after the end"
        self.items.append(payload)

    def end(self) -> None:
        self.ends.append(None)

    def error(self, status: bytes) -> None:
        self.ends.append(from_status(status_pb2.Status.FromString(status)))

    @property
    def outcome(self) -> RawPayload | HasFaasError | None:
        """How the call ended, once."""
        (outcome,) = self.ends
        return outcome

    @property
    def failure(self) -> HasFaasError:
        """The error that ended the call, once."""
        outcome = self.outcome
        assert isinstance(outcome, HasFaasError), outcome
        return outcome


class RecordingChannel(ReplicaChannel):
    """A replica that remembers what it was told. `held` is what it was sent and has not answered, oldest
    first.
    """

    def __init__(self, world: World, replica_id: str, quota_percent: float) -> None:
        self.world = world
        self.replica_id = replica_id
        self.quota_percent = quota_percent
        self.executions: list[list[int]] = []
        self.held: list[int] = []
        self.cancelled: list[int] = []
        self.credits: dict[int, int] = {}
        self.told_to_end = False
        self.draining = False

    def execute(self, calls: Sequence[tuple[int, RawPayload]]) -> None:
        for call_id, arguments in calls:
            self.world.was_sent(self, call_id, arguments)
        self.executions.append([call_id for call_id, _ in calls])
        self.held += self.executions[-1]

    def cancel(self, call_id: int) -> None:
        assert call_id in self.held, "a replica is asked to cancel what it does not have"
        self.cancelled.append(call_id)

    def credit(self, call_id: int, items: int) -> None:
        assert call_id in self.held, "credit for what the replica does not have"
        self.credits[call_id] = self.credits.get(call_id, 0) + items

    def shutdown(self) -> None:
        self.told_to_end = True


class World:
    """The router and all that it deals with. Every method runs on the loop and then lets it come to rest."""

    def __init__(self, spec: FunctionSpec, *, streams: bool = False, max_queue: int = 100) -> None:
        self.loop = ManualLoop()
        self.raised: list[BaseException] = []
        self.loop.set_exception_handler(lambda _, context: self.raised.append(context["exception"]))
        self.late_s = 0.0
        self.demanded: list[str] = []
        self.on_demand: Callable[[str], None] = self.demanded.append
        self.router = Router(max_queue=max_queue, demand=lambda name: self.on_demand(name), now_s=self.now_s)
        self.calls: dict[int, Call] = {}
        self.sinks: dict[int, RecordingSink] = {}
        self.channels: dict[str, RecordingChannel] = {}
        self.run(lambda: self.router.set_function(NAME, spec, streams=streams))

    def now_s(self) -> float:
        """The router's clock. `late_s` is how far the loop's timers lag behind it, as they do when it is
        busy.
        """
        return self.loop.now_s + self.late_s

    def check_ended(self) -> None:
        """Long after, every accepted call has ended exactly once, and nothing counts as waiting or held."""
        self.late_s = 0.0
        self.pass_time(1e6)
        assert all(len(sink.ends) == 1 for sink in self.sinks.values())
        assert self.router.outstanding == 0
        assert self.router.depth(NAME) == 0
        assert self.router._queued_bytes == 0

    def close(self) -> None:
        self.loop.close()

    # -- the caller ------------------------------------------------------------------------------------------

    def submit(self, timeout_s: float | None = 10.0, nbytes: int = 8) -> tuple[Call, RecordingSink]:
        sink = RecordingSink()
        call = self.run(lambda: self.router.submit(NAME, payload(nbytes), timeout_s=timeout_s, sink=sink), sink)
        return call, sink

    def cancel(self, call: Call) -> None:
        self.run(lambda: self.router.cancel(call))

    # -- replicas --------------------------------------------------------------------------------------------

    def attach(self, replica_id: str = "r1", quota_percent: float = 100.0) -> RecordingChannel:
        channel = self.channels[replica_id] = RecordingChannel(self, replica_id, quota_percent)
        self.run(lambda: self.router.attach(NAME, replica_id, channel, quota_percent))
        return channel

    def requota(self, channel: RecordingChannel, quota_percent: float) -> None:
        channel.quota_percent = quota_percent
        self.run(lambda: self.router.requota(channel.replica_id, quota_percent))

    def detach(self, channel: RecordingChannel) -> None:
        self.run(lambda: self.router.detach(channel.replica_id, "died"))

    def result(self, channel: RecordingChannel, call_id: int | None = None) -> int:
        """The replica answers a call, the oldest that it holds."""
        answered = self._take(channel, call_id)
        self.run(lambda: self.router.on_result(channel.replica_id, answered, payload(mark=answered)))
        return answered

    def error(self, channel: RecordingChannel, why: HasFaasError, call_id: int | None = None) -> int:
        answered = self._take(channel, call_id)
        status = to_status(why).SerializeToString()
        self.run(lambda: self.router.on_error(channel.replica_id, answered, status))
        return answered

    def item(self, channel: RecordingChannel, call_id: int) -> None:
        self.run(lambda: self.router.on_item(channel.replica_id, call_id, payload()))

    def end(self, channel: RecordingChannel, call_id: int | None = None) -> int:
        answered = self._take(channel, call_id)
        self.run(lambda: self.router.on_end(channel.replica_id, answered))
        return answered

    def _take(self, channel: RecordingChannel, call_id: int | None) -> int:
        taken = channel.held[0] if call_id is None else call_id
        channel.held.remove(taken)
        return taken

    def was_sent(self, channel: RecordingChannel, call_id: int, arguments: RawPayload) -> None:
        """The law, where it would be broken: what has ended, or whose time is over, is not sent."""
        assert not channel.draining, "a draining replica was sent something"
        call = self.router._calls.get(call_id)
        assert call is not None and not call.done, "a call that has ended was sent"
        assert call.deadline_s > self.now_s(), "a call whose time is over was sent"
        assert call.arguments is arguments
        assert call_id not in self.sinks or not self.sinks[call_id].items, "a stream that has given items began again"

    # -- time ------------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Turns the clock; timers that are due fire."""
        self.loop.now_s += seconds
        self.run(lambda: None)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begins something that waits."""
        return self.run(lambda: self.loop.create_task(work))

    def drain(self, channel: RecordingChannel, timeout_s: float) -> asyncio.Task[bool]:
        task = self.start(self.router.drain(channel.replica_id, timeout_s))
        channel.draining = True
        return task

    def run(self, act: Callable[[], T], sink: RecordingSink | None = None) -> T:
        async def go() -> T:
            try:
                made = act()
                if sink is not None and isinstance(made, Call):
                    self.calls[made.call_id], self.sinks[made.call_id] = made, sink
                return made
            finally:
                for _ in range(4):
                    await asyncio.sleep(0)

        made = self.loop.run_until_complete(go())
        if self.raised:  # in a timer, or later in the loop
            raise self.raised.pop()
        return made
