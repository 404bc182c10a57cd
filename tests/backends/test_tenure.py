"""One gateway's time on a node, over an agent that takes its time to fork: what is told meanwhile counts."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hasfaas.backends.cluster import messages
from hasfaas.backends.cluster.bundles import Bundles
from hasfaas.backends.cluster.messages import Answer, Bundle, Exited, Hello, Kill, Launch, Message
from hasfaas.backends.cluster.tenure import Tenure
from hasfaas.core.allocation import Usage
from hasfaas.node.agent import Launched, Order, ReplicaRequest
from hasfaas.node.lanes import Placement, Want
from hasfaas.wire.frames import Buffer, FrameReader

CONTENT = b"a bundle"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REQUEST = ReplicaRequest("f", "v", "python", (), Path(f"{SHA256}.bundle"), b"", None, Want(2**28))
ORDER = Order("f-1", REQUEST, Placement("sim0", 0, (0,), 100.0, 100.0, False))


class SlowAgent:
    """Forks once `may_fork` is set. It kills what it has forked, and what it has not it does not know yet."""

    def __init__(self) -> None:
        self.may_fork = asyncio.Event()
        self.admitted: list[str] = []
        self.forked: list[str] = []
        self.killed: list[str] = []
        self.exited: Callable[[str, int | None], None] = lambda _replica_id, _code: None

    def admit(self, order: Order) -> None:
        self.admitted.append(order.replica_id)

    async def fork(self, replica_id: str) -> Launched:
        await self.may_fork.wait()
        self.forked.append(replica_id)
        ours, theirs = socket.socketpair()
        theirs.close()
        return Launched(1, Path("/nowhere"), ours)

    def dismiss(self, replica_id: str) -> None:
        self.admitted.remove(replica_id)

    def kill(self, replica_id: str) -> None:
        if replica_id in self.forked:
            self.killed.append(replica_id)
            asyncio.get_running_loop().call_soon(self.exited, replica_id, -9)

    def usage(self, _replica_id: str) -> Usage:
        return Usage()


class Told:
    """The line to the gateway."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __call__(self, pieces: Sequence[Buffer]) -> None:
        reader, data = FrameReader(), b"".join(pieces)
        reader.buffer()[: len(data)] = data
        self.messages += [messages.unpack(frame) for frame in reader.advance(len(data))]


@pytest.mark.parametrize("how", ["killed", "its gateway goes"])
async def test_a_replica_that_is_not_wanted_any_more_before_it_was_forked_ends(tmp_path: Path, how: str) -> None:
    agent: Any = SlowAgent()
    told = Told()
    tenure = Tenure(agent, Bundles(tmp_path / "bundles"), Hello(1, "id", "python", 0.5, 3.0), told)
    agent.exited = tenure.exited
    tenure.begin()
    tenure.take(Launch(7, ORDER), b"")
    tenure.take(Bundle(SHA256), CONTENT)
    assert agent.admitted == ["f-1"]
    await asyncio.sleep(0.02)
    if how == "killed":
        tenure.take(Kill("f-1"), b"")
        assert not agent.killed
        agent.may_fork.set()
        async with asyncio.timeout(10.0):
            while Exited("f-1", -9) not in told.messages:  # noqa: ASYNC110 - a few turns of the loop
                await asyncio.sleep(0.01)
        assert Answer(7, pid=1) in told.messages
    else:
        ending = asyncio.ensure_future(tenure.end())
        await asyncio.sleep(0.02)
        agent.may_fork.set()
        await asyncio.wait_for(ending, 5.0)
        assert not agent.admitted, "its seat is free"
    assert agent.killed == agent.forked
    await tenure.end()
