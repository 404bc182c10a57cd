"""Ray Serve's rules on timelines worked out by hand."""

from __future__ import annotations

from hasfaas.scaling.baselines.ray_serve import RayServe
from hasfaas.scaling.decision import DrainReplica
from tests.scaling.baselines.stage import Function, Stage


def _counts(stage: Stage, policy: RayServe, begin_s: int, end_s: int, **seen: float) -> list[int]:
    found = []
    for now_s in range(begin_s, end_s):
        stage.step(policy, float(now_s), **seen)
        found.append(len(stage.slices()))
    return found


def test_more_only_after_the_wish_has_lasted() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe(tuned=True)
    assert _counts(stage, policy, 0, 20, in_flight=2.0) == [1] * 20  # 2 calls a replica are its target
    # From 20 s on 6 calls: averages over 10 s are 2.4, 2.8, 3.2, 3.6: each wants ceil(/ 2) = 2. The wish begins at 20 s
    # and is acted upon at 23 s. At 24 s 4.0 wants 2; from 25 s on 4.4 ... 6.0 want 3, acted upon at 28 s.
    assert _counts(stage, policy, 20, 30, in_flight=6.0) == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3]


def test_defaults_wait_30_s_up_and_600_s_down() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe()
    _counts(stage, policy, 0, 1, in_flight=0.0)
    up = _counts(stage, policy, 1, 100, in_flight=4.0)
    # At 2 s the mean of 0, 4, 4 is above 2 for the first time: acted upon at 32 s, the 31st after 1 s.
    assert up.index(2) == 31
    down = _counts(stage, policy, 100, 800, in_flight=2.0)
    # Samples of 4 and of 2: ceil(mean / 2) is 1 only when all 30 are 2: at 129 s; 600 s later: 729 s.
    assert down.index(1) == 629


def test_a_wish_that_breaks_off_begins_anew() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe(tuned=True, target_ongoing=1.0)
    _counts(stage, policy, 0, 20, in_flight=1.0)
    _counts(stage, policy, 20, 22, in_flight=6.0)
    # Far below for 10 s: the mean is back at most at 1 while no wish has lasted 3 s in one direction.
    found = _counts(stage, policy, 22, 24, in_flight=0.0)
    assert found == [1, 2]  # at 23 s the mean (2 x 6 + 6 x 1) / 10 = 1.8 has wanted 2 since 20 s
    assert _counts(stage, policy, 24, 40, in_flight=0.0)[-1] == 2  # fewer only after 60 s


def test_zero_is_a_step_of_its_own_and_a_call_ends_it_at_once() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe(tuned=True)
    _counts(stage, policy, 0, 10, in_flight=2.0)
    found = _counts(stage, policy, 10, 100, in_flight=0.0)
    # All of the last 10 samples are 0 from 19 s on: none wanted for 60 s at 79 s.
    assert found.index(0) == 79 - 10
    decision = stage.step(policy, 100.0, waiting=1.0)
    assert len(decision.actions) == 1
    assert decision.actions[0].reason == "first replica"


def test_two_become_one_before_none() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe(tuned=True)
    _counts(stage, policy, 0, 30, in_flight=4.0)
    assert len(stage.slices()) == 2
    found = _counts(stage, policy, 30, 200, in_flight=0.0)
    # Fewer than 2 is wanted from 35 s on (5 x 4 / 10 = 2: ceil(2 / 2) = 1 at 34 s already): at 94 s one goes. The wish for
    # zero then lasts its own 60 s from 95 s on.
    assert found.index(1) == 94 - 30
    assert found.index(0) == 155 - 30


def test_the_one_that_goes_is_idle_and_young() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), RayServe(tuned=True)
    _counts(stage, policy, 0, 30, in_flight=4.0)
    stage.replicas[0].in_flight = 0
    stage.replicas[1].in_flight = 2
    decisions = [stage.step(policy, float(now_s), in_flight=2.0) for now_s in range(30, 110)]
    drained = [a.replica_id for d in decisions for a in d.actions if isinstance(a, DrainReplica)]
    assert drained == ["r1"]
