"""Functions on devices of several types and nodes: the live choice and placement, in virtual time."""

from __future__ import annotations

import numpy as np

from hasfaas.scaling.device_choice import DeviceChoice
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.simulator import engine
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction
from tests.fakes.plant import surface

SETTINGS = ScalerSettings()
FAST, SLOW = surface(10.0), surface(20.0)


def scenario(slo_ms: float = 100.0, price: float = 4.0) -> Scenario:
    times = np.sort(np.random.default_rng(1).uniform(0.0, 120.0, 1_200))
    return Scenario(
        functions=[SimFunction("f", slo_ms, SLOW, by_type={"fast": FAST}, cold_start_s=2.0, memory_bytes=2**30)],
        devices=[
            SimDevice("a0", type="fast", price=price, node="a"),
            SimDevice("b0", type="slow", node="b"),
            SimDevice("c0", type="slow", node="c"),
        ],
        arrivals=[times],
        duration_s=120.0,
        warmup_s=10.0,
    )


def ran(made: Scenario) -> tuple[Result, DeviceChoice]:
    choice = DeviceChoice(SETTINGS)
    return engine.run(made, HybridScaler(SETTINGS), choice=choice), choice


def places(result: Result) -> set[int]:
    return {life.device for life in result.replicas}


def test_the_cheapest_type_that_keeps_the_promise_serves() -> None:
    for made, name, devices in (
        (scenario(), "slow", {1, 2}),
        (scenario(price=1.0), "fast", {0}),
        (scenario(slo_ms=25.0), "fast", {0}),
    ):
        result, choice = ran(made)
        found = choice.of("f")
        assert found is not None and found.type == name
        assert places(result) <= devices and not result.refusals
        assert result.violations() < 0.05


def test_what_a_type_takes_is_what_is_measured_there() -> None:
    fast, _ = ran(scenario(price=1.0))
    slow, _ = ran(scenario())
    assert 0.0 < fast.used.sum() < 0.75 * slow.used.sum()
