"""The process of a node agent: `python -m hasfaas.backends.cluster.node_process`, spoken to as child.py says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs

from hasfaas.backends.agents import agent_of
from hasfaas.backends.cluster import pipes
from hasfaas.backends.cluster.child import Line, Ready, StartNode, Stop
from hasfaas.backends.cluster.node_server import NodeServer
from hasfaas.backends.cluster.tls import node_context
from hasfaas.core.own_file import write_own
from hasfaas.core.settings import Settings
from hasfaas.core.signing import KEY_FILE
from hasfaas.node.inventory import devices_of

HANDSHAKE_TIMEOUT_S = 10.0
DESCRIPTORS = "descriptors.sock"
log = logging.getLogger("hasfaas.node")


async def serve() -> None:
    """Runs until it is told to stop."""
    told = pipes.lines()
    start = await anext(told)
    assert isinstance(start, StartNode), "a node agent is told first how to start"
    try:
        settings = _settings(start)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        state_url = settings.cluster.state_url or ""
        server = NodeServer(start.place, settings.state_dir, settings.socket_path(DESCRIPTORS), state_url)
        agent = agent_of(settings, devices_of(settings.devices, node=start.place.name), server)
        await agent.start()
        server.agent = agent
        listening = await asyncio.get_running_loop().create_server(
            server.line,
            start.place.host,
            settings.cluster.node_port,
            ssl=node_context(start.identity),
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
    except Exception as exc:
        log.exception("the node agent could not start")
        pipes.refuse(exc)
        sys.exit(1)
    tasks = [asyncio.ensure_future(work) for work in (server.serve_descriptors(), server.watch())]
    port = listening.sockets[0].getsockname()[1]
    pipes.say(Ready(port))
    log.info("node %s listens on %s:%d", start.place.name, start.place.host, port)
    await _until_stop(told)
    listening.close()
    await server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await agent.stop()


def _settings(start: StartNode) -> Settings:
    """The cluster's settings with this process's own folders, in which its key lies from now on."""
    settings = attrs.evolve(
        Settings.from_json(start.settings_json),
        state_dir=Path(start.state_dir),
        runtime_dir=Path(start.runtime_dir),
    )
    for folder in (settings.state_dir, settings.runtime_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_own(settings.state_dir / KEY_FILE, bytes.fromhex(start.identity.signing_key))
    return settings


async def _until_stop(told: AsyncIterator[Line]) -> None:
    async for line in told:
        if isinstance(line, Stop):
            return
    pipes.orphaned()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
