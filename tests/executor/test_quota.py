"""The token protocol over a virtual clock: its laws hold for any mix of replicas, re-sizes and deaths."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor import quota
from hasfaas.executor.quota import PPM, SlotState, Step, Timing
from tests.fakes.virtual_lane import MS, Account, Row, VirtualLane, saturated

TIMING = Timing()
SECOND = 1000 * MS

TIMINGS = st.sampled_from([TIMING, Timing(50 * MS, 5 * MS), Timing(20 * MS, 5 * MS), Timing(100 * MS, 40 * MS)])
UNITS_NS = st.integers(200_000, 8 * MS)


@st.composite
def quota_sets(draw: st.DrawFn, least: int = 1) -> list[int]:
    """One to five quotas of at least 1 % whose sum is at most 100 %."""
    weights = draw(st.lists(st.integers(1, 20), min_size=least, max_size=5))
    total = draw(st.integers(5, 100)) * PPM // 100
    return [max(total * w // sum(weights), PPM // 100) for w in weights]


def bursts(data: st.DataObject) -> Iterator[tuple[int, int]]:
    """Work and idle times that repeat."""
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 200 * MS), st.integers(200_000, 40 * MS)), min_size=1, max_size=6)
    )
    return itertools.cycle(pairs)


def held(world: VirtualLane, index: int) -> list[tuple[int, int]]:
    """The spans in which a replica held the lane, the running one included."""
    replica = world.replicas[index]
    running = [(replica.held_since_ns, world.now_ns)] if replica.held_since_ns >= 0 else []
    return replica.holds + running


def greatest_excess_ns(spans: list[tuple[int, int]], quota_ppm: int) -> int:
    """The most by which the hold in any span of time exceeds its share of that span."""
    worst = total = 0
    least_at_start = 0
    for start, end in spans:
        least_at_start = min(least_at_start, total - start * quota_ppm // PPM)
        total += end - start
        worst = max(worst, total - end * quota_ppm // PPM - least_at_start)
    return worst


# -- the laws ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), timing=TIMINGS, quotas=quota_sets(), wake_ns=st.integers(0, 3 * MS))
def test_hold_over_any_span_is_bounded_by_share_two_caps_and_a_unit(
    data: st.DataObject, timing: Timing, quotas: list[int], wake_ns: int
) -> None:
    world = VirtualLane(timing, wake_ns=wake_ns)
    units = [data.draw(UNITS_NS) for _ in quotas]
    for share, unit_ns in zip(quotas, units, strict=True):
        plan = saturated() if data.draw(st.booleans()) else bursts(data)
        world.add(share, plan, unit_ns=unit_ns)
    for when in data.draw(st.lists(st.integers(0, SECOND), max_size=5)):
        world.at(when, partial(world.observe, data.draw(st.sampled_from(range(len(quotas))))))
    world.run_until(SECOND)
    for index, (share, unit_ns) in enumerate(zip(quotas, units, strict=True)):
        allowed = 2 * quota.cap(share, timing) + unit_ns
        assert greatest_excess_ns(held(world, index), share) <= allowed + 1000


@settings(max_examples=40, deadline=None)
@given(share=st.integers(PPM // 100, PPM), idle_ns=st.integers(0, 100 * SECOND), unit_ns=UNITS_NS)
def test_idle_credit_is_bounded_however_long_it_was_idle(share: int, idle_ns: int, unit_ns: int) -> None:
    world = VirtualLane(TIMING)
    plan = itertools.chain([(0, unit_ns), (idle_ns + 1, SECOND)], saturated())
    index = world.add(share, plan, unit_ns=unit_ns)
    world.run_until(idle_ns + SECOND)
    after_idle = [span for span in held(world, index) if span[1] > idle_ns]
    # One more unit: the doubled cap is earned while waiting only, and alone nobody waits above a threshold.
    assert greatest_excess_ns(after_idle, share) <= quota.cap(share, TIMING) + 2 * unit_ns


@settings(max_examples=40, deadline=None)
@given(data=st.data(), quotas=quota_sets(), loss=st.sampled_from([0.0, 0.2]))
def test_resizes_make_no_tokens_and_keep_the_laws(data: st.DataObject, quotas: list[int], loss: float) -> None:
    world = VirtualLane(TIMING, wake_ns=100_000, loss=loss)
    for share in quotas:
        world.add(share, saturated() if data.draw(st.booleans()) else bursts(data), unit_ns=MS)
    indices = st.sampled_from(range(len(quotas)))
    for when in data.draw(st.lists(st.integers(0, SECOND), max_size=20)):
        world.at(when, partial(world.resize, data.draw(indices), data.draw(st.integers(0, PPM))))
    world.run_until(SECOND)  # `resize` and `check` hold the assertions
    for slot in world.slots.values():
        assert 0 <= slot.throttled_ns <= slot.wait_ns <= SECOND


@settings(max_examples=40, deadline=None)
@given(
    when=st.integers(SECOND, 2 * SECOND),
    after=st.integers(0, PPM // 2),
    unit_ns=st.integers(100_000, 2 * MS),
    quotas=quota_sets(least=2),
)
def test_a_resize_is_in_force_within_a_window(when: int, after: int, unit_ns: int, quotas: list[int]) -> None:
    world = VirtualLane(TIMING, wake_ns=100_000)
    shares = [q // 2 for q in quotas]
    for share in shares:
        world.add(share, saturated(), unit_ns=unit_ns)
    world.at(when, partial(world.resize, 0, after))
    world.run_until(when + TIMING.window_ns)
    assert quota.in_force(world.slots[0])
    assert world.slots[0].acknowledged_ns - when <= TIMING.window_ns


def test_a_grown_replica_runs_within_a_window_even_from_a_tiny_quota() -> None:
    world = VirtualLane(TIMING, wake_ns=100_000)
    grown = world.add(PPM // 100, saturated(), unit_ns=MS)
    for _ in range(2):
        world.add(PPM // 4, saturated(), unit_ns=MS)
    for when in range(2 * SECOND, 6 * SECOND, SECOND // 3):
        world.run_until(when)
        world.resize(grown, PPM // 2)
        world.run_until(when + TIMING.window_ns)
        assert world.slots[grown].taken_ns >= when
        world.resize(grown, PPM // 100)


def test_resized_shares_converge_within_two_windows() -> None:
    world = VirtualLane(TIMING, wake_ns=100_000)
    index = world.add(800_000, saturated(), unit_ns=MS)
    for share in itertools.islice(itertools.cycle([200_000, 800_000]), 6):
        world.run_until(world.now_ns + 7 * TIMING.window_ns)
        world.resize(index, share)
        world.run_until(world.now_ns + 2 * TIMING.window_ns)
        used, start = world.slots[index].used_ns, world.now_ns
        world.run_until(world.now_ns + 5 * TIMING.window_ns)
        got = (world.slots[index].used_ns - used) / (world.now_ns - start)
        # One lease of 10 ms more or less in 500 ms.
        assert got == pytest.approx(share / PPM, abs=0.025)


@pytest.mark.parametrize(
    "shares", [[0.3], [0.5, 0.5], [0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4], [0.05, 0.1, 0.15]], ids=str
)
def test_saturated_replicas_get_their_shares(shares: list[float]) -> None:
    world = VirtualLane(TIMING, wake_ns=200_000)
    for share in shares:
        world.add(round(share * PPM), saturated(), unit_ns=MS)
    world.run_until(8 * SECOND)
    got = [slot.used_ns / world.now_ns for slot in world.slots.values()]
    assert got == pytest.approx(shares, abs=0.02)
    assert sum(got) >= sum(shares) - 0.03


def test_over_subscription_is_shared_fairly() -> None:
    world = VirtualLane(TIMING, wake_ns=200_000)
    for _ in range(3):
        world.add(PPM // 2, saturated(), unit_ns=MS)
    world.run_until(8 * SECOND)
    got = [slot.used_ns / world.now_ns for slot in world.slots.values()]
    assert max(got) - min(got) < 0.01


def test_accounts_add_up_for_one_that_is_alone() -> None:
    world = VirtualLane(TIMING)
    index = world.add(300_000, saturated(), unit_ns=MS)
    world.run_until(SECOND)
    slot = world.slots[index]
    assert slot.granted_ns == pytest.approx(300 * MS, rel=1e-4)
    assert slot.used_ns + slot.wait_ns == SECOND
    assert slot.throttled_ns == slot.wait_ns  # nobody else to wait for
    assert slot.overrun_ns == 0 == slot.lent_ns


def test_waiting_for_a_neighbour_is_not_throttling() -> None:
    world = VirtualLane(TIMING)
    for _ in range(3):  # each gets a third of the lane and is entitled to a half, so tokens never lack for long
        world.add(PPM // 2, saturated(), unit_ns=MS)
    world.run_until(SECOND)
    for slot in world.slots.values():
        assert slot.wait_ns > 600 * MS
        assert slot.throttled_ns < 100 * MS


def test_a_unit_longer_than_the_lease_is_counted_as_overrun_and_paid_back() -> None:
    world = VirtualLane(TIMING)
    index = world.add(PPM // 5, saturated(), unit_ns=30 * MS)
    world.run_until(10 * SECOND)
    slot = world.slots[index]
    assert slot.overrun_ns == pytest.approx(20 * MS * slot.grants, rel=0.05)
    assert slot.used_ns / world.now_ns == pytest.approx(0.2, abs=0.01)


# -- lending -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(quotas=quota_sets(least=2), unit_ns=st.integers(100_000, 2 * MS))
def test_lending_leaves_no_time_unused_and_guards_each_share(quotas: list[int], unit_ns: int) -> None:
    world = VirtualLane(TIMING, wake_ns=50_000)
    for share in quotas:
        world.add(share, saturated(), unit_ns=unit_ns, lend=True)
    world.run_until(4 * SECOND)
    assert sum(slot.used_ns for slot in world.slots.values()) >= 0.95 * world.now_ns
    for share, slot in zip(quotas, world.slots.values(), strict=True):
        assert slot.used_ns / world.now_ns >= share / PPM - 0.04
        assert slot.lent_ns <= slot.used_ns


def test_borrowed_time_is_given_back_to_who_is_entitled() -> None:
    world = VirtualLane(TIMING, wake_ns=50_000)
    strict = world.add(600_000, itertools.cycle([(200 * MS, 30 * MS)]), unit_ns=MS)
    lender = world.add(0, saturated(), unit_ns=MS, lend=True)
    world.run_until(4 * SECOND)
    waits = world.slots[strict].wait_ns / len(world.replicas[strict].done_ns)
    assert waits <= 2 * MS  # one unit of the borrower, and a wake-up
    assert world.slots[lender].lent_ns == world.slots[lender].used_ns
    assert sum(slot.used_ns for slot in world.slots.values()) >= 0.97 * world.now_ns


def test_without_lending_idle_time_stays_idle() -> None:
    world = VirtualLane(TIMING)
    for share in (200_000, 300_000):
        world.add(share, saturated(), unit_ns=MS)
    world.run_until(4 * SECOND)
    assert sum(slot.used_ns for slot in world.slots.values()) / world.now_ns == pytest.approx(0.5, abs=0.01)


# -- death ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(when=st.integers(0, SECOND), victim=st.integers(0, 2), loss=st.sampled_from([0.0, 0.3]))
def test_a_death_at_any_instant_delays_the_others_by_little(when: int, victim: int, loss: float) -> None:
    world = VirtualLane(TIMING, wake_ns=100_000, loss=loss)
    for _ in range(3):
        world.add(PPM // 3, saturated(), unit_ns=MS)
    world.at(when, partial(world.kill, victim))
    world.run_until(when + 2 * SECOND)
    survivors = [i for i in range(3) if i != victim]
    spans = sorted(span for i in survivors for span in held(world, i) if span[1] > when)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(spans)]
    longest = max([spans[0][0] - when, *gaps])
    assert longest <= TIMING.quantum_ns + quota.GRACE_NS + (5 * MS if loss == 0.0 else 30 * MS)
    assert world.slots[victim].state == SlotState.IDLE


def test_one_that_does_not_answer_an_offer_is_passed_over() -> None:
    slots = {i: Account(quota_ppm=PPM // 2, tokens_ns=50 * MS) for i in range(2)}
    lane = Row()
    silent = quota.acquire(lane, {0: slots[0]}, 0, 0, TIMING)
    assert silent.granted
    quota.release(lane, slots, 0, 10 * MS, TIMING)
    slots[0].state, slots[0].v_ns, slots[1].v_ns = SlotState.WAIT, 0, 5 * MS
    first = quota.acquire(lane, slots, 1, 10 * MS, TIMING)
    assert (first.granted, first.wake, first.suspect) == (False, 0, None)
    assert quota.acquire(lane, slots, 1, 16 * MS, TIMING).suspect == 0
    assert quota.acquire(lane, slots, 1, 31 * MS, TIMING).granted


class _Died(Exception):
    pass


class _Mortal:
    """Passes words through until its process dies at the n-th write of a step."""

    def __init__(self, target: object, budget: list[int]) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_budget", budget)

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)

    def __setattr__(self, name: str, value: object) -> None:
        budget: list[int] = self.__dict__["_budget"]
        if budget[0] == 0:
            raise _Died
        budget[0] -= 1
        setattr(self._target, name, value)


def _lane_before(step: str) -> tuple[Row, dict[int, Account]]:
    """Slot 0 is about to take `step`; slots 1 and 2 wait with tokens."""
    slots = {i: Account(quota_ppm=PPM // 3, tokens_ns=8 * MS, stamp_ns=i) for i in range(3)}
    lane = Row()
    for index in (1, 2):
        slots[index].state = SlotState.WAIT
    if step != "acquire":
        slots[0].state = SlotState.IDLE
        slots[0].v_ns = -MS
        assert quota.acquire(lane, slots, 0, MS, TIMING).granted
    return lane, slots


_STEPS: dict[str, Callable[..., object]] = {
    "acquire": quota.acquire,
    "renew": partial(quota.renew, drained=True),
    "release": quota.release,
    "resize": lambda lane, slots, me, now, timing: quota.resize(lane, slots, me, PPM // 10, now, timing),
}


@pytest.mark.parametrize("name", _STEPS)
def test_death_at_any_write_of_a_step_is_repaired(name: str) -> None:
    for writes in itertools.count():
        lane, slots = _lane_before(name)
        before = copy.deepcopy(slots)
        budget = [writes]
        mortal = {i: _Mortal(slot, budget) for i, slot in slots.items()}
        now_ns = 12 * MS
        try:
            _STEPS[name](_Mortal(lane, budget), mortal, 0, now_ns, TIMING)
        except _Died:
            _survivors_go_on(lane, slots, before, now_ns)
        else:
            assert writes > 3, "the step wrote next to nothing: this test no longer tests it"
            return


def _survivors_go_on(lane: Row, slots: dict[int, Account], before: dict[int, Account], now_ns: int) -> None:
    quota.repair(lane, slots, now_ns, TIMING)
    running = [i for i, slot in slots.items() if slot.state == SlotState.RUN]
    assert lane.holder == (running[0] + 1 if running else 0)
    assert len(running) <= 1
    for index, slot in slots.items():
        earned = (now_ns - before[index].stamp_ns) * slot.quota_ppm // PPM
        assert slot.tokens_ns <= before[index].tokens_ns + earned
    if slots[0].state != SlotState.IDLE:
        quota.bury(lane, slots, 0, now_ns, TIMING)
    steps: list[Step] = [quota.acquire(lane, slots, i, now_ns, TIMING) for i in (1, 2, 1)]
    assert any(step.granted for step in steps)


# -- single steps --------------------------------------------------------------------------------------------


def test_quota_zero_is_never_granted_and_looks_up_every_second() -> None:
    lane, slots = Row(), {0: Account(quota_ppm=0, tokens_ns=SECOND)}
    step = quota.acquire(lane, slots, 0, MS, TIMING)
    assert not step.granted
    assert step.timeout_ns == quota.MAX_THROTTLE_NS


def test_a_resize_to_zero_stops_a_holder_at_its_next_gate() -> None:
    world = VirtualLane(TIMING)
    index = world.add(PPM, saturated(), unit_ns=MS)
    world.run_until(SECOND)
    world.resize(index, 0)
    world.run_until(3 * SECOND)
    assert world.slots[index].used_ns <= SECOND + MS
    world.resize(index, PPM)
    world.run_until(4 * SECOND)
    assert world.slots[index].used_ns >= 1.9 * SECOND


def test_a_lease_renewed_alone_needs_no_drain() -> None:
    lane, slots = Row(), {0: Account(quota_ppm=PPM)}
    quota.acquire(lane, slots, 0, 0, TIMING)
    assert quota.renew(lane, slots, 0, 10 * MS, TIMING, drained=False) == quota.GRANTED
    slots[0].quota_ppm = PPM // 2
    assert quota.renew(lane, slots, 0, 20 * MS, TIMING, drained=False) == quota.DRAIN
    assert slots[0].state == SlotState.RUN  # still the holder, and paying, while it drains


def test_an_overrun_settled_twice_is_counted_once() -> None:
    lane, slots = Row(), {0: Account(quota_ppm=PPM)}
    quota.acquire(lane, slots, 0, 0, TIMING)
    for now_ns in (5 * MS, 12 * MS, 13 * MS, 13 * MS):
        quota.settle(slots[0], now_ns, TIMING)
    assert (slots[0].overrun_ns, slots[0].used_ns) == (3 * MS, 13 * MS)


@pytest.mark.parametrize("borrowed", [True, False])
def test_only_borrowed_time_is_revoked(borrowed: bool) -> None:
    slots = {0: Account(quota_ppm=PPM // 10, lend=1), 1: Account(quota_ppm=PPM // 2)}
    lane = Row()
    slots[0].tokens_ns = 0 if borrowed else 10 * MS
    assert quota.acquire(lane, slots, 0, 0, TIMING).granted
    end_ns = slots[0].lease_end_ns
    assert end_ns == (5 * MS if borrowed else 10 * MS)
    slots[1].tokens_ns = 10 * MS
    assert not quota.acquire(lane, slots, 1, MS, TIMING).granted
    assert slots[0].lease_end_ns == (MS if borrowed else end_ns)


def test_one_that_is_alone_renews_once_a_window_and_no_oftener_than_it_can_pay() -> None:
    for share, grants in ((PPM, 12), (PPM // 2, 51)):
        world = VirtualLane(TIMING)
        index = world.add(share, saturated(), unit_ns=MS)
        world.run_until(SECOND)
        assert world.slots[index].grants == pytest.approx(grants, abs=2)


@settings(max_examples=40, deadline=None)
@given(arrival_ns=st.integers(SECOND, 2 * SECOND))
def test_who_comes_later_waits_for_one_lease_of_one_that_was_alone(arrival_ns: int) -> None:
    world = VirtualLane(TIMING, wake_ns=50_000)
    alone = world.add(PPM, saturated(), unit_ns=MS)
    plan = itertools.chain([(arrival_ns, 5 * MS)], itertools.repeat((SECOND, MS)))
    comer = world.add(PPM // 2, plan, unit_ns=MS)
    world.run_until(arrival_ns + SECOND // 2)
    assert world.slots[comer].wait_ns <= TIMING.quantum_ns + 2 * MS
    assert world.slots[alone].used_ns > 0.9 * SECOND


def test_one_that_idled_joins_within_a_lag_of_the_lane() -> None:
    lane, slots = Row(v_ns=10 * SECOND), {0: Account(quota_ppm=PPM // 2)}
    quota.acquire(lane, slots, 0, 0, TIMING)
    assert slots[0].v_ns == 10 * SECOND - TIMING.lag_ns


@pytest.mark.parametrize(
    ("old", "new", "ahead_ms", "then_ms"),
    [(1, 50, 100, 2), (50, 25, 20, 40), (50, 1, 20, 100), (50, 1, -20, -100), (50, 0, 20, 20), (0, 50, 20, 0)],
)
def test_a_resize_restates_how_far_ahead_a_replica_is(old: int, new: int, ahead_ms: int, then_ms: int) -> None:
    slots = {0: Account(quota_ppm=old * PPM // 100, v_ns=SECOND + ahead_ms * MS)}
    quota.resize(Row(v_ns=SECOND), slots, 0, new * PPM // 100, 0, TIMING)
    assert slots[0].v_ns == SECOND + then_ms * MS


def test_a_quantum_above_the_window_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="quantum_ns"):
        Timing(window_ns=10 * MS, quantum_ns=20 * MS)


# -- the law that predictions stand on -----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(percent=st.integers(10, 100), work_ms=st.integers(1, 60))
def test_saturated_holds_obey_the_law(percent: int, work_ms: int) -> None:
    world = VirtualLane(TIMING)
    share = percent / 100
    index = world.add(percent * PPM // 100, saturated(work_ms * MS), unit_ns=MS)
    world.run_until(6 * SECOND)
    done = world.replicas[index].done_ns
    took_ms = [(b - a) / MS for a, b in itertools.pairwise(done)][5:]
    assert max(took_ms) <= quota.saturated_worst_ms(work_ms, share, TIMING) + 0.01
    mean = quota.saturated_mean_ms(work_ms, share)
    # A whole number of holds in a whole number of leases: the ends differ by one of each at most.
    assert sum(took_ms) / len(took_ms) == pytest.approx(mean, rel=0.05, abs=1.0)


@settings(max_examples=40, deadline=None)
@given(percent=st.integers(10, 100), work_ms=st.integers(1, 200))
def test_a_hold_after_idling_takes_what_the_law_says(percent: int, work_ms: int) -> None:
    world = VirtualLane(TIMING)
    idle_ns = 5 * SECOND
    index = world.add(percent * PPM // 100, itertools.cycle([(idle_ns, work_ms * MS)]), unit_ns=MS)
    world.run_until(idle_ns + 4 * SECOND)
    took_ms = (world.replicas[index].done_ns[0] - idle_ns) / MS
    assert took_ms == pytest.approx(quota.idle_ms(work_ms, percent / 100, TIMING), abs=0.01)


def test_a_short_hold_after_idling_takes_its_own_time() -> None:
    assert quota.idle_ms(10.0, 0.3, TIMING) == 10.0
    assert quota.idle_ms(100.0, 0.3, TIMING) > 100.0
