"""A gateway on a device that was cut into lanes in advance: who asks for a share, who for none, and what a scaler places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hasfaas
from hasfaas import PlacementError, function
from hasfaas.core.settings import DeviceSettings, ScalingSettings
from hasfaas.node.lanes import NO_SUCH_LANE
from hasfaas.sdk.cli import cli
from tests.live import Gateway, eventually, gateway

pytestmark = pytest.mark.alone

LANES = (50.0, 25.0, 25.0)
CUT = {0: tuple(range(40)), 1: tuple(range(40, 60)), 2: tuple(range(60, 80))}
BATCHES, SHARES = (1, 2, 4), (5, 10, 25, 50, 75, 100)


def table(base_ms: float, floor: float) -> dict[str, object]:
    """A latency that more SMs shorten, down to its floor."""
    latency_ms = [[(base_ms + b) * (floor + (1.0 - floor) * 20.0 / s) for s in SHARES] for b in BATCHES]
    return {"batches": list(BATCHES), "sm_percents": list(SHARES), "latency_ms": latency_ms}


def same(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x


def ones(batch: int) -> np.ndarray[Any, Any]:
    return np.ones((batch, 4))


def made(name: str, slo_ms: float = 200.0) -> Any:
    return function(slo_ms=slo_ms, memory="64MiB", batch=hasfaas.Batch(4), example=ones, name=name)(same)


small, large, third = made("cut.small"), made("cut.large", 55.0), made("cut.third")
# Within its SLO a call of `large` fits at half of the SMs, not at a quarter.
PROFILES: dict[str, object] = {"cut.small": table(4.0, 0.9), "cut.large": table(39.0, 0.05), "default": table(4.0, 0.9)}


def device() -> DeviceSettings:
    return DeviceSettings(kind="sim", sms=80, memory="1GiB", lanes=LANES, cold_start_s=0.2, profile=PROFILES)


@pytest.fixture(scope="module")
def plain() -> Iterator[Gateway]:
    with gateway(device()) as running:
        yield running


@pytest.fixture
def unscaled(plain: Gateway) -> Iterator[Gateway]:
    plain.use()
    yield plain
    plain.delete()
    eventually(lambda: not seen(plain))


def seen(running: Gateway) -> dict[int, tuple[int, ...]]:
    """The lanes that somebody is in. All are shown that were cut, and no others."""
    (status,) = running.status().devices
    assert status.fixed_lanes
    assert {lane.lane: tuple(lane.units) for lane in status.lanes} == CUT
    return {lane.lane: tuple(lane.units) for lane in status.lanes if lane.quota_percent > 0}


def call(one: Any) -> None:
    assert one.remote(np.full(4, 3.0))[0] == 3.0


def test_a_share_gets_the_smallest_lane_that_has_it_and_no_share_the_largest_that_is_free(unscaled: Gateway) -> None:
    for each in (small, large, third):
        each.deploy(warm=False)
    small.scale(sm=20, replicas=1)
    large.scale(sm=26, replicas=1)
    call(third)
    shares = {one: unscaled.replica(one).sm_granted_percent for one in ("cut.small", "cut.large", "cut.third")}
    assert shares == {"cut.small": 25.0, "cut.large": 50.0, "cut.third": 25.0}
    assert {one: unscaled.replica(one).lane for one in shares} == {"cut.small": 1, "cut.large": 0, "cut.third": 2}
    assert seen(unscaled) == CUT
    for each in (small, large):
        call(each)


def test_more_than_any_lane_has_is_refused_with_their_names_and_nobody_makes_room(unscaled: Gateway) -> None:
    call(third)
    small.deploy(warm=False)
    with pytest.raises(PlacementError) as caught:
        small.scale(sm=60, replicas=1)
    text = str(caught.value)
    assert "no lane of SM 60 % or more: its lanes were cut in advance, 0 (50 %), 1 (25 %), 2 (25 %)" in text
    assert caught.value.reason == NO_SUCH_LANE
    # The idle one would have had to go, for nothing.
    assert unscaled.replica("cut.third").lane == 0
    small.scale(sm=50, replicas=1)
    assert (unscaled.replica("cut.small").lane, unscaled.replica("cut.small").sm_granted_percent) == (0, 50.0)
    call(small)


def test_a_scaler_places_functions_where_their_promise_is_kept_and_its_log_replays(tmp_path: Path) -> None:
    with gateway(device(), scaling=ScalingSettings(keep_alive_s=30.0)) as running:
        running.use()
        measured = {}
        for each, name in ((small, "cut.small"), (large, "cut.large")):
            each.deploy(warm=False)
            measured[name] = running.client.run(points(running, name))
        # Nothing is measured, or kept, at a share that no lane has.
        assert measured == {"cut.small": {25.0, 50.0}, "cut.large": {25.0, 50.0}}

        for _ in range(10):
            call(large)
            call(small)
        assert running.replica("cut.large").sm_granted_percent == 50.0
        assert running.replica("cut.small").sm_granted_percent == 25.0
        assert seen(running).keys() >= {0}
        explained = running.client.run(running.client.explain("cut.large"))
        assert {row["sm_percent"] for row in explained["replicas"]} == {50.0}

        log = Path(explained["log"])
        eventually(lambda: sum('"kind":"tick"' in line for line in log.read_text().splitlines()) > 3)
        copy = tmp_path / "log.jsonl"
        copy.write_text(log.read_text())
        assert '"fixed_lanes":{"device":[0,0,0],"lane":[0,1,2],"units":[40,20,20]}' in copy.read_text()
        result = CliRunner().invoke(cli, ["replay", str(copy), "--json"])
        found = json.loads(result.stdout)
        assert (result.exit_code, found["difference"]) == (0, None), result.stdout
        assert found["actions"] > 0


async def points(running: Gateway, name: str) -> set[float]:
    """The SM shares at which a function is measured."""
    from hasfaas.rapp.profile import Profile

    async for _ in running.client.profile(name, points=4):
        pass
    profile = Profile.from_dict(await running.client.profile_of(name))
    assert set(profile.current().sm_percents) == {25.0, 50.0}
    return {probe.point.sm_percent for probe in profile.probes}


def test_a_size_that_cannot_be_had_costs_nobody_a_replica(unscaled: Gateway) -> None:
    small.deploy()
    small.scale(sm=25, quota=100)
    before = unscaled.replica("cut.small")
    for sizes in ({"sm": 100}, {"sm": 50, "replicas": 3, "quota": 80}, {"replicas": 4}, {"sm": 51}):
        with pytest.raises(PlacementError):
            small.scale(**sizes)
        after = unscaled.replica("cut.small")
        assert (after.pid, after.quota_percent, after.sm_asked_percent) == (before.pid, 100, 25), sizes
    call(small)
    small.scale(sm=25, replicas=2)
    assert len(unscaled.replicas("cut.small")) == 2
