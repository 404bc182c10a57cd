"""Scalers by name, and what all of them keep to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.baselines.lookup import NAMES, named
from tests.scaling.baselines.stage import Function, Stage, surface

SECONDS = 120
RATES = np.stack([20.0 + 15.0 * np.sin(np.arange(SECONDS) / 10.0), np.where(np.arange(SECONDS) % 40 < 10, 60.0, 1.0)])
OPTIONS: dict[str, dict[str, Any]] = {"fixed": {"mean_rps": RATES.mean(axis=1)}, "oracle": {"rates_rps": RATES}}


def _played(name: str) -> tuple[list[str], list[str]]:
    """(every action, every reason) of two functions with memory for few replicas, seen by `Stage.check` at each action."""
    policy = named(name, **OPTIONS.get(name, {}))
    functions = [
        Function(x, surface(3.0, 5.0, 0.3), slo_ms=100.0, memory_bytes=5 * 2**30) for x in ("resnet50", "vgg16")
    ]
    stage, generator, due_s = Stage(functions, devices=2), np.random.default_rng(1), 0.0
    actions, reasons = [], []
    for second in range(SECONDS):
        for row, function in enumerate(functions):
            function.arrivals = float(generator.poisson(RATES[row, second]))
            function.in_flight = float(generator.poisson(RATES[row, second] / 20.0))
        decision = stage.step(policy, float(second))
        # Asked sooner than due, nobody acts.
        assert second >= due_s - 1e-6 or not decision.actions
        due_s = decision.next_tick_s
        assert due_s > second
        actions += [repr(action) for action in decision.actions]
        reasons.append(decision.reason)
    return actions, reasons


@pytest.mark.parametrize("name", NAMES)
def test_lanes_and_memory_hold_and_the_same_load_gives_the_same_decisions(name: str) -> None:
    actions, reasons = _played(name)
    assert actions
    assert all(reasons)
    assert _played(name) == (actions, reasons)


def test_unknown_names_and_options_list_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="'kp' is unknown: use one of hybrid, kpa, ray, fast, fixed, has, "):
        named("kp")
    with pytest.raises(InvalidRequestError, match="'rho' of policy 'kpa' is unknown: use one of cc, min_replicas, max"):
        named("kpa", rho=1.0)
    with pytest.raises(InvalidRequestError, match="'repaired' of policy 'has' is unknown"):
        named("has", repaired=True)
    with pytest.raises(InvalidRequestError, match="needs the option 'rates_rps'"):
        named("oracle")
