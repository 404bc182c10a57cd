"""What a plan says holds by the capacity rule, and a simulation does not contradict its latency."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError, SLOInfeasibleError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.capacity import lane_rps
from hasfaas.scaling.frontier import Shape
from hasfaas.scaling.outlook import P95, PRECISION, latency_ms, outlook

TIMING = Timing()
SURFACE = Surface((1, 2, 4, 8), (20.0, 100.0), [[20, 6], [28, 8], [40, 12], [70, 20]], np.full((4, 2), 0.05))


def test_the_latency_is_the_least_deadline_that_the_rule_lets_the_rate_have() -> None:
    shape = Shape(2, 100.0, 40.0, 1, 0.0)
    found = latency_ms(SURFACE, shape, TIMING, 30.0, P95)

    def carried(deadline_ms: float) -> float:
        return float(lane_rps(2, 1, 6.0, 0.4, deadline_ms, TIMING, late_share=0.05))

    assert carried(found) >= 30.0 > carried(found / PRECISION / 1.001)


def test_more_load_takes_longer_and_more_quota_less() -> None:
    def at(rps: float, quota: float = 40.0) -> float:
        return latency_ms(SURFACE, Shape(1, 100.0, quota, 4, 0.0), TIMING, rps, P95)

    rising = [at(rps) for rps in (1.0, 10.0, 40.0, 80.0)]
    assert rising == sorted(rising) and rising[-1] > rising[0]
    falling = [at(20.0, quota) for quota in (20.0, 40.0, 80.0, 100.0)]
    assert falling == sorted(falling, reverse=True)
    assert at(10_000.0) == math.inf


def test_a_plan_keeps_its_promise() -> None:
    found = outlook(SURFACE, 120.0, 0.01, TIMING, 50.0, batch_max=8, replicas_max=16)
    assert found.shape.capacity_rps >= 50.0
    assert found.p95_ms <= 120.0
    assert found.idle_ms == 6.0
    assert found.cost_per_hour(3.0) == pytest.approx(3.0 * found.shape.area)
    assert found.cost_per_1000(3.0) == pytest.approx(found.cost_per_hour(3.0) / (50.0 * 3.6))


def test_what_cannot_be_kept_is_an_error_with_a_way_out() -> None:
    with pytest.raises(SLOInfeasibleError, match="nearest SLO") as caught:
        outlook(SURFACE, 4.0, 0.01, TIMING, 5.0, batch_max=8, replicas_max=16)
    assert caught.value.reason == "SLO_INFEASIBLE"
    with pytest.raises(SLOInfeasibleError, match="2 replicas carry at most") as caught:
        outlook(SURFACE, 120.0, 0.01, TIMING, 5000.0, batch_max=8, replicas_max=2)
    assert caught.value.reason == "RATE_INFEASIBLE"
    for rps in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidRequestError, match="must be positive"):
            outlook(SURFACE, 120.0, 0.01, TIMING, rps, batch_max=8, replicas_max=2)
