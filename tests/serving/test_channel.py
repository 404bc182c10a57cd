"""A replica's socket from the gateway's side, over a real socket pair."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence

import attrs
import pytest

from hasfaas.core.errors import BackendError
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.wire import frames
from hasfaas.wire.frames import HEADER, FrameKind, Measure, Measured, RawPayload, Started
from hasfaas.wire.status import to_status
from tests.fakes.replica import ReplicaEnd

STATUS = to_status(BackendError("it broke")).SerializeToString()


@attrs.define(eq=False)
class Events:
    """Remembers what it was told, in order."""

    told: list[tuple[object, ...]] = attrs.field(factory=list)
    news: asyncio.Event = attrs.field(factory=asyncio.Event)

    def _tell(self, *what: object) -> None:
        self.told.append(what)
        self.news.set()

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

    def measured(self, call_id: int, measured: Measured) -> None:
        self._tell("measured", call_id, measured)

    def observed(self, holds: Sequence[tuple[int, int]]) -> None:
        self._tell("observed", holds)

    def lost(self) -> None:
        self._tell("lost")

    async def until(self, count: int) -> list[tuple[object, ...]]:
        """Waits until so much was told."""
        async with asyncio.timeout(20):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()
        return self.told


@attrs.frozen
class Line:
    channel: ReplicaChannel
    events: Events
    replica: ReplicaEnd


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    ours, theirs = socket.socketpair()
    events = Events()
    channel = await ReplicaChannel.open(ours, events)
    yield Line(channel, events, ReplicaEnd(theirs))
    channel.close()
    await asyncio.sleep(0)
    theirs.close()


def payload(blob: bytes = b"blob") -> RawPayload:
    return RawPayload(1, b"head", (len(blob),), (blob,) if blob else ())


# -- to the replica ----------------------------------------------------------------------------------------------------


async def test_a_point_is_asked_for_and_told(line: Line) -> None:
    line.channel.measure(3, Measure(8, 1.5, True, payload()))
    line.channel.measure(4, Measure(1, 1.5))
    first, second = await line.replica.read(2)
    assert (first.call_id, frames.unpack_measure(first)) == (3, Measure(8, 1.5, True, payload()))
    assert frames.unpack_measure(second) == Measure(1, 1.5)
    await line.replica.send(*frames.pack(FrameKind.MEASURED, 3, (2_000_000, 2_100_000, 5_000_000, 40, 0.01)))
    await line.replica.send(*frames.pack(FrameKind.OBSERVED, head=[(8, 2_000_000), (1, 300_000)]))
    told = await line.events.until(2)
    assert told == [
        ("measured", 3, Measured(2_000_000, 2_100_000, 5_000_000, 40, 0.01)),
        ("observed", ((8, 2_000_000), (1, 300_000))),
    ]


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (FrameKind.MEASURED, (0, 1, 1, 1, 0.1)),
        (FrameKind.MEASURED, None),
        (FrameKind.OBSERVED, [(0, 5)]),
        (FrameKind.OBSERVED, [(1, "much")]),
        (FrameKind.OBSERVED, "nonsense"),
    ],
)
async def test_figures_that_are_none_end_the_replica(line: Line, kind: FrameKind, head: object) -> None:
    await line.replica.send(*frames.pack(kind, 1, head))
    assert await line.events.until(1) == [("lost",)]


async def test_what_the_gateway_says_arrives_in_order(line: Line) -> None:
    line.channel.execute([(7, payload())])
    line.channel.credit(7, 16)
    line.channel.cancel(7)
    line.channel.shutdown()
    execute, credit, cancel, shutdown = await line.replica.read(4)
    ((item, blob),) = frames.unpack_execute(execute)
    assert (item.call_id, item.head, bytes(blob)) == (7, b"head", b"blob")
    assert (credit.kind, credit.call_id, credit.head) == (FrameKind.CREDIT, 7, 16)
    assert (cancel.kind, cancel.call_id) == (FrameKind.CANCEL, 7)
    assert shutdown.kind is FrameKind.SHUTDOWN


async def test_large_arguments_in_pieces_arrive_whole(line: Line) -> None:
    """Far beyond the socket's buffer, so that most of it waits in ours."""
    pieces = tuple(bytes([mark]) * (1 << 20) for mark in range(8))
    line.channel.execute([(1, RawPayload(1, b"", (8 << 20,), pieces)), (2, payload())])
    line.channel.cancel(2)
    execute, cancel = await line.replica.read(2)
    first, second = frames.unpack_execute(execute)
    assert bytes(first[1]) == b"".join(pieces)
    assert bytes(second[1]) == b"blob"
    assert cancel.call_id == 2


# -- from the replica --------------------------------------------------------------------------------------------------


async def test_what_the_replica_says_becomes_events(line: Line) -> None:
    await line.replica.send(
        *frames.pack(FrameKind.READY, head=(50.0, 1.0, 2.0, 3.0)),
        *frames.pack_payload(FrameKind.ITEM, 1, payload()),
        *frames.pack(FrameKind.END, 1),
        *frames.pack_payload(FrameKind.RESULT, 2, payload(b"")),
        *frames.pack(FrameKind.ERROR, 3, body=[STATUS]),
        *frames.pack(FrameKind.FAILED, body=[STATUS]),
    )
    ready, item, end, result, error, failed = await line.events.until(6)
    assert ready == ("ready", Started(50.0, 1.0, 2.0, 3.0))
    assert item[:2] == ("item", 1)
    assert isinstance(item[2], RawPayload)
    assert b"".join(item[2].chunks) == b"blob"
    assert end == ("end", 1)
    assert result == ("result", 2, payload(b""))
    assert error == ("error", 3, STATUS)
    assert failed == ("failed", STATUS)


async def test_a_large_result_arrives_whole(line: Line) -> None:
    blob = bytes(range(256)) * 32_768
    await line.replica.send(*frames.pack_payload(FrameKind.RESULT, 1, payload(blob)))
    ((_, _, result),) = await line.events.until(1)
    assert isinstance(result, RawPayload)
    assert result.sizes == (len(blob),)
    assert bytes(result.chunks[0]) == blob


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_the_replicas_death_is_told_once_and_after_all_it_said(line: Line) -> None:
    await line.replica.send(*frames.pack_payload(FrameKind.RESULT, 1, payload()))
    line.replica.sock.close()
    told = await line.events.until(2)
    assert [event[0] for event in told] == ["result", "lost"]
    line.channel.close()
    await asyncio.sleep(0.01)
    assert len(line.events.told) == 2


async def test_our_own_closing_is_told_once_too(line: Line) -> None:
    line.channel.close()
    line.channel.close()
    assert await line.events.until(1) == [("lost",)]
    assert await asyncio.get_running_loop().sock_recv(line.replica.sock, 1) == b""
    line.channel.close()
    await asyncio.sleep(0.01)
    assert line.events.told == [("lost",)]


async def test_after_the_end_nothing_can_be_said_and_nothing_is_raised(line: Line) -> None:
    line.channel.close()
    line.channel.execute([(7, payload())])
    await line.events.until(1)
    line.channel.execute([(7, payload())])
    line.channel.cancel(7)
    line.channel.credit(7, 1)
    line.channel.shutdown()
    assert line.events.told == [("lost",)]


async def test_a_replica_that_dies_with_much_to_read_is_lost(line: Line) -> None:
    line.channel.execute([(1, payload(bytes(8 << 20)))])
    line.replica.sock.close()
    assert await line.events.until(1) == [("lost",)]


@pytest.mark.parametrize(
    "said",
    [
        b"hello, this is a print to descriptor 5\n",
        HEADER.pack(99, 0, 0, 0),
        HEADER.pack(FrameKind.RESULT, 1, 0, 0) + b"\xc1",
        b"".join(frames.pack(FrameKind.RESULT, 1)),
        b"".join(frames.pack(FrameKind.ITEM, 1, (1, "text", ()))),
        b"".join(frames.pack(FrameKind.ERROR, 1, body=[b"\xff\xff"])),
        b"".join(frames.pack(FrameKind.FAILED, 1, body=[b"\xff\xff"])),
        b"".join(frames.pack(FrameKind.EXECUTE)),
        b"".join(frames.pack(FrameKind.SHUTDOWN)),
    ],
    ids=["text", "kind", "msgpack", "no head", "wrong head", "no status", "no failure", "execute", "shutdown"],
)
async def test_a_replica_that_speaks_another_language_counts_as_dead(
    line: Line, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its user's code wrote to our socket. The gateway lives on, and so do its other replicas."""
    with caplog.at_level(logging.ERROR):
        await line.replica.send(said, bytes(64))
        assert await line.events.until(1) == [("lost",)]
    assert not caplog.records, "no exception reached the event loop"
