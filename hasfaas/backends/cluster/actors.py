"""The actor that Ray places on each node with devices, keeps there and restarts; and what it shares with the cluster's own.

Actors supervise child processes and carry no request. Law: none outlives the raylet that started it, nor a child its actor.
"""

from __future__ import annotations

import logging
import os
import threading
import time

import attrs

from hasfaas.backends.cluster import members as book
from hasfaas.backends.cluster.child import StartNode
from hasfaas.backends.cluster.launch import AgentState, NodeLaunch
from hasfaas.backends.cluster.reservation import on_node
from hasfaas.backends.cluster.supervisor import Child
from hasfaas.core.errors import BackendError, HasFaasError, IncompatibleError
from hasfaas.core.settings import Settings
from hasfaas.core.version import VERSION
from hasfaas.wire.status import to_status

NAMESPACE = "hasfaas"
AGENT_PREFIX = "node-"
# A child that ends sooner than this after it was ready does so again: its actor is not restarted faster.
LEAST_LIFE_S = 2.0
# Beyond the time for draining: replicas and their zygotes end, the state is written.
ENDS_WITHIN_S = 20.0
# What Ray sets in its workers and a child must not take for its user's wish.
_RAYS_OWN = frozenset({"OMP_NUM_THREADS", "PYTHONBREAKPOINT", "PYTHONUNBUFFERED"})
log = logging.getLogger("hasfaas.cluster")


def agent_name(node_id: str) -> str:
    """The name of a node's actor in Ray."""
    return f"{AGENT_PREFIX}{node_id}"


def drain_s(settings: Settings) -> float:
    """How long a child may take to finish what it has."""
    return 2 * settings.local.drain_timeout_s + ENDS_WITHIN_S


class NodeActor:
    """A node's: supervises its agent. It ends when that ends, and Ray starts another."""

    def __init__(self, launch: NodeLaunch) -> None:
        self._launch, self._place = launch, launch.place
        self._settings = Settings.from_json(launch.settings_json)
        self._child: Child | None = None
        self._stopping = threading.Event()
        self._port, self._refused = 0, ""
        end_with_raylet()
        self._thread = threading.Thread(target=self._keep, name="agent", daemon=True)
        self._thread.start()

    def state(self) -> AgentState:
        """What there is to say."""
        child_pid = self._child.pid if self._child else None
        return AgentState(
            self._place, self._launch.launch_id, os.getpid(), child_pid or 0, port=self._port, refused=self._refused
        )

    def stop(self) -> bool:
        """Lets the agent finish, and ends it. False when it did not by itself."""
        self._stopping.set()
        finished = self._child is None or self._child.stop(drain_s(self._settings))
        self._thread.join(ENDS_WITHIN_S)
        return finished

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._child = child = Child(self._launch.module, self._start(), environment=child_environment())
                self._port = child.start(self._settings.start_timeout_s).port
            except Exception as exc:
                self._refused = status_of(exc)
                log.warning("the node agent could not start: %s", exc)
                self._stopping.wait(book.delay_s(failures))
                failures += 1
                continue
            self._refused, since_s = "", time.monotonic()
            code = self._until_its_end(child)
            self._port = 0
            if not self._stopping.is_set():
                log.error("the node agent ended with code %s; see %s", code, child.log_file)
                self._stopping.wait(max(0.0, LEAST_LIFE_S - (time.monotonic() - since_s)))
            if not self._stopping.is_set():
                os._exit(1)

    def _until_its_end(self, child: Child) -> int:
        if self._stopping.is_set():  # while it started
            child.stop(drain_s(self._settings))
        return child.wait()

    def _start(self) -> StartNode:
        """The first line, made here: which GPUs Ray gave is known on the node alone."""
        require_version(self._launch.version)
        cores, gpu_ids = _given()
        settings = own_folders(self._settings, f"node-{self._place.name}", f"n-{self._place.node_id[:10]}")
        devices = on_node(settings.devices, self._place.name, gpu_ids=gpu_ids, cores=cores)
        settings = attrs.evolve(settings, devices=devices)
        return StartNode(
            place=self._place,
            identity=self._launch.identity,
            settings_json=settings.to_json(),
            state_dir=str(settings.state_dir),
            runtime_dir=str(settings.runtime_dir),
        )


def _given() -> tuple[int, list[str]]:
    """How many cores and which GPUs Ray has given this actor; never more cores than its process may use."""
    import ray

    context = ray.get_runtime_context()
    cores = int(context.get_assigned_resources().get("CPU", 0))
    gpu_ids = [str(gpu_id) for gpu_id in context.get_accelerator_ids().get("GPU", [])]
    return min(cores, len(os.sched_getaffinity(0))), gpu_ids


def own_folders(settings: Settings, name: str, short: str) -> Settings:
    """A child's own folders, beside those of this user's other processes, on other nodes too where they share a home. Sockets
    need a short path."""
    return attrs.evolve(
        settings, state_dir=settings.state_dir / "processes" / name, runtime_dir=settings.runtime_dir / short
    )


def require_version(version: str) -> None:
    if version != VERSION:
        raise IncompatibleError(
            f"this node has hasfaas {VERSION}, and the cluster was started with {version}: install the same on each "
            "node, then `hasfaas cluster down` and `hasfaas cluster up`",
            reason="VERSION_MISMATCH",
        )


def child_environment() -> dict[str, str]:
    """A child's: that of this node, without what Ray has added for its workers."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_") and name not in _RAYS_OWN}
    # gRPC tells of each handshake that fails, and strangers on a port could fill the log with theirs.
    return {"GRPC_VERBOSITY": "ERROR"} | kept


def status_of(exc: Exception) -> str:
    known = exc if isinstance(exc, HasFaasError) else BackendError(f"{type(exc).__name__}: {exc}")
    status: bytes = to_status(known).SerializeToString()
    return status.hex()


def end_with_raylet() -> None:
    """Ends this process once its parent, the raylet, has. Ray sees to that too, but takes a raylet that nobody has waited for
    for a living one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, name="raylet", daemon=True).start()
