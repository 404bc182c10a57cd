"""One node's agent as the gateway has it: what it is told goes over a control line, what it tells is kept here.

Law: a node is lost once its line ends, or nothing came from it for `lost_after_s`; it is never heard again under the same
line. What it runs then ends there by itself, since it does not hear from us either. It is heard on its own devices and on
the replicas that it was told to run, and on nothing else: an agent that somebody has taken over must not reach further.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hasfaas.backends.cluster import messages
from hasfaas.backends.cluster.child import NodeAddress
from hasfaas.backends.cluster.far_channel import FarLine
from hasfaas.backends.cluster.messages import (
    LOG_PIECE_BYTES,
    MAX_HEAD_BYTES,
    Answer,
    Beat,
    BringLogs,
    Bundle,
    CheckBundle,
    CloseNurseries,
    Exited,
    Found,
    Goodbye,
    Hello,
    InForce,
    Kill,
    Launch,
    Lend,
    Log,
    Message,
    Quotas,
    Superseded,
    Usages,
    Welcome,
)
from hasfaas.backends.cluster.near_channel import NearLine
from hasfaas.backends.cluster.paced_line import PacedLine
from hasfaas.backends.cluster.tls import SERVER_NAME
from hasfaas.backends.nodes import Born, Line, NodeLostError
from hasfaas.core.allocation import Usage
from hasfaas.core.errors import ConflictError, HasFaasError, UnavailableError
from hasfaas.core.settings import ClusterSettings
from hasfaas.devices.base import Condition, DeviceInfo
from hasfaas.node.agent import MAX_LOG_BYTES, Order
from hasfaas.node.seats import Changes
from hasfaas.serving.channel import ChannelEvents, ReplicaChannel
from hasfaas.wire.frames import Buffer, Frame, FrameKind, FrameReader
from hasfaas.wire.status import read_status

CONNECT_TIMEOUT_S = 5.0
# Entering a GPU's lane takes seconds, and an agent may first have to end what ran for another gateway.
WELCOME_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 120.0
# Beats whose answers may still come.
KEPT_BEATS = 64
log = logging.getLogger("hasfaas.nodes")


class NodeEvents(Protocol):
    """What a node tells its owner."""

    def exited(self, replica_id: str, code: int | None) -> None: ...

    def condition(self, device_id: str, found: Condition) -> None: ...


@attrs.frozen
class Terms:
    """What a gateway says of itself to every node: the generation of its state, its own node, its folder for logs."""

    generation: int
    node_id: str
    settings: ClusterSettings
    log_dir: Path


class RemoteNode:
    """A node whose agent has bidden us welcome (`NodeDoor`)."""

    def __init__(self, address: NodeAddress, terms: Terms, tls: ssl.SSLContext, events: NodeEvents) -> None:
        self.address = address
        self.devices: tuple[DeviceInfo, ...] = ()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why, once it is."""
        self.rtt_ms: float | None = None
        """The latest beat's way there and back."""
        self._terms = terms
        self._tls = tls
        self._events = events
        self._line: _Control | None = None
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._descriptors = ""
        self._heard_s = time.monotonic()
        self._asks = itertools.count(1)
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._sent_bundles: set[str] = set()
        # Replicas that it was told to run and that have not ended, with our file of each one's log.
        self._logs: dict[str, Path] = {}
        self._usages: dict[str, Usage] = {}
        self._unforced: dict[str, int] = {}
        self._beaten: dict[int, float] = {}

    @property
    def name(self) -> str:
        """The node's name, with which its devices' names begin."""
        return self.address.place.name

    # -- its life ------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Says hello, and waits to be welcome. Raises UnavailableError, ConflictError where a newer gateway was there."""
        loop, terms = asyncio.get_running_loop(), self._terms
        host, port = self.address.place.host, self.address.port
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, self._line = await loop.create_connection(
                    lambda: _Control(self), host, port, ssl=self._tls, server_hostname=SERVER_NAME
                )
            cluster = terms.settings
            self._say(Hello(terms.generation, terms.node_id, sys.executable, cluster.beat_s, cluster.lost_after_s))
            welcome = await asyncio.wait_for(asyncio.shield(self._welcome), WELCOME_TIMEOUT_S)
        except (OSError, TimeoutError) as exc:
            self.close()
            why = str(exc) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            raise UnavailableError(f"node {self.name} at {host}:{port}: {why}", reason="NODE_UNREACHABLE") from exc
        except HasFaasError:
            self.close()
            raise
        self._heard_s = time.monotonic()
        # A path of this machine: no other has one to name.
        self._descriptors = welcome.descriptors if self.address.place.node_id == terms.node_id else ""
        self.devices = tuple(
            attrs.evolve(d, device_id=self._ours(d.device_id), node=self.name) for d in welcome.devices
        )

    async def beat(self) -> str:
        """Gives signs of life and looks for its own, until it is lost; why it was."""
        cluster = self._terms.settings
        for number in itertools.count(1):
            self._beaten[number] = time.monotonic()
            self._beaten.pop(number - KEPT_BEATS, None)
            self._say(Beat(number))
            await asyncio.wait({self.lost}, timeout=cluster.beat_s)
            if self.lost.done():
                break
            if time.monotonic() - self._heard_s > cluster.lost_after_s:
                self._lose(f"node {self.name} gave no sign of life for {cluster.lost_after_s:g} s")
        return self.lost.result()

    def close(self) -> None:
        """Says goodbye: what runs there for us ends."""
        self._say(Goodbye())
        if self._line is not None:
            self._line.finish()
        self._lose(f"node {self.name} was given up")

    # -- NodeDoor ------------------------------------------------------------------------------------------------------

    async def check_bundle(self, python: str, packages: Sequence[str], bundle: Path) -> tuple[str, ...]:
        await self._bring(bundle)
        answer = await self._ask(lambda ask: CheckBundle(ask, python, tuple(packages), bundle.stem))
        return tuple(f"on node {self.name}: {line}" for line in answer.lines)

    async def launch(self, order: Order) -> Born:
        theirs = attrs.evolve(order, seat=attrs.evolve(order.seat, device_id=self._theirs(order.seat.device_id)))
        path = self._terms.log_dir / f"{order.replica_id}-{self._terms.generation}.log"
        path.touch(mode=0o600)
        self._logs[order.replica_id] = path
        try:
            # Said at once: what quotas are told after this count on its seat.
            asked = self._put(lambda ask: Launch(ask, theirs))
            await self._bring(order.request.bundle_path)
            answer = await self._answer(asked)
        except BaseException:
            # Nobody would know of it: it may be there already, or be made yet.
            self._forget(order.replica_id)
            self.kill(order.replica_id)
            raise
        return Born(answer.pid, path, self._way(order.replica_id))

    def set_quotas(self, quotas: Changes) -> None:
        number = next(self._numbers)
        self._unforced.update({replica_id: number for replica_id, _ in quotas})
        self._say(Quotas(number, quotas))

    def lend(self, replica_id: str, lend: bool) -> None:
        self._say(Lend(replica_id, lend))

    def in_force(self, replica_id: str) -> bool:
        return replica_id not in self._unforced

    def usage(self, replica_id: str) -> Usage:
        return self._usages.get(replica_id, Usage())

    def kill(self, replica_id: str) -> None:
        self._say(Kill(replica_id))

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None:
        self._say(CloseNurseries(function, keep_version))

    async def bring_logs(self) -> None:
        await self._ask(BringLogs)

    async def check(self) -> None:
        """Nothing: its agent looks at its devices by itself, and tells."""

    # -- what the line tells -------------------------------------------------------------------------------------------

    def heard(self) -> None:
        """Something came from it."""
        self._heard_s = time.monotonic()

    def take(self, message: Message, body: Buffer) -> None:
        """One message."""
        match message:
            case Beat(number):
                self.rtt_ms = (time.monotonic() - self._beaten.pop(number, time.monotonic())) * 1000.0
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case Superseded(generation):
                self._refuse(
                    ConflictError(
                        f"node {self.name} has served a gateway of generation {generation}, and this is an older one",
                        reason="SUPERSEDED",
                    )
                )
            case Answer(ask):
                waiting = self._answers.get(ask)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case Usages(by_replica):
                self._usages.update({each: usage for each, usage in by_replica.items() if each in self._logs})
            case InForce(replica_id, number):
                if self._unforced.get(replica_id) == number:
                    del self._unforced[replica_id]
            case Exited(replica_id, code):
                if self._forget(replica_id):
                    self._events.exited(replica_id, code)
            case Found(device_id, condition):
                self._events.condition(self._ours(device_id), condition)
            case Log(replica_id):
                self._append(replica_id, body)
            case _:
                # An agent of another version: its line ends, and with it everything there.
                self._lose(f"node {self.name} sent {type(message).__name__}, which only a gateway sends")

    def gone(self) -> None:
        """The line has ended."""
        self._lose(f"node {self.name} was lost: its agent closed the line, or died")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _ours(self, device_id: str) -> str:
        return f"{self.name}/{device_id}"

    def _theirs(self, device_id: str) -> str:
        return device_id.removeprefix(f"{self.name}/")

    def _way(self, replica_id: str) -> Line:
        near = NearLine(Path(self._descriptors), replica_id)
        far = FarLine(self.address.place.host, self.address.port, self._tls, replica_id)
        return _Way(near if self._descriptors else far, self, replica_id)

    async def open(self, line: Line, replica_id: str, events: ChannelEvents) -> ReplicaChannel:
        """Takes a replica's line; one that cannot be reached is ended. Raises UnavailableError, and NodeLostError where that
        was the node's end: then another may have it."""

        def hurry(_lost: object) -> None:
            with contextlib.suppress(RuntimeError):  # it was opened meanwhile
                limit.reschedule(asyncio.get_running_loop().time())

        try:
            # No task of its own: whoever opens a line knows it before it hears from it, at the next turn of the loop.
            async with asyncio.timeout(None) as limit:
                self.lost.add_done_callback(hurry)
                channel = await line.open(events)
            if not self.lost.done():
                return channel
            channel.close()
        except UnavailableError:
            self.kill(replica_id)
            # Its node may be going just now, and the end of this line was seen first.
            await asyncio.wait({self.lost}, timeout=self._terms.settings.lost_after_s)
            if not self.lost.done():
                raise
        except TimeoutError:
            pass  # its node was lost while it waited
        finally:
            self.lost.remove_done_callback(hurry)
        raise NodeLostError(self.lost.result())

    async def _bring(self, bundle: Path) -> None:
        """The node has the bundle, or will before it reads what is said next."""
        if bundle.stem not in self._sent_bundles:
            content = await asyncio.to_thread(bundle.read_bytes)
            self._sent_bundles.add(bundle.stem)
            self._say(Bundle(bundle.stem), content)

    async def _ask(self, question: Callable[[int], Message]) -> Answer:
        return await self._answer(self._put(question))

    def _put(self, question: Callable[[int], Message]) -> int:
        """Says it now; `_answer` waits for what comes of it."""
        if self.lost.done():
            raise NodeLostError(self.lost.result())
        ask = next(self._asks)
        self._answers[ask] = asyncio.get_running_loop().create_future()
        self._say(question(ask))
        return ask

    async def _answer(self, ask: int) -> Answer:
        try:
            answer = await asyncio.wait_for(self._answers[ask], ANSWER_TIMEOUT_S)
        except TimeoutError as exc:
            raise UnavailableError(f"node {self.name} did not answer within {ANSWER_TIMEOUT_S:g} s") from exc
        finally:
            del self._answers[ask]
        if answer.status:
            raise read_status(answer.status)
        return answer

    def _say(self, message: Message, body: Buffer = b"") -> None:
        if self._line is not None:
            self._line.write(messages.pack(message, body))

    def _refuse(self, why: HasFaasError) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(why)
        self._lose(str(why))

    def _lose(self, why: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        if not self._welcome.done():
            self._welcome.set_exception(UnavailableError(why, reason="NODE_UNREACHABLE"))
            self._welcome.exception()  # nobody may be waiting
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(NodeLostError(why))
        if self._line is not None:
            self._line.finish()

    def _forget(self, replica_id: str) -> bool:
        """A replica that does not run there any more; whether it did."""
        self._usages.pop(replica_id, None)
        self._unforced.pop(replica_id, None)
        return self._logs.pop(replica_id, None) is not None

    def _append(self, replica_id: str, piece: Buffer) -> None:
        if (path := self._logs.get(replica_id)) is None:
            return
        try:
            with path.open("ab") as file:
                if file.tell() > MAX_LOG_BYTES:
                    file.truncate(0)
                file.write(piece)
        except OSError as exc:  # a full disk costs the log, and not the node
            log.warning("the log of replica %s: %s", replica_id, exc)


@attrs.frozen
class _Way:
    """The way to one replica of a node."""

    line: Line
    node: RemoteNode
    replica_id: str

    async def open(self, events: ChannelEvents) -> ReplicaChannel:
        """Takes it, as `RemoteNode.open` says."""
        return await self.node.open(self.line, self.replica_id, events)


class _Control(PacedLine):
    """The control line's protocol."""

    def __init__(self, node: RemoteNode) -> None:
        super().__init__(FrameReader(MAX_HEAD_BYTES, max_body_bytes=LOG_PIECE_BYTES))
        self._node = node

    def take(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.CONTROL:
            super().take(frame)
        self._node.take(messages.unpack(frame), frame.body)

    def buffer_updated(self, nbytes: int) -> None:
        self._node.heard()
        super().buffer_updated(nbytes)

    def lost(self) -> None:
        self._node.gone()
