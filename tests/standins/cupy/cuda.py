"""Streams, events and graphs of the stand-in."""

from __future__ import annotations

import threading
import time
from typing import Any

from . import _memory as memory
from . import _runtime as runtime
from ._machine import CUDARuntimeError, Queue, Work, machine
from ._memory import OutOfMemoryError, PythonFunctionAllocator, alloc, set_allocator

__all__ = [
    "CUDARuntimeError",
    "Event",
    "OutOfMemoryError",
    "PythonFunctionAllocator",
    "Stream",
    "alloc",
    "get_current_stream",
    "get_elapsed_time",
    "memory",
    "runtime",
    "set_allocator",
]

_current = threading.local()


class _BaseStream:
    """What all streams can do."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self.device_id = 0

    def use(self) -> Any:
        """Makes it current on this thread."""
        machine.start()
        _current.stream = self
        return self

    def __enter__(self) -> Any:
        self._outer = get_current_stream()
        return self.use()

    def __exit__(self, *_: object) -> None:
        _current.stream = self._outer

    def synchronize(self) -> None:
        """Waits for it."""
        runtime.streamSynchronize(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        """An event behind all that is queued."""
        event = event or Event()
        event.record(self)
        return event

    def begin_capture(self, mode: int | None = None) -> None:
        """What is queued from now on is kept instead."""
        queue = machine.queue(self.ptr)
        queue.captured, queue.spoiled = [], False

    def end_capture(self) -> Graph:
        """What was kept."""
        queue = machine.queue(self.ptr)
        kept, queue.captured = queue.captured, None
        if queue.spoiled or kept is None:
            raise CUDARuntimeError(901)
        return Graph(kept)

    def is_capturing(self) -> bool:
        """Whether it is kept."""
        return runtime.streamIsCapturing(self.ptr)


class Stream(_BaseStream):
    """A stream, which is a thread."""

    null: _BaseStream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        machine.start()
        super().__init__(0 if null else machine.handle())
        if not null:
            machine.queues[self.ptr] = Queue()


Stream.null = _BaseStream(0)


class Graph:
    """Work that was kept, to be queued as a whole."""

    def __init__(self, work: list[Work]) -> None:
        self.work = work

    def launch(self, stream: _BaseStream | None = None) -> None:
        """Queues it."""
        queue = machine.queue((stream or get_current_stream()).ptr)
        for duration_ns, then in self.work:
            queue.put(duration_ns, then)


class Event:
    """A point in a stream, and when it was reached."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        machine.start()
        self.ptr = machine.handle()
        self.reached = threading.Event()
        self.reached_ns = 0
        runtime.events[self.ptr] = self

    def record(self, stream: _BaseStream | None = None) -> None:
        """Puts it behind all that is queued."""
        runtime.eventRecord(self.ptr, (stream or get_current_stream()).ptr)

    @property
    def done(self) -> bool:
        """Whether it was reached."""
        return runtime.eventQuery(self.ptr) == 0

    def synchronize(self) -> None:
        """Waits for it."""
        runtime.eventSynchronize(self.ptr)

    def reach(self) -> None:
        """Called by the stream."""
        self.reached_ns = time.monotonic_ns()
        self.reached.set()


def get_current_stream() -> Any:
    """This thread's stream."""
    return getattr(_current, "stream", Stream.null)


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events that were reached."""
    machine.start()
    assert start.reached.is_set() and end.reached.is_set(), "cudaErrorNotReady"
    return (end.reached_ns - start.reached_ns) / 1e6
