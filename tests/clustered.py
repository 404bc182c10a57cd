"""A cluster of one's own for tests, without Ray: node agents and a gateway as processes, with this process as their parent.

What it does is what Ray's actors do: it starts the processes, tells the gateway of the nodes, and starts again what died.
"""

from __future__ import annotations

import datetime
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import psutil

from hasfaas.backends import certificates
from hasfaas.backends.cluster import child
from hasfaas.backends.cluster.child import (
    GATEWAY_MODULE,
    NODE_MODULE,
    Identity,
    Line,
    NodeAddress,
    Nodes,
    Place,
    Ready,
    StartGateway,
    StartNode,
    Stop,
)
from hasfaas.core import token_file, tokens
from hasfaas.core.own_file import write_own
from hasfaas.core.settings import ClusterSettings, DeviceSettings, ScalingSettings
from hasfaas.core.signing import KEY_FILE, load_or_create_key
from hasfaas.sdk.client import Client
from hasfaas.testing.running import RunningBackend, settings_in, short_folder
from tests.live import ROOT, UNSCALED
from tests.networked import free_port

START_TIMEOUT_S = 60.0
NODES = {"alpha": (DeviceSettings(kind="sim"),), "beta": (DeviceSettings(kind="sim"),)}
"""Two nodes with a sim device each."""


class Process:
    """One process of the cluster, spoken to by lines. `prefix` is a command that runs it, such as that of a namespace."""

    def __init__(self, module: str, start: Line, log: Path, prefix: Sequence[str] = ()) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.said: list[Line] = []
        self._answers: queue.Queue[Line | None] = queue.Queue()
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={"GRPC_VERBOSITY": "ERROR"} | os.environ | {"PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()
        self.tell(start)

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for text in self.popen.stdout:
            line = child.read(text)
            self.said.append(line)
            self._answers.put(line)
        self._answers.put(None)

    def ready(self) -> Ready:
        """Waits until it listens."""
        line = self._answers.get(timeout=START_TIMEOUT_S)
        assert isinstance(line, Ready), f"{line}\n{self.log.read_text()[-3000:]}"
        return line

    def tell(self, line: Line) -> None:
        """One line; nothing where it has ended."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(child.write(line))
            self.popen.stdin.flush()
        except BrokenPipeError:
            return

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """SIGKILL to it alone."""
        self.popen.kill()
        self.popen.wait(10.0)

    def end(self) -> None:
        """Asks it to stop, and makes it."""
        self.tell(Stop())
        try:
            self.popen.wait(20.0)
        except subprocess.TimeoutExpired:
            self.popen.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was not read any more
                    pipe.close()


@attrs.define(eq=False)
class Node:
    """A node: where its agent is to be, and the agent's process."""

    place: Place
    devices: tuple[DeviceSettings, ...]
    process: Process | None = None
    port: int = 0


class Cluster(RunningBackend):
    """The processes, and a client that comes as from another machine."""

    gateway_module = GATEWAY_MODULE

    def __init__(
        self,
        folder: Path,
        nodes: Mapping[str, tuple[DeviceSettings, ...]],
        *,
        scaling: ScalingSettings = UNSCALED,
        hosts: Mapping[str, str] | None = None,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        gateway_on: str | None = None,
        **cluster: Any,
    ) -> None:
        """`hosts` are the nodes' addresses, of this machine without; `prefixes` are commands that run a node's processes.
        The gateway is on the node `gateway_on`, without one on none that has an agent."""
        self.folder = folder
        self.secrets = folder / "secrets"
        self.certs = certificates.make_cluster(self.secrets, datetime.datetime.now(datetime.UTC))
        self.hosts = dict(hosts or {})
        self.prefixes = dict(prefixes or {})
        self.gateway_on = gateway_on or "front"
        self.port = free_port()
        self.tokens_file = self.secrets / "tokens.json"
        options = {"beat_s": 0.25, "lost_after_s": 2.0, "wait_for_room_s": 0.0} | cluster
        served = ClusterSettings(state_url=f"file://{folder}/state", port=self.port, **options)
        self.served = settings_in(folder / "served", backend="cluster", cluster=served, scaling=scaling)
        self.nodes = {name: Node(self._place(name), devices) for name, devices in nodes.items()}
        self.gateway: Process | None = None
        address = f"{self._place(self.gateway_on).host}:{self.port}"
        self.cluster = ClusterSettings(
            addresses=(address,),
            ca_file=self.certs.ca_file,
            server_name=certificates.GATEWAY_NAME,
            token_file=self.token("all", *tokens.SCOPES),
        )
        settings = settings_in(folder / "client", backend="cluster", cluster=self.cluster)
        super().__init__(settings)

    # -- its life ------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Starts everything, and waits until every node has joined."""
        for name in self.nodes:
            self.start_node(name)
        self.start_gateway()
        self.joined(*self.nodes)

    def start_node(self, name: str) -> None:
        """Starts a node's agent, and tells the gateway of it."""
        node = self.nodes[name]
        home = self.folder / f"n-{name}"
        settings = attrs.evolve(self.served, devices=node.devices)
        start = StartNode(
            node.place, self._identity("node"), settings.to_json(), str(home / "state"), str(home / "run")
        )
        node.process = Process(NODE_MODULE, start, home / "agent.log", self.prefixes.get(name, ()))
        node.port = node.process.ready().port
        self.list_nodes()

    def start_gateway(self) -> Ready:
        """Starts a gateway, in the place of one that has ended."""
        home = self.folder / "g"
        start = StartGateway(
            self._place(self.gateway_on),
            self._identity("gateway"),
            self.served.to_json(),
            str(home / "state"),
            str(home / "run"),
            self.tokens_file.read_text(),
        )
        self.gateway = Process(self.gateway_module, start, home / "gateway.log", self.prefixes.get(self.gateway_on, ()))
        ready = self.gateway.ready()
        self.list_nodes()
        return ready

    def list_nodes(self) -> None:
        """Tells the gateway which node agents there are."""
        there = tuple(NodeAddress(n.place, n.port) for n in self.nodes.values() if n.process is not None)
        if self.gateway is not None:
            self.gateway.tell(Nodes(there))

    def joined(self, *names: str) -> None:
        """Waits until the devices of exactly these nodes are there."""
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while (found := {d.device_id.partition("/")[0] for d in self.status().devices}) != set(names):
            assert time.monotonic() < give_up_s, f"{found} have joined\n{self.logs()}"
            time.sleep(0.02)

    def kill_node(self, name: str) -> list[psutil.Process]:
        """SIGKILL to a node's agent; its zygotes and replicas."""
        node = self.nodes[name]
        assert node.process is not None
        family = psutil.Process(node.process.pid).children(recursive=True)
        node.process.kill()
        return family

    def restart(self) -> None:
        """The gateway ends in good order, and another begins; the nodes stay."""
        assert self.gateway is not None
        self.gateway.end()
        self.start_gateway()
        self.joined(*self.nodes)

    def close(self) -> None:
        """Ends everything, whatever state it is in."""
        super().close()
        processes = [self.gateway, *(node.process for node in self.nodes.values())]
        family = [p for each in processes if each is not None for p in _family(each.pid)]
        for each in processes:
            if each is not None:
                each.end()
        for left in psutil.wait_procs(family, timeout=10.0)[1]:
            left.kill()

    # -- what belongs to it --------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """What another process needs to be a client of it."""
        return {
            **os.environ,
            "HASFAAS_BACKEND": "cluster",
            "HASFAAS_STATE_DIR": str(self.settings.state_dir),
            "HASFAAS_RUNTIME_DIR": str(self.settings.runtime_dir),
            "HASFAAS_CLUSTER_ADDRESSES": f'["{self.cluster.addresses[0]}"]',
            "HASFAAS_CLUSTER_CA_FILE": str(self.cluster.ca_file),
            "HASFAAS_CLUSTER_SERVER_NAME": str(self.cluster.server_name),
            "HASFAAS_CLUSTER_TOKEN_FILE": str(self.cluster.token_file),
            "PYTHONPATH": str(ROOT),
        }

    def token(self, name: str, *scopes: str) -> Path:
        """A new token, in a file of its own; known to the gateway that starts next."""
        made, grant = tokens.create(name, scopes, now_s=time.time(), expires_s=None)
        token_file.add(self.tokens_file, grant)
        path = self.folder / f"{name}.token"
        write_own(path, made.text.encode())
        return path

    def client_of(self, cluster: ClusterSettings) -> Client:
        """A client by these settings."""
        return Client(attrs.evolve(self.settings, cluster=cluster), announce=self.said.append)

    def logs(self) -> str:
        """The end of every log, for the message of a failed test."""
        files = [path for path in self.folder.rglob("*.log") if path.stat().st_size]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in files)

    def _place(self, name: str) -> Place:
        return Place(f"id-{name}", name, self.hosts.get(name, "127.0.0.1"))

    def _identity(self, role: str) -> Identity:
        cert, key = (self.secrets / f"{role}.pem").read_text(), (self.secrets / f"{role}.key").read_text()
        signing = load_or_create_key(self.secrets / KEY_FILE).hex()
        return Identity(self.certs.ca_file.read_text(), cert, key, signing)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def clustered(
    nodes: Mapping[str, tuple[DeviceSettings, ...]] | None = None, *, start: bool = True, **options: Any
) -> Iterator[Cluster]:
    """Such a cluster in a new folder, ended and removed afterwards."""
    with short_folder() as folder:
        made = Cluster(folder, nodes or NODES, **options)
        try:
            if start:
                made.up()
            made.use()
            yield made
        except BaseException:
            print(made.logs())
            raise
        finally:
            made.close()
