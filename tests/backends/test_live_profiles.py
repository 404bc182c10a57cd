"""What replicas serve makes profiles and corrects them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hasfaas import function
from hasfaas.core.settings import DeviceSettings
from hasfaas.rapp.profile import Profile
from tests.live import Gateway, eventually, gateway

pytestmark = pytest.mark.alone

TABLE = {"batches": [1], "sm_percents": [100], "latency_ms": [[0.2]]}


def nap(ms: float) -> float:
    """Holds the lane for so long."""
    time.sleep(ms / 1000)
    return ms


napping = function(slo_ms=100, memory="128MiB", name="live.nap")(nap)


@pytest.fixture
def made() -> Iterator[Gateway]:
    with gateway(DeviceSettings(kind="sim", sms=2, profile=TABLE)) as running:
        yield running


def state(made: Gateway) -> str:
    return made.function("live.nap").profile_state


def hold_ms(made: Gateway) -> float:
    return Profile.from_dict(made.client.run(made.client.profile_of("live.nap"))).current().hold(1, 100.0)


def test_a_function_that_nobody_has_profiled_gets_a_profile_from_its_calls(made: Gateway) -> None:
    assert napping.remote(4.0) == 4.0
    assert state(made) == "unprofiled"
    for _ in range(60):
        napping.remote(4.0)
    # It is fitted when calls pause.
    eventually(lambda: state(made) == "live")
    first_ms = hold_ms(made)
    assert 4.0 < first_ms < 8.0
    assert not made.function("live.nap").drifted
    # It has become half as slow again: the profile follows, and says so.

    def drifted() -> bool:
        for _ in range(20):
            napping.remote(8.0)
        return made.function("live.nap").drifted

    eventually(drifted)
    assert hold_ms(made) == pytest.approx(first_ms + 4.0, rel=0.15)
    assert "longer than the profile says" in made.function("live.nap").drift_reason
    # What was learnt is kept when the gateway ends.
    made.local.down()
    made.up()
    eventually(lambda: made.local.running())
    assert state(made) == "live"
    assert made.function("live.nap").drifted


def test_calls_that_fail_teach_nothing(made: Gateway) -> None:
    napping.deploy()
    began_s = time.monotonic()
    while time.monotonic() - began_s < 3.0:
        with pytest.raises(TypeError):
            napping.remote("much")  # type: ignore[arg-type]
    assert state(made) == "unprofiled"
