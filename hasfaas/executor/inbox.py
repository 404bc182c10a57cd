"""A replica's socket, from the replica's side: blocking reads between executions, vectored writes.

There is no reader thread: while the user's code runs, frames wait in the socket. Before each execution
everything that has arrived is read, so that a cancellation overtakes the work it cancels.

Law: every call that arrived is answered, a cancelled one too, since its place in this replica is taken until
then.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from hasfaas.core.errors import CancelledError
from hasfaas.wire import frames
from hasfaas.wire.frames import Buffer, Frame, FrameKind, FrameReader, Measure, WorkItem
from hasfaas.wire.status import to_status

# The kernel refuses more pieces in one vectored write (IOV_MAX).
MAX_PIECES = 512
_NEVER_RAN = to_status(CancelledError("the call was taken back before it ran")).SerializeToString()


class Closed(Exception):  # noqa: N818 - an end, not an error
    """The gateway has gone; a replica has no reason to live without one."""


@attrs.frozen
class Execution:
    """Calls to run together, each with its blob. `dropped`: there was no memory for the blobs. With `measure` there are
    none, but a point to measure, answered as `call_id`."""

    items: tuple[tuple[WorkItem, memoryview], ...]
    dropped: bool = False
    measure: Measure | None = None
    call_id: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of arguments."""
        return sum(len(blob) for _, blob in self.items)


class Inbox:
    """Work in the order it came, cancellations applied."""

    def __init__(self, sock: socket.socket, released: Callable[[str], None]) -> None:
        """`released` is told of each segment of ours that its reader has mapped."""
        self._sock = sock
        self._released = released
        self._reader = FrameReader(frames.MAX_BATCH_HEAD_BYTES)
        self._work: deque[Execution] = deque()
        # Calls that have arrived and not been answered: news of others comes too late and is dropped.
        # The value says whether the caller reads segments of shared memory.
        self._open: dict[int, bool] = {}
        self._cancelled: set[int] = set()
        self._credit: dict[int, int] = {}
        self._shutdown = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def next(self, idle: Callable[[], None]) -> Execution | None:
        """Blocks for the next execution; None when we are asked to end. Raises Closed when the gateway has
        gone. `idle` is called before each wait: what had arrived may all have been cancelled.

        Cancelled calls are left out, and answered here; an execution of which nothing is left is skipped.
        """
        while True:
            self.poll()
            while self._work:
                execution = self._work.popleft()
                if execution.measure is not None:
                    return execution
                kept = tuple(item for item in execution.items if not self._answer_cancelled(item[0].call_id))
                if kept:
                    return Execution(kept, execution.dropped)
            if self._shutdown:
                return None
            idle()
            self._receive()

    def peek_bytes(self) -> int | None:
        """Argument bytes of the next execution that has already arrived, None when there is none."""
        self.poll()
        return self._work[0].nbytes if self._work else None

    def poll(self) -> None:
        """Reads what has arrived, without waiting."""
        while self._poll.poll(0):
            self._receive()

    def cancelled(self, call_id: int) -> bool:
        """Whether the call that runs now was taken back meanwhile."""
        self.poll()
        return call_id in self._cancelled

    @property
    def ending(self) -> bool:
        """Whether we were asked to end."""
        return self._shutdown

    def spend_credit(self, call_id: int) -> bool:
        """Takes one item's credit of a stream if there is any."""
        self.poll()
        left = self._credit.get(call_id, 0)
        if left > 0:
            self._credit[call_id] = left - 1
            return True
        return False

    def quiet(self, timeout_s: float) -> bool:
        """Whether nothing arrives for so long; returns at once when something has."""
        return not self._poll.poll(timeout_s * 1000.0)

    def wait(self, timeout_s: float | None = None) -> None:
        """Blocks until something arrives, or the time is over."""
        if timeout_s is None or self._poll.poll(timeout_s * 1000.0):
            self._receive()

    def replies_in_segments(self, call_id: int) -> bool:
        """Whether the caller can read a result in shared memory."""
        return self._open.get(call_id, False)

    def forget(self, call_id: int) -> None:
        """The call has ended; what is left of it is dropped."""
        self._open.pop(call_id, None)
        self._cancelled.discard(call_id)
        self._credit.pop(call_id, None)

    def send(self, pieces: Sequence[Buffer]) -> None:
        """Writes all pieces. Raises Closed when nobody reads any more."""
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        try:
            while views:
                sent = self._sock.sendmsg(views[:MAX_PIECES])
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise Closed from exc

    def _receive(self) -> None:
        try:
            count = self._sock.recv_into(self._reader.buffer())
        except ConnectionResetError as exc:
            raise Closed from exc
        if not count:
            raise Closed
        for frame in self._reader.advance(count):
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.EXECUTE:
                execution = Execution(tuple(frames.unpack_execute(frame)), frame.dropped)
                self._open.update((item.call_id, item.replies_in_segments) for item, _ in execution.items)
                self._work.append(execution)
            case FrameKind.MEASURE:
                self._open[frame.call_id] = False
                self._work.append(Execution((), measure=frames.unpack_measure(frame), call_id=frame.call_id))
            case FrameKind.CANCEL:
                if frame.call_id in self._open:
                    self._cancelled.add(frame.call_id)
            case FrameKind.CREDIT:
                granted = frame.head
                assert isinstance(granted, int)
                if frame.call_id in self._open:
                    self._credit[frame.call_id] = self._credit.get(frame.call_id, 0) + granted
            case FrameKind.SHUTDOWN:
                self._shutdown = True
            case FrameKind.RELEASE:
                self._released(str(frame.head))
            case _:
                raise AssertionError(f"a gateway does not send {frame.kind.name}")

    def _answer_cancelled(self, call_id: int) -> bool:
        if call_id not in self._cancelled:
            return False
        self.forget(call_id)
        self.send(frames.pack(FrameKind.ERROR, call_id, body=[_NEVER_RAN]))
        return True
