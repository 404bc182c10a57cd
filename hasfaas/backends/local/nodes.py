"""The one node agent of the local backend: an object in the gateway's own process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket

import attrs

from hasfaas.backends.nodes import Born, Nodes, Replica
from hasfaas.core.allocation import Usage
from hasfaas.node.agent import AgentEvents, NodeAgent, Order
from hasfaas.node.lanes import Want
from hasfaas.node.seats import Changes
from hasfaas.serving.channel import ChannelEvents, ReplicaChannel


@attrs.frozen
class SocketLine:
    """A socket of this process."""

    channel: socket

    async def open(self, events: ChannelEvents) -> ReplicaChannel:
        """Takes it over."""
        return await ReplicaChannel.open(self.channel, events)


class LocalNodes(Nodes):
    """This machine alone."""

    def __init__(
        self,
        resized: Callable[[str, float], None],
        exited: Callable[[Replica], None],
        make_agent: Callable[[AgentEvents], NodeAgent],
    ) -> None:
        super().__init__(resized, exited)
        self._agent = make_agent(self)

    async def start(self) -> None:
        """Starts the agent. Raises what kept a device from starting."""
        await self._agent.start()
        self.join(_Door(self._agent), list(self._agent.devices.values()))

    async def stop(self) -> None:
        """Kills what is left, and ends the agent."""
        await self._agent.stop()

    def patience_s(self, want: Want) -> float:
        """None: there will be no more than this machine."""
        return 0.0

    def lacks(self, wants: Sequence[Want]) -> None:
        """Nobody can be asked for more."""


@attrs.frozen(eq=False)
class _Door:
    """The agent, called."""

    agent: NodeAgent

    async def check_bundle(self, python: str, packages: Sequence[str], bundle: Path) -> tuple[str, ...]:
        return await self.agent.check_bundle(python, packages, bundle)

    async def launch(self, order: Order) -> Born:
        self.agent.admit(order)
        launched = await self.agent.fork(order.replica_id)
        return Born(launched.pid, launched.log, SocketLine(launched.channel))

    def set_quotas(self, quotas: Changes) -> None:
        self.agent.set_quotas(quotas)

    def lend(self, replica_id: str, lend: bool) -> None:
        self.agent.lend(replica_id, lend)

    def in_force(self, replica_id: str) -> bool:
        return self.agent.in_force(replica_id)

    def usage(self, replica_id: str) -> Usage:
        return self.agent.usage(replica_id)

    def kill(self, replica_id: str) -> None:
        self.agent.kill(replica_id)

    def close_nurseries(self, function: str, *, keep_version: str | None = None) -> None:
        self.agent.close_nurseries(function, keep_version=keep_version)

    async def bring_logs(self) -> None:
        """Nothing: replicas write to the very files."""

    async def check(self) -> None:
        self.agent.trim_logs()
        self.agent.sweep()
        await self.agent.check()
