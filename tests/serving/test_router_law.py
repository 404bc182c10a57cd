"""The router's law under whatever happens in whatever order. What each thing does alone is in test_router.py."""

from __future__ import annotations

import asyncio
import itertools
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hasfaas.core.errors import BackendError, HasFaasError, NotFoundError, OverloadedError, PlacementError
from hasfaas.core.spec import Batch, FunctionSpec
from hasfaas.serving.batching import PIPELINE_DEPTH
from hasfaas.serving.router import MAX_ATTEMPTS
from hasfaas.wire.frames import RawPayload
from tests.fakes.router_world import NAME, RecordingChannel, World

T = TypeVar("T")


def one_of(candidates: list[T], which: int) -> list[T]:
    """One of them, or none where there are none."""
    return [candidates[which % len(candidates)]] if candidates else []


class RouterMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: each accepted call ends exactly once, only live calls are sent, and what is
    counted as waiting, held or queued is what is there.

    A rule whose subject is missing does nothing: preconditions would make most draws fail.
    """

    @initialize(
        idempotent=st.booleans(),
        streams=st.booleans(),
        batch=st.none() | st.builds(Batch, st.integers(1, 4), st.sampled_from([0.0, 50.0])),
        max_queue=st.integers(2, 8),
    )
    def begin(self, idempotent: bool, streams: bool, batch: Batch | None, max_queue: int) -> None:
        self.spec = FunctionSpec(slo_ms=200, idempotent=idempotent, batch=None if streams else batch)
        self.streams = streams
        self.max_queue = max_queue
        self.world = World(self.spec, streams=streams, max_queue=max_queue)
        self.attached: list[RecordingChannel] = []
        self.dead: list[RecordingChannel] = []
        self.known = True
        self.numbers = itertools.count(1)
        self.drains: list[asyncio.Task[bool]] = []
        # Draining, or of the function as it was before it was dropped.
        self.unable: set[str] = set()
        self.attach(100.0)

    # -- callers

    @rule(count=st.integers(1, 4), timeout_s=st.sampled_from([0.05, 0.3, 10.0]), nbytes=st.integers(0, 50))
    def submit(self, count: int, timeout_s: float, nbytes: int) -> None:
        for _ in range(count):
            full = self.world.router.depth(NAME) >= self.max_queue
            try:
                self.world.submit(timeout_s, nbytes)
                assert self.known
                assert not full
            except NotFoundError:
                assert not self.known
            except OverloadedError:
                assert full

    @rule(which=st.integers(0, 20), credit=st.booleans())
    def cancel_or_credit(self, which: int, credit: bool) -> None:
        for call in one_of(list(self.world.calls.values()), which):
            if credit:
                self.world.run(lambda: self.world.router.credit(call, 1))  # noqa: B023 - run at once
            else:
                self.world.cancel(call)

    # -- replicas

    @rule(quota=st.sampled_from([0.0, 30.0, 100.0]))
    def attach(self, quota: float) -> None:
        if len(self.attached) < 3:
            channel = self.world.attach(f"r{next(self.numbers)}", quota)
            assert channel.told_to_end is not self.known
            if self.known:
                self.attached.append(channel)

    @rule(which=st.integers(0, 2), quota=st.sampled_from([0.0, 50.0]))
    def requota(self, which: int, quota: float) -> None:
        for channel in one_of(self.attached, which):
            self.world.requota(channel, quota)

    @rule(which=st.integers(0, 2))
    def detach(self, which: int) -> None:
        for channel in one_of([c for c in self.attached if c.held] or self.attached, which):
            self.attached.remove(channel)
            self.dead.append(channel)
            self.world.detach(channel)

    @rule(which=st.integers(0, 2), timeout_s=st.sampled_from([0.1, 10.0]))
    def drain(self, which: int, timeout_s: float) -> None:
        for channel in one_of(self.attached, which):
            self.unable.add(channel.replica_id)
            self.drains.append(self.world.drain(channel, timeout_s))

    @rule(which=st.integers(0, 2), how=st.sampled_from(["result", "error", "item", "item", "item and end"]))
    def answer(self, which: int, how: str) -> None:
        for channel in one_of([c for c in self.attached if c.held], which):
            self.tell(channel, how)

    @rule(which=st.integers(0, 9), how=st.sampled_from(["result", "error", "item"]))
    def late_answer(self, which: int, how: str) -> None:
        """What was in a dead replica's socket."""
        before = self.ends()
        for channel in one_of([c for c in self.dead if c.held], which):
            self.tell(channel, how)
        assert self.ends() == before

    def tell(self, channel: RecordingChannel, how: str) -> None:
        if how == "error":
            self.world.error(channel, BackendError("it broke"))
        elif not self.streams:
            self.world.result(channel)
        else:
            self.world.item(channel, channel.held[0])
            if how != "item":
                self.world.end(channel)

    # -- functions and time

    @rule(seconds=st.sampled_from([0.001, 0.04, 0.2, 1.0]), late_s=st.sampled_from([0.0, 0.0, 0.1, 0.5]))
    def pass_time(self, seconds: float, late_s: float) -> None:
        """`late_s`: the loop is busy, so its timers fire so much later than the router's clock says."""
        self.world.late_s = late_s
        self.world.pass_time(seconds)

    @rule(what=st.sampled_from(["no replica", "drop", "deploy"]))
    def change_the_function(self, what: str) -> None:
        router = self.world.router
        if what == "no replica":
            self.world.run(lambda: router.fail_waiting(NAME, PlacementError("no room")))
            assert router.depth(NAME) == 0
        elif what == "drop":
            self.known = False
            self.unable |= {channel.replica_id for channel in self.attached}
            self.world.run(lambda: router.drop_function(NAME, NotFoundError("deleted")))
        else:
            self.known = True
            self.world.run(lambda: router.set_function(NAME, self.spec, streams=self.streams))

    # -- what must hold

    def ends(self) -> list[RawPayload | HasFaasError | None]:
        return [end for sink in self.world.sinks.values() for end in sink.ends]

    @invariant()
    def each_call_ends_once_and_is_open_until_then(self) -> None:
        for call_id, sink in self.world.sinks.items():
            assert len(sink.ends) <= 1
            assert self.world.calls[call_id].done == bool(sink.ends)
        assert self.world.router.outstanding == sum(1 for sink in self.world.sinks.values() if not sink.ends)

    @invariant()
    def what_waits_is_what_nobody_holds(self) -> None:
        waiting = [call for call in self.world.calls.values() if not call.done and call.replica is None]
        assert self.world.router.depth(NAME) == len(waiting)
        assert self.world.router._queued_bytes == sum(call.arguments.nbytes for call in waiting)

    @invariant()
    def a_replica_holds_what_it_was_sent_and_has_not_answered(self) -> None:
        for channel in self.attached:
            assert self.world.router.in_flight(channel.replica_id) == len(channel.held)
            places = sum(1 for execution in channel.executions if set(execution) & set(channel.held))
            assert places <= (1 if self.streams else PIPELINE_DEPTH)
        assert all(self.world.router.in_flight(channel.replica_id) == 0 for channel in self.dead)

    @invariant()
    def nobody_idles_while_calls_wait(self) -> None:
        batch = self.spec.batch
        if self.known and self.world.router.depth(NAME) and (batch is None or batch.max_wait_ms == 0):
            able = [c for c in self.attached if c.quota_percent > 0 and c.replica_id not in self.unable]
            assert all(channel.held for channel in able)

    @invariant()
    def nothing_is_tried_more_often_than_it_may(self) -> None:
        most = MAX_ATTEMPTS if self.spec.idempotent else 1
        assert all(call.attempts <= most for call in self.world.calls.values())

    @invariant()
    def the_counts_add_up(self) -> None:
        counts = self.world.router.counts(NAME)
        if self.known and counts.accepted == len(self.world.calls):
            ended = counts.completed + counts.failed + counts.expired + counts.cancelled
            assert ended == len(self.ends())

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.check_ended()
            assert all(task.done() for task in self.drains)
            self.world.close()


RouterMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRouterMachine = RouterMachine.TestCase
