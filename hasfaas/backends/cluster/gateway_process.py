"""The process of a cluster's gateway: `python -m hasfaas.backends.cluster.gateway_process`, spoken to as child.py says.

It ends by itself once a newer gateway has taken over the state, or a node: two must not decide at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import attrs

from hasfaas.backends import listener
from hasfaas.backends.cluster import pipes
from hasfaas.backends.cluster.child import Ask, Identity, Line, Nodes, Ready, StartGateway, Stop
from hasfaas.backends.cluster.nodes import ClusterNodes
from hasfaas.backends.cluster.remote_node import Terms
from hasfaas.backends.cluster.shared_store import SharedStore
from hasfaas.backends.cluster.shared_tokens import SharedTokens
from hasfaas.backends.cluster.tls import gateway_context
from hasfaas.backends.gateway import Gateway
from hasfaas.backends.nodes import Replica
from hasfaas.core import addresses
from hasfaas.core.errors import HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.core.own_file import write_own
from hasfaas.core.settings import NetworkSettings, Settings
from hasfaas.core.signing import KEY_FILE

FLUSH_EVERY_S = 5.0
TOKENS_EVERY_S = 2.0
log = logging.getLogger("hasfaas.gateway")


class ClusterGateway:
    """A gateway whose replicas are on the nodes that it is told of."""

    def __init__(self, start: StartGateway, loop: asyncio.AbstractEventLoop) -> None:
        """Takes the state over, which may take long: not on the loop. Raises what keeps it from that."""
        self._start = start
        self._loop = loop
        self.settings = settings = _settings(start)
        if settings.cluster.state_url is None:
            raise InvalidRequestError("cluster.state_url is not set: name the folder that keeps what is deployed")
        self.store = SharedStore(settings.cluster.state_url, settings.state_dir / "objects", on_lost=self._lost)
        self._tokens = SharedTokens(settings.cluster.state_url)
        self._nodes: ClusterNodes | None = None
        self._gateway: Gateway | None = None

    async def run(self, told: AsyncIterator[Line]) -> None:
        """Serves until it is told to stop, or superseded."""
        await asyncio.to_thread(self.store.prefetch)
        await asyncio.to_thread(self._tokens.begin, self._start.tokens.encode())
        await self._take_tokens()
        gateway = self._gateway = Gateway(
            self.settings,
            self.store,
            self._make_nodes,
            opening=listener.opening(self.settings.network),
            addresses=self._addresses,
        )
        tasks = [asyncio.ensure_future(work) for work in (self._listen(told), self._flush(), self._follow_tokens())]
        try:
            await gateway.run(lambda: pipes.say(Ready(self.settings.cluster.port, self.store.generation)))
        finally:
            for task in tasks:
                task.cancel()

    def _make_nodes(self, resized: Callable[[str, float], None], exited: Callable[[Replica], None]) -> ClusterNodes:
        settings = self.settings
        terms = Terms(self.store.generation, self._start.place.node_id, settings.cluster, settings.state_dir / "logs")
        tls = gateway_context(self._start.identity)
        self._nodes = ClusterNodes(resized, exited, terms, tls, self._superseded, self._ask)
        return self._nodes

    def _addresses(self) -> Sequence[str]:
        """Where this gateway is, and where another would be: on one of the nodes, at the same port."""
        hosts = [self._start.place.host, *(self._nodes.hosts() if self._nodes is not None else ())]
        return [addresses.join(host, self.settings.cluster.port) for host in dict.fromkeys(hosts)]

    def _ask(self, bundles: Sequence[Mapping[str, float]]) -> None:
        pipes.say(Ask(tuple(bundles)))

    async def _listen(self, told: AsyncIterator[Line]) -> None:
        async for line in told:
            if isinstance(line, Stop):
                break
            if isinstance(line, Nodes) and self._nodes is not None:
                self._nodes.set_nodes(line.nodes)
        else:
            pipes.orphaned()
        if self._gateway is not None:
            self._gateway.stop()

    def _superseded(self, why: str) -> None:
        log.error("this gateway ends: %s", why)
        if self._gateway is not None:
            self._gateway.stop()

    def _lost(self, error: UnavailableError) -> None:
        """Another gateway has the state; told in whatever thread found out."""
        self._loop.call_soon_threadsafe(self._superseded, str(error))

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await asyncio.to_thread(self.store.flush)
            except HasFaasError as exc:
                log.warning("the state could not be written: %s", exc)

    async def _follow_tokens(self) -> None:
        while True:
            await asyncio.sleep(TOKENS_EVERY_S)
            await self._take_tokens()

    async def _take_tokens(self) -> None:
        """A token that was made or taken back elsewhere is so here."""
        path = self.settings.network.tokens_file
        assert path is not None, "a cluster's gateway has tokens"
        try:
            await asyncio.to_thread(self._tokens.pull, path)
        except HasFaasError as exc:
            log.warning("the tokens stay what they were: %s", exc)


def _settings(start: StartGateway) -> Settings:
    """The cluster's settings with this process's own folders and its port, and its secrets in those folders."""
    given = Settings.from_json(start.settings_json)
    state_dir, runtime_dir = Path(start.state_dir), Path(start.runtime_dir)
    for folder in (state_dir, runtime_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    cert_file, key_file = _keep(start.identity, state_dir)
    write_own(state_dir / "tokens.json", start.tokens.encode())
    network = NetworkSettings(
        listen=addresses.join(start.place.host, given.cluster.port),
        cert_file=cert_file,
        key_file=key_file,
        tokens_file=state_dir / "tokens.json",
    )
    return attrs.evolve(given, state_dir=state_dir, runtime_dir=runtime_dir, network=network)


def _keep(identity: Identity, folder: Path) -> tuple[Path, Path]:
    """The gateway's certificate and its key, as files, and the key that signs bundles."""
    cert_file, key_file = folder / "gateway.pem", folder / "gateway.key"
    write_own(cert_file, identity.cert_pem.encode())
    write_own(key_file, identity.key_pem.encode())
    write_own(folder / KEY_FILE, bytes.fromhex(identity.signing_key))
    return cert_file, key_file


async def serve() -> None:
    """Runs until it is told to stop."""
    told = pipes.lines()
    start = await anext(told)
    assert isinstance(start, StartGateway), "a gateway is told first how to start"
    try:
        level = Settings.from_json(start.settings_json).log_level.upper()
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        gateway = await asyncio.to_thread(ClusterGateway, start, asyncio.get_running_loop())
        await gateway.run(told)
    except Exception as exc:
        log.exception("the gateway could not start, or ended")
        pipes.refuse(exc)
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
