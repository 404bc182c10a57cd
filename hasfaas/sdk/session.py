"""One multiplexed stream to a gateway, on one event loop: many calls, each with an id, large payloads in chunks."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import attrs
import grpc
from google.rpc import status_pb2

from hasfaas.core.errors import DeadlineError, HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.wire import payload as payloads
from hasfaas.wire.lots import lot
from hasfaas.wire.payload import Payload
from hasfaas.wire.segments import THRESHOLD_BYTES, Segment, SegmentPool, SegmentReader
from hasfaas.wire.status import STATUS_METADATA_KEY, from_status
from hasfaas.wire.tensors import Buffer
from hasfaas.wire.v1 import functions_pb2 as pb
from hasfaas.wire.v1 import functions_pb2_grpc, payload_pb2

CHUNK_BYTES = 1 << 20
GATEWAY_LOST = "GATEWAY_LOST"
# A reader hands credit back in lots, so that a fast stream is not slowed by one frame an item.
CREDIT_LOT = 8
# How long beyond its own time a call waits for the gateway to say that the time is over.
GRACE_S = 5.0
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


def error_of(exc: grpc.aio.AioRpcError) -> HasFaasError:
    """The typed error of a failed RPC, by its details where it has some, else by its code."""
    metadata: Any = exc.trailing_metadata() or ()
    for key, value in metadata:
        if key == STATUS_METADATA_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    if exc.code() is grpc.StatusCode.UNAVAILABLE:  # gRPC's own word, not an answer
        return UnavailableError(f"the gateway cannot be reached: {exc.details()}", reason=GATEWAY_LOST)
    code = exc.code().value[0]
    return from_status(status_pb2.Status(code=code, message=exc.details() or exc.code().name))


@attrs.frozen
class Request:
    """One call, encoded."""

    function: str
    version: str
    arguments: Payload
    timeout_s: float
    idempotent: bool = False


Answer = Payload | HasFaasError | None


@attrs.define(eq=False)
class _Pending:
    """A call under way. `segment` holds its arguments when they are large; `receiving` is a payload that is not whole."""

    segment: str = ""
    receiving: _Receiving | None = None


@attrs.define(eq=False)
class _One(_Pending):
    """A call that answers once."""

    answer: asyncio.Future[Answer] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())

    def put(self, answer: Answer) -> None:
        """Its answer; what comes later is dropped."""
        if not self.answer.done():
            self.answer.set_result(answer)


@attrs.define(eq=False)
class _Many(_Pending):
    """A stream: payloads, then None at its end, or an error."""

    answers: asyncio.Queue[Answer] = attrs.field(factory=asyncio.Queue)

    def put(self, answer: Answer) -> None:
        """Its next item, or its end."""
        self.answers.put_nowait(answer)


@attrs.define(eq=False)
class _Receiving:
    message: payload_pb2.Payload
    blob: bytearray
    filled: int
    last: bool


class Session:
    """The stream. Belongs to the event loop it was made on; `broken` once the gateway has gone."""

    def __init__(self, address: str, *, same_host: bool = False) -> None:
        """With `same_host` the gateway runs as this user on this machine, and large payloads go through shared memory."""
        self.address = address
        self._pool = SegmentPool() if same_host else None
        self._reader = SegmentReader()
        self.broken = False
        self._ids = itertools.count(1)
        self._pending: dict[int, _One | _Many] = {}
        self._out: deque[pb.SessionCall] = deque()
        self._some = asyncio.Event()
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub = functions_pb2_grpc.FunctionServiceStub(self._channel)
        stub: Any = self.stub  # the stubs of grpc.aio do not know the style of writing to an open stream
        self._stream = stub.Session()
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]

    async def call(self, request: Request) -> Payload:
        """One answer. Raises the call's own error, UnavailableError when the gateway goes away with the call in it.

        Cancelling the coroutine takes the call back.
        """
        pending = _One()
        call_id = self._begin(request, pending)
        timer = asyncio.get_running_loop().call_later(
            request.timeout_s + GRACE_S, self._give_up, call_id, pending, request
        )
        answer: Answer = None
        try:
            answer = await pending.answer
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise
        finally:
            timer.cancel()
            self._end(call_id, pending, answered=isinstance(answer, Payload))
        if isinstance(answer, HasFaasError):
            raise answer
        assert answer is not None
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Payload, None]:
        """The items of a stream. Leaving the loop early takes the call back."""
        pending = _Many()
        call_id = self._begin(request, pending)
        taken, over, answer = 0, False, None
        try:
            while True:
                answer = await pending.answers.get()
                over = not isinstance(answer, Payload)
                if isinstance(answer, HasFaasError):
                    raise answer
                if answer is None:
                    return
                yield answer
                taken += 1
                if taken % CREDIT_LOT == 0:
                    self._send(pb.SessionCall(call_id=call_id, credit=pb.SessionCall.Credit(items=CREDIT_LOT)))
        finally:
            self._end(call_id, pending, answered=over and answer is None)
            if not over:
                self._cancel(call_id)

    async def close(self) -> None:
        """Ends the stream; what is under way is taken back by the gateway."""
        self._break(UnavailableError("the session was closed"))
        for task in self._tasks:
            task.cancel()
        self._stream.cancel()
        await self._channel.close(None)
        if self._pool is not None:
            self._pool.close()
        self._reader.close()

    def _give_up(self, call_id: int, pending: _One, request: Request) -> None:
        self._cancel(call_id)
        pending.put(
            DeadlineError(
                f"{request.function}: no answer in {request.timeout_s:g} s, and none from the gateway about it"
            )
        )

    def _end(self, call_id: int, pending: _Pending, *, answered: bool) -> None:
        """The call is over. Its arguments' segment is reused only when an answer shows that they have been read."""
        self._pending.pop(call_id, None)
        if pending.segment and self._pool is not None:
            (self._pool.give_back if answered else self._pool.drop)(pending.segment)

    def _begin(self, request: Request, pending: _One | _Many) -> int:
        if self.broken:
            raise UnavailableError("the session's gateway has gone", reason=GATEWAY_LOST)
        call_id = next(self._ids)
        self._pending[call_id] = pending
        arguments = request.arguments
        pieces, sizes = payloads.segments(arguments), arguments.lengths
        pending.segment = self._share(pieces, payloads.blob_bytes(sizes))
        blob = b"" if pending.segment else b"".join(pieces)
        first = payload_pb2.Payload(
            codec=int(arguments.codec),  # type: ignore[arg-type]
            head=arguments.head,
            sizes=sizes,
            data=blob if len(blob) <= CHUNK_BYTES else blob[:CHUNK_BYTES],
            segment=pending.segment,
        )
        start = pb.InvokeRequest(
            function=request.function,
            version=request.version,
            arguments=first,
            timeout_s=request.timeout_s,
            segments=self._pool is not None,
        )
        self._send(pb.SessionCall(call_id=call_id, start=start))
        for offset in range(CHUNK_BYTES, len(blob), CHUNK_BYTES):
            self._send(pb.SessionCall(call_id=call_id, chunk=blob[offset : offset + CHUNK_BYTES]))
        return call_id

    def _share(self, pieces: list[Buffer], nbytes: int) -> str:
        """The name of a segment that holds a large blob, "" where it goes in line."""
        if self._pool is None or nbytes < THRESHOLD_BYTES:
            return ""
        segment = self._pool.write(pieces, nbytes)
        return segment.name if segment is not None else ""

    def _cancel(self, call_id: int) -> None:
        if not self.broken:
            self._send(pb.SessionCall(call_id=call_id, cancel=pb.SessionCall.Cancel()))

    def _send(self, request: pb.SessionCall) -> None:
        self._out.append(request)
        self._some.set()

    async def _write(self) -> None:
        try:
            while True:
                while self._out:
                    await self._stream.write(pb.SessionRequest(frames=lot(self._out)))
                self._some.clear()
                await self._some.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader hears of it with the reason

    async def _read(self) -> None:
        why = "the gateway closed the session"
        try:
            async for response in self._stream:
                for frame in response.frames:
                    self._take(frame)
        except grpc.aio.AioRpcError as exc:
            why = f"the gateway cannot be reached: {exc.details()}"
        except asyncio.CancelledError:
            why = "the session was closed"
        finally:
            self._break(UnavailableError(why, reason=GATEWAY_LOST))
            self._tasks[0].cancel()
        await self._channel.close(None)
        if self._pool is not None:
            self._pool.close()
        self._reader.close()

    def _break(self, why: UnavailableError) -> None:
        self.broken = True
        for pending in self._pending.values():
            pending.put(why)

    def _take(self, response: pb.SessionAnswer) -> None:
        pending = self._pending.get(response.call_id)
        if pending is None:
            return  # of a call that was taken back
        kind = response.WhichOneof("frame")
        if kind in ("item", "end") and isinstance(pending, _One):
            self._pending.pop(response.call_id)
            self._cancel(response.call_id)
            pending.put(InvalidRequestError("this function streams: use .stream(...)"))
        elif kind == "result" or kind == "item":
            message = response.result if kind == "result" else response.item
            size = 0 if message.segment else payloads.blob_bytes(tuple(message.sizes))
            if size > len(message.data):
                blob = bytearray(size)
                blob[: len(message.data)] = message.data
                pending.receiving = _Receiving(message, blob, len(message.data), kind == "result")
            else:
                self._deliver(pending, message, bytearray(message.data), last=kind == "result")
        elif kind == "chunk":
            self._take_chunk(pending, response.chunk)
        elif kind == "end":
            pending.put(None)
        elif kind == "error":
            pending.put(from_status(response.error))

    def _take_chunk(self, pending: _One | _Many, chunk: bytes) -> None:
        receiving = pending.receiving
        if receiving is None:
            return
        receiving.blob[receiving.filled : receiving.filled + len(chunk)] = chunk
        receiving.filled += len(chunk)
        if receiving.filled >= payloads.blob_bytes(tuple(receiving.message.sizes)):
            pending.receiving = None
            self._deliver(pending, receiving.message, receiving.blob, last=receiving.last)

    def _deliver(self, pending: _One | _Many, message: payload_pb2.Payload, blob: bytearray, *, last: bool) -> None:
        sizes = tuple(message.sizes)
        try:
            view = (
                memoryview(blob) if not message.segment else self._mapped(message.segment, payloads.blob_bytes(sizes))
            )
            payload = payloads.from_bytes(message.codec, message.head, sizes, view)
        except HasFaasError as exc:
            pending.put(exc)
            return
        pending.put(payload)
        if isinstance(pending, _Many) and last:
            pending.put(None)

    def _mapped(self, name: str, nbytes: int) -> memoryview:
        """A result's segment. Once it is mapped here, and so locked while anybody looks, its writer may have it back."""
        try:
            return self._reader.view(Segment(name, nbytes))
        finally:
            self._send(pb.SessionCall(release=name))
