"""The way to a replica of the gateway's own node: its socket itself, and shared memory for what is large.

A client elsewhere lends no segment: what it sent in line is put into one of ours here, and a result that comes in a segment
is taken out of it. So neither is copied through the socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import attrs

from hasfaas.core.errors import UnavailableError
from hasfaas.serving.channel import ChannelEvents, ReplicaChannel
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, RawPayload
from hasfaas.wire.payload import blob_bytes
from hasfaas.wire.segments import THRESHOLD_BYTES, Segment, SegmentPool, SegmentReader

ANSWERS_WITHIN_S = 10.0
_LAST = (FrameKind.RESULT, FrameKind.END, FrameKind.ERROR)


class NearChannel(ReplicaChannel):
    """A replica's socket."""

    def __init__(self, events: ChannelEvents) -> None:
        super().__init__(events)
        self._pool = SegmentPool()
        self._segments = SegmentReader()
        # Calls whose client reads no segments, with the segment of ours that holds the arguments, empty for small ones.
        self._far_calls: dict[int, str] = {}

    def execute(self, calls: Sequence[tuple[int, RawPayload]]) -> None:
        """Sends a batch for one execution."""
        super().execute([(call_id, self._lent(call_id, payload)) for call_id, payload in calls])

    def take(self, frame: Frame) -> None:
        if frame.call_id in self._far_calls and frame.kind in (FrameKind.RESULT, FrameKind.ITEM):
            frame = self._taken_out(frame)
        super().take(frame)
        if frame.kind in _LAST and (segment := self._far_calls.pop(frame.call_id, "")):
            self._pool.give_back(segment)

    def lost(self) -> None:
        super().lost()
        self._pool.close()
        self._segments.close()

    def _lent(self, call_id: int, payload: RawPayload) -> RawPayload:
        if payload.segment or payload.replies_in_segments:
            return payload  # of a client of this host
        segment = None
        if payload.blob_bytes >= THRESHOLD_BYTES:
            segment = self._pool.write(payload.chunks, payload.blob_bytes)
        self._far_calls[call_id] = segment.name if segment is not None else ""
        chunks = payload.chunks if segment is None else ()
        name = "" if segment is None else segment.name
        return attrs.evolve(payload, chunks=chunks, segment=name, replies_in_segments=True)

    def _taken_out(self, frame: Frame) -> Frame:
        """The answer with its blob inside."""
        payload = frames.unpack_payload(frame)
        if not payload.segment:
            return frame
        blob = bytes(self._segments.view(Segment(payload.segment, blob_bytes(payload.sizes))))
        self.release(payload.segment)
        return attrs.evolve(frame, head=(payload.codec, payload.head, payload.sizes, ""), body=blob)


@attrs.frozen
class NearLine:
    """A replica's own socket, from the agent of this very node: as on one host."""

    descriptors: Path
    replica_id: str

    async def open(self, events: ChannelEvents) -> ReplicaChannel:
        """Takes the socket. Raises UnavailableError when the agent does not hand it out."""
        try:
            channel = await asyncio.to_thread(self._ask)
        except OSError as exc:
            raise UnavailableError(f"replica {self.replica_id} cannot be reached on this node: {exc}") from exc
        return await NearChannel.open(channel, events)

    def _ask(self) -> socket.socket:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ANSWERS_WITHIN_S)
            asking.connect(str(self.descriptors))
            asking.sendall(self.replica_id.encode())
            _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
        if not descriptors:
            raise ConnectionRefusedError("its agent does not have it")
        return socket.socket(fileno=descriptors[0])
