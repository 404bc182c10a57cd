"""The slice tuned in hindsight: its choice against a search one by one, and its numbers on a timeline."""

from __future__ import annotations

import itertools

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.scaling.baselines.fixed_slice import GRID, FixedSlice
from hasfaas.scaling.baselines.slices import Promise, Slice, least_slice, saturated_rps
from hasfaas.scaling.capacity import lane_rps
from hasfaas.scaling.frontier import QUOTA_PERCENTS
from tests.scaling.baselines.stage import SHARES, Function, Stage, surface

MADE = surface(4.0, fixed_ms=6.0, sm_power=0.4)
PROMISE = Promise(MADE, 100.0, 0.01, 4, Timing())


def _capacity(sm: float, quota: float, batch: int) -> float:
    return float(lane_rps(1, batch, MADE.hold(batch, sm), quota / 100.0, 100.0, Timing(), late_share=0.01))


@pytest.mark.parametrize("rps", [1.0, 10.0, 40.0])
def test_the_slice_is_the_least_that_carries_the_load(rps: float) -> None:
    grid = itertools.product(SHARES, QUOTA_PERCENTS, (1, 2, 3, 4))
    least = min(sm * quota for sm, quota, batch in grid if _capacity(sm, quota, batch) >= rps)
    chosen = least_slice(PROMISE, rps)
    assert chosen.area * 1e4 == pytest.approx(least)
    assert _capacity(chosen.sm_percent, chosen.quota_percent, chosen.batch) >= rps


def test_where_none_carries_it_the_best_for_its_area_and_where_none_keeps_the_promise_all_of_a_device() -> None:
    grid = itertools.product(SHARES, QUOTA_PERCENTS, (1, 2, 3, 4))
    most = max(_capacity(sm, quota, batch) / (sm * quota) for sm, quota, batch in grid)
    chosen = least_slice(PROMISE, 1e6)
    capacity = _capacity(chosen.sm_percent, chosen.quota_percent, chosen.batch)
    assert capacity / (chosen.area * 1e4) == pytest.approx(most)
    assert least_slice(Promise(MADE, 5.0, 0.01, 4, Timing()), 1.0) == Slice(100.0, 100.0, 1)


def test_as_many_as_two_seconds_need_held_for_60_s() -> None:
    function = Function(surface=MADE, slo_ms=100.0, batch_max=4)
    stage, policy = Stage([function], cold_s=0.0), FixedSlice(mean_rps=[10.0], f=1.2, rho=0.5)
    chosen = least_slice(PROMISE, 12.0)
    unit = 0.5 * saturated_rps(MADE, chosen)
    stage.step(policy, 0.0)
    expected = (chosen.sm_percent, chosen.quota_percent, chosen.batch)
    assert stage.slices() == [expected]
    # 2.5 units' worth of arrivals: 3 replicas.
    decision = stage.step(policy, 2.0, arrivals=2.5 * unit * 2.0)
    assert stage.slices() == [expected] * 3
    assert "3 now, 3 in the last 60 s" in decision.actions[0].reason
    for now_s in range(4, 62, 2):
        assert stage.step(policy, float(now_s), arrivals=0.5).actions == ()
    # The 3 of 2 s have left the window of 60 s.
    decision = stage.step(policy, 62.0, arrivals=0.5)
    assert len(decision.actions) == 2
    assert "1 now, 1 in the last 60 s" in decision.actions[0].reason


def test_hindsight_has_16_settings_and_needs_a_load_for_each_function() -> None:
    assert len(set(GRID)) == 16
    with pytest.raises(InvalidRequestError, match="mean_rps has 1 entries for 2 functions"):
        Stage([Function("a"), Function("b")]).step(FixedSlice(mean_rps=[1.0]), 0.0)
    with pytest.raises(InvalidRequestError, match="not negative"):
        FixedSlice(mean_rps=[-1.0])
