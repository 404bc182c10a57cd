"""The cheapest type of device with room that keeps the promise; who is served moves late, and is never left without."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import AddReplica, Decision, DrainReplica, Resize
from hasfaas.scaling.device_choice import DeviceChoice, choose, ordered
from hasfaas.scaling.device_offers import Candidate, Offer, Offers
from hasfaas.scaling.observation import Life, Observation
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from tests.fakes.plant import Member, Plant, surface

GAIN = 0.1
# The fast type holds a lane for half as long.
FAST, SLOW = surface(10.0), surface(20.0)
SETTINGS = ScalerSettings(keep_alive_s=10.0)


@st.composite
def some(draw: st.DrawFn) -> list[Candidate]:
    """Types t0, t1, ..."""
    count = draw(st.integers(1, 5))
    return [
        Candidate(f"t{n}", draw(st.floats(0.01, 10.0)), draw(st.booleans()), draw(st.sampled_from([None, True, False])))
        for n in range(count)
    ]


def named(candidates: list[Candidate], name: str) -> Candidate:
    return next(each for each in candidates if each.type == name)


served = st.sampled_from([None, "t0", "t1"])


@given(some(), served, st.booleans())
def test_no_type_is_taken_that_breaks_the_promise_while_another_with_room_keeps_it(
    candidates: list[Candidate], now: str | None, due: bool
) -> None:
    found = choose(candidates, now, gain=GAIN, due=due)
    able = [each for each in candidates if each.keeps and each.room is not False]
    if able:
        assert named(candidates, found.type).keeps
    # Who has to go somewhere goes where there is room.
    if found.type != now and any(each.room is not False for each in candidates):
        assert named(candidates, found.type).room is not False
    assert found.candidates == ordered(candidates) and found.why


@given(some(), served, st.booleans(), st.floats(1.0, 10.0))
def test_a_type_that_was_not_taken_is_not_taken_for_a_higher_price(
    candidates: list[Candidate], now: str | None, due: bool, factor: float
) -> None:
    before = choose(candidates, now, gain=GAIN, due=due).type
    for each in candidates:
        dearer = [attrs.evolve(c, cost=c.cost * factor) if c is each else c for c in candidates]
        after = choose(dearer, now, gain=GAIN, due=due).type
        # It is left, or nothing changes; but who is on the cheapest stays where he is, as another becomes dearer.
        if each.type not in (before, now):
            assert after == before
        if each.type != before and each.type != now:
            assert after != each.type


@given(some(), st.booleans())
def test_who_is_served_in_time_moves_for_a_tenth_of_the_cost_alone(candidates: list[Candidate], due: bool) -> None:
    here = candidates[0]
    assume(here.keeps and here.room is not False)
    found = choose(candidates, here.type, gain=GAIN, due=due)
    if found.type != here.type:
        assert due and named(candidates, found.type).cost <= here.cost * (1.0 - GAIN) * (1.0 + 1e-9)


def test_every_choice_says_why() -> None:
    cheap, dear, late = Candidate("cheap", 1.0, True), Candidate("dear", 2.0, True), Candidate("late", 0.5, False)

    def why(*candidates: Candidate, now: str | None = None, due: bool = True) -> tuple[str, str]:
        found = choose(candidates, now, gain=GAIN, due=due)
        return found.type, found.why

    full = attrs.evolve(cheap, room=False)
    assert why(late, dear, cheap) == ("cheap", "costs least of those that keep the promise")
    assert why(late, dear, full) == ("dear", "costs least of those that keep the promise, cheap without room")
    assert why(late, full) == ("late", "no type with room keeps the promise")
    assert why(late) == ("late", "no type keeps the promise")
    assert why(full) == ("cheap", "costs least of those that keep the promise: waits for room")
    assert why(cheap, dear, now="dear") == ("cheap", "cheap is 50 % cheaper")
    assert why(cheap, dear, now="dear", due=False)[0] == "dear"
    assert why(full, dear, now="cheap") == ("dear", "cheap has no room for more")
    assert why(late, dear, now="late") == ("dear", "late cannot keep the promise")
    assert why(cheap, dear, now="cheap") == ("cheap", "serves now, and no other type is 10 % cheaper")
    assert why(cheap, full, now="cheap")[0] == "cheap"


@attrs.define(eq=False)
class Typed:
    """A scaler behind a choice, on a plant whose first two devices are of the fast type and whose others are slow."""

    prices: tuple[float, float] = (1.0, 1.0)
    healthy: np.ndarray = attrs.field(factory=lambda: np.ones(4, bool))
    fast: Surface = FAST
    choice: DeviceChoice = attrs.field(factory=lambda: DeviceChoice(SETTINGS))
    scaler: HybridScaler = attrs.field(factory=lambda: HybridScaler(SETTINGS))
    shown: list[Observation] = attrs.field(factory=list)

    def decide(self, seen: Observation) -> Decision:
        types = np.array([0, 0, 1, 1])
        seen = attrs.evolve(seen, devices=attrs.evolve(seen.devices, type=types))
        on = tuple(Offer(n, each, self.healthy & (types == n)) for n, each in enumerate((self.fast, SLOW)))
        shown = self.choice.shown(seen, Offers(("fast", "slow"), self.prices, dict.fromkeys(seen.functions.names, on)))
        self.shown.append(shown)
        decision = self.scaler.decide(shown)
        self.choice.heed(shown.functions.names, decision)
        return decision

    def on(self, name: str = "f0") -> str:
        found = self.choice.of(name)
        assert found is not None
        return found.type


def started(decision: Decision) -> list[str]:
    return [action.device for action in decision.actions if isinstance(action, AddReplica)]


def test_the_cheapest_is_price_times_occupancy_and_the_scaler_sees_that_type_alone() -> None:
    for prices, slo_ms, name, devices in (
        ((1.0, 1.0), 100.0, "fast", {"gpu0", "gpu1"}),
        ((4.0, 1.0), 100.0, "slow", {"gpu2", "gpu3"}),
        ((4.0, 1.0), 15.0, "fast", {"gpu0", "gpu1"}),  # the slow one cannot keep that at all
    ):
        policy, plant = Typed(prices), Plant([None], slo_ms=slo_ms)
        decision = plant.step(policy, [20.0])
        assert policy.on() == name
        assert started(decision) and set(started(decision)) <= devices
        seen = policy.shown[-1].functions
        assert seen.surfaces == ((FAST if name == "fast" else SLOW),)
        assert seen.devices.tolist() == [[name == "fast"] * 2 + [name == "slow"] * 2]
        assert seen.device_type.tolist() == [0 if name == "fast" else 1]


def test_who_is_on_the_dearer_type_moves_once_that_has_paid_and_always_has_a_replica_that_serves() -> None:
    policy, plant = Typed((1.0, 1.0)), Plant([None], cold_start_s=2.0)
    for _ in range(10):
        plant.step(policy, [20.0])
    assert {member.device for member in plant.of(0)} <= {0, 1}
    policy.prices = (6.0, 1.0)
    moved_s = None
    for second in range(60):
        decision = plant.step(policy, [20.0])
        assert any(member.life is Life.READY for member in plant.of(0)), "nobody serves"
        if moved_s is None and policy.on() == "slow":
            moved_s = second
            assert set(started(decision)) <= {"gpu2", "gpu3"} and started(decision)
            assert "another type" in decision.actions[-1].reason
            assert not any(isinstance(action, Resize | DrainReplica) for action in decision.actions)
    assert moved_s is not None and moved_s > 0, "not at the first sight of a better price"
    assert {member.device for member in plant.of(0)} <= {2, 3}
    starts = [action for decision in plant.decisions for action in decision.actions if isinstance(action, AddReplica)]
    assert sum(action.device in ("gpu2", "gpu3") for action in starts) == len(plant.of(0))
    # A saving of less than a tenth moves nobody.
    choice = policy.choice.of("f0")
    assert choice is not None
    costs = {each.type: each.cost for each in choice.candidates}
    policy.prices = (6.0 * 0.95 * costs["slow"] / costs["fast"], 1.0)
    for _ in range(60):
        plant.step(policy, [20.0])
    assert policy.on() == "slow"


def test_where_a_type_is_full_the_next_one_is_taken() -> None:
    policy, plant = Typed((4.0, 1.0)), Plant([None, None])
    for device in (2, 3):  # 5 % are left
        plant.members[f"other{device}"] = Member(f"other{device}", 1, device, 0, 95.0, 1.0, 1, 0.0, Life.READY)
    decision = plant.step(policy, [40.0, 0.0], by_hand=np.array([False, True]))
    choice = policy.choice.of("f0")
    assert choice is not None
    assert (choice.type, choice.why) == ("fast", "costs least of those that keep the promise, slow without room")
    assert started(decision) and set(started(decision)) <= {"gpu0", "gpu1"}


def test_room_that_one_function_takes_the_next_one_does_not_have() -> None:
    policy, plant = Typed((4.0, 1.0)), Plant([None] * 6, memory_bytes=6.0 * 2**30)
    decision = plant.step(policy, [20.0] * 6)
    # Two of them fit into the memory of a device.
    assert [policy.on(name) for name in plant.names] == ["slow"] * 4 + ["fast"] * 2
    assert len(started(decision)) == 6


def test_a_type_whose_devices_are_all_down_has_no_room() -> None:
    policy = Typed((4.0, 1.0))
    policy.healthy = np.array([True, True, False, False])
    Plant([None]).step(policy, [20.0])
    assert policy.on() == "fast"


def test_idle_functions_take_no_room_and_old_choices_are_forgotten() -> None:
    policy, plant = Typed((4.0, 1.0)), Plant([None] * 40, memory_bytes=2.0**30)
    plant.step(policy, [0.0] * 39 + [20.0])
    assert [policy.on(f"f{n}") for n in (0, 38, 39)] == ["slow"] * 3
    seen = plant.observe([0.0] * 40)
    assert policy.choice.shown(seen, Offers()) is seen
    assert policy.choice.of("f0") is None


@pytest.mark.parametrize("pooling", [False, True])
def test_the_same_observations_give_the_same_choices(pooling: bool) -> None:
    settings = ScalerSettings(pooling=pooling)

    def run() -> list[object]:
        policy = Typed((2.2, 1.0), choice=DeviceChoice(settings), scaler=HybridScaler(settings))
        plant = Plant([None, None], cold_start_s=1.0)
        return [
            (plant.step(policy, [10.0 + 5.0 * (t % 7), 3.0]).actions, policy.on(), policy.on("f1")) for t in range(30)
        ]

    assert run() == run()
