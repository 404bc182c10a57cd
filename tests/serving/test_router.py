from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hasfaas.core.errors import (
    BackendError,
    CancelledError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    PlacementError,
    UnavailableError,
)
from hasfaas.core.spec import Batch, FunctionSpec
from hasfaas.serving import router as routing
from hasfaas.serving.batching import PIPELINE_DEPTH
from hasfaas.serving.router import MAX_ATTEMPTS, STREAM_CREDIT, Counts
from tests.fakes.router_world import NAME, RecordingSink, World, payload

Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes worlds, and checks at the end that nothing was lost in them."""
    made: list[World] = []

    def build(*, streams: bool = False, max_queue: int = 100, slo_ms: float = 100, **options: Any) -> World:
        made.append(World(FunctionSpec(slo_ms=slo_ms, **options), streams=streams, max_queue=max_queue))
        return made[-1]

    yield build
    for world in made:
        world.check_ended()
        world.close()


# -- one call ----------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_by_the_replica_that_has_it(make: Make) -> None:
    world = make()
    replica = world.attach()
    call, sink = world.submit()
    assert replica.executions == [[call.call_id]]
    assert world.router.outstanding == 1
    assert world.router.in_flight("r1") == 1
    world.result(replica)
    assert sink.outcome == payload(mark=call.call_id)
    assert (world.router.outstanding, world.router.in_flight("r1")) == (0, 0)
    assert world.router.counts(NAME) == Counts(accepted=1, completed=1, slo_met=1)


def test_a_call_without_a_replica_waits_and_asks_for_one(make: Make) -> None:
    world = make()
    call, sink = world.submit()
    assert world.demanded == [NAME]
    assert world.router.depth(NAME) == 1
    replica = world.attach()
    assert replica.executions == [[call.call_id]]
    world.result(replica)
    assert sink.ends


def test_an_error_of_the_replica_is_the_callers(make: Make) -> None:
    world = make()
    replica = world.attach()
    _, sink = world.submit()
    world.error(replica, BackendError("it broke"))
    assert isinstance(sink.failure, BackendError)
    assert world.router.counts(NAME) == Counts(accepted=1, failed=1)


def test_a_call_within_the_promise_and_one_beyond_it_are_counted_apart(make: Make) -> None:
    world = make(slo_ms=100)
    replica = world.attach()
    for delay_s in (0.099, 0.101):
        world.submit()
        world.pass_time(delay_s)
        world.result(replica)
    assert world.router.counts(NAME) == Counts(accepted=2, completed=2, slo_met=1)


def test_a_function_that_nobody_deployed_is_refused_by_name(make: Make) -> None:
    world = make()
    with pytest.raises(NotFoundError, match=r"'app\.g' is not deployed"):
        world.run(lambda: world.router.submit("app.g", payload(), timeout_s=1.0, sink=RecordingSink()))
    assert world.router.counts("app.g") == Counts(), "its deployment may be under way while somebody asks"
    assert world.router.depth("app.g") == 0


def test_answers_of_calls_that_nobody_knows_are_dropped(make: Make) -> None:
    world = make()
    replica = world.attach()
    world.run(lambda: world.router.on_result("r1", 77, payload()))
    world.run(lambda: world.router.on_error("nobody", 77, b""))
    world.run(lambda: world.router.on_item("r1", 77, payload()))
    assert replica.executions == []


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(make: Make) -> None:
    world = make(max_queue=3, slo_ms=250)
    for _ in range(3):
        world.submit()
    with pytest.raises(OverloadedError, match="3 calls wait, at most 3 may") as caught:
        world.submit()
    assert caught.value.retry_after_s == 0.25
    assert world.router.counts(NAME) == Counts(accepted=3, refused=1)
    replica = world.attach()
    assert world.router.depth(NAME) == 3 - PIPELINE_DEPTH
    world.submit()
    assert len(replica.held) == PIPELINE_DEPTH


def test_the_queue_is_bounded_in_bytes_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_QUEUED_BYTES", 1000)
    world = make()
    world.submit(nbytes=600)
    with pytest.raises(OverloadedError):
        world.submit(nbytes=401)
    second, _ = world.submit(nbytes=400)
    world.cancel(second)
    world.submit(nbytes=400)
    replica = world.attach()
    assert len(replica.held) == 2
    world.submit(nbytes=1000)


def test_what_was_sent_no_longer_counts_as_waiting_bytes(make: Make) -> None:
    world = make()
    world.attach()
    world.submit(nbytes=500)
    assert world.router._queued_bytes == 0


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_call_without_time_is_refused(make: Make, timeout_s: float) -> None:
    world = make()
    with pytest.raises(DeadlineError) as caught:
        world.submit(timeout_s=timeout_s)
    assert caught.value.reason == "DEADLINE_IN_QUEUE"
    assert world.router.counts(NAME) == Counts(expired=1)


def test_a_waiting_call_expires_and_is_never_sent(make: Make) -> None:
    world = make()
    _, sink = world.submit(timeout_s=0.5)
    world.pass_time(0.49)
    assert not sink.ends
    world.pass_time(0.02)
    assert sink.failure.reason == "DEADLINE_IN_QUEUE"
    assert "510 ms ran out" in str(sink.failure)
    assert world.attach().executions == []


def test_a_call_that_waited_for_a_replica_is_told_why_there_was_none(make: Make) -> None:
    world = make()
    world.router.why_none = lambda name: f"no room for {name}"
    _, sink = world.submit(timeout_s=0.5)
    world.pass_time(0.6)
    assert "it never ran: no room for" in str(sink.failure)


def test_a_call_whose_timer_is_late_is_not_sent_either(make: Make) -> None:
    """On a busy loop a replica's arrival can be handled before timers that are due."""
    world = make()
    _, late = world.submit(timeout_s=0.5)
    in_time, _ = world.submit(timeout_s=5)
    world.late_s = 1.0
    replica = world.attach()
    assert replica.executions == [[in_time.call_id]]
    assert late.failure.reason == "DEADLINE_IN_QUEUE"


def test_a_call_that_runs_too_long_ends_for_its_caller_and_keeps_its_place_until_it_ends(make: Make) -> None:
    world = make()
    replica = world.attach()
    call, sink = world.submit(timeout_s=0.5)
    world.pass_time(0.6)
    assert sink.failure.reason == "DEADLINE_IN_EXECUTION"
    assert replica.cancelled == [call.call_id]
    assert world.router.in_flight("r1") == 1
    world.result(replica)
    assert world.router.in_flight("r1") == 0
    assert world.router.counts(NAME) == Counts(accepted=1, expired=1)


def test_without_a_time_of_its_own_a_call_has_the_functions(make: Make) -> None:
    world = make(timeout_s=2.0)
    _, sink = world.submit(timeout_s=None)
    world.pass_time(1.9)
    assert not sink.ends
    world.pass_time(0.2)
    assert isinstance(sink.failure, DeadlineError)


def test_expired_calls_do_not_pile_up_in_the_queue(make: Make) -> None:
    """They leave the heap lazily, and still their arguments must not stay for long."""
    world = make(max_queue=10_000)
    for _ in range(1000):
        world.submit(timeout_s=0.1)
    world.pass_time(1)
    assert world.router.counts(NAME).expired == 1000
    assert len(world.router._functions[NAME].heap) <= 64


# -- taking back -------------------------------------------------------------------------------------------------------


def test_a_waiting_call_that_was_taken_back_is_never_sent(make: Make) -> None:
    world = make()
    call, sink = world.submit()
    world.cancel(call)
    assert isinstance(sink.failure, CancelledError)
    assert world.attach().executions == []
    assert world.router.counts(NAME) == Counts(accepted=1, cancelled=1)


def test_a_running_call_that_was_taken_back_is_told_to_its_replica(make: Make) -> None:
    world = make()
    replica = world.attach()
    call, sink = world.submit()
    world.cancel(call)
    assert isinstance(sink.failure, CancelledError)
    assert replica.cancelled == [call.call_id]


def test_taking_back_what_has_ended_changes_nothing(make: Make) -> None:
    world = make()
    replica = world.attach()
    call, _ = world.submit()
    world.result(replica)
    world.cancel(call)
    assert replica.cancelled == []
    assert world.router.counts(NAME) == Counts(accepted=1, completed=1, slo_met=1)


def test_calls_taken_back_before_they_ran_do_not_block_their_replica(make: Make) -> None:
    """The replica confirms each; until then its place is taken, after that the next one goes."""
    world = make()
    replica = world.attach()
    for _ in range(PIPELINE_DEPTH):
        world.cancel(world.submit()[0])
    call, sink = world.submit()
    assert call.call_id not in replica.held
    for _ in range(PIPELINE_DEPTH):
        world.error(replica, CancelledError("the call was taken back before it ran"))
    assert replica.held == [call.call_id]
    world.result(replica)
    assert sink.outcome == payload(mark=call.call_id)


# -- order and place ---------------------------------------------------------------------------------------------------


def test_the_promise_is_the_deadline_that_orders(make: Make) -> None:
    """A caller with a long time-out is not put behind one that gave a time just below it; one in a real hurry goes first."""
    world = make(slo_ms=100)
    patient, _ = world.submit(timeout_s=60)
    world.pass_time(0.01)
    second, _ = world.submit(timeout_s=1)
    hurried, _ = world.submit(timeout_s=0.05)
    replica = world.attach()
    assert replica.executions == [[hurried.call_id], [patient.call_id]]
    world.result(replica)
    assert replica.executions[-1] == [second.call_id]


def test_equal_deadlines_go_in_the_order_of_arrival(make: Make) -> None:
    world = make(batch=Batch(max_size=8))
    calls = [world.submit()[0] for _ in range(8)]
    assert world.attach().executions == [[call.call_id for call in calls]]


def test_no_replica_holds_more_than_the_pipeline_and_the_least_loaded_goes_first(make: Make) -> None:
    world = make()
    one, two = world.attach("r1", 30.0), world.attach("r2", 60.0)
    calls = [world.submit()[0].call_id for _ in range(6)]
    assert two.executions == [[calls[0]], [calls[2]]], "the larger quota first among equals"
    assert one.executions == [[calls[1]], [calls[3]]]
    assert world.router.depth(NAME) == 6 - 2 * PIPELINE_DEPTH
    world.result(one)
    assert one.held == [calls[3], calls[4]]


def test_a_replica_at_quota_zero_gets_nothing_until_it_has_some(make: Make) -> None:
    world = make()
    replica = world.attach(quota_percent=0.0)
    call, _ = world.submit()
    assert replica.executions == []
    world.run(lambda: world.router.requota("r1", 10.0))
    assert replica.executions == [[call.call_id]]
    world.run(lambda: world.router.requota("gone", 10.0))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_free_replica_takes_what_waits_and_the_next_batch_fills_meanwhile(make: Make) -> None:
    world = make(batch=Batch(max_size=4))
    replica = world.attach()
    calls = [world.submit()[0].call_id for _ in range(4)]
    assert replica.executions == [calls[:1]]
    calls.append(world.submit()[0].call_id)
    assert replica.executions == [calls[:1], calls[1:]], "a full batch is sent ahead"
    world.submit()
    world.result(replica)
    assert len(replica.executions) == 2, "the second is still to run, and the third call alone is no full batch"
    for _ in range(4):
        world.result(replica)
    assert len(replica.executions) == 3


def test_a_batch_waits_for_company_as_long_as_its_oldest_may(make: Make) -> None:
    world = make(batch=Batch(max_size=4, max_wait_ms=50))
    replica = world.attach()
    first, _ = world.submit()
    world.pass_time(0.03)
    second, _ = world.submit()
    assert replica.executions == []
    world.pass_time(0.021)
    assert replica.executions == [[first.call_id, second.call_id]]


def test_an_urgent_late_comer_does_not_make_the_oldest_wait_longer(make: Make) -> None:
    """The most urgent call stands first in the queue, and it is not the one that came first."""
    world = make(batch=Batch(max_size=8, max_wait_ms=50), slo_ms=1000)
    replica = world.attach()
    calls = [world.submit()[0].call_id]
    for timeout_s in (0.9, 0.8):
        world.pass_time(0.02)
        calls.append(world.submit(timeout_s=timeout_s)[0].call_id)
    world.pass_time(0.0101)
    assert [sorted(execution) for execution in replica.executions] == [calls]


def test_a_full_batch_waits_for_nothing(make: Make) -> None:
    world = make(batch=Batch(max_size=2, max_wait_ms=60_000))
    replica = world.attach()
    calls = [world.submit()[0].call_id for _ in range(2)]
    assert replica.executions == [calls]


def test_a_place_is_free_when_the_whole_batch_is_answered(make: Make) -> None:
    world = make(batch=Batch(max_size=2))
    replica = world.attach()
    for _ in range(7):
        world.submit()
    assert [len(execution) for execution in replica.executions] == [1, 2]
    world.result(replica)
    assert [len(execution) for execution in replica.executions] == [1, 2, 2]
    world.result(replica)
    assert len(replica.executions) == 3, "one of two is answered: the batch runs on"
    world.result(replica)
    assert [len(execution) for execution in replica.executions] == [1, 2, 2, 2]


# -- draining ----------------------------------------------------------------------------------------------------------


def test_drain_waits_for_what_is_held_and_sends_nothing_more(make: Make) -> None:
    world = make()
    replica = world.attach()
    _, first = world.submit()
    drained = world.drain(replica, 10.0)
    waiting, _ = world.submit()
    assert not drained.done()
    assert world.demanded == [NAME], "nobody serves, so another is asked for"
    world.result(replica)
    assert first.ends
    assert drained.result() is True
    assert replica.executions == [[first_id] for first_id in [waiting.call_id - 1]]
    assert world.router.depth(NAME) == 1


def test_drain_of_an_idle_or_unknown_replica_is_over_at_once(make: Make) -> None:
    world = make()
    world.attach()
    assert world.loop.run_until_complete(world.router.drain("r1", timeout_s=10.0)) is True
    assert world.loop.run_until_complete(world.router.drain("nobody", timeout_s=10.0)) is True


def test_drain_gives_up_in_time(make: Make) -> None:
    world = make()
    world.attach()
    world.submit()
    drained = world.start(world.router.drain("r1", timeout_s=2.0))
    world.pass_time(1.9)
    assert not drained.done()
    world.pass_time(0.2)
    assert drained.result() is False


def test_drain_ends_when_the_replica_dies(make: Make) -> None:
    world = make()
    replica = world.attach()
    world.submit()
    drained = world.start(world.router.drain("r1", timeout_s=2.0))
    world.detach(replica)
    assert drained.result() is True


# -- death -------------------------------------------------------------------------------------------------------------


def test_an_idempotent_call_runs_again_elsewhere(make: Make) -> None:
    world = make(idempotent=True)
    dying = world.attach("r1")
    call, sink = world.submit()
    other = world.attach("r2")
    world.detach(dying)
    assert other.executions == [[call.call_id]]
    world.result(other)
    assert sink.outcome == payload(mark=call.call_id)
    assert world.router.counts(NAME) == Counts(accepted=1, completed=1, redispatched=1, slo_met=1)


def test_it_is_tried_so_often_and_no_more(make: Make) -> None:
    world = make(idempotent=True)
    call, sink = world.submit()
    for attempt in range(MAX_ATTEMPTS):
        assert not sink.ends
        replica = world.attach(f"r{attempt}")
        assert replica.held == [call.call_id]
        world.detach(replica)
    assert isinstance(sink.failure, UnavailableError)
    assert f"tried {MAX_ATTEMPTS} times" in str(sink.failure)
    assert world.attach("last").executions == []


def test_a_call_that_may_not_run_twice_fails_with_the_cure(make: Make) -> None:
    world = make(idempotent=False)
    dying = world.attach("r1")
    call, sink = world.submit()
    other = world.attach("r2")
    waiting = [world.submit()[0].call_id for _ in range(4)]
    world.detach(dying)
    assert isinstance(sink.failure, UnavailableError)
    assert sink.failure.reason == "EXECUTOR_CRASHED"
    assert "the replica died with the call in it" in str(sink.failure)
    assert "idempotent=True" in str(sink.failure)
    assert call.call_id not in other.held
    assert set(other.held) <= set(waiting)


def test_what_only_waits_is_not_touched_by_a_death(make: Make) -> None:
    world = make(idempotent=False)
    dying = world.attach("r1")
    held = [world.submit() for _ in range(PIPELINE_DEPTH)]
    call, sink = world.submit()
    world.detach(dying)
    assert all(isinstance(s.failure, UnavailableError) for _, s in held)
    assert not sink.ends
    other = world.attach("r2")
    assert other.held == [call.call_id]


def test_a_call_that_runs_again_keeps_its_time_and_its_turn(make: Make) -> None:
    world = make(idempotent=True)
    dying = world.attach("r1")
    first, sink = world.submit(timeout_s=1.0)
    world.pass_time(0.5)
    second, _ = world.submit(timeout_s=1.0)
    world.detach(dying)
    world.pass_time(0.4)
    assert world.attach("r2").executions == [[first.call_id], [second.call_id]]
    world.pass_time(0.2)
    assert sink.failure.reason == "DEADLINE_IN_EXECUTION"


def test_a_late_answer_of_a_dead_replica_counts_for_nothing(make: Make) -> None:
    """Its process is reported dead before the last bytes of its socket were read: the call waits already to run again."""
    world = make(idempotent=True)
    dying = world.attach("r1")
    call, sink = world.submit()
    world.detach(dying)
    world.result(dying, call.call_id)
    assert not sink.ends
    assert world.router.depth(NAME) == 1
    other = world.attach("r2")
    world.result(other)
    assert sink.outcome == payload(mark=call.call_id)


def test_a_replica_cannot_answer_a_call_that_another_one_has(make: Make) -> None:
    world = make()
    mine, _ = world.attach("r1"), world.attach("r2")
    call, sink = world.submit()
    world.run(lambda: world.router.on_result("r2", call.call_id, payload()))
    world.run(lambda: world.router.on_item("r2", call.call_id, payload()))
    assert not sink.ends
    assert not sink.items
    world.result(mine)
    assert sink.ends


def test_expired_and_cancelled_calls_of_a_dead_replica_end_once(make: Make) -> None:
    world = make(idempotent=True)
    dying = world.attach("r1")
    _, expired = world.submit(timeout_s=0.1)
    cancelled_call, cancelled = world.submit()
    world.pass_time(0.2)
    world.cancel(cancelled_call)
    world.detach(dying)
    assert isinstance(expired.failure, DeadlineError)
    assert isinstance(cancelled.failure, CancelledError)
    assert world.attach("r2").executions == []


def test_a_death_that_is_reported_twice_is_one(make: Make) -> None:
    world = make()
    replica = world.attach()
    world.submit()
    world.detach(replica)
    world.detach(replica)
    assert world.router.counts(NAME).failed == 1


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_starts_with_credit_gets_more_and_ends(make: Make) -> None:
    world = make(streams=True)
    replica = world.attach()
    call, sink = world.submit()
    assert replica.credits == {call.call_id: STREAM_CREDIT}
    world.item(replica, call.call_id)
    world.item(replica, call.call_id)
    world.run(lambda: world.router.credit(call, 2))
    assert replica.credits == {call.call_id: STREAM_CREDIT + 2}
    world.end(replica)
    assert len(sink.items) == 2
    assert sink.outcome is None
    world.run(lambda: world.router.credit(call, 2))
    assert replica.credits == {call.call_id: STREAM_CREDIT + 2}, "no credit for what has ended"


def test_one_stream_a_replica(make: Make) -> None:
    world = make(streams=True)
    replica = world.attach()
    first, second = world.submit()[0], world.submit()[0]
    assert replica.held == [first.call_id]
    world.end(replica)
    assert replica.held == [second.call_id]


def test_a_stream_that_has_given_items_is_not_begun_again(make: Make) -> None:
    world = make(streams=True, idempotent=True)
    replica = world.attach("r1")
    call, sink = world.submit()
    world.item(replica, call.call_id)
    world.detach(replica)
    assert isinstance(sink.failure, UnavailableError)
    assert "given items" in str(sink.failure)
    assert world.attach("r2").executions == []


def test_a_stream_that_has_given_nothing_is_begun_again_with_fresh_credit(make: Make) -> None:
    world = make(streams=True, idempotent=True)
    dying = world.attach("r1")
    call, sink = world.submit()
    world.detach(dying)
    other = world.attach("r2")
    assert other.credits == {call.call_id: STREAM_CREDIT}
    world.item(dying, call.call_id)
    assert sink.items == [], "a late item of the dead one would come twice"
    world.end(other)
    assert sink.outcome is None


def test_items_after_the_caller_has_left_are_dropped(make: Make) -> None:
    world = make(streams=True)
    replica = world.attach()
    call, sink = world.submit()
    world.cancel(call)
    world.item(replica, call.call_id)
    assert sink.items == []
    assert world.router.in_flight("r1") == 1
    world.end(replica)
    assert world.router.in_flight("r1") == 0


# -- functions come and go ---------------------------------------------------------------------------------------------


def test_why_no_replica_can_be_had_reaches_all_that_wait(make: Make) -> None:
    world = make()
    world.on_demand = lambda name: world.router.fail_waiting(name, PlacementError("no room"))
    _, sink = world.submit()
    assert isinstance(sink.failure, PlacementError)
    assert world.router.counts(NAME) == Counts(accepted=1, failed=1)
    world.run(lambda: world.router.fail_waiting("app.g", PlacementError("no room")))


def test_a_dropped_functions_waiting_calls_end_and_its_running_ones_finish(make: Make) -> None:
    world = make()
    replica = world.attach()
    calls = [world.submit() for _ in range(PIPELINE_DEPTH + 1)]
    world.run(lambda: world.router.drop_function(NAME, NotFoundError("deleted")))
    assert isinstance(calls[-1][1].failure, NotFoundError)
    with pytest.raises(NotFoundError):
        world.submit()
    drained = world.drain(replica, 10.0)
    assert not drained.done(), "what it runs is waited for, also without a name"
    world.result(replica)
    world.error(replica, BackendError("it broke"))
    assert calls[0][1].outcome == payload(mark=calls[0][0].call_id)
    assert isinstance(calls[1][1].failure, BackendError)
    assert drained.result() is True
    world.run(lambda: world.router.drop_function(NAME, NotFoundError("deleted")))


@pytest.mark.parametrize("renewed", [False, True])
def test_a_dropped_functions_calls_can_be_taken_back_and_die_with_their_replica(make: Make, renewed: bool) -> None:
    world = make(idempotent=True)
    replica = world.attach()
    (first, taken_back), (_, lost) = world.submit(), world.submit()
    world.run(lambda: world.router.drop_function(NAME, NotFoundError("deleted")))
    if renewed:
        world.run(lambda: world.router.set_function(NAME, FunctionSpec(slo_ms=1), streams=False))
    world.cancel(first)
    assert isinstance(taken_back.failure, CancelledError)
    world.detach(replica)
    assert isinstance(lost.failure, UnavailableError)
    assert "was deleted" in str(lost.failure)


def test_a_replica_that_comes_for_a_dropped_function_is_told_to_end(make: Make) -> None:
    world = make()
    world.run(lambda: world.router.drop_function(NAME, NotFoundError("deleted")))
    assert world.attach().told_to_end


def test_new_options_hold_for_the_next_decision_and_counts_stay(make: Make) -> None:
    world = make()
    world.submit()
    world.submit()
    world.run(lambda: world.router.set_function(NAME, FunctionSpec(slo_ms=1, batch=Batch(max_size=2)), streams=False))
    assert world.router.counts(NAME).accepted == 2
    assert [len(execution) for execution in world.attach().executions] == [2]
