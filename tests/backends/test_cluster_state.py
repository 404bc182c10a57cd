"""What a cluster still knows after all of its machines are gone: whatever lies at its state_url."""

from __future__ import annotations

import shutil

import attrs

from hasfaas import function
from hasfaas.core.settings import DeviceSettings
from tests.clustered import Cluster, clustered


@function(slo_ms=2000, memory="64MiB")
def kept(x: int) -> int:
    return x + 1


@function(slo_ms=2000, memory="64MiB", replicas=(1, 2))
def kept_warm(x: int) -> int:
    return x + 2


def lose_everything(cluster: Cluster) -> None:
    """SIGKILL to gateway and agents, and no folder of theirs is left: only the state, and the operator's secrets."""
    assert cluster.gateway is not None
    cluster.gateway.kill()
    for name, node in cluster.nodes.items():
        cluster.kill_node(name)
        node.process = None
    for folder in ("g", *(f"n-{name}" for name in cluster.nodes)):
        shutil.rmtree(cluster.folder / folder)


def test_every_function_is_served_again_by_a_new_cluster_with_the_same_state() -> None:
    with clustered({"alpha": (DeviceSettings(kind="sim"),)}) as cluster:
        assert (kept.remote(1), kept_warm.remote(1)) == (2, 3)
        kept.scale(quota=30)
        before = {one.name: one.version for one in cluster.status().functions}
        lose_everything(cluster)
        # Other machines, of other names.
        cluster.nodes = {"omega": attrs.evolve(cluster.nodes["alpha"], place=cluster._place("omega"))}
        ready = cluster.start_gateway()
        assert ready.generation == 2
        assert {one.name: one.version for one in cluster.status().functions} == before
        cluster.start_node("omega")
        # The one that wants a replica at least has it before anybody calls.
        assert cluster.replica("test_cluster_state.kept_warm").device == "omega/sim0"
        assert (kept.remote(5), kept_warm.remote(5)) == (6, 7)
        assert cluster.replica("test_cluster_state.kept").quota_percent == 30.0
