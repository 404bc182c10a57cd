"""hasfaas on a real Ray cluster whose nodes die while it serves: what is lost is time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import attrs
import psutil
import pytest

from hasfaas import HasFaasError, function
from hasfaas.core.settings import DeviceSettings
from hasfaas.testing.waiting import eventually
from tests.live import APPS
from tests.rayed import RayedCluster, rayed

pytest.importorskip("ray", reason="Ray is not installed (pip install 'hasfaas[cluster]')")
pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(110)]


@function(slo_ms=2000, idempotent=True, timeout_s=60)
def twice(x: int) -> int:
    return 2 * x


@attrs.define
class Caller:
    """Calls one after the other until it is told to stop, and keeps what went wrong and the longest wait."""

    wrong: list[object] = attrs.field(factory=list)
    answered: int = 0
    longest_s: float = 0.0
    stop: bool = False

    def run(self) -> None:
        while not self.stop:
            began_s, x = time.monotonic(), self.answered
            try:
                if twice.remote(x) != 2 * x:
                    self.wrong.append(x)
            except HasFaasError as exc:
                self.wrong.append(exc)
            self.answered += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayedCluster]:
    """Two of three nodes have a device."""
    with rayed(DeviceSettings(kind="sim", node="middle"), DeviceSettings(kind="sim", node="right")) as made:
        yield made


@pytest.fixture
def calling(cluster: RayedCluster) -> Iterator[Caller]:
    """Two callers at once, whose counts are one; each call must have been answered rightly at the end."""
    twice.remote(1)
    caller = Caller()
    threads = [threading.Thread(target=caller.run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: caller.answered > 20)
        yield caller
        before = caller.answered
        eventually(lambda: caller.answered > before + 20)
    finally:
        caller.stop = True
        for thread in threads:
            thread.join(60)
    assert caller.wrong == []


def home(cluster: RayedCluster) -> str:
    """The node that serves."""
    return cluster.replica(twice.name).device.partition("/")[0]


def test_the_script_that_ran_here_runs_there(cluster: RayedCluster) -> None:
    """The only difference is HASFAAS_BACKEND; the rest is what `cluster up` writes into a user's configuration."""
    script = [sys.executable, str(APPS / "script.py")]
    mine = {name: value for name, value in cluster.env.items() if name != "HASFAAS_BACKEND"}
    mine["HASFAAS_LOCAL_LINGER_S"] = "1"
    answers = []
    for env in (mine, mine | {"HASFAAS_BACKEND": "cluster"}):
        ran = subprocess.run(script, env=env, capture_output=True, text=True, timeout=90, check=False)
        assert ran.returncode == 0, ran.stderr
        answers.append(json.loads(ran.stdout))
    here, there = answers
    assert here == there
    assert here["plain"] == here["remote"]
    assert cluster.function("script.scaled").version == there["version"]


def test_a_node_dies_under_load(cluster: RayedCluster, calling: Caller) -> None:
    node = home(cluster)
    agent, raylet = cluster.agent(node), cluster.raylet(node)
    family = [agent, *agent.children(recursive=True)]
    began_s = time.monotonic()
    for process in (raylet, agent):
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: cluster.replicas(twice.name) and home(cluster) != node, timeout_s=30)
    recovery_s = time.monotonic() - began_s
    # The line ends with the agent, so this is far below the time after which a silent one is given up.
    assert recovery_s < 5 * cluster.served.cluster.lost_after_s
    assert psutil.wait_procs(family, timeout=10)[1] == [], "no replica outlives its node"
    assert calling.longest_s < recovery_s + 5 * cluster.served.cluster.lost_after_s


def test_the_control_actor_dies_under_load(cluster: RayedCluster, calling: Caller) -> None:
    before = cluster.state()
    for pid in (before.pid, before.gateway.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: (now := cluster.state()).gateway.port and now.gateway.pid != before.gateway.pid, timeout_s=60)
    eventually(lambda: cluster.function(twice.name).version == twice.version)
    assert cluster.state().gateway.generation > before.gateway.generation
