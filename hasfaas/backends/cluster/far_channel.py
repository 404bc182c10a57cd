"""The way to a replica of another host: the frames of a local one, over TCP with TLS, relayed by its agent.

No memory is shared with it: what a client of this host lent in a segment is sent in line, and results come in line too. One
that names a segment would be one of this host, which nobody there may open: its line ends.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import attrs

from hasfaas.backends.cluster.paced_line import PacedLine
from hasfaas.backends.cluster.tls import SERVER_NAME
from hasfaas.core.errors import HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.serving.channel import ChannelEvents, ReplicaChannel
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, RawPayload
from hasfaas.wire.payload import blob_bytes
from hasfaas.wire.segments import Segment, SegmentReader
from hasfaas.wire.status import to_status

OPEN_TIMEOUT_S = 10.0


class FarChannel(PacedLine, ReplicaChannel):
    """A replica's channel that carries bytes alone. `opened` comes to nothing if the line ends before its agent has it."""

    def __init__(self, events: ChannelEvents) -> None:
        super().__init__(events)
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[Frame] | None = []

    async def ask(self, replica_id: str) -> None:
        """Asks for a replica, and waits until its agent has opened the line. Without that it is closed. OSError."""
        self.write(frames.pack(FrameKind.OPEN, 0, replica_id))
        try:
            await asyncio.shield(self.opened)
        except BaseException:
            self.opened.cancel()
            self.close()
            raise

    def begin(self) -> None:
        """What the replica says is told from now on; what it said before, first."""
        early, self._early = self._early or [], None
        for frame in early:
            super().take(frame)

    def take(self, frame: Frame) -> None:
        if not self.opened.done():
            if frame.kind is not FrameKind.OPENED:
                raise InvalidRequestError(f"a node agent sent {frame.kind.name} on a line that it has not opened")
            self.opened.set_result(None)
            return
        match frame:
            case Frame(kind=FrameKind.RESULT | FrameKind.ITEM, head=(_, _, _, str(segment))) if segment:
                raise InvalidRequestError("a replica of another host sent the name of shared memory")
        if self._early is not None:
            self._early.append(frame)
        else:
            super().take(frame)

    def lost(self) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("the node agent closed the line"))
        elif not self.opened.cancelled() and self.opened.exception() is None:
            super().lost()

    def execute(self, calls: Sequence[tuple[int, RawPayload]]) -> None:
        """Sends a batch for one execution. A call whose arguments have gone with its client fails alone."""
        sent = []
        for call_id, payload in calls:
            try:
                sent.append((call_id, in_line(payload)))
            except (HasFaasError, MemoryError) as exc:
                status = to_status(UnavailableError(f"the arguments could not be read: {exc}")).SerializeToString()
                asyncio.get_running_loop().call_soon(self._events.error, call_id, status)
        if sent:
            super().execute(sent)


def in_line(payload: RawPayload) -> RawPayload:
    """The payload with its blob inside, whose answer is to come in line too."""
    if not payload.segment:
        return attrs.evolve(payload, replies_in_segments=False) if payload.replies_in_segments else payload
    blob = bytes(SegmentReader().view(Segment(payload.segment, blob_bytes(payload.sizes)), private=True))
    return attrs.evolve(payload, chunks=(blob,), segment="", replies_in_segments=False)


@attrs.frozen
class FarLine:
    """A replica's line from an agent that listens at `host`:`port`."""

    host: str
    port: int
    tls: ssl.SSLContext
    replica_id: str

    async def open(self, events: ChannelEvents) -> ReplicaChannel:
        """Connects, and asks for the replica. Raises UnavailableError when that comes to nothing."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                _, channel = await loop.create_connection(
                    lambda: FarChannel(events), self.host, self.port, ssl=self.tls, server_hostname=SERVER_NAME
                )
                await channel.ask(self.replica_id)
        except (OSError, TimeoutError) as exc:
            raise UnavailableError(
                f"replica {self.replica_id} cannot be reached at {self.host}:{self.port}: {exc or 'no answer'}"
            ) from exc
        # Whoever opened it knows it before it hears from it.
        loop.call_soon(channel.begin)
        return channel
