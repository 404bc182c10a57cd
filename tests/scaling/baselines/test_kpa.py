"""Knative's rules on timelines worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.baselines.kpa import Kpa
from hasfaas.scaling.decision import AddReplica
from tests.scaling.baselines.stage import Function, Stage

CC = 10  # so the target is 7 calls a replica


def test_a_first_replica_is_a_whole_device() -> None:
    stage = Stage([Function(batch_max=8)])
    decision = stage.step(Kpa(cc=4), 0.0)
    (action,) = decision.actions
    assert isinstance(action, AddReplica)
    assert (action.sm_percent, action.quota_percent, action.batch) == (100.0, 100.0, 4)
    assert decision.next_tick_s == 2.0


def test_asked_sooner_it_only_remembers() -> None:
    stage, policy = Stage([Function()]), Kpa(cc=CC)
    stage.step(policy, 0.0)
    decision = stage.step(policy, 1.0, waiting=1000.0)
    assert (decision.actions, decision.next_tick_s) == ((), 2.0)
    # The sample of 1 s counts: samples 0, 1000, 0 in both windows are 333 on average.
    assert stage.step(policy, 2.0, waiting=0.0).diagnostics["panic"] == pytest.approx([1000.0 / 3.0])


def test_a_burst_is_panic_and_holds_its_most_for_60_s() -> None:
    stage, policy = Stage([Function()], devices=6, cold_s=2.0), Kpa(cc=CC)
    for now_s in range(0, 60, 2):
        stage.step(policy, float(now_s), arrivals=1.0, in_flight=2.0)
    # 30 samples of 2: ceil(2 / 7) = 1.
    assert len(stage.slices()) == 1
    # 60 s: panic window (2 + 2 + 31) / 3 = 11.67: ceil(/ 7) = 2 >= 2 x 1 ready: panic. Stable (29 x 2 + 31) / 30 = 2.97: 1.
    decision = stage.step(policy, 60.0, arrivals=30.0, waiting=21.0, in_flight=10.0)
    assert [type(action) for action in decision.actions] == [AddReplica]
    assert decision.actions[0].reason.startswith("panic: concurrency 2.97 over 60 s, 11.67 over 6 s, target 7.00")
    assert len(stage.slices()) == 2
    # (31 + 2 + 2) / 3 again at 62 and 64, but the second replica serves at 62 (cold start 2 s): 2 / 2 < 2 is no panic any
    # more. It stays for 60 s after the last one, at 60.
    for now_s in range(62, 122, 2):
        assert stage.step(policy, float(now_s), arrivals=1.0, in_flight=2.0).actions == (), now_s
    # 122 s is 62 s after: out of panic, ceil(2 / 7) = 1 >= floor(2 / 2).
    decision = stage.step(policy, 122.0, arrivals=1.0, in_flight=2.0)
    assert len(decision.actions) == 1
    assert decision.actions[0].reason.startswith("stable: concurrency 2.00 over 60 s")
    assert len(stage.slices()) == 1


def test_it_falls_by_half_at_most() -> None:
    stage, policy = Stage([Function()], devices=8, cold_s=0.0), Kpa(cc=CC)
    # 8 replicas of 7 calls from the first instant on.
    stage.step(policy, 0.0, arrivals=1.0, in_flight=56.0)
    assert len(stage.slices()) == 8
    counts = []
    for now_s in range(2, 200, 2):
        stage.step(policy, float(now_s), arrivals=1.0, in_flight=0.0)
        counts.append(len(stage.slices()))
    assert all(after >= before // 2 for before, after in itertools.pairwise(counts))
    assert counts[-1] == 1


def test_zero_only_after_a_whole_window_without_traffic() -> None:
    stage, policy = Stage([Function()]), Kpa(cc=CC)
    for now_s in range(0, 20, 2):
        # Calls that are answered between two instants: none is ever seen in flight.
        stage.step(policy, float(now_s), arrivals=3.0)
    gone_s = None
    for now_s in range(20, 100, 2):
        if stage.step(policy, float(now_s), waiting=0.0).actions and gone_s is None:
            gone_s = now_s
    # The last arrivals were counted at 18 s.
    assert gone_s == 78
    assert stage.slices() == []
    assert len(stage.step(policy, 100.0, waiting=1.0).actions) == 1


def test_the_settings_of_has_gpu_and_what_does_not_fit() -> None:
    stage, policy = Stage([Function()]), Kpa(cc=15, min_replicas=1, max_replicas=2)
    stage.step(policy, 0.0, waiting=1000.0)
    assert len(stage.slices()) == 2
    crowded, policy = Stage([Function("a"), Function("b")], devices=1), Kpa()
    decision = crowded.step(policy, 0.0, waiting=10.0)
    assert len(decision.actions) == 1
    assert decision.reason == "1 actions; no room for 1 of a, 2 of b"
    assert decision.diagnostics["unplaced"].tolist() == [1, 2]


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidRequestError, match="cc=-1 of Kpa"):
        Kpa(cc=-1)
