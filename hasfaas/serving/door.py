"""The gateway's second door: calls by frames on a unix socket of this user, for SDKs of the same host.

It carries what a gRPC session carries, calls and their answers, and nothing else; functions are deployed and sized by gRPC.
Python's gRPC hands each message through three threads on each side; here a call costs two wake-ups less per direction.
"""

from __future__ import annotations

import asyncio

from hasfaas.core.errors import InvalidRequestError
from hasfaas.serving.client_calls import ClientCalls, Intake
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, FrameReader, RawPayload


class Door(asyncio.BufferedProtocol):
    """One connected client."""

    def __init__(self, intake: Intake) -> None:
        self._reader = FrameReader(max_body_bytes=frames.MAX_CALL_BYTES)
        self._calls = ClientCalls(intake, self)
        self._transport: asyncio.Transport | None = None

    # -- Replies -----------------------------------------------------------------------------------------------------

    def send_result(self, call_id: int, payload: RawPayload) -> None:
        self._write(frames.pack_payload(FrameKind.RESULT, call_id, payload))

    def send_item(self, call_id: int, payload: RawPayload) -> None:
        self._write(frames.pack_payload(FrameKind.ITEM, call_id, payload))

    def send_end(self, call_id: int) -> None:
        self._write(frames.pack(FrameKind.END, call_id))

    def send_error(self, call_id: int, status: bytes) -> None:
        self._write(frames.pack(FrameKind.ERROR, call_id, body=[status]))

    def _write(self, pieces: list[frames.Buffer]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            frames.write_to(self._transport, pieces)

    # -- asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.advance(nbytes):
                self._take(frame)
        except InvalidRequestError:
            # Whoever does not speak the protocol is no SDK of ours; an answer would not be understood.
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._calls.close()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.CALL:
                function, version, timeout_s, raw = frames.unpack_call(frame)
                self._calls.begin(frame.call_id, function, version, raw, timeout_s)
            case FrameKind.CANCEL:
                self._calls.cancel(frame.call_id)
            case FrameKind.CREDIT if isinstance(frame.head, int):
                self._calls.credit(frame.call_id, frame.head)
            case FrameKind.RELEASE if isinstance(frame.head, str):
                self._calls.release(frame.head)
            case _:
                raise InvalidRequestError(f"a client sent {frame.kind.name}, which no client sends")
