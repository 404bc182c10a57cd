"""A line between hosts: what is large goes in pieces, as fast as the peer takes them, so that nothing else waits for it."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

from hasfaas.wire.frames import Buffer
from hasfaas.wire.line import FrameLine

# What is encrypted in one go, which keeps the loop busy for about as long as one small call takes.
PIECE_BYTES = 256 * 1024
# An idle line is asked whether it is there: firewalls forget one, and a peer that vanished says nothing. How long what was
# sent may wait has no limit (`TCP_USER_TIMEOUT`), since the kernel would count a reader who is slow as well.
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}


class PacedLine(FrameLine):
    """One end."""

    _left: deque[memoryview]
    _full = False

    def write(self, pieces: list[Buffer]) -> None:
        """Sends a frame after those that wait; nothing once the line is gone."""
        if not self._left and sum(len(piece) for piece in pieces) <= PIECE_BYTES:
            super().write(pieces)
            return
        for piece in pieces:
            view = memoryview(piece).cast("B")
            self._left.extend(view[start : start + PIECE_BYTES] for start in range(0, len(view), PIECE_BYTES))
        self._go_on()

    def finish(self) -> None:
        """Sends what was written so far as a whole, and closes."""
        if self._transport is not None:
            self._transport.close()

    def _go_on(self) -> None:
        while self._left and not self._full:
            transport = self._transport
            if transport is None or transport.is_closing():
                self._left.clear()
                return
            transport.write(self._left.popleft())

    # -- asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._left = deque()
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left.clear()
        super().connection_lost(exc)
