"""The gateway process of this machine, with a node agent in it.

Run as `python -m hasfaas.backends.local.server`, with the settings as JSON on standard input. It writes one line to the
descriptor given by `--ready-fd`: "ready", or what kept it from starting ("refused" with a status, or words). A lock on
`gateway.lock` keeps it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hasfaas.backends import listener
from hasfaas.backends.agents import agent_of
from hasfaas.backends.gateway import Gateway
from hasfaas.backends.local.nodes import LocalNodes
from hasfaas.core.errors import HasFaasError
from hasfaas.core.settings import GATEWAY_SOCKET, Settings
from hasfaas.node.agent import AgentEvents, NodeAgent
from hasfaas.node.inventory import devices_of
from hasfaas.serving.store import LocalStore
from hasfaas.wire.status import to_status

LOCK_FILE = "gateway.lock"
log = logging.getLogger("hasfaas.gateway")


def lock(runtime_dir: Path) -> int | None:
    """The lock that makes a gateway the only one of its runtime folder, None when another holds it. Held until exit."""
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(runtime_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def main() -> int:
    """Serves; 0 after a clean stop, 1 when it could not start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()

    def tell(line: str) -> None:
        os.write(arguments.ready_fd, f"{line}\n".encode())
        os.close(arguments.ready_fd)

    try:
        settings = Settings.from_json(sys.stdin.read())
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        # Whoever sees our lock may send it, and it would end us before there is a handler: it waits until then.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        if lock(settings.runtime_dir) is None:
            tell("taken")
            return 0
        # We hold the lock, so whoever made it has gone; a client that finds both would call into nothing.
        settings.socket_path(GATEWAY_SOCKET).unlink(missing_ok=True)
        asyncio.run(_serve(settings, arguments.embedded, lambda: tell("ready")))
    except HasFaasError as exc:
        log.exception("the gateway could not start")
        tell(f"refused {to_status(exc).SerializeToString().hex()}")
        return 1
    except OSError as exc:
        log.exception("the gateway could not start")
        tell(str(exc))
        return 1
    return 0


async def _serve(settings: Settings, embedded: bool, ready: Callable[[], None]) -> None:
    opening = listener.opening(settings.network)  # first of all: what is refused has started nothing
    devices = devices_of(settings.devices)

    def make_agent(events: AgentEvents) -> NodeAgent:
        return agent_of(settings, devices, events)

    store = LocalStore(settings.state_dir)
    nodes = partial(LocalNodes, make_agent=make_agent)
    await Gateway(settings, store, nodes, opening=opening, embedded=embedded).run(ready)


if __name__ == "__main__":
    sys.exit(main())
