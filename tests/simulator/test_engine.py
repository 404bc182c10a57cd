"""Whole runs of small scenarios: what happens when, what is refused, what it costs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import Action, AddReplica, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Life
from hasfaas.simulator import kernel
from hasfaas.simulator.engine import run
from hasfaas.simulator.fleet import ReplicaLife
from hasfaas.simulator.grid import LatencyGrid
from hasfaas.simulator.result import Result, provisioned_gpu_s
from hasfaas.simulator.scenario import ClosedLoop, Scenario, SimDevice, SimFunction
from tests.fakes.scripted_policy import ScriptedPolicy, add

Array = np.ndarray[Any, Any]
Script = Mapping[float, Sequence[Action]]

GIB = 2**30


def flat_hold(hold_ms: float) -> Surface:
    """A batch of any size takes the same time."""
    return Surface((1, 64), (100.0,), [[hold_ms], [hold_ms]], [[0.0], [0.0]])


def function(name: str = "f", hold_ms: float = 10.0, **options: Any) -> SimFunction:
    """Cold starts of 2 s unless said otherwise."""
    given: dict[str, Any] = {"slo_ms": 50.0, "truth": flat_hold(hold_ms), "cold_start_s": 2.0} | options
    return SimFunction(name, **given)


def every(seconds: float, until_s: float, from_s: float = 0.0) -> Array:
    """Evenly spaced arrivals."""
    return np.arange(from_s, until_s - 1e-9, seconds)


def poisson(rps: float, until_s: float, seed: int = 0) -> Array:
    """Poisson arrivals."""
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, until_s, random.poisson(rps * until_s)))


def small(*functions: SimFunction, arrivals: Sequence[Array], devices: int = 1, **options: Any) -> Scenario:
    """A scenario of 20 s without noise unless said otherwise."""
    return Scenario(
        functions or (function(),),
        tuple(SimDevice(f"d{i}") for i in range(devices)),
        tuple(arrivals),
        **({"duration_s": 20.0, "noise": 0.0} | options),
    )


def conserved(result: Result) -> bool:
    counts = result.counts
    return counts.arrived == counts.answered + counts.dropped + counts.waiting


# -- calls ----------------------------------------------------------------------------------------------------------------


def test_the_first_calls_wait_for_the_delay_and_the_cold_start() -> None:
    result = run(small(arrivals=[every(0.5, 20.0)]), ScriptedPolicy({0.0: [add()]}))
    assert result.latency_ms[0][0] == pytest.approx(100.0 + 2_000.0 + 10.0)
    assert result.latency_ms[0][-1] == pytest.approx(10.0)
    assert conserved(result)
    assert result.counts.waiting == 0
    assert result.cold_starts == 1


def test_without_a_replica_all_calls_are_dropped_and_count_as_late() -> None:
    result = run(small(arrivals=[every(0.5, 20.0)], drop_after_s=3.0), ScriptedPolicy())
    assert result.counts.dropped == result.counts.arrived == 40
    assert result.violations() == 1.0
    assert np.all(np.isinf(result.latency_ms[0]))
    assert result.reserved_gpu_s == result.provisioned_gpu_s == 0.0


def test_a_call_is_dropped_only_once_it_has_waited_so_long() -> None:
    result = run(small(arrivals=[every(0.5, 20.0)], drop_after_s=1.0), ScriptedPolicy({0.0: [add()]}))
    # The replica is ready at 2.1 s: those that came at 1.5 s or later are answered.
    assert np.isinf(result.latency_ms[0]).tolist() == [at < 1.1 for at in result.arrived_s[0].tolist()]


def test_a_drained_replica_answers_what_it_holds_and_costs_nothing_afterwards() -> None:
    script: Script = {0.0: [add(lane=0, sm=50.0), add(lane=1, sm=50.0)], 10.0: [DrainReplica("f-0", "a test")]}
    result = run(small(function(hold_ms=30.0), arrivals=[poisson(60.0, 20.0)]), ScriptedPolicy(script))
    assert result.counts.answered == result.counts.arrived
    gone_ns, kept = result.replicas[0].gone_ns, result.replicas[1]
    assert gone_ns is not None
    assert 10.1 <= gone_ns / 1e9 < 10.3
    assert kept.gone_ns is None
    assert result.reserved_gpu_s == pytest.approx(0.5 * (gone_ns / 1e9 - 0.1) + 0.5 * 19.9)


def test_a_starting_replica_can_be_taken_back() -> None:
    script: Script = {0.0: [add()], 1.0: [DrainReplica("f-0", "a test")]}
    result = run(small(arrivals=[every(0.5, 20.0)]), ScriptedPolicy(script))
    assert result.counts.answered == 0
    assert result.replicas[0].ready_ns is None
    assert result.reserved_gpu_s == pytest.approx(1.0)


def test_what_arrived_before_the_end_is_still_answered() -> None:
    result = run(small(arrivals=[np.array([19.9999])], duration_s=20.0), ScriptedPolicy({0.0: [add()]}))
    assert result.latency_ms[0][0] == pytest.approx(10.0)
    assert result.used_gpu_s == pytest.approx(0.0001, rel=1e-3)


def test_overhead_is_added_to_each_latency() -> None:
    plain, slower = (
        run(small(function(overhead_ms=o), arrivals=[every(0.5, 20.0)]), ScriptedPolicy({0.0: [add()]}))
        for o in (0.0, 45.0)
    )
    assert np.allclose(slower.latency_ms[0] - plain.latency_ms[0], 45.0)
    assert slower.violations() == 1.0 > plain.violations()
    assert slower.used_gpu_s == pytest.approx(plain.used_gpu_s)


def test_the_batch_cap_is_obeyed_from_the_next_execution_on() -> None:
    script: Script = {0.0: [add(batch=8)], 10.0: [Rebatch("f-0", 2, "a test")]}
    scenario = small(function(cold_start_s=0.0), arrivals=[every(0.001, 20.0)], drop_after_s=0.5)
    policy = ScriptedPolicy(script)
    run(scenario, policy)
    completed = np.array([o.functions.completed[0] for o in policy.seen])
    assert completed[5:10] == pytest.approx(800, abs=20)  # 100 executions a second
    assert completed[15:] == pytest.approx(200, abs=5)


# -- the same again -------------------------------------------------------------------------------------------------------


def busy_scenario(seed: int = 0, **options: Any) -> tuple[Scenario, ScriptedPolicy]:
    """Two functions that share lanes, with noise and re-sizes."""
    functions = (function("f", 12.0), function("g", 5.0, batch_max=1))
    arrivals = [poisson(60.0, 20.0, 1), poisson(40.0, 20.0, 2)]
    script: Script = {
        0.0: [add("f", quota=40.0, sm=50.0), add("g", quota=30.0, sm=50.0), add("f", lane=1, quota=60.0, sm=25.0)],
        6.0: [Resize("f-0", 60.0, "a test"), Rebatch("f-2", 3, "a test")],
        9.0: [Resize("f-0", 20.0, "a test"), Resize("g-1", 80.0, "a test"), DrainReplica("f-2", "a test")],
    }
    scenario = small(*functions, arrivals=arrivals, **({"noise": 0.1, "seed": seed} | options))
    return scenario, ScriptedPolicy(script)


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    first, again, other = (run(*busy_scenario(seed)) for seed in (1, 1, 2))
    for one, two in itertools.pairwise((first, again)):
        assert all(np.array_equal(a, b) for a, b in zip(one.latency_ms, two.latency_ms, strict=True))
        assert np.array_equal(one.billed, two.billed)
        assert one.actions == two.actions
    assert not np.array_equal(first.latency_ms[0], other.latency_ms[0])
    assert first.counts.arrived == other.counts.arrived


@pytest.mark.parametrize("law", ["lane", "table"])
def test_interpreted_and_compiled_runs_are_equal(law: Literal["lane", "table"]) -> None:
    def once(which: kernel.Kernel) -> Result:
        scenario, policy = busy_scenario(interference=1.2)
        table = LatencyGrid((1, 8), (50, 100), (50, 100), [[[9, 7], [8, 6]], [[20, 15], [18, 14]]])
        with_table = tuple(attrs.evolve(f, table=table) for f in scenario.functions)
        return run(attrs.evolve(scenario, law=law, functions=with_table), policy, kernel=which)

    compiled, interpreted = once(kernel.load()), once(kernel.INTERPRETED)
    assert all(np.array_equal(a, b) for a, b in zip(compiled.latency_ms, interpreted.latency_ms, strict=True))
    assert np.array_equal(compiled.billed, interpreted.billed)
    assert interpreted.interpreted


def test_without_numba_the_kernel_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernel.load.__wrapped__() is kernel.INTERPRETED


# -- lanes ----------------------------------------------------------------------------------------------------------------


def overloaded(*, lend: bool) -> Result:
    """One function with more work than its half of a lane, whose other half belongs to one that has hardly any."""
    functions = (function(cold_start_s=0.0, batch_max=1), function("g", cold_start_s=0.0))
    script: Script = {0.0: [add(quota=50.0), add("g", quota=50.0)]}
    scenario = small(*functions, arrivals=[every(0.005, 20.0), every(1.0, 20.0, 1.0)], lend=lend, drop_after_s=1.0)
    return run(scenario, ScriptedPolicy(script))


def test_lent_time_is_used_and_billed() -> None:
    alone, lent = overloaded(lend=False), overloaded(lend=True)
    served = [np.isfinite(r.latency_ms[0]).sum() for r in (alone, lent)]
    assert served[1] / served[0] == pytest.approx(2.0, rel=0.1)
    assert lent.violations(1) == alone.violations(1) == 0.0
    assert np.allclose(alone.reserved, lent.reserved)
    assert alone.billed == pytest.approx(alone.reserved, rel=0.02)
    assert lent.billed[0] == pytest.approx(lent.used[0], rel=0.02)
    assert lent.billed[0] > 1.8 * lent.reserved[0]


def test_a_larger_quota_is_in_force_within_its_delay_and_a_window() -> None:
    # 25 ms of work every 50 ms: a quota of 40 % falls behind, one of 60 % catches up.
    script: Script = {0.0: [add(quota=40.0)], 10.0: [Resize("f-0", 60.0, "a test")]}
    scenario = small(function(hold_ms=25.0, cold_start_s=0.0, batch_max=1), arrivals=[every(0.05, 20.0)])
    policy = ScriptedPolicy(script)
    run(scenario, policy)
    used = np.array([o.replicas.used_s[0] for o in policy.seen[5:]])
    assert used[:6] == pytest.approx(0.4, abs=0.03)
    assert used[6:10] == pytest.approx(0.6, abs=0.03)


def test_interference_slows_a_lane_while_another_is_busy() -> None:
    functions = (function(cold_start_s=0.0), function("g", hold_ms=400.0, cold_start_s=0.0))
    script: Script = {0.0: [add(sm=50.0), add("g", lane=1, sm=50.0)]}
    arrivals = [every(0.1, 20.0, 1.05), np.array([10.0])]
    result = run(small(*functions, arrivals=arrivals, interference=1.5), ScriptedPolicy(script))
    slowed = result.latency_ms[0] > 12.0
    assert result.latency_ms[0][slowed] == pytest.approx(15.0)
    assert result.arrived_s[0][slowed] == pytest.approx([10.05, 10.15, 10.25, 10.35])


# -- what cannot be done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (add(lane=1, sm=60.0), "units left"),
        (add(lane=0, sm=50.0, quota=60.0), "40 % left"),
        (add(lane=0, sm=20.0, quota=10.0), "has 40 units"),
        (add("huge", lane=1, sm=10.0), "memory left"),
        (add(lane=8, sm=10.0), "lane 8"),
        (add(lane=1, sm=0.0), "cannot be"),
        (add("nobody", lane=1, sm=10.0), "no 'nobody'"),
        (add(device="d9", lane=1, sm=10.0), "'d9'"),
        (Resize("f-0", 100.5, "a test"), "does not fit"),
        (Resize("f-0", -1.0, "a test"), "does not fit"),
        (Resize("f-7", 10.0, "a test"), "gone"),
        (Rebatch("f-7", 1, "a test"), "gone"),
        (Rebatch("f-0", 0, "a test"), "at least 1"),
        (DrainReplica("f-7", "a test"), "gone"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(bad: Action, why: str) -> None:
    functions = (function(), function("huge", memory_bytes=15 * GIB))
    scenario = small(*functions, arrivals=[every(0.5, 20.0), every(1.0, 2.0)])
    result = run(scenario, ScriptedPolicy({0.0: [add(sm=50.0, quota=60.0)], 5.0: [bad]}))
    assert [(r.action, r.now_s) for r in result.refusals] == [(bad, 5.1)]
    assert why in result.refusals[0].why
    assert result.refused == 1
    assert len(result.actions) == 1


def test_no_device_has_more_lanes_or_replicas_than_it_can() -> None:
    many = [add(lane=i % 8, sm=12.5, quota=10.0) for i in range(33)]
    scenario = small(function(memory_bytes=1), arrivals=[every(0.5, 20.0)])
    result = run(scenario, ScriptedPolicy({0.0: many}))
    assert [r.action for r in result.refusals] == many[32:]


def test_room_is_free_again_once_a_replica_is_gone() -> None:
    script: Script = {0.0: [add(sm=100.0)], 5.0: [DrainReplica("f-0", "a test")], 6.0: [add(lane=3, sm=60.0)]}
    result = run(small(arrivals=[every(0.5, 20.0)]), ScriptedPolicy(script))
    assert not result.refusals
    assert result.replicas[1].sm_percent == 60.0
    assert result.counts.answered == result.counts.arrived


# -- costs ----------------------------------------------------------------------------------------------------------------


def test_the_three_costs_of_a_steady_replica() -> None:
    scenario = small(arrivals=[every(0.5, 20.0)], devices=2, warmup_s=4.5)
    policy = ScriptedPolicy({0.0: [add(sm=50.0, quota=40.0)], 12.0: [add(device="d1", sm=50.0, quota=10.0)]})
    result = run(scenario, policy)
    assert result.reserved_gpu_s == pytest.approx(0.5 * 0.4 * 15.5 + 0.5 * 0.1 * 7.9)
    assert result.provisioned_gpu_s == pytest.approx(15.5 + 7.9)
    assert result.peak_devices == 2
    assert result.used_gpu_s == pytest.approx(31 * 0.010 * 0.5, rel=0.04)
    assert result.billed_gpu_s == pytest.approx(result.reserved_gpu_s)
    assert len(result.counted()[0]) == 31


def test_devices_are_provisioned_while_anybody_is_there() -> None:
    def life(device: int, asked_s: float, gone_s: float | None) -> ReplicaLife:
        gone_ns = None if gone_s is None else round(gone_s * 1e9)
        return ReplicaLife("f-0", 0, device, 0, 100.0, round(asked_s * 1e9), gone_ns=gone_ns)

    lives = [life(0, 0.0, 4.0), life(0, 3.0, 6.0), life(0, 8.0, 9.0), life(1, 9.0, 10.0), life(2, 5.0, None)]
    for from_s, to_s, total_s in ((0.0, 20.0, 6.0 + 1.0 + 1.0 + 15.0), (5.5, 8.5, 0.5 + 0.5 + 3.0)):
        found_s, peak = provisioned_gpu_s(lives, from_s, to_s)
        assert found_s == pytest.approx(total_s)
        assert peak == 2
    assert provisioned_gpu_s([], 0.0, 20.0) == (0.0, 0)


def test_shares_are_rounded_up_to_whole_units() -> None:
    result = run(small(arrivals=[every(0.5, 20.0)]), ScriptedPolicy({0.0: [add(sm=0.3)]}))
    assert result.replicas[0].sm_percent == 1.25
    assert result.reserved_gpu_s == pytest.approx(0.0125 * 19.9)


# -- what a policy sees ---------------------------------------------------------------------------------------------------


def test_observations_add_up() -> None:
    scenario, policy = busy_scenario()
    result = run(scenario, policy)
    seen = policy.seen
    assert [o.now_s for o in seen] == [float(i) for i in range(20)]
    assert {o.interval_s for o in seen[1:]} == {1.0}
    for i, arrived_s in enumerate(result.arrived_s):
        assert [o.functions.arrivals[i] for o in seen[1:]] == np.histogram(arrived_s, range(20))[0].tolist()
        in_system = np.cumsum([o.functions.arrivals[i] - o.functions.completed[i] for o in seen])
        assert in_system.tolist() == [o.functions.waiting[i] + o.functions.in_flight[i] for o in seen]
    assert seen[1].replicas.life.tolist() == [Life.STARTING] * 3
    assert seen[3].replicas.life.tolist() == [Life.READY] * 3
    assert seen[3].replicas.since_s == pytest.approx([0.1] * 3)
    assert seen[7].replicas.quota_percent.tolist() == [60.0, 30.0, 60.0]
    assert seen[7].replicas.batch.tolist() == [8, 1, 3]
    assert seen[-1].replicas.ids == ("f-0", "g-1")
    used_s = sum(float((o.replicas.used_s * o.replicas.sm_percent / 100.0).sum()) for o in seen)
    assert used_s == pytest.approx(result.used_gpu_s, rel=0.1)


def test_the_policy_sees_the_surface_that_it_was_told() -> None:
    told = flat_hold(3.0)
    policy = ScriptedPolicy({0.0: [add()]})
    result = run(small(function(told=told), arrivals=[every(0.5, 20.0)]), policy)
    assert policy.seen[0].functions.surfaces == (told,)
    assert result.latency_ms[0][-1] == pytest.approx(10.0)


def test_ticks_come_when_the_policy_asks_within_bounds() -> None:
    fast, slow = ScriptedPolicy(tick_s=0.25), ScriptedPolicy(tick_s=1e9)
    for policy in (fast, slow):
        run(small(arrivals=[every(0.5, 20.0)], duration_s=100.0), policy)
    assert len(fast.seen) == 400
    assert [o.now_s for o in slow.seen] == [0.0, 60.0]


def test_thinking_is_timed_by_the_clock_that_is_handed_in() -> None:
    ticks = itertools.count()
    result = run(small(arrivals=[every(0.5, 20.0)]), ScriptedPolicy(), clock_s=lambda: 0.5 * next(ticks))
    assert result.decide_s.tolist() == [0.5] * 20


def test_a_series_is_sampled_at_each_tick() -> None:
    scenario, policy = busy_scenario()
    series = run(scenario, policy).series
    assert series.now_s.tolist() == [float(i) for i in range(20)]
    assert series.replicas[5].tolist() == [2.0, 1.0]
    assert series.quota_percent[5].tolist() == [100.0, 30.0]
    assert series.reserved[5] == pytest.approx([0.4 * 0.5 + 0.6 * 0.25, 0.3 * 0.5])
    assert series.lane_quota_percent[5, 0, :3].tolist() == [70.0, 60.0, 0.0]
    assert series.lane_sm_percent[-1, 0, :3].tolist() == [50.0, 0.0, 0.0]


# -- the other law and the other client -------------------------------------------------------------------------------------

GRID = LatencyGrid(
    (1, 8), (50.0, 100.0), (10.0, 50.0, 100.0), [[[80, 20, 12], [70, 18, 10]], [[160, 60, 40], [150, 50, 30]]]
)


def test_on_a_table_an_execution_takes_what_its_quota_at_the_start_says() -> None:
    script: Script = {0.0: [add(sm=50.0, quota=50.0)], 10.0: [Resize("f-0", 10.0, "a test")]}
    scenario = small(function(cold_start_s=0.0, table=GRID), arrivals=[every(0.5, 20.0, 0.75)], law="table")
    result = run(scenario, ScriptedPolicy(script))
    before = result.arrived_s[0] < 10.1
    assert result.latency_ms[0][before] == pytest.approx(20.0)
    assert result.latency_ms[0][~before] == pytest.approx(80.0)


def test_on_a_table_replicas_of_a_lane_do_not_take_turns() -> None:
    functions = tuple(function(n, cold_start_s=0.0, table=GRID, batch_max=1) for n in ("f", "g"))
    script: Script = {0.0: [add("f", sm=50.0, quota=50.0), add("g", sm=50.0, quota=50.0)]}
    scenario = small(*functions, arrivals=[every(0.02, 20.0, 1.0)] * 2, law="table")
    assert run(scenario, ScriptedPolicy(script)).percentile_ms(100.0) == pytest.approx(20.0)


def test_a_closed_loop_client_slows_down_with_its_server() -> None:
    client = ClosedLoop((5.0, 5.0), (10.0, 40.0))
    scenario = small(
        function(hold_ms=50.0, batch_max=1, cold_start_s=0.0), arrivals=[np.zeros(0)], client=client, duration_s=60.0
    )
    policy = ScriptedPolicy({0.0: [add()]})
    result = run(scenario, policy)
    arrived_s, latency_ms = result.arrived_s[0], result.latency_ms[0]
    assert result.counts.arrived == result.counts.answered == 50 + 200
    assert np.diff(arrived_s[5:50]) == pytest.approx(0.1)
    # 20 rps are served, 40 asked for: the second stage lasts twice as long, and 80 calls are under way at most.
    assert arrived_s[50] == pytest.approx(5.0)
    assert (arrived_s + latency_ms / 1e3).max() == pytest.approx(15.0, abs=0.1)
    assert max(o.functions.in_flight[0] + o.functions.waiting[0] for o in policy.seen) <= 80
    assert latency_ms.max() == pytest.approx(80 * 50.0, rel=0.05)
    assert 15.0 <= result.duration_s <= 17.0
    assert result.reserved_gpu_s == pytest.approx(result.duration_s - 0.1)


# -- bad scenarios ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"arrivals": [np.array([2.0, 1.0])]}, "sorted"),
        ({"arrivals": [np.array([20.0])]}, "duration_s"),
        ({"arrivals": [np.array([-1.0])]}, "sorted"),
        ({"arrivals": []}, "one each"),
        ({"arrivals": [[]], "warmup_s": 20.0}, "warmup_s"),
        ({"arrivals": [[]], "tick_s": 0.0}, "tick_s"),
        ({"arrivals": [[]], "law": "table"}, "no table"),
        ({"arrivals": [[]], "interference": 0.9}, "interference"),
        ({"arrivals": [[1.0]], "client": ClosedLoop((1.0,), (1.0,))}, "closed-loop"),
        ({"arrivals": [[]], "factors": np.zeros(3)}, "factors"),
    ],
)
def test_a_bad_scenario_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequestError, match=word) as caught:
        small(**options)
    assert caught.value.reason == "BAD_SCENARIO"


def test_a_bad_grid_is_refused() -> None:
    bad: list[tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], Array]] = [
        ((2, 1), (50,), (50,), np.ones((2, 1, 1))),
        ((1,), (), (50,), np.ones((1, 0, 1))),
        ((1,), (50,), (50, 100), np.ones((2, 1, 1))),
        ((1,), (50,), (50,), np.zeros((1, 1, 1))),
    ]
    for axes in bad:
        with pytest.raises(InvalidRequestError) as caught:
            LatencyGrid(*axes)
        assert caught.value.reason == "BAD_GRID"


def test_a_grid_is_read_between_its_points_and_clamped_beyond_them() -> None:
    assert GRID.latency(1, 50.0, 10.0) == pytest.approx(80.0)
    assert GRID.latency(16, 200.0, 200.0) == pytest.approx(30.0)
    assert GRID.latency(1, 25.0, 5.0) == pytest.approx(80.0)
    assert 20.0 < GRID.latency(1, 50.0, 30.0) < 80.0


def test_an_added_replica_has_a_reason() -> None:
    with pytest.raises(InvalidRequestError):
        AddReplica("f", "d0", 0, 10.0, 10.0, 1, " ")
