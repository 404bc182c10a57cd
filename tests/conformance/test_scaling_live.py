"""The scaler on a running gateway: quotas move first, replicas follow, a function that nobody calls has none, and no call is
lost. The device is emulated, so that what a batch takes does not depend on how busy this machine is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hasfaas
from hasfaas import function
from hasfaas.core.settings import DeviceSettings, ScalingSettings
from hasfaas.sdk.cli import cli
from hasfaas.sdk.function import Call
from tests.live import Gateway, eventually, gateway

pytestmark = pytest.mark.alone

BATCHES, SHARES = (1, 2, 4, 8), (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
TABLE = {
    "batches": list(BATCHES),
    "sm_percents": list(SHARES),
    "latency_ms": [[(4 + 2 * b) * (0.6 + 20 / s) for s in SHARES] for b in BATCHES],
}
NAME = "scaled.same"
QUICK = ScalingSettings(keep_alive_s=4.0, quota_calm_s=2.0, replica_calm_s=3.0)


def ones(batch: int) -> np.ndarray[Any, Any]:
    return np.ones((batch, 4))


@function(slo_ms=200, memory="128MiB", batch=hasfaas.Batch(8), example=ones, name=NAME)
def same(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Costs nothing itself: the device emulates the time."""
    return x


@function(slo_ms=200, memory="128MiB", name="scaled.other")
def other(x: int) -> int:
    """Never profiled."""
    return -x


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    device = DeviceSettings(kind="sim", memory="4GiB", cold_start_s=0.5, profile={NAME: TABLE})
    with gateway(device, scaling=QUICK) as made:
        yield made


@pytest.fixture
def scaled(running: Gateway) -> Iterator[Gateway]:
    """A gateway where the function is deployed, profiled, and has no replica."""
    running.use()
    same.deploy(warm=False)
    running.client.run(profile(running))
    yield running
    running.delete()


async def profile(made: Gateway) -> None:
    async for _ in made.client.profile(NAME, points=4):
        pass


def explained(made: Gateway) -> dict[str, Any]:
    return made.client.run(made.client.explain(NAME))


def offered(rps: float, seconds: float) -> list[Call[Any]]:
    """Calls at this rate, whatever becomes of them."""
    calls, began_s = [], time.monotonic()
    for number in range(round(rps * seconds)):
        time.sleep(max(0.0, began_s + number / rps - time.monotonic()))
        calls.append(same.spawn(np.full(4, number)))
    return calls


def test_quotas_move_first_then_replicas_and_then_nothing_is_left(scaled: Gateway) -> None:
    calls = [*offered(10, 3), *offered(90, 3), *offered(250, 5)]
    answers = [call.result(timeout_s=30) for call in calls]
    assert len(answers) == len(calls)
    at_most = len(scaled.replicas(NAME))
    actions = [each for each in reversed(explained(scaled)["actions"]) if not each["refused"]]
    kinds = [each["do"] for each in actions]
    assert all(each["reason"] for each in actions)
    assert kinds[0] == "add"
    second = kinds.index("add", 1)
    grown = [each["quota_percent"] for each in actions[:second] if each["do"] == "resize"]
    assert grown and max(grown) > actions[0]["quota_percent"], actions
    assert at_most >= 2
    # Its slices are far from a whole device.
    assert all(replica.sm_granted_percent < 100 for replica in scaled.replicas(NAME))
    eventually(lambda: not scaled.function(NAME).replicas, timeout_s=40)
    assert explained(scaled)["actions"][0]["do"] == "drain"
    counts = scaled.function(NAME).calls
    assert counts.completed == counts.accepted == len(calls)
    assert same.remote(np.full(4, 7.0))[0] == 7.0


def test_a_size_by_hand_stays_until_it_is_given_back(scaled: Gateway) -> None:
    same.remote(ones(1)[0])
    same.scale(quota=37, replicas=1)
    with_load = offered(60, 3)
    assert [call.result(timeout_s=30) is not None for call in with_load].count(True) == len(with_load)
    assert scaled.replica(NAME).quota_percent == 37
    assert "by hand" in explained(scaled)["why_not"]
    time.sleep(QUICK.keep_alive_s + 2.0)
    assert scaled.replica(NAME).quota_percent == 37
    same.scale(auto=True)
    assert not scaled.function(NAME).sized
    eventually(lambda: not scaled.function(NAME).replicas, timeout_s=20)
    assert same.remote(np.full(4, 3.0))[0] == 3.0


def test_a_function_without_a_profile_is_served_as_ever(scaled: Gateway) -> None:
    assert other.remote(-3) == 3
    assert scaled.replica("scaled.other").quota_percent == pytest.approx(100.0)
    # The one that has a profile takes from its lane what it needs.
    calls = offered(60, 3)
    assert all(call.result(timeout_s=30) is not None for call in calls)
    assert other.remote(-4) == 4
    assert scaled.replica("scaled.other").quota_percent < 100.0
    assert "no profile" in scaled.client.run(scaled.client.explain("scaled.other"))["why_not"]


def test_the_log_replays_to_the_same_decisions(scaled: Gateway, tmp_path: Path) -> None:
    for call in offered(30, 3):
        call.result(timeout_s=30)
    log = Path(explained(scaled)["log"])
    eventually(lambda: sum('"kind":"tick"' in line for line in log.read_text().splitlines()) > 3)
    copy = tmp_path / "log.jsonl"
    copy.write_text(log.read_text())
    result = CliRunner().invoke(cli, ["replay", str(copy), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["difference"]) == (0, None), result.stdout
    assert found["agree"] > 3 and found["actions"] > 0
