"""The nodes of a cluster as a fleet has them: those that the list names and that answer. One that is lost is tried again."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from hasfaas.backends.cluster.child import NodeAddress
from hasfaas.backends.cluster.remote_node import RemoteNode, Terms
from hasfaas.backends.nodes import Nodes, Replica
from hasfaas.core.errors import ConflictError, HasFaasError, PlacementError
from hasfaas.node.agent import ReplicaRequest
from hasfaas.node.lanes import Want, could_hold

RETRY_S = 0.5
# So long after its start a gateway takes nodes that it has not reached yet for nodes that come.
ARRIVAL_S = 10.0
log = logging.getLogger("hasfaas.nodes")


@attrs.frozen
class NodeState:
    """A node as people see it: "ready" with its devices, else why not."""

    name: str
    node_id: str
    host: str
    ready: bool
    why: str = ""
    rtt_ms: float | None = None


@attrs.define(eq=False)
class _Listed:
    """A node of the list, and what keeps a line to it."""

    address: NodeAddress
    task: asyncio.Task[None]
    node: RemoteNode | None = None
    why: str = "not reached yet"


class ClusterNodes(Nodes):
    """All nodes. `superseded` is called once one of them has served a newer gateway than this."""

    def __init__(
        self,
        resized: Callable[[str, float], None],
        exited: Callable[[Replica], None],
        terms: Terms,
        tls: ssl.SSLContext,
        superseded: Callable[[str], None],
        ask: Callable[[Sequence[Mapping[str, float]]], None],
    ) -> None:
        """`ask` is told the resources of nodes without which there is no room, with every change."""
        super().__init__(resized, exited)
        self._ask = ask
        self._asked: Sequence[Mapping[str, float]] = ()
        self._began_s = time.monotonic()
        self._terms = terms
        self._tls = tls
        self._superseded = superseded
        self._listed: dict[str, _Listed] = {}
        # The names of nodes that were listed once.
        self._left: set[str] = set()

    async def start(self) -> None:
        """Makes the folder of logs; nodes come with `set_nodes`."""
        self._terms.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def stop(self) -> None:
        """Says goodbye to every node: what runs there for us ends."""
        for listed in list(self._listed.values()):
            self._strike(listed)
        await asyncio.gather(*(each.task for each in self._listed.values()), return_exceptions=True)

    async def add(self, request: ReplicaRequest) -> Replica:
        if not self.devices:
            listed = "; ".join(each.why for each in self._listed.values()) or "none has joined yet"
            raise PlacementError(f"no node of the cluster is there: {listed}; `hasfaas cluster status` shows them")
        if (away := self._away(request.want)) is not None:
            raise PlacementError(f"device {request.want.device!r} is not there: {away}")
        return await super().add(request)

    def set_nodes(self, addresses: Iterable[NodeAddress]) -> None:
        """The nodes that there are now. One that is not named any more, or listens elsewhere, is given up."""
        wanted = {address.place.node_id: address for address in addresses}
        for node_id, listed in list(self._listed.items()):
            if wanted.get(node_id) != listed.address:
                del self._listed[node_id]
                self._left.add(listed.address.place.name)
                self._strike(listed)
        for node_id, address in wanted.items():
            if node_id not in self._listed:
                task = asyncio.ensure_future(self._keep(node_id))
                self._listed[node_id] = _Listed(address, task)

    def patience_s(self, want: Want) -> float:
        """As long as the settings say, where a device like those there are would do, or there is none yet; a while after the
        start in any case, since nodes are just being reached."""
        away = self._away(want) is not None
        if self.devices and not away and not could_hold(want, self.devices.values()):
            return 0.0
        beginning_s = self._began_s + ARRIVAL_S - time.monotonic()
        return max(self._terms.settings.wait_for_room_s, beginning_s)

    def _away(self, want: Want) -> str | None:
        """Why the one node is not there that a replica may be on, since its function names it or a device of it; None where
        it is, or none is named."""
        name = want.device.partition("/")[0]
        listed = [each for each in self._listed.values() if each.address.place.name == name]
        if not listed:
            return f"node {name} has left the cluster" if name in self._left else None
        return None if any(each.node is not None for each in listed) else listed[0].why

    def lacks(self, wants: Sequence[Want]) -> None:
        """Asks for nodes that would have room."""
        bundles = [needed for want in wants if (needed := self._resources(want))]
        if bundles != self._asked:
            self._asked = bundles
            self._ask(bundles)

    def _resources(self, want: Want) -> Mapping[str, float]:
        """What a node must have for a replica, as Ray names it: a GPU, or a core. What is neither cannot be asked for, nor
        what only one node could have."""
        if self._away(want) is not None or "/" in want.device:
            return {}
        kinds = {d.kind for d in self.devices.values() if d.is_called(want.device)} or {want.device}
        if kinds & {"cuda", "auto"}:
            return {"GPU": 1.0}
        return {"CPU": 1.0} if "cpu" in kinds else {}

    def hosts(self) -> Sequence[str]:
        """The addresses of all nodes of the list, those that answer first."""
        listed = sorted(self._listed.values(), key=lambda each: each.node is None)
        return [each.address.place.host for each in listed]

    def states(self) -> Sequence[NodeState]:
        """Every node of the list."""
        return [
            NodeState(
                each.address.place.name,
                node_id,
                each.address.place.host,
                each.node is not None,
                "" if each.node is not None else each.why,
                each.node.rtt_ms if each.node is not None else None,
            )
            for node_id, each in sorted(self._listed.items(), key=lambda item: item[1].address.place.name)
        ]

    def _strike(self, listed: _Listed) -> None:
        if listed.node is not None:
            listed.node.close()
        listed.task.cancel()

    async def _keep(self, node_id: str) -> None:
        """Keeps a line to one node for as long as it is listed."""
        listed = self._listed[node_id]
        while True:
            node = RemoteNode(listed.address, self._terms, self._tls, self)
            try:
                why = await self._life(listed, node)
            except ConflictError as exc:
                self._superseded(str(exc))
                return
            except HasFaasError as exc:
                why = str(exc)
            finally:
                node.close()
            if why != listed.why:
                log.warning("%s", why)
            listed.why = why
            await asyncio.sleep(RETRY_S)

    async def _life(self, listed: _Listed, node: RemoteNode) -> str:
        """A node from its welcome to its loss; why it was lost. Raises what kept it from a welcome."""
        await node.connect()
        listed.node = node
        self.join(node, node.devices)
        log.info("node %s is here with %s", node.name, ", ".join(d.device_id for d in node.devices) or "no device")
        why = f"node {node.name} was given up"
        try:
            why = await node.beat()
        finally:
            listed.node = None
            self.part(node, why)
        return why
