"""A real Ray cluster of three raylets on this machine, with hasfaas on it as `hasfaas cluster up` starts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import psutil

from hasfaas.backends.cluster import command
from hasfaas.backends.cluster.launch import ControlState
from hasfaas.backends.cluster.members import Phase
from hasfaas.core.settings import ClusterSettings, DeviceSettings, ScalingSettings, Settings
from hasfaas.testing.running import RunningBackend, settings_in, short_folder
from hasfaas.testing.waiting import eventually
from tests.live import ROOT, UNSCALED
from tests.networked import free_port

LIGHT = {"object_store_memory": 80 << 20, "include_log_monitor": False, "num_cpus": 2}
# Ray's own take 15 s to miss a raylet.
QUICK = {"health_check_initial_delay_ms": 200, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
NAMES = ("left", "middle", "right")


@contextmanager
def raylets() -> Iterator[Any]:
    """Three of them, by `NAMES`; their processes find hasfaas and its tests where this one does."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # the raylets hand it on
    made = Cluster(head_node_args={}, shutdown_at_exit=True)
    try:
        head, *others = NAMES
        made.add_node(node_name=head, include_dashboard=False, _system_config=QUICK, **LIGHT)
        for name in others:
            made.add_node(node_name=name, **LIGHT)
        yield made
    finally:
        made.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class RayedCluster(RunningBackend):
    """A cluster that is up, and a client with nothing but what `up` writes into a user's configuration."""

    def __init__(self, served: Settings, client: ClusterSettings, elsewhere: Settings, ray: Any, raylets: Any) -> None:
        self.served, self.ray, self.raylets = served, ray, raylets
        super().__init__(attrs.evolve(elsewhere, backend="cluster", cluster=client))

    def state(self) -> ControlState:
        """What the control actor sees."""
        return command.status(self.ray)

    def raylet(self, name: str) -> psutil.Process:
        """A node's raylet."""
        node_id = next(m.place.node_id for m in self.state().members if m.place.name == name)
        node = next(node for node in self.raylets.list_all_nodes() if node.node_id == node_id)
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def agent(self, name: str) -> psutil.Process:
        """A node's agent, with its zygotes and replicas as its children."""
        return psutil.Process(next(m.child_pid for m in self.state().members if m.place.name == name))

    def restart(self) -> None:
        """The gateway's process is killed; its actor starts another."""
        before = self.state().gateway
        os.kill(before.pid, 9)
        eventually(lambda: (now := self.state().gateway).port and now.pid != before.pid, timeout_s=60)
        eventually(lambda: self.status().devices, timeout_s=60)

    @property
    def env(self) -> dict[str, str]:
        """What another process needs to be a client of it."""
        cluster = self.settings.cluster
        return {
            **os.environ,
            "HASFAAS_BACKEND": "cluster",
            "HASFAAS_STATE_DIR": str(self.settings.state_dir),
            "HASFAAS_RUNTIME_DIR": str(self.settings.runtime_dir),
            "HASFAAS_CLUSTER_ADDRESSES": f'["{cluster.addresses[0]}"]',
            "HASFAAS_CLUSTER_CA_FILE": str(cluster.ca_file),
            "HASFAAS_CLUSTER_SERVER_NAME": str(cluster.server_name),
            "HASFAAS_CLUSTER_TOKEN_FILE": str(cluster.token_file),
            "PYTHONPATH": str(ROOT),
        }


@contextmanager
def rayed(*devices: DeviceSettings, scaling: ScalingSettings = UNSCALED, **options: Any) -> Iterator[RayedCluster]:
    """Such a cluster in a new folder; nothing of it is left afterwards. A device without a `node` is on each."""
    from hasfaas.backends.cluster import ray_cluster

    with raylets() as made, short_folder() as folder, ray_cluster.joined(made.address) as ray:
        cluster = ClusterSettings(
            state_url=f"file://{folder}/shared",
            port=free_port(),
            **{"beat_s": 0.25, "lost_after_s": 2.0, "wait_for_room_s": 0.0} | options,
        )
        served = settings_in(folder / "s", devices=devices, cluster=cluster, scaling=scaling)
        try:
            up = command.up(served, ray, lambda line: None)
            running = RayedCluster(served, up.client, settings_in(folder / "c"), ray, made)
            expected = {m.place.node_id for m in up.state.members}
            eventually(lambda: {m.place.node_id for m in running.state().members if m.phase is Phase.READY} == expected)
            eventually(lambda: running.status().devices)
            running.use()
            try:
                yield running
            finally:
                running.close()
        finally:
            command.down(served, ray)
