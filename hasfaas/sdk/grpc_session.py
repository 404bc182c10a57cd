"""A session on one gRPC stream, to any gateway: frames that are ready together share a message, large payloads are cut."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs
import grpc

from hasfaas.core.errors import AuthError, HasFaasError, UnavailableError
from hasfaas.sdk.backends import Endpoint
from hasfaas.sdk.session import GATEWAY_LOST, Request, Session, error_of
from hasfaas.wire.lots import lot
from hasfaas.wire.payload import blob_bytes
from hasfaas.wire.status import ADDRESSES_KEY, from_status
from hasfaas.wire.tensors import Buffer
from hasfaas.wire.v1 import functions_pb2 as pb
from hasfaas.wire.v1 import payload_pb2

CHUNK_BYTES = 1 << 20


@attrs.define(eq=False)
class _Receiving:
    """A payload of which chunks are still to come."""

    message: payload_pb2.Payload
    blob: bytearray
    filled: int
    last: bool


class GrpcSession(Session):
    """One multiplexed stream."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._out: deque[pb.SessionCall] = deque()
        self._some = asyncio.Event()
        self._receiving: dict[int, _Receiving] = {}
        stub: Any = self.stub  # the stubs of grpc.aio do not know the style of writing to an open stream
        self._stream = stub.Session()
        self._learn = endpoint.learn
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]

    def _send_call(self, call_id: int, request: Request, pieces: Sequence[Buffer], segment: str) -> None:
        arguments = request.arguments
        blob = b"".join(pieces)
        first = payload_pb2.Payload(
            codec=int(arguments.codec),  # type: ignore[arg-type]
            head=arguments.head,
            sizes=arguments.lengths,
            data=blob if len(blob) <= CHUNK_BYTES else blob[:CHUNK_BYTES],
            segment=segment,
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

    def _send_cancel(self, call_id: int) -> None:
        self._receiving.pop(call_id, None)
        self._send(pb.SessionCall(call_id=call_id, cancel=pb.SessionCall.Cancel()))

    def _send_credit(self, call_id: int, items: int) -> None:
        self._send(pb.SessionCall(call_id=call_id, credit=pb.SessionCall.Credit(items=items)))

    def _send_release(self, segment: str) -> None:
        self._send(pb.SessionCall(release=segment))

    def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._stream.cancel()

    def _send(self, frame: pb.SessionCall) -> None:
        self._out.append(frame)
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
        why: HasFaasError = UnavailableError("the gateway closed the session", reason=GATEWAY_LOST)
        try:
            if self._learn is not None:
                metadata: Any = await self._stream.initial_metadata()
                if named := [str(value) for key, value in metadata or () if key == ADDRESSES_KEY]:
                    self._learn(tuple(named[0].split(",")))
            async for response in self._stream:
                for frame in response.frames:
                    self._take(frame)
        except grpc.aio.AioRpcError as exc:
            told = error_of(exc)
            lost = UnavailableError(f"the gateway cannot be reached: {exc.details()}", reason=GATEWAY_LOST)
            why = told if isinstance(told, AuthError) else lost
        except asyncio.CancelledError:
            why = UnavailableError("the session was closed", reason=GATEWAY_LOST)
        finally:
            self._break(why)
            self._tasks[0].cancel()
        await self._channel.close(None)

    def _take(self, frame: pb.SessionAnswer) -> None:
        call_id = frame.call_id
        match frame.WhichOneof("frame"):
            case "result":
                self._take_first(call_id, frame.result, last=True)
            case "item":
                self._take_first(call_id, frame.item, last=False)
            case "chunk":
                self._take_chunk(call_id, frame.chunk)
            case "end":
                self._take_end(call_id)
            case "error":
                self._take_error(call_id, from_status(frame.error))

    def _take_first(self, call_id: int, message: payload_pb2.Payload, *, last: bool) -> None:
        size = 0 if message.segment else blob_bytes(tuple(message.sizes))
        blob = bytearray(message.data) if size <= len(message.data) else bytearray(size)
        receiving = _Receiving(message, blob, len(message.data), last)
        if size <= len(message.data):
            self._deliver(call_id, receiving)
        elif call_id in self._pending:
            blob[: len(message.data)] = message.data
            self._receiving[call_id] = receiving

    def _take_chunk(self, call_id: int, chunk: bytes) -> None:
        receiving = self._receiving.get(call_id)
        if receiving is None:
            return  # of a call that was taken back
        receiving.blob[receiving.filled : receiving.filled + len(chunk)] = chunk
        receiving.filled += len(chunk)
        if receiving.filled >= len(receiving.blob):
            del self._receiving[call_id]
            self._deliver(call_id, receiving)

    def _deliver(self, call_id: int, receiving: _Receiving) -> None:
        message = receiving.message
        blob = memoryview(receiving.blob)
        sizes = tuple(message.sizes)
        self._take_payload(call_id, message.codec, message.head, sizes, blob, message.segment, last=receiving.last)
