"""FaST-GShare's rules on timelines worked out by hand."""

from __future__ import annotations

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.baselines.fast_gshare import FastGShare
from hasfaas.scaling.decision import AddReplica, DrainReplica
from tests.scaling.baselines.stage import Function, Stage, surface

# 10 ms a call at any SM share: a batch of 4 holds 40 ms; quota 50 % gives 0.5 x 4 / 40 ms = 50 rps.


def test_slices_follow_the_gap_in_whole_numbers() -> None:
    stage, policy = Stage([Function()], cold_s=1.0), FastGShare()
    assert stage.step(policy, 0.0).next_tick_s == 10.0
    assert stage.slices() == [(30.0, 50.0, 4)]
    # 59 rps: the gap of 9 is less than a fifth of 50.
    assert stage.step(policy, 10.0, arrivals=590.0).actions == ()
    # 161 rps: the gap of 111 is 2 whole slices and one for the 11 that are left.
    decision = stage.step(policy, 20.0, arrivals=1610.0)
    assert len(decision.actions) == 3
    assert decision.actions[0].reason == (
        "161.00 rps against 50.00 of 1 slices: add SM 30 % x quota 50 %, batches of 4"
    )
    # Two of 50 % share a lane.
    assert sorted((r.device, r.lane) for r in stage.replicas) == [(0, 0), (0, 0), (0, 1), (0, 1)]
    # 161 against 200: the gap of 39 is less than 40.
    assert stage.step(policy, 30.0, arrivals=1610.0).actions == ()
    # 60 against 200: the gap of 140 is 2 whole slices.
    decision = stage.step(policy, 40.0, arrivals=600.0)
    assert [type(action) for action in decision.actions] == [DrainReplica] * 2
    # Nothing against 100: two whole slices, but the last one stays.
    assert len(stage.step(policy, 50.0, arrivals=0.0).actions) == 1
    assert len(stage.slices()) == 1


def test_the_efficient_slice_and_the_smallest_that_is_left() -> None:
    # 10 ms a call at SM 100, more with less: x (100 / sm) ** 0.5, so efficiency b / (t sm) is best at the least share.
    # SM 6: a batch of 4 holds 40 x 4.08 = 163.3 ms: within 500 ms from quota 40 % on (408 ms).
    stage = Stage([Function(surface=surface(10.0, sm_power=0.5), slo_ms=500.0)], devices=8, cold_s=1.0)
    policy = FastGShare(slice="efficient")
    stage.step(policy, 0.0)
    # SM 5 is the least that the profile knows: 6 % lies between 5 and 10.
    assert stage.slices() == [(6.0, 40.0, 4)]
    unit = 0.4 * 4 / (40.0 * (100 / 6) ** 0.5) * 1e3  # 9.80 rps
    # 30 rps: the gap of 20.2 is 2 of them and 0.6 for a smallest slice.
    decision = stage.step(policy, 10.0, arrivals=300.0)
    assert unit == pytest.approx(9.80, abs=0.01)
    assert [action.quota_percent for action in decision.actions if isinstance(action, AddReplica)] == [40.0] * 3
    # 43.2 rps more than 39.2: 4 x 9.8 and 4; a gap of one slice and nearly all of another takes the next larger slice.
    decision = stage.step(policy, 20.0, arrivals=10.0 * (4 * unit + 2 * unit - 0.01))
    assert [action.quota_percent for action in decision.actions if isinstance(action, AddReplica)] == [40.0, 40.0]


def test_what_is_left_gets_the_smallest_slice_that_has_more() -> None:
    # Time x (100 / sm) ** 1.5: a whole device is the most efficient, 100 q rps; 20 % take 200 ms and give 20 rps.
    stage = Stage([Function(surface=surface(10.0, sm_power=1.5), slo_ms=2000.0)], devices=8, cold_s=1.0)
    policy = FastGShare(slice="efficient")
    stage.step(policy, 0.0)
    # 45 rps: 20 more and 5 left. 100 q (sm / 100) ** 1.5 > 5: 50 x 20 (7.07) is smaller than 60 x 20 and 24 x 60; 24 x 40
    # has 4.70 only.
    stage.step(policy, 10.0, arrivals=450.0)
    assert stage.slices() == [(100.0, 20.0, 4), (100.0, 20.0, 4), (50.0, 20.0, 4)]


def test_functions_without_a_profile_or_sized_by_hand_are_left_alone() -> None:
    stage = Stage([Function("a", surface=None), Function("b", by_hand=True), Function("c")])
    decision = stage.step(FastGShare(), 0.0)
    assert [action.function for action in decision.actions if isinstance(action, AddReplica)] == ["c"]
    assert decision.reason == "1 actions; left alone without a profile: a"


def test_an_unknown_slice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="use artefact or efficient"):
        FastGShare(slice="best")  # type: ignore[arg-type]
