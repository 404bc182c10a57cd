"""Passes bytes on between two connections, and never looks inside. When one side has no room, the other is not read."""

from __future__ import annotations

import asyncio
import socket

BUFFER_BYTES = 4 * 2**20


class Relay(asyncio.Protocol):
    """One end. What its peer's connection brings goes out here, and the end of one is the end of both."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._peer: Relay | None = None

    @classmethod
    async def join(cls, transport: asyncio.Transport, replica: socket.socket) -> None:
        """Joins a connection that is there, from now on read by nobody else, with a replica's socket."""
        far, near = cls(), cls()
        far._peer, near._peer = near, far
        await asyncio.get_running_loop().create_connection(lambda: near, sock=replica)
        if transport.is_closing():
            near.end()
            return
        far.connection_made(transport)
        transport.set_protocol(far)
        transport.resume_reading()

    def end(self) -> None:
        """Sends what is left, and closes."""
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.write(data)

    def pause_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer is not None and self._peer._transport is not None:
            self._peer._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._peer is not None:
            self._peer.end()
