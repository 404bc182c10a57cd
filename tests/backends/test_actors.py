"""A node's actor without Ray around it: what it says of a child that cannot start, and of one that does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import psutil
import pytest

from hasfaas.backends.cluster import actors
from hasfaas.backends.cluster.actors import NodeActor
from hasfaas.backends.cluster.child import Identity, Place
from hasfaas.backends.cluster.launch import NodeLaunch
from hasfaas.core.errors import HasFaasError, IncompatibleError, InvalidRequestError, PlacementError
from hasfaas.core.settings import DeviceSettings, LocalSettings, Settings
from hasfaas.core.version import VERSION
from hasfaas.testing.running import short_folder
from hasfaas.testing.waiting import eventually
from hasfaas.wire.status import read_status

ROOT = Path(__file__).parents[2]
PLACE = Place("id1", "gpu1", "127.0.0.1")


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeLaunch]:
    """Of a node with two GPUs and a core."""
    monkeypatch.setattr(actors, "end_with_raylet", lambda: None)
    monkeypatch.setattr(actors, "_given", lambda: (1, ["0", "1"]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with short_folder() as folder:
        settings = Settings(
            state_dir=folder / "s",
            runtime_dir=folder / "r",
            devices=(DeviceSettings(kind="cuda", count=2),),
            local=LocalSettings(drain_timeout_s=1),
        )
        identity = Identity("ca", "cert", "key", "00")
        yield NodeLaunch("launch", PLACE, identity, settings.to_json(), VERSION, "tests.fakes.cluster_child")


def _refusal(actor: NodeActor) -> HasFaasError:
    found = eventually(lambda: actor.state().refused)
    assert actor.state().port == 0
    actor.stop()
    return read_status(bytes.fromhex(found))


def test_an_agent_of_another_version_is_not_started(launch: NodeLaunch) -> None:
    refusal = _refusal(NodeActor(attrs.evolve(launch, version="0.0.1")))
    assert isinstance(refusal, IncompatibleError)
    assert "install the same on each node" in refusal.message


def test_what_ray_could_not_give_is_refused(launch: NodeLaunch) -> None:
    settings = Settings.from_json(launch.settings_json)
    more = attrs.evolve(settings, devices=(DeviceSettings(kind="cuda", count=3),))
    refusal = _refusal(NodeActor(attrs.evolve(launch, settings_json=more.to_json())))
    assert isinstance(refusal, InvalidRequestError)
    assert "count=3" in refusal.message


def test_a_childs_refusal_is_passed_on(launch: NodeLaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHILD", "refuse")
    assert isinstance(_refusal(NodeActor(launch)), PlacementError)


def test_a_child_is_tried_again_and_then_ready(launch: NodeLaunch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CHILD", "refuse")
    actor = NodeActor(launch)
    eventually(lambda: actor.state().refused)
    monkeypatch.setenv("FAKE_CHILD", "")
    port = eventually(lambda: actor.state().port)
    state = actor.state()
    assert (state.refused, state.child_pid, state.pid) == ("", port, os.getpid())
    assert actor.stop()
    assert not psutil.pid_exists(port)
    assert actor.state().port == 0
