"""The gateway's second door: calls by frames on a unix socket of this user, for SDKs of the same host.

It carries what a gRPC session carries, calls and their answers, and nothing else; functions are deployed and sized by gRPC.
Python's gRPC hands each message through three threads on each side; here a call costs two wake-ups less per direction.
"""

from __future__ import annotations

from hasfaas.core.errors import InvalidRequestError
from hasfaas.serving.client_calls import ClientCalls, Intake
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, FrameReader, RawPayload
from hasfaas.wire.line import FrameLine


class Door(FrameLine):
    """One connected client."""

    def __init__(self, intake: Intake) -> None:
        super().__init__(FrameReader(max_body_bytes=frames.MAX_CALL_BYTES))
        self._calls = ClientCalls(intake, self)

    # -- Replies -----------------------------------------------------------------------------------------------------

    def send_result(self, call_id: int, payload: RawPayload) -> None:
        self.write(frames.pack_payload(FrameKind.RESULT, call_id, payload))

    def send_item(self, call_id: int, payload: RawPayload) -> None:
        self.write(frames.pack_payload(FrameKind.ITEM, call_id, payload))

    def send_end(self, call_id: int) -> None:
        self.write(frames.pack(FrameKind.END, call_id))

    def send_error(self, call_id: int, status: bytes) -> None:
        self.write(frames.pack(FrameKind.ERROR, call_id, body=[status]))

    # -- FrameLine ---------------------------------------------------------------------------------------------------

    def lost(self) -> None:
        self._calls.close()

    def take(self, frame: Frame) -> None:
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
