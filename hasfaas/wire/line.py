"""A connected socket that carries frames, on an asyncio loop: bytes in, frames out, and back. It decides nothing."""

from __future__ import annotations

import asyncio

from hasfaas.core.errors import InvalidRequestError
from hasfaas.wire import frames
from hasfaas.wire.frames import Buffer, Frame, FrameReader

WRITE_BUFFER_BYTES = 4 * 2**20


class FrameLine(asyncio.BufferedProtocol):
    """One end. A peer that does not speak the protocol is cut off: an answer would not be understood."""

    def __init__(self, reader: FrameReader | None = None) -> None:
        self._reader = reader or FrameReader()
        self._transport: asyncio.Transport | None = None

    def take(self, frame: Frame) -> None:
        """One frame from the peer. To be overridden; raises InvalidRequestError for one that the peer never sends."""
        raise InvalidRequestError(f"nobody here takes {frame.kind.name}")

    def lost(self) -> None:
        """The line is gone, whichever side closed it; called once. To be overridden where it matters."""

    def write(self, pieces: list[Buffer]) -> None:
        """Sends a frame; nothing once the line is gone."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            frames.write_to(transport, pieces)

    def close(self) -> None:
        """Closes our end at once; the peer sees the end of file."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.advance(nbytes):
                self.take(frame)
        except InvalidRequestError:
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost()
