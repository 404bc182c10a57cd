"""Lines between hosts: bytes pass whole and in order whatever the sizes, nobody is read faster than they are taken, and large
values meet shared memory only where both ends are on one host."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from typing import Any

import attrs
import pytest

from hasfaas.backends.cluster.far_channel import FarChannel, in_line
from hasfaas.backends.cluster.near_channel import NearChannel
from hasfaas.backends.cluster.paced_line import PIECE_BYTES, PacedLine
from hasfaas.backends.cluster.relay import BUFFER_BYTES, Relay
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, FrameReader, RawPayload, Started
from hasfaas.wire.line import FrameLine
from hasfaas.wire.segments import THRESHOLD_BYTES, Segment, SegmentPool, SegmentReader

MIB = 2**20


class Heard(FrameLine):
    """Keeps the frames that came."""

    def __init__(self) -> None:
        super().__init__(FrameReader())
        self.frames: asyncio.Queue[Frame | None] = asyncio.Queue()

    def take(self, frame: Frame) -> None:
        self.frames.put_nowait(frame)

    def lost(self) -> None:
        self.frames.put_nowait(None)


@attrs.define
class Events:
    """A channel's owner with a memory."""

    told: list[tuple[Any, ...]] = attrs.field(factory=list)
    any: asyncio.Event = attrs.field(factory=asyncio.Event)

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        self.any.set()

    def ready(self, started: Started) -> None:
        self._tell("ready", started)

    def failed(self, status: bytes) -> None:
        self._tell("failed", status)

    def result(self, call_id: int, payload: RawPayload) -> None:
        self._tell("result", call_id, payload)

    def item(self, call_id: int, payload: RawPayload) -> None:
        self._tell("item", call_id, payload)

    def end(self, call_id: int) -> None:
        self._tell("end", call_id)

    def error(self, call_id: int, status: bytes) -> None:
        self._tell("error", call_id, status)

    def measured(self, call_id: int, measured: object) -> None:
        self._tell("measured", call_id)

    def observed(self, holds: Sequence[tuple[int, int]]) -> None:
        self._tell("observed", holds)

    def lost(self) -> None:
        self._tell("lost")

    async def next(self) -> tuple[Any, ...]:
        while not self.told:
            self.any.clear()
            await asyncio.wait_for(self.any.wait(), 10.0)
        return self.told.pop(0)


async def paced() -> tuple[PacedLine, socket.socket]:
    """A paced line, and the other end as a plain socket that nobody reads yet."""
    ours, theirs = socket.socketpair()
    _, line = await asyncio.get_running_loop().create_connection(PacedLine, sock=ours)
    theirs.setblocking(False)
    return line, theirs


async def read(sock: socket.socket, count: int) -> list[Frame]:
    """The next frames, read as fast as they come."""
    loop, reader = asyncio.get_running_loop(), FrameReader()
    found: list[Frame] = []
    while len(found) < count:
        read_bytes = await asyncio.wait_for(loop.sock_recv_into(sock, reader.buffer()), 20.0)
        assert read_bytes, "the line ended"
        found += reader.advance(read_bytes)
    return found


async def test_what_is_large_waits_for_its_reader_and_what_comes_after_stays_behind_it() -> None:
    line, theirs = await paced()
    blob = bytes(range(256)) * (32 * MIB // 256)
    line.write(frames.pack(FrameKind.RESULT, 1, "large", [blob]))
    line.write(frames.pack(FrameKind.END, 2))
    await asyncio.sleep(0.05)
    assert line._transport is not None
    # A transport takes what it may hold, and a piece more; the rest stays with its owner, uncopied.
    assert line._transport.get_write_buffer_size() <= BUFFER_BYTES + 2 * PIECE_BYTES
    large, end = await read(theirs, 2)
    assert (large.kind, end.kind) == (FrameKind.RESULT, FrameKind.END)
    assert hashlib.sha256(large.body).digest() == hashlib.sha256(blob).digest()
    line.close()
    theirs.close()


async def test_a_line_that_is_gone_keeps_nothing_of_what_it_was_to_send() -> None:
    line, theirs = await paced()
    line.write(frames.pack(FrameKind.RESULT, 1, None, [bytes(16 * MIB)]))
    theirs.close()
    for _ in range(100):
        if not line._left:
            break
        await asyncio.sleep(0.02)
    assert not line._left
    line.write(frames.pack(FrameKind.END, 2))
    assert not line._left


@pytest.mark.parametrize("nbytes", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
async def test_frames_of_any_size_arrive_as_they_were(nbytes: int) -> None:
    line, theirs = await paced()
    blob = bytes(i % 251 for i in range(nbytes))
    line.write(frames.pack(FrameKind.RESULT, 5, "head", [blob[: nbytes // 2], blob[nbytes // 2 :]]))
    [frame] = await read(theirs, 1)
    assert (frame.call_id, frame.head, bytes(frame.body)) == (5, "head", blob)
    line.close()
    theirs.close()


async def relayed() -> tuple[socket.socket, socket.socket]:
    """Two sockets with a relay between them."""
    far, far_end = socket.socketpair()
    near, near_end = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=far_end)
    transport.pause_reading()
    await Relay.join(transport, near_end)
    for each in (far, near):
        each.setblocking(False)
    return far, near


async def test_a_relay_passes_on_both_ways_and_ends_with_either() -> None:
    loop = asyncio.get_running_loop()
    far, near = await relayed()
    await loop.sock_sendall(far, b"question")
    assert await loop.sock_recv(near, 100) == b"question"
    await loop.sock_sendall(near, b"answer")
    await loop.sock_sendall(near, b", last")
    near.close()
    got = b""
    while piece := await asyncio.wait_for(loop.sock_recv(far, 100), 10.0):
        got += piece
    assert got == b"answer, last", "what was said before the end arrives"
    far.close()


async def test_a_relay_does_not_read_what_nobody_takes() -> None:
    loop = asyncio.get_running_loop()
    far, near = await relayed()
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            await asyncio.wait_for(loop.sock_sendall(far, bytes(MIB)), 0.5)
            sent += MIB
    assert sent < BUFFER_BYTES + 8 * MIB
    far.close()
    near.close()


def lent(blob: bytes, pool: SegmentPool) -> RawPayload:
    segment = pool.write([blob], len(blob))
    assert segment is not None
    return RawPayload(1, b"head", (len(blob),), (), segment.name, replies_in_segments=True)


async def test_to_another_host_arguments_go_in_line_and_so_do_their_answers() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    events, pool, blob = Events(), SegmentPool(), bytes(range(250)) * 4000
    channel = await FarChannel.open(ours, events)
    channel.execute([(1, lent(blob, pool)), (2, RawPayload(1, b"h", (1,), (b"x",)))])
    [frame] = await read(theirs, 1)
    (first, body), (second, small) = frames.unpack_execute(frame)
    assert (first.segment, first.replies_in_segments, bytes(body)) == ("", False, blob)
    assert (second.segment, second.replies_in_segments, bytes(small)) == ("", False, b"x")
    channel.close()
    theirs.close()


async def test_a_call_whose_arguments_are_gone_fails_alone() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    events, pool = Events(), SegmentPool()
    gone = lent(bytes(THRESHOLD_BYTES), pool)
    pool.close()
    channel = await FarChannel.open(ours, events)
    channel.execute([(1, gone), (2, RawPayload(1, b"h", (1,), (b"x",)))])
    assert (await events.next())[:2] == ("error", 1)
    [frame] = await read(theirs, 1)
    assert [item.call_id for item, _ in frames.unpack_execute(frame)] == [2]
    channel.close()
    theirs.close()


async def test_what_a_replica_says_before_its_owner_knows_the_channel_is_told_after() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    events = Events()
    channel = await FarChannel.open(ours, events)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(theirs, b"".join(frames.pack(FrameKind.OPENED)))
    await loop.sock_sendall(theirs, b"".join(frames.pack(FrameKind.READY, 0, (None, 1.0, 2.0, 3.0))))
    await asyncio.wait_for(channel.opened, 10.0)
    await asyncio.sleep(0.05)
    assert not events.told
    channel.begin()
    assert await events.next() == ("ready", Started(None, 1.0, 2.0, 3.0))
    theirs.close()
    assert await events.next() == ("lost",)


async def test_on_the_same_node_what_is_large_goes_through_shared_memory_for_a_client_elsewhere() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    events, blob = Events(), bytes(range(256)) * (MIB // 256)
    channel = await NearChannel.open(ours, events)
    channel.execute([(7, RawPayload(1, b"head", (len(blob),), (blob,)))])
    [frame] = await read(theirs, 1)
    [(item, body)] = frames.unpack_execute(frame)
    assert item.segment and item.replies_in_segments and not len(body)
    assert bytes(SegmentReader().view(Segment(item.segment, len(blob)))) == blob
    # The replica answers in a segment of its own, which the client could not open.
    pool = SegmentPool()
    segment = pool.write([blob], len(blob))
    assert segment is not None
    loop = asyncio.get_running_loop()
    answer = frames.pack(FrameKind.RESULT, 7, (1, b"head", (len(blob),), segment.name))
    await loop.sock_sendall(theirs, b"".join(answer))
    what, call_id, payload = await events.next()
    assert (what, call_id, payload.segment) == ("result", 7, "")
    assert b"".join(payload.chunks) == blob
    [released] = await read(theirs, 1)
    assert (released.kind, released.head) == (FrameKind.RELEASE, segment.name)
    theirs.close()
    assert await events.next() == ("lost",)


async def test_on_the_same_node_a_clients_own_segments_pass_as_they_are() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    pool = SegmentPool()
    channel = await NearChannel.open(ours, Events())
    given = lent(bytes(MIB), pool)
    channel.execute([(1, given)])
    [frame] = await read(theirs, 1)
    [(item, _)] = frames.unpack_execute(frame)
    assert (item.segment, item.replies_in_segments) == (given.segment, True)
    channel.close()
    theirs.close()


def test_a_payload_in_line_stays_what_it_is() -> None:
    plain = RawPayload(1, b"h", (1,), (b"x",))
    assert in_line(plain) is plain
    assert in_line(attrs.evolve(plain, replies_in_segments=True)) == plain
