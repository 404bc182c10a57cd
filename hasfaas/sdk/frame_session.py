"""A session with a gateway of this host, by frames on its unix socket: gRPC's threads are most of what a small call costs.

Functions are deployed and sized by gRPC all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from hasfaas.core.errors import HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.sdk.backends import Endpoint
from hasfaas.sdk.session import GATEWAY_LOST, Request, Session
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, RawPayload
from hasfaas.wire.line import FrameLine
from hasfaas.wire.status import read_status
from hasfaas.wire.tensors import Buffer


class FrameSession(Session):
    """One connected unix socket."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._line = _Line(self)

    @classmethod
    async def open(cls, endpoint: Endpoint, socket: Path) -> FrameSession:
        """Connects. Raises UnavailableError (GATEWAY_LOST) when nobody listens."""
        session = cls(endpoint)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: session._line, str(socket))
        except OSError as exc:
            await session.close()
            raise UnavailableError(f"the gateway cannot be reached: {exc}", reason=GATEWAY_LOST) from exc
        return session

    def _send_call(self, call_id: int, request: Request, pieces: Sequence[Buffer], segment: str) -> None:
        arguments = request.arguments
        nbytes = sum(len(piece) for piece in pieces)
        if nbytes > frames.MAX_CALL_BYTES:
            raise InvalidRequestError(
                f"{request.function}: arguments of {nbytes >> 20} MiB; at most {frames.MAX_CALL_BYTES >> 20} MiB fit a call"
            )
        raw = RawPayload(
            int(arguments.codec), arguments.head, arguments.lengths, tuple(pieces), segment, replies_in_segments=True
        )
        self._line.write(frames.pack_call(call_id, request.function, request.version, float(request.timeout_s), raw))

    def _send_cancel(self, call_id: int) -> None:
        self._line.write(frames.pack(FrameKind.CANCEL, call_id))

    def _send_credit(self, call_id: int, items: int) -> None:
        self._line.write(frames.pack(FrameKind.CREDIT, call_id, items))

    def _send_release(self, segment: str) -> None:
        self._line.write(frames.pack(FrameKind.RELEASE, 0, segment))

    def _hang_up(self) -> None:
        self._line.close()

    def lost(self) -> None:
        """The line is gone."""
        self._break(UnavailableError("the gateway closed the session", reason=GATEWAY_LOST))

    def take(self, frame: Frame) -> None:
        """One frame from the gateway. Raises InvalidRequestError for one that no gateway sends."""
        match frame.kind:
            case FrameKind.RESULT | FrameKind.ITEM:
                raw = frames.unpack_payload(frame)
                last = frame.kind is FrameKind.RESULT
                blob = memoryview(frame.body)
                self._take_payload(frame.call_id, raw.codec, raw.head, raw.sizes, blob, raw.segment, last=last)
            case FrameKind.END:
                self._take_end(frame.call_id)
            case FrameKind.ERROR:
                self._take_error(frame.call_id, _error(frame))
            case _:
                raise InvalidRequestError(f"a gateway sent {frame.kind.name}")


def _error(frame: Frame) -> HasFaasError:
    try:
        return read_status(bytes(frame.body))
    except ValueError as exc:
        raise InvalidRequestError(f"a frame ERROR holds no google.rpc.Status: {exc}") from exc


class _Line(FrameLine):
    """The socket, told apart from the session since asyncio and the session both say `close`."""

    def __init__(self, session: FrameSession) -> None:
        super().__init__()
        self._session = session

    def take(self, frame: Frame) -> None:
        self._session.take(frame)

    def lost(self) -> None:
        self._session.lost()
