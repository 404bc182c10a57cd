"""The oracle: its course against all courses, and what it has ready when the load comes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.baselines.menu import menu
from hasfaas.scaling.baselines.oracle import AHEAD_S, Oracle
from hasfaas.scaling.baselines.slices import Promise
from hasfaas.scaling.baselines.timetable import cheapest
from hasfaas.scaling.capacity import lane_rps
from hasfaas.scaling.decision import AddReplica, DrainReplica
from tests.scaling.baselines.stage import Function, Stage, surface

MADE = surface(3.0, fixed_ms=6.0, sm_power=0.4)
SLO_MS = 100.0
RUNS, SHARES, MOST = 4, 2, 2


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(0.01, 4.0), st.just(float("inf"))),
        min_size=RUNS * SHARES * MOST,
        max_size=RUNS * SHARES * MOST,
    ),
    idle=st.lists(st.booleans(), min_size=RUNS, max_size=RUNS),
    lengths=st.lists(st.integers(1, 5), min_size=RUNS, max_size=RUNS),
    cold_s=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_no_course_is_cheaper(values: list[float], idle: list[bool], lengths: list[int], cold_s: float) -> None:
    area = np.full((RUNS, SHARES, MOST + 1), np.inf)
    area[:, :, 1:] = np.reshape(values, (RUNS, SHARES, MOST))
    area[np.array(idle), :, 0] = 0.0
    area[:, 0, MOST] = np.minimum(area[:, 0, MOST], 5.0)  # something always carries it
    found = cheapest(area, np.array(lengths), cold_s)

    def each(run: int, share: int) -> float:
        best = int(np.argmin(area[run, share, 1:]))
        cost = float(area[run, share, 1 + best]) / (1 + best)
        return cost if np.isfinite(cost) else 0.0

    def cost(course: tuple[tuple[int, int], ...]) -> float:
        total = sum(area[run][state] * lengths[run] for run, state in enumerate(course))
        for run in range(1, RUNS):
            (old, before), (new, after) = course[run - 1], course[run]
            started = max(0, after - before) if old == new else after
            total += cold_s * started * each(run, new) if started else 0.0
        return float(total)

    states = list(itertools.product(range(SHARES), range(MOST + 1)))
    least = min(cost(course) for course in itertools.product(states, repeat=RUNS))
    assert found.cost == pytest.approx(least)
    begins = np.cumsum([0, *lengths[:-1]])
    assert cost(tuple(found.at(int(second)) for second in begins)) == pytest.approx(least)
    assert len(found.share) == sum(lengths)


def test_the_menu_lists_the_least_quota() -> None:
    promise = Promise(MADE, SLO_MS, 0.01, 8, Timing())
    listed = menu(promise)
    share = listed.sm_percents.tolist().index(20.0)
    quota, batch = listed.quota(share, 2, 60.0)

    def carried(quota: float, batch: int) -> float:
        return float(lane_rps(2, batch, MADE.hold(batch, 20.0), quota / 100.0, SLO_MS, Timing(), late_share=0.01))

    assert carried(quota, batch) >= 60.0
    assert max(carried(quota - 5.0, b) for b in range(1, 9)) < 60.0
    assert listed.area(np.array([60.0, 0.0]))[:, share, :3].tolist() == [
        [np.inf, listed.area(np.array([60.0]))[0, share, 1], 2 * 20.0 * quota / 1e4],
        [0.0, 0.004, 0.008],  # at no load the least quota that there is, 2 %
    ]


def _course(
    rates: np.ndarray, *, cold_s: float, free: bool = False, made: Surface = MADE
) -> tuple[Stage, list[list[tuple[float, float, int]]]]:
    """The slices that serve in each second."""
    stage = Stage([Function(surface=made, slo_ms=SLO_MS)], devices=8, cold_s=cold_s)
    policy, serving = Oracle(rates, free=free), []
    for second in range(rates.shape[1]):
        stage.step(policy, float(second))
        ready = [r for r in stage.replicas if r.life == 1]
        serving.append([(r.sm_percent, r.quota_percent, r.batch) for r in ready])
    return stage, serving


def _carried(slices: list[tuple[float, float, int]]) -> float:
    """Of replicas that are alike."""
    (sm, quota, batch) = slices[0]
    assert set(slices) == {slices[0]}
    capacity = lane_rps(len(slices), batch, MADE.hold(batch, sm), quota / 100.0, SLO_MS, Timing(), late_share=0.01)
    return float(capacity)


def test_what_is_needed_serves_when_it_is_needed_and_no_longer() -> None:
    rates = np.full((1, 120), 10.0)
    rates[0, 50:70] = 400.0
    _, serving = _course(rates, cold_s=10.0)
    for second in range(15, 119):
        alike = [s for s in serving[second] if s[0] == serving[second][0][0]]
        assert _carried(alike) >= rates[0, second], second
    area = [sum(sm * quota for sm, quota, _ in slices) for slices in serving]
    # One second early for what comes next, one cold start late at most for what was.
    assert min(area[51:69]) > 5.0 * max(area[15:47])
    assert max(area[72:]) < 0.2 * min(area[51:69])


def test_replicas_are_ordered_a_cold_start_ahead_and_each_action_has_a_reason() -> None:
    rates = np.full((1, 320), 10.0)
    # So late that the replicas of the burst would cost more from the start than a cold start does.
    rates[0, 250:270] = 400.0
    stage = Stage([Function(surface=MADE, slo_ms=SLO_MS)], devices=8, cold_s=10.0)
    policy, adds, drains = Oracle(rates), [], []
    for second in range(320):
        decision = stage.step(policy, float(second))
        adds += [second for action in decision.actions if isinstance(action, AddReplica)]
        drains += [second for action in decision.actions if isinstance(action, DrainReplica)]
        assert all(action.reason for action in decision.actions)
    # Second 249 is planned at the rate of 250. After the burst replicas stay while another burst within 12 s would need them.
    assert set(adds) <= {0, 249 - 10 - int(AHEAD_S), 270 - 10 - int(AHEAD_S)}
    assert 249 - 10 - int(AHEAD_S) in adds
    assert drains
    assert set(drains) <= {249, 250, 270, 271}


@pytest.mark.parametrize("made", [MADE, surface(10.0)])
def test_free_of_cold_starts_it_takes_the_least_area_of_each_second(made: Surface) -> None:
    rates = np.array([[5.0, 5.0, 80.0, 200.0, 30.0, 30.0, 1.0, 0.0, 0.0]])
    _, serving = _course(rates, cold_s=0.0, free=True, made=made)
    promise = Promise(made, SLO_MS, 0.01, 8, Timing())
    ahead = np.maximum(rates[0], np.append(rates[0, 1:], 0.0))
    least = menu(promise).area(ahead).reshape(len(ahead), -1).min(axis=1)
    area = [sum(sm * quota for sm, quota, _ in slices) / 1e4 for slices in serving]
    assert area == pytest.approx(least.tolist())
    assert area[-2:] == [0.0, 0.0]


def test_a_promise_that_cannot_be_kept_gets_one_device_and_bad_rates_are_refused() -> None:
    stage = Stage([Function(surface=MADE, slo_ms=5.0)], devices=2, cold_s=0.0)
    stage.step(Oracle([[10.0, 10.0]]), 0.0)
    assert stage.slices() == [(100.0, 100.0, 1)]
    with pytest.raises(InvalidRequestError, match="not negative"):
        Oracle([[-1.0]])
    with pytest.raises(InvalidRequestError, match="rates_rps has 1 rows for 2 functions"):
        Stage([Function("a"), Function("b")]).step(Oracle([[1.0]]), 0.0)
