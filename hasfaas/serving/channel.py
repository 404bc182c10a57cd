"""A replica's socket, from the gateway's side: frames out, events in. It decides nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Protocol, Self

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from hasfaas.core.errors import InvalidRequestError
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, Measure, Measured, RawPayload, Started
from hasfaas.wire.line import FrameLine


class ChannelEvents(Protocol):
    """What a channel tells its owner."""

    def ready(self, started: Started) -> None: ...

    def failed(self, status: bytes) -> None: ...

    def result(self, call_id: int, payload: RawPayload) -> None: ...

    def item(self, call_id: int, payload: RawPayload) -> None: ...

    def end(self, call_id: int) -> None: ...

    def error(self, call_id: int, status: bytes) -> None: ...

    def measured(self, call_id: int, measured: Measured) -> None: ...

    def observed(self, holds: Sequence[tuple[int, int]]) -> None:
        """(batch, hold in nanoseconds) of executions that it has served."""
        ...

    def lost(self) -> None: ...


class ReplicaChannel(FrameLine):
    """One connected unix socket. `lost` is called exactly once, whichever side closes."""

    def __init__(self, events: ChannelEvents) -> None:
        super().__init__()
        self._events = events

    @classmethod
    async def open(cls, sock: socket.socket, events: ChannelEvents) -> Self:
        """Takes over a connected socket."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(events), sock=sock)
        return channel

    def execute(self, calls: Sequence[tuple[int, RawPayload]]) -> None:
        """Sends a batch for one execution."""
        self.write(frames.pack_execute(calls))

    def cancel(self, call_id: int) -> None:
        """What has not started must not; a stream ends at its next item."""
        self.write(frames.pack(FrameKind.CANCEL, call_id))

    def credit(self, call_id: int, items: int) -> None:
        """Lets a stream send so many more items."""
        self.write(frames.pack(FrameKind.CREDIT, call_id, items))

    def release(self, segment: str) -> None:
        """A result's segment has been mapped by its reader, or never will be."""
        self.write(frames.pack(FrameKind.RELEASE, 0, segment))

    def measure(self, call_id: int, measure: Measure) -> None:
        """Asks for the figures of one point; `cancel` ends that early."""
        self.write(frames.pack_measure(call_id, measure))

    def shutdown(self) -> None:
        """Asks the replica to end after what it was sent."""
        self.write(frames.pack(FrameKind.SHUTDOWN))

    def take(self, frame: Frame) -> None:
        """One event. A replica that no longer speaks the protocol (its user's code wrote to our socket) counts as dead."""
        events = self._events
        match frame.kind:
            case FrameKind.RESULT:
                events.result(frame.call_id, frames.unpack_payload(frame, self))
            case FrameKind.ITEM:
                events.item(frame.call_id, frames.unpack_payload(frame, self))
            case FrameKind.END:
                events.end(frame.call_id)
            case FrameKind.ERROR:
                events.error(frame.call_id, _status(frame))
            case FrameKind.OBSERVED:
                events.observed(frames.unpack_observed(frame))
            case FrameKind.MEASURED:
                events.measured(frame.call_id, frames.unpack_measured(frame))
            case FrameKind.READY:
                events.ready(frames.unpack_started(frame))
            case FrameKind.FAILED:
                events.failed(_status(frame))
            case _:
                raise InvalidRequestError(f"a replica sent {frame.kind.name}, which only a gateway sends")

    def lost(self) -> None:
        self._events.lost()


def _status(frame: Frame) -> bytes:
    """The status that a frame carries, checked to be one."""
    status = bytes(frame.body)
    try:
        status_pb2.Status.FromString(status)
    except DecodeError as exc:
        raise InvalidRequestError(f"a frame {frame.kind.name} holds no google.rpc.Status") from exc
    return status
