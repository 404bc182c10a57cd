"""The Ray side of the cluster backend on a real Ray cluster of several raylets, with children that speak the contract."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

from hasfaas.backends.cluster import child as lines
from hasfaas.backends.cluster import command
from hasfaas.backends.cluster.child import Nodes
from hasfaas.backends.cluster.launch import ControlState, Launch
from hasfaas.backends.cluster.members import Phase
from hasfaas.backends.cluster.operator_folder import OperatorFolder
from hasfaas.core.errors import UnavailableError
from hasfaas.core.settings import ClusterSettings, DeviceSettings, LocalSettings, Settings
from hasfaas.testing.running import short_folder
from hasfaas.testing.waiting import eventually
from tests.fakes import cluster_child
from tests.live import ROOT
from tests.rayed import LIGHT, raylets

pytest.importorskip("ray", reason="Ray is not installed (pip install 'hasfaas[cluster]')")
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(110)]

from hasfaas.backends.cluster import ray_cluster  # noqa: E402
from hasfaas.backends.cluster.ray_cluster import RayCluster  # noqa: E402

FAKE = "tests.fakes.cluster_child"


class FakeChildren(RayCluster):
    """Starts the cluster with the real actors and children of no weight."""

    def start(self, launch: Launch) -> None:
        super().start(attrs.evolve(launch, gateway_module=FAKE, node_module=FAKE))


@attrs.define
class World:
    """Three raylets, and a shell's settings."""

    raylets: Any
    settings: Settings
    ray: RayCluster

    def state(self) -> ControlState:
        return command.status(self.ray)

    def ready(self) -> dict[str, int]:
        """The agents that are ready: their children's processes, by node."""
        return {m.place.name: m.port for m in self.state().members if m.phase is Phase.READY}

    def gateway_folder(self) -> Path:
        """On whichever node it is: Ray starts a control actor again where it likes."""
        eventually(lambda: self.state().gateway.pid)
        return Path(psutil.Process(self.state().gateway.pid).cwd())

    def told(self) -> dict[str, int]:
        """What the gateway was told last: the ports by node."""
        heard = self.gateway_folder() / "heard"
        said = [lines.read(text) for text in heard.read_text().splitlines()] if heard.exists() else []
        last = [line for line in said if isinstance(line, Nodes)]
        return {node.place.name: node.port for node in last[-1].nodes} if last else {}

    def until_ready(self, *names: str) -> dict[str, int]:
        """Waits until these and no other agents are ready, and the gateway knows it."""
        eventually(lambda: set(self.ready()) == set(names) and self.told() == self.ready(), timeout_s=30)
        return self.ready()

    def processes(self) -> list[psutil.Process]:
        """All that was started, by what it is called."""
        return [p for p in psutil.process_iter() if _ours(p, self.settings.state_dir)]


def _ours(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command_line = " ".join(process.cmdline())
        return ("ray::" in command_line and "Actor" in command_line) or (
            FAKE in command_line and str(folder) in process.cwd()
        )
    except psutil.Error:
        return False


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _requested() -> list[dict[str, float]]:
    """What Ray's autoscaler is to read: nobody does here."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: list[dict[str, float]] = json.loads(_internal_kv_get(b"autoscaler_resource_request") or b"[]")
    return found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with raylets() as made, short_folder() as folder, ray_cluster.joined(made.address):
        settings = Settings(
            state_dir=folder / "s",
            runtime_dir=folder / "r",
            local=LocalSettings(drain_timeout_s=1),
            cluster=ClusterSettings(state_url=f"file://{folder}/shared"),
            devices=(DeviceSettings(kind="sim"), DeviceSettings(kind="cpu", node="middle")),
        )
        yield World(made, settings, FakeChildren())
        command.down(settings, RayCluster())


@pytest.fixture
def cluster(world: World) -> Iterator[World]:
    """A cluster that is up."""
    command.up(world.settings, world.ray, lambda line: None, reach=lambda settings: None)
    world.until_ready("left", "middle", "right")
    yield world


def test_up_starts_an_agent_on_each_node_and_is_good_twice(world: World) -> None:
    said: list[str] = []
    command.down(world.settings, world.ray)
    made = command.up(world.settings, world.ray, said.append, reach=lambda settings: None)
    assert made.started
    assert made.notes == ()
    ports = world.until_ready("left", "middle", "right")
    assert len(set(ports.values())) == 3
    assert made.state.gateway.generation == cluster_child.GENERATION
    assert made.client.addresses == (f"{made.state.gateway.host}:7070",)  # all three raylets are on one machine
    assert any("node right: ready" in line for line in said), said
    again = command.up(world.settings, world.ray, said.append, reach=lambda settings: None)
    assert not again.started
    assert again.notes == ()
    assert world.ready() == ports
    assert OperatorFolder(world.settings).knows(again.state.ca_pem)


def test_what_an_agent_has_is_taken_from_rays_books(cluster: World) -> None:
    import ray

    taken = {m.place.name: dict(m.reservation.bundle) for m in cluster.state().members}
    assert taken == {"left": {}, "middle": {"CPU": 2}, "right": {}}
    eventually(lambda: ray.available_resources().get("CPU") == 4)


def test_a_child_has_what_its_node_has_and_nothing_of_rays(cluster: World) -> None:
    pid = cluster.ready()["middle"]
    environment = psutil.Process(pid).environ()
    assert not [name for name in environment if name.startswith("RAY_") or name == "OMP_NUM_THREADS"]
    assert environment["PYTHONPATH"] == str(ROOT)
    assert psutil.Process(pid).cmdline()[0] == sys.executable


def test_a_child_that_dies_is_started_again_by_ray(cluster: World) -> None:
    before = cluster.ready()
    actor = {m.place.name: m.pid for m in cluster.state().members}["right"]
    os.kill(before["right"], signal.SIGKILL)
    eventually(lambda: cluster.ready().get("right") not in (None, before["right"]), timeout_s=30)
    after = cluster.until_ready("left", "middle", "right")
    assert {m.place.name: m.pid for m in cluster.state().members}["right"] != actor
    assert {name: port for name, port in after.items() if name != "right"} == {
        k: v for k, v in before.items() if k != "right"
    }


def test_a_gateway_that_dies_is_started_again_and_told(cluster: World) -> None:
    before = cluster.state().gateway
    (cluster.gateway_folder() / "heard").unlink()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: cluster.state().gateway.port not in (0, before.port))
    cluster.until_ready("left", "middle", "right")
    assert cluster.state().gateway.starts == before.starts + 1


def test_a_control_actor_that_dies_finds_its_agents_again(cluster: World) -> None:
    before, ports = cluster.state(), cluster.ready()
    (cluster.gateway_folder() / "heard").unlink()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: not _alive(before.gateway.pid), timeout_s=5)
    eventually(lambda: cluster.state().gateway.port not in (0, before.gateway.port), timeout_s=30)
    assert cluster.until_ready("left", "middle", "right") == ports
    assert cluster.state().pid != before.pid


def test_what_the_gateway_asks_for_is_asked_of_ray(cluster: World) -> None:
    """Together with what the agents have taken: Ray compares it with all that there is."""
    folder = cluster.gateway_folder()
    (folder / "ask").write_text(json.dumps([{"GPU": 2}]))
    os.kill(cluster.ready()["left"], signal.SIGKILL)  # the next news of the nodes makes this gateway ask
    eventually(lambda: cluster.state().asked == ({"GPU": 2},), timeout_s=30)
    expected = [{"CPU": 2.0}, {"GPU": 2}]
    eventually(lambda: _requested() == expected)
    (folder / "ask").write_text("[]")
    cluster.until_ready("left", "middle", "right")
    os.kill(cluster.ready()["left"], signal.SIGKILL)
    eventually(lambda: not _requested(), timeout_s=30)
    (folder / "ask").unlink()
    cluster.until_ready("left", "middle", "right")


def test_nodes_come_and_go(cluster: World) -> None:
    added = cluster.raylets.add_node(node_name="late", **LIGHT)
    ports = cluster.until_ready("left", "middle", "right", "late")
    raylet = added.all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    # Before Ray has missed it: the actor ends with its raylet, and the child with its actor.
    eventually(lambda: not _alive(ports["late"]), timeout_s=5)
    left = cluster.until_ready("left", "middle", "right")
    assert "late" not in left
    eventually(lambda: "late" not in [m.place.name for m in cluster.state().members], timeout_s=30)
    cluster.raylets.remove_node(added, allow_graceful=False)


def test_a_hanging_node_stops_nothing(cluster: World) -> None:
    """Its actor answers nothing; the loop goes on for the others, and it is there again once it goes on."""
    before = cluster.ready()
    stuck = next(m.pid for m in cluster.state().members if m.place.name == "right")
    os.kill(stuck, signal.SIGSTOP)
    try:
        os.kill(before["left"], signal.SIGKILL)
        eventually(lambda: cluster.told().get("left") not in (None, before["left"]), timeout_s=30)
        assert cluster.told()["right"] == before["right"]
        eventually(lambda: Phase.LOST in [m.phase for m in cluster.state().members if m.place.name == "right"])
    finally:
        os.kill(stuck, signal.SIGCONT)
    cluster.until_ready("left", "middle", "right")


def test_down_leaves_no_process_and_no_actor(cluster: World) -> None:
    state = cluster.state()
    assert len(cluster.processes()) == 2 * len(state.members) + 2
    stopped = command.down(cluster.settings, cluster.ray)
    assert stopped is not None
    assert (stopped.gateway, stopped.nodes, stopped.ended) == (True, ("left", "middle", "right"), ())
    assert cluster.processes() == []
    assert cluster.ray.actors() == ()
    assert command.down(cluster.settings, cluster.ray) is None
    assert (cluster.settings.state_dir / "cluster" / "ca.pem").exists()


class Unheard(RayCluster):
    """One whose control actor answers nothing."""

    def state(self, timeout_s: float) -> ControlState | None:
        raise UnavailableError("no answer")


def test_down_ends_what_does_not_answer(cluster: World) -> None:
    stopped = command.down(cluster.settings, Unheard())
    assert stopped is not None
    assert not stopped.gateway
    eventually(lambda: cluster.processes() == [], timeout_s=5)
