"""A node agent on the network: one TLS port, on which a gateway that shows the cluster's certificate may speak.

Law: one gateway at a time. One with a generation as great as the present one's takes over once everything of that has ended;
one with a lower is told so. Without a sign of life from its gateway an agent ends all that it runs: whoever cannot be told to
stop must not go on, since the same calls may be running elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import struct
from collections.abc import Coroutine
from pathlib import Path

from hasfaas.backends.cluster import messages
from hasfaas.backends.cluster.bundles import Bundles
from hasfaas.backends.cluster.child import Place
from hasfaas.backends.cluster.messages import MAX_HEAD_BYTES, Goodbye, Hello, Superseded, Welcome
from hasfaas.backends.cluster.paced_line import PacedLine
from hasfaas.backends.cluster.relay import Relay
from hasfaas.backends.cluster.tenure import Tenure
from hasfaas.backends.cluster.tls import check_gateway
from hasfaas.core.errors import AuthError, HasFaasError, InvalidRequestError
from hasfaas.core.own_file import write_own
from hasfaas.devices.base import Condition
from hasfaas.node.agent import NodeAgent
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, FrameReader

# Descriptors of `SO_PEERCRED`: process, user, group.
_CREDENTIALS = struct.Struct("3i")
# A bundle is the largest that is sent, at most 64 MiB.
MAX_BODY_BYTES = 80 * 2**20
FIRST_FRAME_S = 10.0
LONGEST_ID_BYTES = 512
log = logging.getLogger("hasfaas.node")


class NodeServer:
    """Serves one agent, whose events it is told (`AgentEvents`)."""

    def __init__(self, place: Place, state_dir: Path, descriptors: Path, state_url: str) -> None:
        """`descriptors` is where a gateway of this very node asks for replicas' sockets. The greatest generation that was
        here of the state at `state_url` is kept in the state folder: a gateway that was cut off must not come back after a
        restart of this process, and a cluster with another state begins anew."""
        self._place = place
        self._descriptors = descriptors
        self._generation_file = state_dir / f"generation-{hashlib.sha256(state_url.encode()).hexdigest()[:16]}"
        self._bundles = Bundles(state_dir / "bundles")
        self._tenure: Tenure | None = None
        self._line: _Line | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()
        self.agent: NodeAgent | None = None

    # -- AgentEvents ---------------------------------------------------------------------------------------------------

    def exited(self, replica_id: str, code: int | None) -> None:
        """A replica's process has ended."""
        if self._tenure is not None:
            self._tenure.exited(replica_id, code)

    def condition(self, device_id: str, found: Condition) -> None:
        """A device's health."""
        if self._tenure is not None:
            self._tenure.condition(device_id, found)

    # -- the life of the server ----------------------------------------------------------------------------------------

    def line(self) -> _Line:
        """The protocol of a connection that is being made."""
        return _Line(self)

    async def serve_descriptors(self) -> None:
        """Hands out replicas' sockets on a unix socket of this user; runs until it is cancelled."""
        self._descriptors.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            mask = os.umask(0o177)
            try:
                listening.bind(str(self._descriptors))
            finally:
                os.umask(mask)
            listening.listen(64)
            listening.setblocking(False)
            try:
                while True:
                    connection, _ = await loop.sock_accept(listening)
                    self._spawn(self._hand_over(connection))
            finally:
                self._descriptors.unlink(missing_ok=True)

    async def watch(self) -> None:
        """Looks after the devices, and ends the tenure of a gateway that has fallen silent; runs until it is cancelled."""
        beats = 0
        while True:
            await asyncio.sleep(0.1)
            beats += 1
            tenure = self._tenure
            if tenure is not None and tenure.silent:
                log.warning("no sign of life of the gateway for %g s: all its replicas end", tenure.hello.lost_after_s)
                await self._end_tenure(tenure)
            if beats % 10 == 0 and self.agent is not None:
                self.agent.trim_logs()
                self.agent.sweep()
                await self.agent.check()

    async def close(self) -> None:
        """Ends the tenure there is, with its replicas."""
        if self._tenure is not None:
            await self._end_tenure(self._tenure)

    # -- what lines ask ------------------------------------------------------------------------------------------------

    def hello(self, line: _Line, hello: Hello) -> None:
        """A gateway would be the one."""
        self._spawn(self._begin(line, hello))

    def goodbye(self, line: _Line) -> None:
        """A control line ended, or its gateway said that it goes."""
        if self._line is line and self._tenure is not None:
            self._spawn(self._end_tenure(self._tenure))

    def open(self, line: _Line, replica_id: str) -> None:
        """A gateway would have a replica's line."""
        self._spawn(self._relay(line, replica_id))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _begin(self, line: _Line, hello: Hello) -> None:
        async with self._turn:
            before = self._greatest()
            if hello.generation < before:
                line.write(messages.pack(Superseded(before)))
                line.finish()
                return
            if self._tenure is not None:
                await self._ended(self._tenure)
            if not line.open:
                return
            write_own(self._generation_file, str(hello.generation).encode())
            assert self.agent is not None, "it serves once it has an agent"
            tenure = Tenure(self.agent, self._bundles, hello, line.write)
            self._tenure, self._line, line.tenure = tenure, line, tenure
            tenure.begin()
            same = hello.node_id == self._place.node_id
            devices = tuple(self.agent.devices.values())
            line.write(messages.pack(Welcome(devices, str(self._descriptors) if same else "")))
            log.info("gateway of generation %d is here", hello.generation)

    async def _end_tenure(self, tenure: Tenure) -> None:
        async with self._turn:
            if self._tenure is tenure:
                await self._ended(tenure)

    async def _ended(self, tenure: Tenure) -> None:
        await tenure.end()
        if self._line is not None:
            self._line.close()
        self._tenure = self._line = None

    def _greatest(self) -> int:
        try:
            return int(self._generation_file.read_text())
        except FileNotFoundError:
            return 0

    async def _relay(self, line: _Line, replica_id: str) -> None:
        try:
            if self._tenure is None:
                raise AuthError("no gateway is the one at present", reason="NO_GATEWAY")
            channel = self._tenure.take_channel(replica_id)
        except HasFaasError as exc:
            log.warning("a line was refused: %s", exc)
            line.close()
            return
        transport = line.give_up()
        if transport is None:
            channel.close()
            return
        frames.write_to(transport, frames.pack(FrameKind.OPENED))
        await Relay.join(transport, channel)

    async def _hand_over(self, connection: socket.socket) -> None:
        """Reads a replica's name, and answers with its socket, or with nothing."""
        loop = asyncio.get_running_loop()
        with connection:
            connection.setblocking(False)
            _, uid, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid != os.getuid() or self._tenure is None:
                return
            asked = await asyncio.wait_for(loop.sock_recv(connection, LONGEST_ID_BYTES), FIRST_FRAME_S)
            with contextlib.suppress(HasFaasError), self._tenure.take_channel(asked.decode()) as channel:
                connection.setblocking(True)  # a descriptor and one byte fit a socket that is new
                socket.send_fds(connection, [b"\0"], [channel.fileno()])

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a connection could not be served", exc_info=exc)


class _Line(PacedLine):
    """One connection: a control line after a Hello, a replica's after an OPEN. Who says neither for ten seconds, and who is
    not the gateway, is cut off."""

    def __init__(self, server: NodeServer) -> None:
        super().__init__(FrameReader(MAX_HEAD_BYTES, max_body_bytes=MAX_BODY_BYTES))
        self._server = server
        self._patience: asyncio.TimerHandle | None = None
        self._said = False
        self.tenure: Tenure | None = None

    @property
    def open(self) -> bool:
        """Whether somebody is still at the other end."""
        return self._transport is not None and not self._transport.is_closing()

    def give_up(self) -> asyncio.Transport | None:
        """The connection, not read from now on until somebody else does. None when it is gone."""
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            return None
        transport.pause_reading()
        return transport

    def take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.OPEN if not self._said and isinstance(frame.head, str):
                self._began()
                self._server.open(self, frame.head)
            case FrameKind.CONTROL:
                self._control(frame)
            case _:
                raise InvalidRequestError(f"a gateway sent {frame.kind.name} to a node agent")

    def _control(self, frame: Frame) -> None:
        message = messages.unpack(frame)
        if isinstance(message, Hello):
            if self._said:
                raise InvalidRequestError("a second Hello on one line")
            self._began()
            self._server.hello(self, message)
        elif self.tenure is None:
            raise InvalidRequestError(f"{type(message).__name__} before a welcome")
        elif isinstance(message, Goodbye):
            self._server.goodbye(self)
        else:
            self.tenure.take(message, frame.body)

    def _began(self) -> None:
        self._said = True
        if self._patience is not None:
            self._patience.cancel()

    # -- asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            check_gateway(transport.get_extra_info("ssl_object"))
        except AuthError as exc:
            log.warning("a connection from %s was refused: %s", transport.get_extra_info("peername"), exc)
            self.close()
            return
        self._patience = asyncio.get_running_loop().call_later(FIRST_FRAME_S, self.close)

    def buffer_updated(self, nbytes: int) -> None:
        if self.tenure is not None:
            # A large bundle may take long; while any of it arrives, its gateway lives.
            self.tenure.heard()
        super().buffer_updated(nbytes)

    def lost(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._server.goodbye(self)
