"""The device behind the stand-in: streams are threads, kernels sleep, MPS is asked for leave."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMS, MEMORY_BYTES, CLOCK_MHZ = 132, 16 << 30, 1980.0
# A kernel that nobody said anything about.
SHORT_NS = 20_000
_ROOT = str(Path(__file__).parents[3])
# A fault of another process is seen so much later at most.
_LOOK_EVERY_S = 0.005

NAMES = {
    1: ("cudaErrorInvalidValue", "invalid argument"),
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    3: ("cudaErrorInitializationError", "initialization error"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    805: (
        "cudaErrorMpsConnectionFailed",
        "MPS client failed to connect to the MPS control daemon or the MPS server",
    ),
    806: (
        "cudaErrorMpsRpcFailure",
        "the remote procedural call between the MPS server and the MPS client failed",
    ),
    807: ("cudaErrorMpsServerNotReady", "MPS server is not ready to accept new MPS client requests"),
    810: ("cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server"),
    900: ("cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"),
    901: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"),
}


class CUDARuntimeError(RuntimeError):
    """As CuPy's: `status` is CUDA's number."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(": ".join(NAMES.get(status, (f"cudaError{status}", "no text in the stand-in"))))


Work = tuple[int, Callable[[], None] | None]


class Queue:
    """One stream: work in order, on a thread of its own."""

    def __init__(self) -> None:
        self.captured: list[Work] | None = None
        self.spoiled = False
        self.busy_ns = 0
        self._work: deque[Work] = deque()
        self._launched = self._done = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, duration_ns: int, then: Callable[[], None] | None = None) -> None:
        """Queues work that takes so long; `then` is its effect, at its end."""
        if self.captured is not None:
            self.captured.append((duration_ns, then))
            return
        with self._changed:
            self._work.append((duration_ns, then))
            self._launched += 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Blocks until all that was queued is done."""
        with self._changed:
            target = self._launched
            self._changed.wait_for(lambda: self._done >= target)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work)
                duration_ns, then = self._work.popleft()
            began = time.monotonic_ns()
            if duration_ns:
                time.sleep(duration_ns / 1e9)
                self.busy_ns += time.monotonic_ns() - began
            if then is not None:
                then()
            then = None  # else its arrays would stay until the next work
            with self._changed:
                self._done += 1
                self._changed.notify_all()


class Machine:
    """The device as one process sees it, and that process's context."""

    def __init__(self) -> None:
        self.sms = 0
        self.memory_bytes = MEMORY_BYTES
        self.used_bytes = 0
        self.queues: dict[int, Queue] = {}
        self.launches = 0
        self._pid: int | None = None
        self._error: int | None = None
        self._looked_s = 0.0
        self._lock = threading.Lock()
        self._allocations: dict[int, int] = {}
        self._next = 1

    @property
    def started(self) -> bool:
        """Whether CUDA was started here."""
        return self._pid == os.getpid()

    def start(self) -> None:
        """The first call of this process: MPS is asked. Later ones find out whether the context is lost."""
        if self._pid is None:
            self._connect()
        if self._pid != os.getpid():
            raise CUDARuntimeError(3)  # CUDA does not survive a fork
        if self._error is None:
            self._look()
        if self._error is not None:
            raise CUDARuntimeError(self._error)

    def fail(self, status: int) -> None:
        """Every call fails from now on."""
        self._error = status

    def queue(self, pointer: int) -> Queue:
        """The stream of this handle; 0 is the default stream."""
        self.start()
        return self.queues.setdefault(pointer, Queue()) if pointer == 0 else self.queues[pointer]

    def handle(self) -> int:
        """A fresh number, as of a pointer."""
        with self._lock:
            self._next += 1
            return self._next << 8

    def must_not_capture(self) -> None:
        """What waits for the device, or asks it, spoils a capture that is under way."""
        capturing = [queue for queue in self.queues.values() if queue.captured is not None]
        for queue in capturing:
            queue.spoiled = True
        if capturing:
            raise CUDARuntimeError(900)

    def allocate(self, size_bytes: int) -> int:
        """Memory of the device, by its address. Refused beyond what MPS granted."""
        self.start()
        if self.used_bytes + size_bytes > self.memory_bytes:
            raise CUDARuntimeError(2)
        pointer = self.handle()
        self._allocations[pointer] = size_bytes
        self.used_bytes += size_bytes
        return pointer

    def free(self, pointer: int) -> None:
        """Gives it back; 0 is nothing."""
        self.used_bytes -= self._allocations.pop(pointer, 0)

    def _connect(self) -> None:
        if "FAKE_MPS" in os.environ:
            mps = _mps()
            try:
                client = mps.connect(os.environ, os.getpid())
            except mps.Refused as exc:
                raise CUDARuntimeError(exc.code) from exc
            self.sms, self.memory_bytes = client.sms, client.memory_limit or MEMORY_BYTES
        else:
            self.sms = SMS
        self._pid = os.getpid()

    def _look(self) -> None:
        now_s = time.monotonic()
        if "FAKE_MPS" not in os.environ or now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if _mps().faulted(os.environ, os.getpid()):
            self._error = 806
        elif _mps().ended(os.environ, os.getpid()):
            self._error = 810


def _mps() -> Any:
    if _ROOT not in sys.path:
        sys.path.append(_ROOT)
    from tests.fakes import mps_daemon

    return mps_daemon


machine = Machine()
