"""A wire between hosts that a test can hold or cut: it passes bytes on between whoever connects and a port of loopback.

While it is held nothing passes either way and no end is told: a partition. A cut ends one connection of several. While it
refuses, connections that are there go on, and others are closed at once.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

PIECE_BYTES = 64 * 1024


class Wire:
    """One way to `port`, at a port of its own. `cables` are the connections, in the order in which they were made."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.cables: list[tuple[socket.socket, socket.socket]] = []
        self.refuses = False
        self.refused = 0
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """From now on nothing passes."""
        self._flows.clear()

    def release(self) -> None:
        """What was held passes, and all that follows."""
        self._flows.set()

    def cut(self, number: int) -> None:
        """Ends one connection, for both sides."""
        for end in self.cables[number]:
            _end(end)

    def close(self) -> None:
        """Ends it all."""
        self._listening.close()
        self.release()
        for number in range(len(self.cables)):
            self.cut(number)

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                near, _ = self._listening.accept()
                if self.refuses:
                    near.close()
                    self.refused += 1
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self.cables.append((near, far))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                self._flows.wait()
                target.sendall(piece)
        self._flows.wait()
        for end in (source, target):
            _end(end)


def _end(end: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        end.shutdown(socket.SHUT_RDWR)
