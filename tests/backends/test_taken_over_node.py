"""A node agent that somebody has taken over, and what it can do to its gateway: speak of what it was given, and be lost."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from hasfaas.backends import certificates
from hasfaas.backends.cluster import messages, tls
from hasfaas.backends.cluster.child import Identity, NodeAddress, Place
from hasfaas.backends.cluster.messages import Answer, Exited, Found, Hello, Kill, Launch, Log, Message, Usages, Welcome
from hasfaas.backends.cluster.remote_node import RemoteNode, Terms
from hasfaas.backends.nodes import NodeLostError
from hasfaas.core.allocation import Usage
from hasfaas.core.errors import UnavailableError
from hasfaas.core.settings import ClusterSettings
from hasfaas.devices.base import Condition, DeviceInfo, Health
from hasfaas.node.agent import Order, ReplicaRequest
from hasfaas.node.lanes import Placement, Want
from hasfaas.wire import frames
from hasfaas.wire.frames import FrameKind, FrameReader
from tests.backends.test_cluster_lines import Events

WAIT_S = 20.0
DEVICE = DeviceInfo("sim0", "sim", tuple(range(8)), 2**34)
REQUEST = ReplicaRequest("f", "v", "python", (), Path("abc.bundle"), b"", None, Want(2**28))
ORDER = Order("f-1", REQUEST, Placement("evil/sim0", 0, tuple(range(8)), 100.0, 100.0, False))
SETTINGS = ClusterSettings(beat_s=0.05, lost_after_s=1.0)
LONG_BODY = struct.pack("<BxxxIQQ", FrameKind.CONTROL, 0, 0, 2**34)
LONG_HEAD = struct.pack("<BxxxIQQ", FrameKind.CONTROL, 2**26, 0, 0)


class Owner:
    """What the gateway was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def exited(self, replica_id: str, code: int | None) -> None:
        self.told.append((replica_id, code))

    def condition(self, device_id: str, found: Condition) -> None:
        self.told.append((device_id, found.health))


@attrs.define(eq=False)
class Evil:
    """A listening agent with the cluster's own certificate, that says what it likes."""

    folder: Path
    welcome: Welcome = attrs.field(factory=lambda: Welcome((DEVICE,)))
    heard: list[Message] = attrs.field(factory=list)
    lines: list[asyncio.StreamWriter] = attrs.field(factory=list)
    port: int = 0
    on_open: Callable[[asyncio.StreamWriter], None] = lambda _line: None

    async def serve(self, line: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        reader = FrameReader()
        self.lines.append(answer)
        with suppress(OSError):
            while piece := await line.read(1 << 16):
                for start in range(0, len(piece), 1024):
                    part = piece[start : start + 1024]
                    reader.buffer()[: len(part)] = part
                    for frame in reader.advance(len(part)):
                        self.take(frame, answer)
        answer.close()

    def take(self, frame: frames.Frame, answer: asyncio.StreamWriter) -> None:
        if frame.kind is FrameKind.OPEN:
            self.on_open(answer)
            return
        message = messages.unpack(frame)
        self.heard.append(message)
        if isinstance(message, Hello):
            self.say(self.welcome)
        elif isinstance(message, Launch):
            self.say(Answer(message.ask, pid=os.getpid()))

    def say(self, message: Message, body: bytes = b"") -> None:
        self.lines[0].write(b"".join(messages.pack(message, body)))


def identity(folder: Path, role: str) -> Identity:
    ca, cert, key = ((folder / name).read_text() for name in ("ca.pem", f"{role}.pem", f"{role}.key"))
    return Identity(ca, cert, key, "00")


@pytest.fixture
async def evil(tmp_path: Path) -> AsyncIterator[Evil]:
    certificates.make_cluster(tmp_path / "secrets", datetime.datetime.now(datetime.UTC))
    made = Evil(tmp_path)
    context = tls.node_context(identity(tmp_path / "secrets", "node"))
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for line in made.lines:
        line.close()


@pytest.fixture
def owner() -> Owner:
    return Owner()


async def connected(evil: Evil, owner: Owner, node_id: str = "id-evil") -> RemoteNode:
    """A gateway's side of it, which has told it to run one replica."""
    (evil.folder / "abc.bundle").write_bytes(b"bundle")
    (evil.folder / "logs").mkdir()
    terms = Terms(1, "id-gateway", SETTINGS, evil.folder / "logs")
    gateway: ssl.SSLContext = tls.gateway_context(identity(evil.folder / "secrets", "gateway"))
    node = RemoteNode(NodeAddress(Place(node_id, "evil", "127.0.0.1"), evil.port), terms, gateway, owner)
    await node.connect()
    return node


def order(evil: Evil) -> Order:
    return attrs.evolve(ORDER, request=attrs.evolve(REQUEST, bundle_path=evil.folder / "abc.bundle"))


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not look():  # noqa: ASYNC110 - what it waits for comes over a socket
            await asyncio.sleep(0.01)


async def test_it_speaks_of_its_own_replicas_and_devices_alone(evil: Evil, owner: Owner) -> None:
    node = await connected(evil, owner)
    born = await node.launch(order(evil))
    mine, theirs = Usage(used_ns=1), Usage(used_ns=2)
    for replica_id in ("g-1", "../../escaped", "/tmp/escaped", ""):
        evil.say(Log(replica_id), b"a line\n")
        evil.say(Exited(replica_id, 0))
    evil.say(Usages({"f-1": mine, "g-1": theirs, **{f"h-{n}": theirs for n in range(10_000)}}))
    evil.say(Found("alpha/sim0", Condition(Health.LOST, "so it says", "none")))
    evil.say(Log("f-1"), b"the last line\n")
    evil.say(Exited("f-1", 3))
    await until(lambda: ("f-1", 3) in owner.told)
    assert owner.told == [("evil/alpha/sim0", Health.LOST), ("f-1", 3)]
    assert born.log.read_bytes() == b"the last line\n"
    assert [path.name for path in evil.folder.rglob("*.log")] == [born.log.name]
    assert node.usage("g-1") == Usage()
    assert not node._usages
    # Once it has ended nothing more is heard of it.
    evil.say(Log("f-1"), b"more")
    evil.say(Exited("f-1", 4))
    evil.say(Found("sim0", Condition(Health.READY)))
    await until(lambda: ("evil/sim0", Health.READY) in owner.told)
    assert len(owner.told) == 3
    assert born.log.read_bytes() == b"the last line\n"
    node.close()


@pytest.mark.parametrize(
    "words",
    [LONG_BODY, LONG_HEAD, b"\xff" * 64, b"".join(messages.pack(Kill("f-1")))],
    ids=["long body", "long head", "noise", "a gateway's message"],
)
async def test_what_no_agent_says_ends_its_line(evil: Evil, owner: Owner, words: bytes) -> None:
    node = await connected(evil, owner)
    evil.lines[0].write(words)
    await asyncio.wait_for(asyncio.shield(node.lost), WAIT_S)
    with pytest.raises(NodeLostError):
        await node.launch(order(evil))
    node.close()


async def test_a_log_that_is_flooded_stays_within_its_bound_and_a_full_disk_costs_the_log(
    evil: Evil, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasfaas.backends.cluster.remote_node.MAX_LOG_BYTES", 1 << 20)
    node = await connected(evil, owner)
    born = await node.launch(order(evil))
    for _ in range(100):
        evil.say(Log("f-1"), bytes(messages.LOG_PIECE_BYTES))
        await evil.lines[0].drain()
        assert born.log.stat().st_size <= (1 << 20) + messages.LOG_PIECE_BYTES
    born.log.unlink()
    born.log.mkdir()  # what cannot be written
    evil.say(Log("f-1"), b"lost")
    evil.say(Exited("f-1", 0))
    await until(lambda: owner.told)
    assert not node.lost.done()
    node.close()


async def test_it_names_no_socket_of_the_gateways_host(evil: Evil, owner: Owner) -> None:
    """Only an agent of the gateway's own node has one to name; a line to any other goes to its port."""
    path = evil.folder / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        evil.welcome = Welcome((DEVICE,), str(path))
        evil.on_open = lambda line: line.write(b"".join(frames.pack(FrameKind.OPENED)))
        node = await connected(evil, owner)
        born = await node.launch(order(evil))
        channel = await born.line.open(Events())
        with pytest.raises(BlockingIOError):
            listening.accept()
        channel.close()
        node.close()


SEGMENT = b"".join(frames.pack(FrameKind.RESULT, 1, (1, b"h", (8,), "hasfaas-0-1-tokens")))


@pytest.mark.parametrize(
    ("said", "opens"),
    [
        (SEGMENT, True),
        (b"".join(frames.pack(FrameKind.ITEM, 1, (1, b"h", (8,), "x"))), True),
        (b"".join(frames.pack(FrameKind.RESULT, 1, (1, b"h", (1,), ""), [b"x"])), False),
        (b"\xff" * 64, False),
    ],
    ids=["a result", "an item", "a result before it opens", "noise"],
)
async def test_its_replicas_lend_no_memory_of_the_gateways_host_and_say_nothing_unasked(
    evil: Evil, owner: Owner, said: bytes, opens: bool
) -> None:
    """`opens`: on a line that it has opened. Else before."""
    first = b"".join(frames.pack(FrameKind.OPENED)) if opens else b""
    evil.on_open = lambda line: line.write(first + said)
    node = await connected(evil, owner)
    born = await node.launch(order(evil))
    events: Any = Events()
    if opens:
        await born.line.open(events)
        assert await events.next() == ("lost",)
    else:
        with pytest.raises(UnavailableError):
            await born.line.open(events)
        await until(lambda: Kill("f-1") in evil.heard)
    node.close()


OPENED = b"".join(frames.pack(FrameKind.OPENED))
READY = b"".join(frames.pack(FrameKind.READY, 0, (None, 1.0, 2.0, 3.0)))


async def test_who_opens_a_replicas_line_knows_it_before_it_is_told_anything(evil: Evil, owner: Owner) -> None:
    evil.on_open = lambda line: line.write(OPENED + READY)
    node = await connected(evil, owner)
    born = await node.launch(order(evil))
    events: Any = Events()
    channel = await born.line.open(events)
    assert not events.told
    assert (await events.next())[0] == "ready"
    channel.close()
    node.close()


async def test_a_line_that_is_not_opened_is_waited_for_no_longer_than_its_node_is_there(
    evil: Evil, owner: Owner
) -> None:
    node = await connected(evil, owner)
    born = await node.launch(order(evil))
    opening = asyncio.ensure_future(born.line.open(Events()))
    await until(lambda: len(evil.lines) == 2)
    await asyncio.sleep(0.05)
    assert not opening.done()
    node.close()
    with pytest.raises(NodeLostError):
        await asyncio.wait_for(opening, 5.0)
    with pytest.raises(NodeLostError):
        await asyncio.wait_for(born.line.open(Events()), 5.0)
