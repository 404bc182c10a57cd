"""Lanes that were cut in advance: scalers choose among them, reckon with what they really have, and never open another."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.scaling import journal
from hasfaas.scaling.baselines import lookup
from hasfaas.scaling.decision import AddReplica
from hasfaas.scaling.frontier import REPLICAS, Frontier, FrontierSettings
from hasfaas.scaling.lane_shares import LaneShares
from hasfaas.scaling.observation import Devices, FixedLanes, Observation
from hasfaas.scaling.placement import Book, Spot
from hasfaas.scaling.policy import Policy
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from tests.fakes.plant import GIB, Plant, surface

CUT = (40, 20, 20)
CUTS = [(40, 20, 20), (80,), (20, 20, 20), (8, 8, 24, 40), (40, 30), (1, 1, 1, 1, 1, 1, 1, 73)]


def book_of(cut: Sequence[int] = CUT, devices: int = 2) -> Book:
    return Book.of(Plant([surface()], devices=devices, cut=cut).observe([0.0]))


def seat(book: Book, sm_percent: float, quota_percent: float, **options: object) -> Spot | None:
    spot = book.spot(sm_percent, quota_percent, 1.0 * GIB, **options)  # type: ignore[arg-type]
    if spot is not None:
        book.take(spot, sm_percent, quota_percent, 1.0 * GIB)
    return spot


# -- the book ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sm_percent", "lane", "granted"), [(5.0, 1, 25.0), (25.0, 1, 25.0), (26.0, 0, 50.0), (50.0, 0, 50.0)]
)
def test_a_share_is_met_by_the_smallest_lane_that_is_large_enough(sm_percent: float, lane: int, granted: float) -> None:
    book = book_of()
    spot = seat(book, sm_percent, 10.0)
    assert spot == Spot(0, lane, True, 90.0)
    assert book.sm_percent(0, lane) == granted


def test_more_than_any_lane_has_finds_no_room_and_an_exact_share_no_larger_lane() -> None:
    assert seat(book_of(), 51.0, 10.0) is None
    assert seat(book_of(), 20.0, 10.0, exact=True) is None
    assert seat(book_of(), 25.0, 10.0, exact=True) is not None


def test_neighbours_are_spread_over_a_device_in_use_before_another_one_is_taken() -> None:
    book = book_of()
    found = [seat(book, 25.0, quota) for quota in (30.0, 20.0, 10.0, 10.0, 60.0)]
    assert [(spot.device, spot.lane) for spot in found if spot] == [(0, 1), (0, 2), (0, 2), (0, 1), (0, 2)]
    assert seat(book, 25.0, 70.0) == Spot(1, 1, True, 30.0)


def test_a_lane_that_emptied_is_there_again_with_its_own_units() -> None:
    book = book_of((40, 20), devices=1)
    assert seat(book, 25.0, 100.0) == Spot(0, 1, True, 0.0)
    assert seat(book, 25.0, 100.0) is None
    book.leave(0, 1, 100.0, 1.0 * GIB)
    assert seat(book, 10.0, 100.0) == Spot(0, 1, True, 0.0)
    assert book.lane_units[0].tolist()[:3] == [0, 20, 0]
    assert book.free_units.tolist() == [60]


def test_a_device_without_cuts_beside_one_is_used_as_ever() -> None:
    cut = Plant([surface()], devices=2, cut=CUT).observe([0.0])
    first = cut.fixed_lanes.device == 0
    fixed = FixedLanes(*(column[first] for column in attrs.astuple(cut.fixed_lanes, recurse=False)))
    book = Book.of(attrs.evolve(cut, fixed_lanes=fixed))
    assert book.is_fixed.tolist() == [True, False]
    spots = [seat(book, 60.0, 100.0), seat(book, 30.0, 50.0), seat(book, 30.0, 20.0)]
    assert [(spot.device, spot.lane) for spot in spots if spot] == [(1, 0), (1, 1), (1, 1)]
    assert book.sm_percent(1, 0) == 60.0


# -- shares and shapes ---------------------------------------------------------------------------------------------------


def observed(cut: Sequence[int] = CUT, devices: int = 2) -> Observation:
    return Plant([surface()], devices=devices, cut=cut).observe([0.0])


def test_the_shares_that_are_planned_with_are_those_of_the_lanes() -> None:
    assert LaneShares.of(observed(), 0, (5.0, 100.0), bounded=False) == LaneShares((25.0, 50.0), (4, 2))
    assert LaneShares.of(observed(()), 0, (5.0, 100.0), bounded=False) == LaneShares((5.0, 100.0))
    assert LaneShares.of(observed(()), 0, None, bounded=False) == LaneShares(None)


def test_shares_that_bound_what_is_planned_with_are_rounded_up_to_lanes() -> None:
    assert LaneShares.of(observed(), 0, (5.0, 10.0), bounded=True) == LaneShares((25.0,), (4,))
    assert LaneShares.of(observed(), 0, (30.0, 80.0), bounded=True) == LaneShares((50.0,), (2,))


def test_only_devices_that_a_function_may_use_count() -> None:
    one = observed()
    allowed = attrs.evolve(one, functions=attrs.evolve(one.functions, devices=np.array([[False, True]])))
    assert LaneShares.of(allowed, 0, None, bounded=False).most == (2, 1)
    nowhere = attrs.evolve(one, functions=attrs.evolve(one.functions, devices=np.array([[False, False]])))
    assert LaneShares.of(nowhere, 0, None, bounded=False).most == (4, 2)


def test_where_lanes_can_still_be_cut_elsewhere_any_share_and_number_is_planned_with() -> None:
    both = observed()
    first = both.fixed_lanes.device == 0
    fixed = FixedLanes(*(column[first] for column in attrs.astuple(both.fixed_lanes, recurse=False)))
    found = LaneShares.of(attrs.evolve(both, fixed_lanes=fixed), 0, (10.0, 50.0), bounded=False)
    assert found == LaneShares((10.0, 25.0, 50.0), None)


def test_further_replicas_than_there_are_lanes_carry_no_more_and_are_never_chosen() -> None:
    settings = FrontierSettings(sm_percents=(25.0, 50.0), most=(2, 1))
    bounded = Frontier.of(surface(), 60.0, 0.01, Timing(), settings=settings)
    free = Frontier.of(surface(), 60.0, 0.01, Timing(), settings=attrs.evolve(settings, most=None))
    two = REPLICAS.index(2)
    assert np.array_equal(bounded.rps[: two + 1, 0], free.rps[: two + 1, 0])
    assert np.all(bounded.rps[two:, 0] == bounded.rps[two, 0]) and np.all(bounded.rps[:, 1] == bounded.rps[0, 1])
    counts, shares = np.divmod(bounded.best[bounded.best >= 0], 2)
    assert np.all(counts <= np.array([two, 0])[shares])
    assert (free.best >= 0).sum() > (bounded.best >= 0).sum()
    # What nobody carries gets what carries most: two of the smaller.
    assert divmod(bounded.last, 2) == (two, 0)
    assert free.last == 0


# -- the scaler ----------------------------------------------------------------------------------------------------------


def grown(plant: Plant, policy: Policy, rate: float, seconds: int) -> None:
    random = np.random.default_rng(3)
    for _ in range(seconds):
        plant.step(policy, random.poisson(rate, len(plant.surfaces)).astype(float))


def test_a_function_runs_in_a_lane_that_exists_and_is_reckoned_with_what_it_has() -> None:
    plant = Plant([surface(10.0)], slo_ms=60.0, devices=1, cut=CUT)
    grown(plant, HybridScaler(), 10.0, 60)
    (member,) = plant.of(0)
    assert member.sm_percent == 25.0
    last = plant.decisions[-1].diagnostics
    price = 0.003
    assert last["area"][0] == pytest.approx(0.25 * last["needed_quota_percent"][0] / 100.0 + price)


def test_where_the_best_lane_is_taken_the_next_best_is() -> None:
    plant = Plant([surface(10.0)] * 3, slo_ms=60.0, devices=1, cut=CUT)
    grown(plant, HybridScaler(), 10.0, 40)
    assert sorted(m.sm_percent for m in plant.members.values()) == [25.0, 25.0, 50.0]
    assert all(len(plant.of(row)) == 1 for row in range(3))


def test_one_that_needs_more_than_its_lanes_moves_to_a_larger_one_once() -> None:
    steep = surface(12.0, steep=0.8)
    plant = Plant([steep, steep], slo_ms=60.0, devices=1, cut=(40, 8, 8), cold_start_s=2.0, batch_max=1)
    scaler = HybridScaler()
    grown(plant, scaler, 4.0, 40)
    assert {m.sm_percent for m in plant.of(0)} == {10.0}
    busy = np.array([60.0, 0.5])
    for _ in range(40):
        plant.step(scaler, np.random.default_rng(0).poisson(busy).astype(float))
    assert {m.sm_percent for m in plant.of(0)} == {50.0}
    starts = [a for d in plant.decisions for a in d.actions if isinstance(a, AddReplica) and a.function == "f0"]
    assert len(starts) <= 3, "moved to and fro"


def test_what_no_lane_carries_gets_what_carries_most() -> None:
    plant = Plant([surface(10.0)], slo_ms=60.0, devices=1, cut=CUT, cold_start_s=1.0)
    scaler = HybridScaler()
    grown(plant, scaler, 5_000.0, 20)
    made = plant.made
    grown(plant, scaler, 5_000.0, 60)
    assert plant.made == made, "nothing is better, so nothing moves"
    assert sorted(m.sm_percent for m in plant.of(0)) == [25.0, 25.0]
    assert all(m.quota_percent == 100.0 for m in plant.of(0))


def policies(functions: int) -> list[Policy]:
    rates = np.full((functions, 20), 8.0)
    return [
        HybridScaler(),
        HybridScaler(ScalerSettings(pooling=True, move_every_s=5.0)),
        HybridScaler(ScalerSettings(frontier=False)),
        HybridScaler(ScalerSettings(vertical=False)),
        HybridScaler(ScalerSettings(sm_percents=(5.0, 60.0))),
        lookup.named("kpa"),
        lookup.named("ray"),
        lookup.named("fast"),
        lookup.named("fast", slice="efficient"),
        lookup.named("has"),
        lookup.named("has-repaired"),
        lookup.named("fixed", mean_rps=rates.mean(axis=1)),
        lookup.named("oracle", rates_rps=rates),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CUTS),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.floats(0.0, 300.0), min_size=4, max_size=14),
    st.sampled_from(range(len(policies(1)))),
    st.floats(0.0, 3.0),
)
def test_whatever_the_load_no_policy_opens_a_lane_that_was_not_cut(
    cut: tuple[int, ...], functions: int, devices: int, rates: list[float], which: int, cold_start_s: float
) -> None:
    plant = Plant([surface(10.0)] * functions, devices=devices, cut=cut, cold_start_s=cold_start_s)
    policy = policies(functions)[which]
    for second, rate in enumerate(rates):
        # The plant checks lanes, quotas and memory after every action.
        plant.step(policy, np.full(functions, np.floor(rate)) * (np.arange(functions) <= second % 3))


def test_all_policies_that_take_slices_start_some_on_fixed_lanes() -> None:
    for policy in policies(2):
        plant = Plant([surface(10.0)] * 2, devices=2, cut=CUT)
        for _ in range(25):
            plant.step(policy, np.full(2, 8.0))
        whole = type(policy).__name__ in ("Kpa", "RayServe")
        assert bool(plant.members) is not whole, type(policy).__name__


# -- observations and logs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "value"), [("device", 2), ("device", -1), ("lane", 8), ("lane", -1), ("units", 0)])
def test_lanes_that_cannot_be_are_refused(column: str, value: int) -> None:
    good = observed()
    bad = getattr(good.fixed_lanes, column).copy()
    bad[0] = value
    with pytest.raises(InvalidRequestError, match=rf"FixedLanes\.{column}") as caught:
        attrs.evolve(good, fixed_lanes=attrs.evolve(good.fixed_lanes, **{column: bad}))
    assert caught.value.reason == "BAD_OBSERVATION"
    with pytest.raises(InvalidRequestError, match=r"FixedLanes\.\w+ has \d rows"):
        attrs.evolve(good, fixed_lanes=attrs.evolve(good.fixed_lanes, units=np.array([1])))


def logged(cut: Sequence[int]) -> list[str]:
    """The log of a run of the hybrid scaler."""
    scribe = journal.Scribe("hybrid", {})
    plant, scaler, random = Plant([surface(10.0)] * 2, devices=1, cut=cut), HybridScaler(), np.random.default_rng(1)
    lines = [scribe.begin()]
    for _ in range(30):
        plant.now_s += 1.0
        seen = plant.observe(random.poisson(9.0, 2))
        # As a gateway observes, so with the types that a log gives back.
        seen = attrs.evolve(seen, devices=Devices(seen.devices.ids, seen.devices.units, seen.devices.memory_bytes))
        decision = scaler.decide(seen)
        plant.apply(decision)
        lines += scribe.tick(seen, decision)
    return lines


def test_a_log_of_fixed_lanes_gives_the_same_decisions_again() -> None:
    lines = logged(CUT)
    found = journal.replay(lines, lambda begin: HybridScaler())
    assert (found.agree, found.difference) == (30, None)
    assert found.actions > 0
    (_, _), (_, tick), *_ = journal.read(lines)
    assert isinstance(tick, journal.Tick)
    fixed = tick.observation.fixed_lanes
    assert (fixed.lane.tolist(), fixed.units.tolist(), fixed.units.dtype) == ([0, 1, 2], list(CUT), np.int64)
    # The lanes are what the decisions depend on: without them they differ.
    without = [
        line.replace(',"fixed_lanes":{"device":[0,0,0],"lane":[0,1,2],"units":[40,20,20]}', "") for line in lines
    ]
    assert without != lines
    assert journal.replay(without, lambda begin: HybridScaler()).difference is not None


def test_a_log_without_fixed_lanes_is_as_it_was() -> None:
    lines = logged(())
    assert "fixed_lanes" not in "".join(lines)
    assert journal.replay(lines, lambda begin: HybridScaler()).agree == 30
