"""A line carries frames both ways, and cuts off a peer that does not speak the protocol."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

from hasfaas.backends.base import Endpoint
from hasfaas.core.errors import UnavailableError
from hasfaas.sdk.frame_session import FrameSession
from hasfaas.sdk.session import Request
from hasfaas.wire import frames, payload
from hasfaas.wire.frames import Frame, FrameKind
from hasfaas.wire.line import FrameLine


class Kept(FrameLine):
    """Remembers what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.ended = asyncio.Event()
        self.losses = 0

    def take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.SHUTDOWN:
            super().take(frame)
        self.frames.append(frame)

    def lost(self) -> None:
        self.losses += 1
        self.ended.set()


async def line(sock: socket.socket) -> Kept:
    made = Kept()
    await asyncio.get_running_loop().create_connection(lambda: made, sock=sock)
    return made


async def test_frames_go_both_ways_until_one_side_closes() -> None:
    one, two = socket.socketpair()
    ours, theirs = await line(one), await line(two)
    big = bytes(1 << 20)
    ours.write(frames.pack(FrameKind.ERROR, 7, body=[big]))
    theirs.write(frames.pack(FrameKind.CANCEL, 9))
    async with asyncio.timeout(20):
        while not (ours.frames and theirs.frames):  # noqa: ASYNC110 - nobody could tell us
            await asyncio.sleep(0.002)
        assert (theirs.frames[0].call_id, bytes(theirs.frames[0].body)) == (7, big)
        assert ours.frames[0].call_id == 9
        ours.close()
        await asyncio.gather(ours.ended.wait(), theirs.ended.wait())
    ours.write(frames.pack(FrameKind.CANCEL, 1))
    assert (ours.losses, theirs.losses) == (1, 1)


async def test_a_peer_that_does_not_speak_the_protocol_is_cut_off() -> None:
    for wrong in (b"\xff" * 64, b"".join(frames.pack(FrameKind.SHUTDOWN))):
        ours, theirs = socket.socketpair()
        made = await line(ours)
        theirs.sendall(wrong)
        async with asyncio.timeout(20):
            await made.ended.wait()
        assert not made.frames
        theirs.close()


async def test_a_gateway_that_talks_nonsense_fails_the_call_and_nothing_else() -> None:
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        path = Path(folder) / "frames.sock"
        for wrong in (b"\xff" * 64, b"".join(frames.pack(FrameKind.ERROR, 1, body=[b"\xff\xff no status"]))):

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wrong: bytes = wrong) -> None:
                await reader.read(1)
                writer.write(wrong)
                await writer.drain()

            server = await asyncio.start_unix_server(answer, path)
            session = await FrameSession.open(Endpoint("unix:/nowhere", trusted=True, same_host=True), path)
            async with asyncio.timeout(20):
                try:
                    await session.call(Request("f", "", payload.encode_arguments((1,), {}), 10.0))
                except UnavailableError as exc:
                    assert exc.reason == "GATEWAY_LOST"
                else:
                    raise AssertionError("nonsense was taken for an answer")
            assert session.broken
            await session.close()
            server.close()
            path.unlink()
