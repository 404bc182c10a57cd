"""An asynchronous device made of a thread: launches return at once, kernels run in order, and really take
their time.

Unlike devices/sim.py nothing is computed ahead: an event is done when the worker says so. That is what shows
whether enforcement debits what the device did, or only what the host launched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns, sleep

from hasfaas.devices.base import Stream


class AsyncStream(Stream):
    """devices.base.Stream over a worker thread. `device`, a file, makes kernels of all its processes take
    turns.

    Kernels sleep, or keep a core busy with `burn`. `busy_ns` is the time that the worker spent in kernels.
    """

    def __init__(self, device: Path | None = None, *, burn: bool = False) -> None:
        self.busy_ns = 0
        self.kernels = 0
        self._burn = burn
        self._queue: deque[int] = deque()
        self._launched = 0
        self._changed = threading.Condition()
        self._device = None if device is None else os.open(device, os.O_RDWR | os.O_CREAT, 0o600)
        threading.Thread(target=self._work, daemon=True).start()

    def launch(self, duration_ns: int) -> None:
        """Queues a kernel and returns."""
        with self._changed:
            self._queue.append(duration_ns)
            self._launched += 1
            self._changed.notify_all()

    def record(self) -> object | None:
        """How many kernels must be done."""
        return self._launched

    def query(self, event: object | None) -> bool:
        """Whether they are."""
        assert isinstance(event, int)
        return self.kernels >= event

    def wait(self, event: object | None) -> None:
        """Blocks until they are."""
        assert isinstance(event, int)
        with self._changed:
            self._changed.wait_for(lambda: self.kernels >= event)

    def drain(self) -> None:
        """Blocks until all are."""
        AsyncStream.wait(self, self._launched)

    def serve(self, function: str, batch: int, gate: Callable[[], None]) -> None:
        """One kernel of 1 ms for each item."""
        for _ in range(batch):
            self.launch(1_000_000)
            gate()

    # -- the worker ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                duration_ns = self._queue.popleft()
            with self._turn():
                self._run(duration_ns)
            with self._changed:
                self.kernels += 1
                self._changed.notify_all()

    def _run(self, duration_ns: int) -> None:
        start = monotonic_ns()
        if self._burn:
            while monotonic_ns() - start < duration_ns:
                pass
        else:
            sleep(duration_ns / 1e9)
        self.busy_ns += monotonic_ns() - start

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._device is None:
            yield
            return
        fcntl.flock(self._device, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._device, fcntl.LOCK_UN)


class HiddenStream(AsyncStream):
    """Runs the same, and says that all is done at once: what a hook that meters launches only gets to see."""

    def record(self) -> object | None:
        """None: as if synchronous."""
        return None

    def query(self, event: object | None) -> bool:
        """As if done."""
        return True

    def wait(self, event: object | None) -> None:
        """Waits for nothing."""

    def drain(self) -> None:
        """Drains nothing."""
