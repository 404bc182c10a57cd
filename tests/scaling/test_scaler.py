"""The hybrid scaler on timelines: a plant of values does what is decided, and checks lanes and memory after every action."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Life
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from tests.fakes.plant import Plant, surface

SLOW = surface(10.0)


def driven(
    plant: Plant, scaler: HybridScaler, rate: float | Callable[[int], float], seconds: int, seed: int = 0
) -> list[Decision]:
    """So many ticks of Poisson load for every function."""
    random = np.random.default_rng(seed)
    made = []
    for second in range(seconds):
        mean = rate(second) if callable(rate) else rate
        made.append(plant.step(scaler, random.poisson(mean, len(plant.surfaces)).astype(float)))
    return made


def all_of(decisions: Sequence[Decision], *kinds: type[Action]) -> list[Action]:
    return [action for decision in decisions for action in decision.actions if isinstance(action, kinds)]


def test_nothing_is_started_before_the_first_call() -> None:
    plant = Plant([SLOW])
    for _ in range(5):
        decision = plant.step(HybridScaler(), [0.0])
        assert decision.actions == () and decision.reason == "steady"
    assert plant.decisions[-1].next_tick_s == plant.now_s + 1.0


def test_the_first_call_starts_the_cheapest_slice_that_carries_what_it_proves() -> None:
    plant = Plant([SLOW], cold_start_s=10.0)
    decision = plant.step(HybridScaler(), [3.0])
    (start,) = decision.actions
    assert isinstance(start, AddReplica)
    assert start.reason == "first call"
    assert start.sm_percent < 30.0 and start.quota_percent < 100.0


def test_a_least_number_of_replicas_is_there_without_a_call() -> None:
    plant = Plant([SLOW], min_replicas=2)
    decision = plant.step(HybridScaler(), [0.0])
    assert len(all_of([decision], AddReplica)) == 2


def test_a_jump_raises_the_quota_at_the_tick_that_shows_it_and_only_then_adds_replicas() -> None:
    plant = Plant([SLOW], slo_ms=60.0, cold_start_s=10.0)
    scaler = HybridScaler()
    driven(plant, scaler, 8.0, 120)
    before = {m.replica_id: m.quota_percent for m in plant.of(0)}
    decision = plant.step(scaler, [45.0])
    raised = all_of([decision], Resize)
    assert raised, decision.actions
    for action in raised:
        assert isinstance(action, Resize)
        assert action.quota_percent > before[action.replica_id]
        assert "does not carry that within the SLO" in action.reason
    # Resizes come before whatever is started.
    kinds = [type(action) for action in decision.actions]
    assert AddReplica not in kinds or kinds.index(Resize) < kinds.index(AddReplica)


def test_what_even_whole_lanes_do_not_carry_is_met_by_more_replicas() -> None:
    plant = Plant([SLOW], slo_ms=60.0, cold_start_s=5.0)
    scaler = HybridScaler()
    driven(plant, scaler, 5.0, 60)
    decisions = driven(plant, scaler, 400.0, 30)
    assert all_of(decisions, AddReplica)
    last = decisions[-1].diagnostics
    assert last["capacity_rps"][0] >= 400.0


def test_a_quota_falls_once_less_has_sufficed_for_a_while() -> None:
    plant = Plant([SLOW], slo_ms=60.0)
    scaler = HybridScaler(ScalerSettings(quota_calm_s=8.0))
    for _ in range(30):
        plant.step(scaler, [40.0])
    decisions = [plant.step(scaler, [4.0]) for _ in range(30)]
    falls = [
        second
        for second, decision in enumerate(decisions)
        for action in decision.actions
        if isinstance(action, Resize) and "has sufficed for" in action.reason
    ]
    # The filter needs a second or two to believe it, then the calm has to last.
    assert falls and falls[0] >= 7


def test_another_shape_is_made_before_the_old_one_goes() -> None:
    plant = Plant([SLOW], slo_ms=60.0, cold_start_s=10.0)
    scaler = HybridScaler()
    driven(plant, scaler, 150.0, 60)
    served = []
    for decision_second in range(400):
        plant.step(scaler, [float(decision_second % 2)])
        served.append(sum(1 for m in plant.of(0) if m.life is Life.READY))
    assert min(served) >= 1
    reasons = [action.reason for action in all_of(plant.decisions, AddReplica, DrainReplica)]
    assert any("cheaper at" in reason for reason in reasons)
    assert any("replaced by replicas of a better shape" in reason for reason in reasons)


def test_replicas_go_when_fewer_have_sufficed_and_the_others_are_sized_for_that() -> None:
    plant = Plant([SLOW], slo_ms=60.0)
    scaler = HybridScaler(ScalerSettings(reshape_payback=1e9))
    driven(plant, scaler, 400.0, 60)
    many = len(plant.of(0))
    decisions = driven(plant, scaler, 20.0, 2400)
    drained = all_of(decisions, DrainReplica)
    assert drained and len(plant.of(0)) < many
    assert "carried up to" in drained[0].reason


def test_a_function_that_nobody_calls_goes_to_zero_and_comes_back() -> None:
    plant = Plant([SLOW])
    scaler = HybridScaler(ScalerSettings(keep_alive_s=60.0))
    driven(plant, scaler, 5.0, 30)
    assert plant.of(0)
    decisions = driven(plant, scaler, 0.0, 70)
    assert not plant.of(0)
    assert all_of(decisions, DrainReplica)[-1].reason == "no call for 60 s"
    plant.step(scaler, [1.0])
    assert plant.of(0)


def test_a_function_with_calls_in_flight_does_not_go_to_zero() -> None:
    plant = Plant([SLOW])
    scaler = HybridScaler(ScalerSettings(keep_alive_s=10.0))
    driven(plant, scaler, 5.0, 30)
    for _ in range(40):
        plant.step(scaler, [0.0], in_flight=np.array([1.0]))
    assert plant.of(0)


def test_functions_sized_by_hand_and_those_without_a_profile_are_left_alone() -> None:
    plant = Plant([SLOW, None, SLOW], by_hand=[True, False, False])
    driven(plant, HybridScaler(), 30.0, 30)
    assert not plant.of(0) and not plant.of(1) and plant.of(2)


def test_late_calls_raise_the_margin_and_calls_in_time_lower_it() -> None:
    def margin(late: float) -> float:
        plant = Plant([SLOW], slo_ms=60.0)
        scaler = HybridScaler()
        driven(plant, scaler, 20.0, 30)
        for _ in range(200):
            decision = plant.step(scaler, [20.0], late=np.array([late]))
        return float(decision.diagnostics["margin"][0])

    assert margin(1.0) > 1.0 > margin(0.0)


def test_what_is_late_for_want_of_a_replica_does_not_raise_the_margin() -> None:
    plant = Plant([SLOW], cold_start_s=30.0)
    scaler = HybridScaler()
    for _ in range(25):
        decision = plant.step(scaler, [20.0], late=np.array([20.0]), waiting=np.array([400.0]))
    assert decision.diagnostics["margin"][0] == 1.0


@pytest.mark.parametrize("rate", [0.3, 2.0, 20.0, 150.0])
def test_no_flapping_on_a_constant_load(rate: float) -> None:
    """At most one action a minute after settling, on arrivals that are as even as whole numbers can be."""
    plant = Plant([SLOW], slo_ms=60.0, cold_start_s=10.0)
    scaler = HybridScaler()
    actions = 0
    for second in range(1800):
        arrivals = float(int((second + 1) * rate) - int(second * rate))
        decision = plant.step(scaler, [arrivals])
        if second >= 600:
            actions += len(decision.actions)
    assert actions <= 20


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 150.0), st.floats(1.1, 4.0))
def test_more_load_never_gives_less_capacity(rate: float, factor: float) -> None:
    capacity = []
    for own in (rate, rate * factor):
        plant = Plant([SLOW], slo_ms=60.0, devices=10)
        scaler = HybridScaler()
        for second in range(120):
            arrivals = float(int((second + 1) * own) - int(second * own))
            decision = plant.step(scaler, [arrivals])
        capacity.append(float(decision.diagnostics["capacity_rps"][0]))
    # Shapes come in steps, and the lesser load may have got the greater one by insurance: what is needed is there.
    assert capacity[1] >= min(capacity[0], rate * factor * 0.9)


LOADS = st.lists(st.lists(st.integers(0, 60), min_size=4, max_size=4), min_size=5, max_size=60)


@settings(max_examples=25, deadline=None)
@given(LOADS, st.booleans(), st.sampled_from([0.0, 3.0]))
def test_whatever_the_load_lanes_and_memory_hold_and_every_action_has_a_reason(
    loads: list[list[int]], pooling: bool, cold_start_s: float
) -> None:
    surfaces = [surface(5.0), surface(12.0), surface(25.0, steep=0.6), surface(8.0)]
    plant = Plant(surfaces, devices=2, cold_start_s=cold_start_s, memory_bytes=2.0 * 2**30)
    scaler = HybridScaler(ScalerSettings(pooling=pooling, move_every_s=5.0, keep_alive_s=5.0))
    for counts in loads:
        decision = plant.step(scaler, [float(c) for c in counts])  # the plant checks lanes and memory after each action
        assert all(action.reason.strip() for action in decision.actions)
        assert decision.next_tick_s > plant.now_s
        for m in plant.members.values():
            assert 0.0 < m.quota_percent <= 100.0 + 1e-6


def test_the_same_observations_give_the_same_decisions() -> None:
    def run() -> list[tuple[Action, ...]]:
        plant = Plant([SLOW, surface(4.0)], cold_start_s=4.0)
        return [d.actions for d in driven(plant, HybridScaler(), lambda s: 5.0 + 60.0 * (s // 50 % 2), 300, seed=5)]

    assert run() == run()


def test_pooled_functions_share_lanes_and_others_do_not() -> None:
    def devices_used(pooling: bool) -> tuple[int, int]:
        plant = Plant([surface(8.0)] * 8, slo_ms=150.0)
        driven(plant, HybridScaler(ScalerSettings(pooling=pooling)), 2.0, 60)
        lanes = {(m.device, m.lane) for m in plant.members.values()}
        return len(plant.members), len(lanes)

    replicas, lanes = devices_used(False)
    assert lanes == replicas
    replicas, lanes = devices_used(True)
    assert lanes < replicas


def test_a_device_that_others_have_room_for_is_given_back() -> None:
    plant = Plant([surface(8.0)] * 6, slo_ms=150.0, devices=3)
    scaler = HybridScaler(ScalerSettings(pooling=True, keep_alive_s=1e6, move_every_s=20.0, replica_calm_s=10.0))
    driven(plant, scaler, 5.0, 60)
    # One stands on a device of its own, as after others have gone.
    lonely = next(iter(plant.members.values()))
    lonely.device, lonely.lane = 2, 0
    assert len({m.device for m in plant.members.values()}) == 2
    decisions = driven(plant, scaler, 5.0, 200)
    assert any("can be given back" in a.reason for a in all_of(decisions, AddReplica))
    assert 2 not in {m.device for m in plant.members.values()}


def test_without_vertical_scaling_quotas_stay_as_they_were_made() -> None:
    plant = Plant([SLOW], slo_ms=60.0, cold_start_s=5.0)
    decisions = driven(plant, HybridScaler(ScalerSettings(vertical=False)), lambda s: 5.0 if s < 60 else 120.0, 200)
    assert not all_of(decisions, Resize)
    assert len(all_of(decisions, AddReplica)) > 1


def test_where_there_is_no_room_the_decision_says_so() -> None:
    plant = Plant([surface(40.0, steep=0.9)] * 3, slo_ms=200.0, devices=1, memory_bytes=7.0 * 2**30)
    decisions = driven(plant, HybridScaler(), 30.0, 30)
    assert any("no room for" in decision.reason for decision in decisions)


def test_batches_go_with_the_quota() -> None:
    plant = Plant([SLOW], slo_ms=60.0)
    scaler = HybridScaler()
    driven(plant, scaler, 2.0, 60)
    small = {m.batch for m in plant.of(0)}
    decisions = driven(plant, scaler, 300.0, 60)
    assert all_of(decisions, Rebatch, AddReplica)
    assert max(m.batch for m in plant.of(0)) > max(small)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="margin_range"):
        ScalerSettings(margin_range=(1.2, 1.5))
    with pytest.raises(InvalidRequestError, match="tick_s=0"):
        ScalerSettings(tick_s=0.0)
