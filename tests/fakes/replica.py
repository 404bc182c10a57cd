"""A replica's end of its socket, on the event loop of the test: it reads what the gateway says and answers as told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import attrs

from hasfaas.core.errors import CancelledError, HasFaasError
from hasfaas.wire import frames
from hasfaas.wire.frames import Buffer, Frame, FrameKind, FrameReader, RawPayload, WorkItem
from hasfaas.wire.status import to_status


class ReplicaEnd:
    """The raw end: frames out, frames in."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    async def send(self, *pieces: Buffer) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(pieces))

    async def read(self, count: int = 1) -> list[Frame]:
        """Waits until so many frames have come, and gives them. Raises EOFError when the gateway has gone."""
        while len(self._frames) < count:
            taken = await asyncio.get_running_loop().sock_recv_into(self.sock, self._reader.buffer())
            if not taken:
                raise EOFError
            self._frames += self._reader.advance(taken)
        found, self._frames = self._frames[:count], self._frames[count:]
        return found


@attrs.define(eq=False)
class WorkingReplica:
    """Starts every call that it is sent, each in a task of its own, and answers it with what `work` returns or raises.

    `work` may send items by `item`. A call that is taken back is cancelled, and confirmed.
    """

    end: ReplicaEnd
    work: Callable[[WorkingReplica, int, RawPayload], Awaitable[RawPayload | None]]
    started: list[int] = attrs.field(factory=list)
    cancelled: list[int] = attrs.field(factory=list)
    most_credit: int = 0
    told_to_end: bool = False
    news: asyncio.Event = attrs.field(factory=asyncio.Event)
    _calls: dict[int, asyncio.Task[None]] = attrs.field(factory=dict)
    _credit: dict[int, int] = attrs.field(factory=dict)

    async def serve(self) -> None:
        """Until the gateway goes away."""
        try:
            while True:
                (frame,) = await self.end.read()
                self._take(frame)
                self.news.set()
        except (EOFError, ConnectionResetError):
            for task in self._calls.values():
                task.cancel()

    async def until(self, so: Callable[[], bool]) -> None:
        """Waits until something is so, which it may become with each frame from the gateway."""
        async with asyncio.timeout(20):
            while not so():
                self.news.clear()
                await self.news.wait()

    async def item(self, call_id: int, payload: RawPayload) -> None:
        """Sends an item of a stream, once there is credit for it."""
        await self.until(lambda: self._credit.get(call_id, 0) > 0)
        self._credit[call_id] -= 1
        await self.end.send(*frames.pack_payload(FrameKind.ITEM, call_id, payload))

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.EXECUTE:
                for item, blob in frames.unpack_execute(frame):
                    self.started.append(item.call_id)
                    self._calls[item.call_id] = asyncio.ensure_future(self._run(item, bytes(blob)))
            case FrameKind.CANCEL:
                self.cancelled.append(frame.call_id)
                task = self._calls.get(frame.call_id)
                if task is not None:
                    task.cancel()
            case FrameKind.CREDIT:
                assert isinstance(frame.head, int)
                credit = self._credit.get(frame.call_id, 0) + frame.head
                self._credit[frame.call_id] = credit
                self.most_credit = max(self.most_credit, credit)
            case FrameKind.SHUTDOWN:
                self.told_to_end = True
            case _:
                raise AssertionError(f"a gateway does not send {frame.kind.name}")

    async def _run(self, item: WorkItem, blob: bytes) -> None:
        given = RawPayload(item.codec, item.head, item.sizes, (blob,) if blob else ())
        try:
            answer = await self.work(self, item.call_id, given)
        except HasFaasError as exc:
            pieces = frames.pack(FrameKind.ERROR, item.call_id, body=[to_status(exc).SerializeToString()])
        except asyncio.CancelledError:
            status = to_status(CancelledError("taken back")).SerializeToString()
            pieces = frames.pack(FrameKind.ERROR, item.call_id, body=[status])
        else:
            if answer is None:
                pieces = frames.pack(FrameKind.END, item.call_id)
            else:
                pieces = frames.pack_payload(FrameKind.RESULT, item.call_id, answer)
        del self._calls[item.call_id]
        await self.end.send(*pieces)
