"""A replica that serves no calls, where a function is measured."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import attrs
from google.rpc import status_pb2

from hasfaas.core.errors import UnavailableError
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.wire.frames import Measure, Measured
from hasfaas.wire.status import from_status


@attrs.define(eq=False)
class Bench:
    """The measured replica and what is asked of it. Only whoever has started it ends it."""

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
