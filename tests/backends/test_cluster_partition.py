"""Links between hosts that go down, come up, or are slow: each node and the gateway in a network namespace of its own.

A link that is down tells nobody: no end of a line, no reset. Times count from then, and are compared with `lost_after_s` of
the same run and with nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hasfaas import function
from hasfaas.backends.cluster.paced_line import PacedLine
from hasfaas.testing.load import Load
from tests.backends.test_cluster_failures import EVERY_S, FUNCTIONS, Traffic, moved, nodes_there, serving
from tests.clustered import NODES, Cluster, alive, clustered
from tests.live import app, eventually
from tests.namespaces import Network, network

pytestmark = pytest.mark.alone

steady, verbs, large = (app(name) for name in ("steady", "verbs", "large"))
BEAT_S, LOST_AFTER_S = 0.25, 2.0
# Of looking: a status from the gateway, on a machine that does other things too.
LOOK_S = 0.25
NOTICED_S = LOST_AFTER_S + BEAT_S + LOOK_S
MIB = 1 << 17  # float64 values
BUNDLE_BYTES = 32 * 2**20
QUEUE_MS = 400.0


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("front", *NODES) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(net: Network) -> Iterator[Cluster]:
    with clustered(
        hosts=net.hosts, prefixes=net.prefixes, beat_s=BEAT_S, lost_after_s=LOST_AFTER_S, wait_for_room_s=30.0
    ) as made:
        steady.again.deploy()
        verbs.touch.deploy()
        yield made


@pytest.fixture
def home(cluster: Cluster) -> str:
    """The node on which both functions serve, in whose stead there is the other."""
    cluster.joined(*NODES)
    if others := {one.name for one in cluster.status().functions} - set(FUNCTIONS):
        cluster.delete(*others)
        cluster.client._deployed.clear()  # they are deployed anew where they are used again
    eventually(lambda: len(serving(cluster)) == 2)
    if not moved(cluster, "alpha") and not moved(cluster, "beta"):
        cluster.kill_node("beta")
        eventually(lambda: moved(cluster, "alpha"))
        cluster.start_node("beta")
        cluster.joined(*NODES)
    return "alpha" if moved(cluster, "alpha") else "beta"


def other(node: str) -> str:
    return next(name for name in NODES if name != node)


def pids(cluster: Cluster) -> set[int]:
    return {replica.pid for replica in serving(cluster)}


def since(began_s: float, look: Callable[[], object]) -> float:
    """How long after `began_s` that is so."""
    eventually(look, every_s=0.01)
    return time.monotonic() - began_s


def given_up(cluster: Cluster) -> int:
    """How often the gateway has given up a node that fell silent, or a node the gateway."""
    processes = [cluster.gateway, *(node.process for node in cluster.nodes.values())]
    return sum(each.log.read_text().count("no sign of life") for each in processes if each is not None)


@contextmanager
def slow_nodes(net: Network, mbit: float) -> Iterator[None]:
    """The links of all nodes let so much through; before each, packets queue for as long as makes beats late, and no more."""
    with net.slow("alpha", mbit=mbit, queue_ms=QUEUE_MS), net.slow("beta", mbit=mbit, queue_ms=QUEUE_MS):
        yield


# -- down ------------------------------------------------------------------------------------------------------------


def test_a_node_whose_link_is_down_is_given_up_on_both_sides_and_joins_empty(
    cluster: Cluster, net: Network, home: str, tmp_path: Path
) -> None:
    there, before = other(home), pids(cluster)
    assert len(before) == 2
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        with net.cut(home):
            began_s = time.monotonic()
            with ThreadPoolExecutor() as looks:
                noticed = looks.submit(since, began_s, lambda: nodes_there(cluster) == {there})
                gone = looks.submit(since, began_s, lambda: not any(map(alive, before)))
            assert 0.5 * LOST_AFTER_S < noticed.result() < NOTICED_S
            assert 0.5 * LOST_AFTER_S < gone.result() < NOTICED_S, "nobody could tell them to end"
            assert since(began_s, lambda: moved(cluster, there)) < 2 * NOTICED_S
            time.sleep(10 * EVERY_S)
        cluster.joined(*NODES)
        assert moved(cluster, there), "it comes back empty"
        steady.again.scale(sm=100, quota=100)
        assert {replica.device for replica in serving(cluster)} == {f"{name}/sim0" for name in NODES}
        time.sleep(10 * EVERY_S)
    steady.again.scale(auto=True)
    traffic.check("EXECUTOR_CRASHED")


def test_a_gateway_that_is_cut_off_finds_its_nodes_empty_and_serves_again(
    cluster: Cluster, net: Network, home: str, tmp_path: Path
) -> None:
    before = pids(cluster)
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        with net.cut("front"):
            began_s = time.monotonic()
            assert 0.5 * LOST_AFTER_S < since(began_s, lambda: not any(map(alive, before))) < NOTICED_S
            time.sleep(2 * BEAT_S)
        cluster.joined(*NODES)
        eventually(lambda: len(serving(cluster)) == 2)
        assert not pids(cluster) & before
        time.sleep(10 * EVERY_S)
    traffic.check("EXECUTOR_CRASHED")


def test_a_link_that_is_down_for_a_moment_costs_that_moment(
    cluster: Cluster, net: Network, home: str, tmp_path: Path
) -> None:
    before, given = pids(cluster), given_up(cluster)
    with Traffic(tmp_path) as traffic:
        with net.cut("front"):
            time.sleep(0.4 * LOST_AFTER_S)
        time.sleep(0.6 * LOST_AFTER_S)
    traffic.check()
    assert pids(cluster) == before
    assert given_up(cluster) == given


def test_a_start_on_a_node_that_has_vanished_goes_to_another(cluster: Cluster, net: Network, home: str) -> None:
    """It is chosen, since nobody knows yet."""
    steady.once.deploy()
    device = cluster.replica("steady.once").device
    steady.once.scale(replicas=0)
    chosen = device.partition("/")[0]
    with net.cut(chosen):
        began_s = time.monotonic()
        assert steady.once.spawn(1).result(30.0)[0] == 1
        assert 0.5 * LOST_AFTER_S < time.monotonic() - began_s < 2 * NOTICED_S
        assert cluster.replica("steady.once").device == f"{other(chosen)}/sim0"


# -- slow ------------------------------------------------------------------------------------------------------------


def test_large_values_on_a_slow_link_make_nobody_seem_lost(
    cluster: Cluster, net: Network, home: str, tmp_path: Path
) -> None:
    """Small calls pass meanwhile. The last has the link for longer than a node may be silent."""
    trace = tmp_path / "trace"
    trace.touch()
    large.filled.deploy()
    large.bumped.deploy()
    given, before = given_up(cluster), pids(cluster)
    small = Load(lambda: steady.again.remote(1), width=1)
    with slow_nodes(net, mbit=150), small, ThreadPoolExecutor() as calls:
        eight = [calls.submit(large.filled.remote, 8 * MIB, float(i)) for i in range(4)]
        assert [float(one.result()[-1]) for one in eight] == [0.0, 1.0, 2.0, 3.0]
        began_s = time.monotonic()
        assert large.bumped.remote(np.zeros(64 * MIB), str(trace)) == (1.0, 1.0)
        assert time.monotonic() - began_s > LOST_AFTER_S
    assert not small.errors and small.done > 10
    assert given_up(cluster) == given
    assert pids(cluster) == before


def test_a_large_bundle_on_a_slow_link_makes_nobody_seem_lost(cluster: Cluster, net: Network, home: str) -> None:
    """It goes by the control line, and signs of life of the gateway come after it."""
    weight = np.random.default_rng(0).bytes(BUNDLE_BYTES)

    @function(slo_ms=1000, memory="512MiB", name="partition.weighty")
    def weighty(x: int) -> int:
        return x + len(weight)

    given, before = given_up(cluster), pids(cluster)
    with slow_nodes(net, mbit=75):
        began_s = time.monotonic()
        weighty.deploy()
        assert time.monotonic() - began_s > 1.2 * NOTICED_S
        assert weighty.remote(1) == 1 + BUNDLE_BYTES
    assert given_up(cluster) == given
    assert before <= pids(cluster)


def test_a_long_way_that_loses_packets_costs_time_alone(cluster: Cluster, net: Network, home: str) -> None:
    given = given_up(cluster)
    with net.lossy(home, delay_ms=20.0, loss_percent=1.0):
        array = np.arange(float(MIB))
        for _ in range(20):
            assert steady.again.remote(1)[0] == 1
            [back], _ = verbs.echo.remote(array)
            assert (back == array).all()
    assert given_up(cluster) == given


async def test_an_idle_line_between_hosts_is_asked_whether_it_is_there() -> None:
    """Both ends, whatever it carries: beats ask after control lines alone."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[PacedLine] = loop.create_future()

    class Accepted(PacedLine):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.set_result(self)

    server = await loop.create_server(Accepted, "127.0.0.1")
    _, connected = await loop.create_connection(PacedLine, *server.sockets[0].getsockname())
    for line in (connected, await accepted):
        assert line._transport is not None
        sock = line._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 120, "before a firewall forgets it"
        line.close()
    server.close()
