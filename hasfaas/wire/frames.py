"""Frames between a gateway and a replica, and between an SDK and the gateway of its host: a fixed header, a msgpack head, and
a raw body that nobody in between opens.

A frame is 24 bytes `<kind u8, pad 3, head length u32, call id u64, body length u64>`, then head, then body. Reading is
sans-I/O: `FrameReader.buffer()` says where the next bytes go, `advance(n)` returns the frames they complete. A large body
is received straight into its own buffer.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attrs
import msgpack

from hasfaas.core.errors import InvalidRequestError

HEADER = struct.Struct("<BxxxIQQ")
# One payload's head (payload.py bounds it to 64 MiB) with its sizes.
MAX_HEAD_BYTES = 65 * 2**20
# Of a batch: many heads in one frame.
MAX_BATCH_HEAD_BYTES = 2**31
MAX_BODY_BYTES = 16 * 2**30
# Of one call's arguments when they do not go through shared memory.
MAX_CALL_BYTES = 2**30
SCRATCH_BYTES = 256 * 1024
# Up to here one joined write costs less than one write a piece.
JOIN_BYTES = 64 * 1024

Buffer = bytes | bytearray | memoryview


class FrameKind(enum.IntEnum):
    """Below 10: towards the replica. From 10: back. A client sends CALL where a gateway sends EXECUTE.

    MEASURE is answered by MEASURED or ERROR. OBSERVED is what executions held the lane, about once a second. From 20:
    between a gateway and a node agent. OPEN asks for the line to a replica, which OPENED begins; CONTROL is a message.
    """

    EXECUTE = 1
    CANCEL = 2
    CREDIT = 3
    SHUTDOWN = 4
    RELEASE = 5
    CALL = 6
    MEASURE = 7
    READY = 10
    FAILED = 11
    RESULT = 12
    ITEM = 13
    END = 14
    ERROR = 15
    MEASURED = 16
    OBSERVED = 17
    OPEN = 20
    OPENED = 21
    CONTROL = 22


@attrs.frozen
class Frame:
    """One message. `head` is what msgpack carried; `body` is raw. `dropped` means that there was no memory for the body,
    so it was read and thrown away."""

    kind: FrameKind
    call_id: int
    head: object
    body: Buffer
    dropped: bool = False


class SegmentOwner(Protocol):
    """Takes a segment back."""

    def release(self, segment: str) -> None: ...


@attrs.frozen
class Started:
    """What a replica tells when it is ready: the share of its device's SMs that it really has, by a count there (None: cannot
    be told), and the parts of its cold start: entering its device (on a GPU its context), loading the function (with its
    `__init__`, so its weights), and first runs on an example."""

    granted_percent: float | None = None
    enter_ms: float = 0.0
    load_ms: float = 0.0
    first_run_ms: float = 0.0


@attrs.frozen
class RawPayload:
    """A payload that is only passed on: its codec's number, its head, the sizes of its buffers, and its blob, in pieces or as
    the name of a shared segment.

    `replies_in_segments`: of arguments, that the caller can read them. `owner`: of a result in a segment, who made it.
    """

    codec: int
    head: bytes
    sizes: tuple[int, ...]
    chunks: tuple[Buffer, ...]
    segment: str = ""
    replies_in_segments: bool = False
    owner: SegmentOwner | None = attrs.field(default=None, eq=False)

    @property
    def blob_bytes(self) -> int:
        """Length of the blob."""
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes held: head and blob."""
        return len(self.head) + self.blob_bytes


@attrs.frozen
class WorkItem:
    """One call of an EXECUTE frame: `body` of the frame holds the items' blobs one after the other, 64-byte aligned."""

    call_id: int
    codec: int
    head: bytes
    sizes: tuple[int, ...]
    blob_bytes: int
    segment: str = ""
    replies_in_segments: bool = False


ALIGNMENT = 64


def padding(nbytes: int) -> int:
    """Bytes to add so that what follows starts at a multiple of 64."""
    return -nbytes % ALIGNMENT


def pack(kind: FrameKind, call_id: int = 0, head: object = None, body: Sequence[Buffer] = ()) -> list[Buffer]:
    """A frame as pieces, ready for a vectored write; the body is not copied."""
    packed = b"" if head is None else msgpack.packb(head)
    length = sum(len(piece) for piece in body)
    return [HEADER.pack(kind, len(packed), call_id, length) + packed, *body]


def pack_execute(calls: Iterable[tuple[int, RawPayload]]) -> list[Buffer]:
    """An EXECUTE frame for a batch of (call id, arguments)."""
    heads: list[object] = []
    body: list[Buffer] = []
    for call_id, payload in calls:
        size = payload.blob_bytes
        heads.append(
            (call_id, payload.codec, payload.head, payload.sizes, size, payload.segment, payload.replies_in_segments)
        )
        body.extend(payload.chunks)
        if padding(size):
            body.append(bytes(padding(size)))
    return pack(FrameKind.EXECUTE, 0, heads, body)


def unpack_execute(frame: Frame) -> list[tuple[WorkItem, memoryview]]:
    """The items of an EXECUTE frame, each with its blob as a view of the frame's body."""
    view = memoryview(frame.body)
    offset = 0
    items: list[tuple[WorkItem, memoryview]] = []
    for call_id, codec, head, sizes, size, segment, replies in frame.head:  # type: ignore[attr-defined]
        items.append((WorkItem(call_id, codec, head, sizes, size, segment, replies), view[offset : offset + size]))
        offset += size + padding(size)
    return items


def pack_call(call_id: int, function: str, version: str, timeout_s: float, raw: RawPayload) -> list[Buffer]:
    """A CALL frame. `timeout_s` 0 leaves the time to the function's own."""
    head = (function, version, timeout_s, raw.codec, raw.head, raw.sizes, raw.segment, raw.replies_in_segments)
    return pack(FrameKind.CALL, call_id, head, raw.chunks)


def unpack_call(frame: Frame) -> tuple[str, str, float, RawPayload]:
    """(function, version, timeout_s, arguments) of a CALL frame. Raises InvalidRequestError when it is none."""
    match frame.head:
        case (
            str(function),
            str(version),
            float(timeout_s),
            int(codec),
            bytes(head),
            tuple(sizes),
            str(segment),
            bool(replies),
        ) if _are_sizes(codec, sizes):
            chunks = (frame.body,) if len(frame.body) else ()
            return function, version, timeout_s, RawPayload(codec, head, sizes, chunks, segment, replies)
    raise InvalidRequestError(f"a frame {frame.kind.name} without a call's head: {frame.head!r:.80}")


@attrs.frozen
class Measure:
    """What a replica is asked to run again and again: a batch of so many calls, for about `bound_s`.

    `arguments` are those of one call; `given` puts them before the function's own example.
    """

    batch: int
    bound_s: float
    given: bool = False
    arguments: RawPayload | None = None


def pack_measure(call_id: int, measure: Measure) -> list[Buffer]:
    """A MEASURE frame."""
    raw = measure.arguments
    of_call = (raw.codec, raw.head, raw.sizes) if raw is not None else None
    head = (measure.batch, measure.bound_s, measure.given, of_call)
    return pack(FrameKind.MEASURE, call_id, head, raw.chunks if raw is not None else ())


def unpack_measure(frame: Frame) -> Measure:
    """The request of a MEASURE frame."""
    head: Any = frame.head
    batch, bound_s, given, of_call = head
    if of_call is None:
        return Measure(batch, bound_s, given)
    chunks = (frame.body,) if len(frame.body) else ()
    codec, packed, sizes = of_call
    return Measure(batch, bound_s, given, RawPayload(codec, packed, sizes, chunks))


@attrs.frozen
class Measured:
    """What a replica says of a point: median and mean hold and mean response of its runs, and the spread of log(hold)."""

    hold_ns: int
    mean_hold_ns: int
    response_ns: int
    runs: int
    log_spread: float


def unpack_measured(frame: Frame) -> Measured:
    """The figures of a MEASURED frame. Raises InvalidRequestError when there are none."""
    match frame.head:
        case (int(hold_ns), int(mean_ns), int(response_ns), int(runs), float(spread)) if (
            min(hold_ns, mean_ns, response_ns, runs) > 0
        ):
            return Measured(hold_ns, mean_ns, response_ns, runs, spread)
    raise InvalidRequestError(f"a frame {frame.kind.name} without figures: {frame.head!r:.80}")


def unpack_started(frame: Frame) -> Started:
    """What a READY frame tells. Raises InvalidRequestError when it is none."""
    match frame.head:
        case (None | float() as granted, float(enter_ms), float(load_ms), float(first_run_ms)):
            return Started(granted, enter_ms, load_ms, first_run_ms)
    raise InvalidRequestError(f"a frame {frame.kind.name} that tells no start: {frame.head!r:.80}")


def unpack_observed(frame: Frame) -> tuple[tuple[int, int], ...]:
    """(batch, hold in nanoseconds) of served executions, from an OBSERVED frame. InvalidRequestError when it is none."""
    match frame.head:
        case tuple(pairs) if all(_is_observation(pair) for pair in pairs):
            return pairs
    raise InvalidRequestError(f"a frame {frame.kind.name} without observations: {frame.head!r:.80}")


def _is_observation(pair: object) -> bool:
    match pair:
        case (int(batch), int(hold_ns)):
            return batch > 0 and hold_ns > 0
    return False


class Writable(Protocol):
    """What an asyncio transport offers."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...


def write_to(transport: Writable, pieces: Sequence[Buffer]) -> None:
    """Writes a frame: small ones at once, large ones piece by piece without joining them."""
    if len(pieces) == 1 or sum(len(piece) for piece in pieces) <= JOIN_BYTES:
        transport.write(b"".join(pieces))
        return
    for piece in pieces:
        transport.write(piece)


def pack_payload(kind: FrameKind, call_id: int, payload: RawPayload) -> list[Buffer]:
    """A RESULT or ITEM frame."""
    return pack(kind, call_id, (payload.codec, payload.head, payload.sizes, payload.segment), payload.chunks)


def unpack_payload(frame: Frame, owner: SegmentOwner | None = None) -> RawPayload:
    """The payload of a RESULT or ITEM frame. Raises InvalidRequestError when its head is not one of a payload: a replica's
    user code can write to its socket, and what it writes must not get further than here."""
    match frame.head:
        case (int(codec), bytes(head), tuple(sizes), str(segment)) if _are_sizes(codec, sizes):
            chunks = (frame.body,) if len(frame.body) else ()
            return RawPayload(codec, head, sizes, chunks, segment, owner=owner if segment else None)
    raise InvalidRequestError(f"a frame {frame.kind.name} without a payload's head: {frame.head!r:.80}")


def _are_sizes(codec: int, sizes: tuple[object, ...]) -> bool:
    return 0 <= codec < 256 and all(isinstance(size, int) and 0 <= size < 2**63 for size in sizes)


class FrameReader:
    """Assembles frames from bytes as they come. Raises InvalidRequestError on a header that no peer of ours sends."""

    def __init__(self, max_head_bytes: int = MAX_HEAD_BYTES, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._scratch = bytearray(SCRATCH_BYTES)
        self._start = 0
        self._end = 0
        self._body: bytearray | None = None
        self._filled = 0
        self._drop_left = 0
        self._pending: tuple[FrameKind, int, object] | None = None

    def buffer(self) -> memoryview:
        """Where to put the next bytes; never empty."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        if self._drop_left:
            return memoryview(self._scratch)[: self._drop_left]
        return memoryview(self._scratch)[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """Takes `count` bytes that were put into `buffer()` and returns the frames that are now whole."""
        frames: list[Frame] = []
        if self._body is not None:
            self._filled += count
            if self._filled == len(self._body):
                frames.append(self._finish())
            return frames
        if self._drop_left:
            self._drop_left -= count
            if not self._drop_left:
                frames.append(self._finish())
            return frames
        self._end += count
        while self._body is None and self._parse(frames):
            pass
        self._compact()
        return frames

    def _finish(self) -> Frame:
        assert self._pending is not None
        kind, call_id, head = self._pending
        body = self._body
        frame = Frame(kind, call_id, head, b"" if body is None else body, dropped=body is None)
        self._pending, self._body, self._filled = None, None, 0
        return frame

    def _parse(self, frames: list[Frame]) -> bool:
        available = self._end - self._start
        if available < HEADER.size:
            return False
        kind, head_len, call_id, body_len = HEADER.unpack_from(self._scratch, self._start)
        if head_len > self._max_head_bytes or body_len > self._max_body_bytes:
            raise InvalidRequestError(f"a frame announces a head of {head_len} and a body of {body_len} bytes")
        head_end = self._start + HEADER.size + head_len
        if head_end > self._end:
            self._reserve(HEADER.size + head_len)
            return False
        view = memoryview(self._scratch)
        head = _unpack_head(view[self._start + HEADER.size : head_end])
        try:
            known = FrameKind(kind)
        except ValueError as exc:
            raise InvalidRequestError(f"a frame of unknown kind {kind}") from exc
        self._pending = (known, call_id, head)
        take = min(body_len, self._end - head_end)
        self._start = head_end + take
        try:
            body = bytearray(body_len)
        except MemoryError:
            self._drop_left = body_len - take
        else:
            body[:take] = view[head_end : head_end + take]
            self._body, self._filled = body, take
        if take == body_len:
            frames.append(self._finish())
            return True
        return False

    def _reserve(self, needed: int) -> None:
        if needed > len(self._scratch):
            self._compact()
            self._scratch = self._scratch + bytearray(needed - len(self._scratch))

    def _compact(self) -> None:
        left = self._end - self._start
        if self._start:
            self._scratch[:left] = self._scratch[self._start : self._end]
            self._start, self._end = 0, left


def _unpack_head(packed: memoryview) -> object:
    if not packed:
        return None
    try:
        return msgpack.unpackb(packed, use_list=False)
    except ValueError as exc:
        raise InvalidRequestError(f"a frame's head of {len(packed)} bytes is not msgpack: {exc}") from exc
