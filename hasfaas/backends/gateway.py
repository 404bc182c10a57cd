"""A gateway that runs: gRPC and frames on unix sockets of this user, where it is asked for gRPC on a port too, the fleet, the
profiles and the scaling loop. Where its replicas run, and where it keeps what is deployed, it is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hasfaas.backends import listener
from hasfaas.backends.fleet import Fleet
from hasfaas.backends.listener import Opening
from hasfaas.backends.nodes import Nodes, Replica
from hasfaas.backends.profiles import Profiles
from hasfaas.backends.scaling import ScalingLoop
from hasfaas.core.errors import HasFaasError
from hasfaas.core.settings import FRAMES_SOCKET, GATEWAY_SOCKET, Settings
from hasfaas.core.signing import KEY_FILE
from hasfaas.serving.access import SERVICE
from hasfaas.serving.door import Door
from hasfaas.serving.gateway import GatewayService
from hasfaas.serving.network_service import NetworkService
from hasfaas.serving.ports import Store
from hasfaas.wire.v1 import functions_pb2_grpc

MAX_MESSAGE_BYTES = 128 * 2**20
SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
log = logging.getLogger("hasfaas.gateway")


class ClosingStore(Store, Protocol):
    """A store that is closed at the end."""

    def close(self) -> None: ...


class Gateway:
    """One gateway, until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        store: ClosingStore,
        make_nodes: Callable[[Callable[[str, float], None], Callable[[Replica], None]], Nodes],
        *,
        opening: Opening | None,
        addresses: Callable[[], Sequence[str]] = lambda: (),
        embedded: bool = False,
    ) -> None:
        """`opening` is what to listen on besides the unix sockets, `addresses` where clients there may find a gateway should
        this one go. The key that signs bundles lies in the state folder."""
        local = settings.local
        self._settings = settings
        self.embedded = embedded
        self._opening = opening
        self._addresses = addresses
        self._store = store
        self._profiles = Profiles(self._store)
        self._fleet = Fleet(
            self._store,
            max_queue=local.max_queue,
            key_path=settings.state_dir / KEY_FILE,
            start_timeout_s=settings.start_timeout_s,
            drain_timeout_s=local.drain_timeout_s,
            make_nodes=make_nodes,
            observed=self._profiles.observe,
        )
        self._profiles.attach(self._fleet)
        self._scaling = ScalingLoop(
            self._fleet,
            self._profiles,
            settings.scaling,
            window_ms=local.window_ms,
            quantum_ms=local.quantum_ms,
            state_dir=settings.state_dir,
        )
        self._service = GatewayService(
            self._fleet.router,
            self._store,
            self._fleet,
            self._profiles,
            self._scaling,
            embedded=lambda: self.embedded,
            window_ms=local.window_ms,
            quantum_ms=local.quantum_ms,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs lack aio
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ends it: calls that were accepted first."""
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until told to stop, or, embedded, until nobody has used it for `linger_s`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._keep)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        network = self._network_server()
        await self._fleet.start()
        server = self._equip(grpc.aio.server(options=SERVER_OPTIONS), self._service)
        frames_path = self._settings.socket_path(FRAMES_SOCKET)
        frames_path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            door = await loop.create_unix_server(lambda: Door(self._service.intake), str(frames_path), backlog=128)
            # Last: a client that finds this socket finds the other too.
            self._listen(server)
        finally:
            os.umask(mask)
        servers = [server, network] if network is not None else [server]
        for each in servers:
            await each.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        ready()
        ports = self._opening.addresses if self._opening is not None else ()
        log.info("serving on %s", ", ".join([str(self._settings.socket_path(GATEWAY_SOCKET)), *ports]))
        tasks = [asyncio.ensure_future(work) for work in (self._watch(), self._scaling.run())]
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._finish_calls()
        # Sessions never end by themselves; what they wait for has been answered above.
        door.close()
        await asyncio.gather(*(each.stop(grace=0.5) for each in servers))
        await self._fleet.stop()
        self._profiles.save()
        self._scaling.close()
        self._store.close()
        for name in (GATEWAY_SOCKET, FRAMES_SOCKET):
            self._settings.socket_path(name).unlink(missing_ok=True)

    async def _finish_calls(self) -> None:
        deadline_s = time.monotonic() + self._settings.local.drain_timeout_s
        while self._fleet.router.outstanding and time.monotonic() < deadline_s:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.02)

    def _equip(self, server: grpc.aio.Server, service: GatewayService) -> grpc.aio.Server:
        functions_pb2_grpc.add_FunctionServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _network_server(self) -> grpc.aio.Server | None:
        """Bound before anything else starts, since a port may be taken; it answers when it is started."""
        if self._opening is None:
            return None
        server = listener.make_server(self._opening)
        listener.open_port(server, self._opening)
        return self._equip(server, NetworkService(self._service, self._opening.access, self._addresses))

    def _listen(self, server: grpc.aio.Server) -> None:
        path = self._settings.socket_path(GATEWAY_SOCKET)
        if server.add_insecure_port(f"unix:{path}") == 0:
            raise HasFaasError(f"cannot listen on {path}")

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    def _keep(self) -> None:
        """`hasfaas up` while an embedded gateway runs: it stays."""
        self.embedded = False

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self._fleet.nodes.check()
            self._fleet.tend()
            await self._profiles.fold()
            idle_s = time.monotonic() - self._service.intake.last_used_s
            busy = self._service.intake.clients or self._fleet.router.outstanding
            if self.embedded and not busy and idle_s > self._settings.local.linger_s:
                log.info("no client for %.0f s: ending", idle_s)
                self._stop.set()
