"""What one gateway has on one node while it is the one: its replicas, what is told of them, and how it ends.

A tenure begins on an agent without replicas and ends with none: its gateway says goodbye, falls silent, or is superseded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path

import attrs

from hasfaas.backends.cluster import messages
from hasfaas.backends.cluster.bundles import Bundles
from hasfaas.backends.cluster.messages import (
    LOG_PIECE_BYTES,
    Answer,
    Beat,
    BringLogs,
    Bundle,
    CheckBundle,
    CloseNurseries,
    Exited,
    Found,
    Hello,
    InForce,
    Kill,
    Launch,
    Lend,
    Log,
    Message,
    Quotas,
    Usages,
)
from hasfaas.core.allocation import Usage
from hasfaas.core.errors import BackendError, HasFaasError, InvalidRequestError, NotFoundError
from hasfaas.devices.base import Condition
from hasfaas.node.agent import Launched, NodeAgent, Order
from hasfaas.wire.frames import Buffer
from hasfaas.wire.status import to_status

USAGE_EVERY_S = 0.05
# A full node tells less often: what its gateway has to read stays the same.
USAGE_EVERY_S_EACH = 0.005
LOGS_EVERY_S = 0.25
# How often it is looked whether a new quota is in force, while any is not.
FORCE_POLL_S = 0.002
END_TIMEOUT_S = 10.0
# How long a replica's last words are kept for a gateway that has not asked for its line yet, and how long their way is.
UNHEARD_S = 5.0
HEARD_WITHIN_S = 0.1
log = logging.getLogger("hasfaas.node")


@attrs.define(eq=False)
class _Kept:
    """A replica of this tenure: its process once there is one, which `unwanted` is to end, and what was last told of it."""

    launched: Launched | None = None
    unwanted: bool = False
    taken: bool = False
    usage: Usage | None = None
    told_log: int = 0
    ended: bool = False
    asked_for: asyncio.Event = attrs.field(factory=asyncio.Event)
    gone: asyncio.Event = attrs.field(factory=asyncio.Event)


class Tenure:
    """One gateway's time. `send` gives a frame's pieces to its line; nothing is sent once it has ended."""

    def __init__(self, agent: NodeAgent, bundles: Bundles, hello: Hello, send: Callable[[list[Buffer]], None]) -> None:
        self.hello = hello
        self._heard_s = time.monotonic()
        self._agent = agent
        self._bundles = bundles
        self._send = send
        self._replicas: dict[str, _Kept] = {}
        self._pending: dict[str, int] = {}
        self._pend = asyncio.Event()
        self._over = False
        self._tasks: set[asyncio.Task[object]] = set()

    def begin(self) -> None:
        """Its gateway is welcome, and from now on hears what happens."""
        self._bundles.clear()
        for work in (self._tell_usages(), self._tell_logs(), self._tell_in_force(), self._give_life()):
            self._spawn(work)

    def heard(self) -> None:
        """Something came from its gateway."""
        self._heard_s = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether its gateway has given no sign of life for too long."""
        return time.monotonic() - self._heard_s > self.hello.lost_after_s

    async def end(self) -> None:
        """Ends every replica of it; returns when none is left."""
        self._over = True
        for task in list(self._tasks):
            task.cancel()
        kept = list(self._replicas.items())
        for replica_id, each in kept:
            self._agent.kill(replica_id)
            if each.launched is not None and not each.taken:
                each.launched.channel.close()
            if each.ended:  # and nobody will hear of it any more
                self._replicas.pop(replica_id, None)
                each.gone.set()
        waits = [asyncio.wait_for(each.gone.wait(), END_TIMEOUT_S) for _, each in kept]
        await asyncio.gather(*waits, return_exceptions=True)
        for replica_id in self._replicas:
            log.error("replica %s did not end", replica_id)

    def take_channel(self, replica_id: str) -> socket.socket:
        """Our end of a replica's socket, for whoever serves it; given once. NotFoundError for a replica that is not here."""
        kept = self._replicas.get(replica_id)
        if kept is None or kept.launched is None or kept.taken:
            raise NotFoundError(f"replica {replica_id!r} is not here, or is served already", reason="REPLICA_NOT_FOUND")
        kept.taken = True
        kept.asked_for.set()
        return kept.launched.channel

    def take(self, message: Message, body: Buffer) -> None:
        """One message. Raises InvalidRequestError for one that only agents send."""
        match message:
            case Beat():
                self._tell(message)
            case Bundle(sha256):
                self._bundles.put(sha256, body)
            case CheckBundle():
                self._spawn(self._answer(message.ask, self._check_bundle(message)))
            case Launch():
                self._spawn(self._answer(message.ask, self._launch(message.order)))
            case Quotas(number, changes):
                self._agent.set_quotas(changes)
                self._pending.update({replica_id: number for replica_id, _ in changes})
                self._pend.set()
            case Lend(replica_id, lend):
                if replica_id in self._replicas and not self._replicas[replica_id].ended:
                    self._agent.lend(replica_id, lend)
            case Kill(replica_id):
                if (kept := self._replicas.get(replica_id)) is not None:
                    kept.unwanted = True
                    kept.asked_for.set()  # nobody will ask any more
                self._agent.kill(replica_id)
            case CloseNurseries(function, keep_version):
                self._agent.close_nurseries(function, keep_version=keep_version)
            case BringLogs(ask):
                for replica_id in self._forked():
                    while self._tell_log(replica_id, self._replicas[replica_id]):
                        pass
                self._tell(Answer(ask))
            case _:
                raise InvalidRequestError(f"a gateway sent {type(message).__name__}, which only an agent sends")

    # -- what the agent tells ----------------------------------------------------------------------------------------

    def exited(self, replica_id: str, code: int | None) -> None:
        """A replica's process has ended; the end of its log goes first, which may say why."""
        kept = self._replicas.get(replica_id)
        if kept is None:
            return
        kept.ended = True
        if kept.launched is not None and not kept.taken and not self._over:
            # What it said is still in its socket, such as why it could not start: its gateway is just about to read that.
            self._spawn(self._unheard(replica_id, kept, code))
        else:
            self._gone(replica_id, kept, code)

    async def _unheard(self, replica_id: str, kept: _Kept, code: int | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(kept.asked_for.wait(), UNHEARD_S)
            await asyncio.sleep(HEARD_WITHIN_S)
        self._gone(replica_id, kept, code)

    def _gone(self, replica_id: str, kept: _Kept, code: int | None) -> None:
        self._replicas.pop(replica_id, None)
        self._tell_log(replica_id, kept)
        if kept.launched is not None and not kept.taken:
            kept.launched.channel.close()
        kept.gone.set()
        self._tell(Exited(replica_id, code))

    def condition(self, device_id: str, found: Condition) -> None:
        """A device's health."""
        self._tell(Found(device_id, found))

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _check_bundle(self, asked: CheckBundle) -> Answer:
        python, bundle = self._python(asked.python), await self._bundles.wait(asked.sha256)
        lines = await self._agent.check_bundle(python, asked.packages, bundle)
        return Answer(asked.ask, lines=tuple(lines))

    def _launch(self, order: Order) -> Coroutine[object, object, Answer]:
        """Admits the replica here and now, since quotas that are told next count on it; the rest takes its time."""
        sha256 = order.request.bundle_path.stem
        try:
            python = self._python(order.request.python)
            request = attrs.evolve(order.request, python=python, bundle_path=self._bundles.path(sha256))
            self._agent.admit(attrs.evolve(order, request=request))
        except HasFaasError as exc:
            return _failed(exc)
        self._replicas[order.replica_id] = _Kept()
        return self._fork(order.replica_id, sha256)

    async def _fork(self, replica_id: str, sha256: str) -> Answer:
        kept = self._replicas[replica_id]
        try:
            await self._bundles.wait(sha256)
            kept.launched = launched = await self._agent.fork(replica_id)
        except BaseException:
            self._agent.dismiss(replica_id)
            self._replicas.pop(replica_id, None)
            kept.gone.set()
            raise
        if self._over or kept.unwanted:
            self._agent.kill(replica_id)
        return Answer(0, pid=launched.pid)

    def _python(self, python: str) -> str:
        """The interpreter here that stands for one of the gateway's host: hasfaas's own for its own, else that very path."""
        if python == self.hello.python:
            return sys.executable
        if not Path(python).exists():
            raise BackendError(
                f"{python} is not on node {socket.gethostname()}: install the function's environment there under the same "
                "path, or deploy over the network, which uses the interpreter that hasfaas runs on",
                reason="PYTHON_NOT_FOUND",
            )
        return python

    async def _answer(self, ask: int, work: Coroutine[object, object, Answer]) -> None:
        try:
            answer = attrs.evolve(await work, ask=ask)
        except HasFaasError as exc:
            answer = Answer(ask, status=to_status(exc).SerializeToString())
        except Exception as exc:
            log.exception("an order could not be carried out")
            failure = BackendError(f"the node agent could not do it: {type(exc).__name__}: {exc}")
            answer = Answer(ask, status=to_status(failure).SerializeToString())
        self._tell(answer)

    async def _tell_usages(self) -> None:
        while True:
            forked = self._forked()
            await asyncio.sleep(max(USAGE_EVERY_S, USAGE_EVERY_S_EACH * len(forked)))
            changed = {}
            for replica_id in self._forked():
                kept, usage = self._replicas[replica_id], self._agent.usage(replica_id)
                if usage != kept.usage:
                    kept.usage = changed[replica_id] = usage
            if changed:
                self._tell(Usages(changed))

    async def _give_life(self) -> None:
        """Signs of life of our own: a beat is returned once it was read, and on a slow link that is after the bundle before
        it, which may take longer than its gateway waits."""
        while True:
            await asyncio.sleep(self.hello.beat_s)
            self._tell(Usages({}))

    async def _tell_logs(self) -> None:
        while True:
            await asyncio.sleep(LOGS_EVERY_S)
            for replica_id in self._forked():
                self._tell_log(replica_id, self._replicas[replica_id])

    def _tell_log(self, replica_id: str, kept: _Kept) -> bool:
        """Tells the next piece of a log; whether there was any."""
        if kept.launched is None:
            return False
        try:
            size = kept.launched.log.stat().st_size
            if size < kept.told_log:
                kept.told_log = 0  # it was emptied: it had grown past its bound
            if size == kept.told_log:
                return False
            with kept.launched.log.open("rb") as file:
                file.seek(kept.told_log)
                piece = file.read(LOG_PIECE_BYTES)
        except OSError:
            return False
        kept.told_log += len(piece)
        self._tell(Log(replica_id), piece)
        return True

    async def _tell_in_force(self) -> None:
        while True:
            await self._pend.wait()
            for replica_id, number in list(self._pending.items()):
                if self._agent.in_force(replica_id):
                    del self._pending[replica_id]
                    self._tell(InForce(replica_id, number))
            if not self._pending:
                self._pend.clear()
            await asyncio.sleep(FORCE_POLL_S)

    def _forked(self) -> Collection[str]:
        return [
            replica_id for replica_id, kept in self._replicas.items() if kept.launched is not None and not kept.ended
        ]

    def _tell(self, message: Message, body: Buffer = b"") -> None:
        if not self._over:
            self._send(messages.pack(message, body))

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _failed(why: HasFaasError) -> Answer:
    raise why
