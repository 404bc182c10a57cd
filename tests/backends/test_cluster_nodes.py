"""The list of nodes, before and after they are there: who waits for one, what is asked for, and what is told."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hasfaas.backends import certificates
from hasfaas.backends.cluster.child import Identity, NodeAddress, Place
from hasfaas.backends.cluster.nodes import ClusterNodes
from hasfaas.backends.cluster.remote_node import Terms
from hasfaas.backends.cluster.tls import gateway_context
from hasfaas.core.errors import PlacementError
from hasfaas.core.settings import ClusterSettings
from hasfaas.devices.base import DeviceInfo
from hasfaas.node.agent import ReplicaRequest
from hasfaas.node.lanes import Want
from tests.networked import free_port

GIB = 2**30
WAIT_S = 50.0


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    made = certificates.make_cluster(tmp_path_factory.mktemp("certs"), datetime.datetime.now(datetime.UTC))
    ca, cert, key = (path.read_text() for path in (made.ca_file, made.gateway_cert_file, made.gateway_key_file))
    return Identity(ca, cert, key, signing_key="00" * 32)


class Asked(list[Sequence[Mapping[str, float]]]):
    """What was asked of whoever brings nodes."""


def nodes_of(identity: Identity, folder: Path, asked: Asked) -> ClusterNodes:
    terms = Terms(1, "id-here", ClusterSettings(wait_for_room_s=WAIT_S), folder)
    made = ClusterNodes(
        lambda _id, _quota: None,
        lambda _replica: None,
        terms,
        gateway_context(identity),
        lambda _why: None,
        asked.append,
    )
    made._began_s -= 1000.0  # what it has not reached is not just being reached
    return made


def request(want: Want) -> ReplicaRequest:
    return ReplicaRequest("app.f", "v", "python", (), Path("x.bundle"), b"", None, want)


def there(nodes: ClusterNodes, *devices: DeviceInfo) -> None:
    nodes.join(object(), devices)  # type: ignore[arg-type]  # nothing is started on them here


async def test_who_names_a_node_that_is_away_waits_for_it_and_is_told(identity: Identity, tmp_path: Path) -> None:
    asked = Asked()
    nodes = nodes_of(identity, tmp_path, asked)
    there(nodes, DeviceInfo("n1/sim0", "sim", (0, 1), 8 * GIB, node="n1"))
    nodes.set_nodes([NodeAddress(Place("id-2", "n2", "127.0.0.1"), free_port())])
    for device in ("n2/sim0", "n2"):
        want = Want(GIB, device=device)
        assert nodes.patience_s(want) == WAIT_S
        with pytest.raises(PlacementError, match="n2"):
            await nodes.add(request(want))
    assert nodes.patience_s(Want(GIB, device="n3/sim0")) == 0.0, "nobody has ever heard of it"
    assert nodes.patience_s(Want(GIB, device="n1/sim0")) == WAIT_S, "it would fit, were it empty"
    assert nodes.patience_s(Want(9 * GIB)) == 0.0, "no device could ever hold it"
    nodes.set_nodes([])
    assert nodes.patience_s(Want(GIB, device="n2/sim0")) == WAIT_S
    with pytest.raises(PlacementError, match="n2 has left the cluster"):
        await nodes.add(request(Want(GIB, device="n2/sim0")))
    await nodes.stop()


async def test_what_another_node_could_have_is_asked_for_and_taken_back(identity: Identity, tmp_path: Path) -> None:
    asked = Asked()
    nodes = nodes_of(identity, tmp_path, asked)
    there(
        nodes,
        DeviceInfo("n1/cpu0", "cpu", (0, 1), 8 * GIB, node="n1"),
        DeviceInfo("n1/cuda0", "cuda", (0, 1), 8 * GIB, node="n1"),
    )
    wants = [
        Want(GIB, device="cpu"),
        Want(GIB, device="cuda"),
        Want(GIB),
        Want(GIB, device="n1/cpu0"),
    ]
    nodes.lacks(wants)
    nodes.lacks(wants)
    nodes.lacks([])
    assert asked == [[{"CPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}], []], "what one node alone has is asked of nobody"
    await nodes.stop()


async def test_without_any_node_that_is_what_is_told(identity: Identity, tmp_path: Path) -> None:
    nodes = nodes_of(identity, tmp_path, Asked())
    assert nodes.patience_s(Want(GIB)) == WAIT_S
    with pytest.raises(PlacementError, match="no node of the cluster is there"):
        await nodes.add(request(Want(GIB)))
    await nodes.stop()
