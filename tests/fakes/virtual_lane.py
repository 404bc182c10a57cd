"""Replicas of one lane in virtual time: the product's quota arithmetic, driven by an event heap instead of
processes.

It does what tokens.SlotLease does (call, wake, sleep, run a unit, gate) and checks what must hold after every
event.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial

import attrs

from hasfaas.executor import quota
from hasfaas.executor.quota import SlotState, Step, Timing

MS = 1_000_000


@attrs.define
class Account:
    """A slot as a plain object."""

    state: int = int(SlotState.IDLE)
    quota_ppm: int = 0
    tokens_ns: int = 0
    carry: int = 0
    stamp_ns: int = 0
    lease_start_ns: int = 0
    lease_end_ns: int = 0
    used_ns: int = 0
    wait_ns: int = 0
    throttled_ns: int = 0
    granted_ns: int = 0
    overrun_ns: int = 0
    lent_ns: int = 0
    grants: int = 0
    v_ns: int = 0
    lend: int = 0
    borrowed: int = 0
    generation: int = 0
    acknowledged: int = 0
    acknowledged_ns: int = 0
    taken_ns: int = 0


@attrs.define
class Row:
    """A lane as a plain object."""

    holder: int = 0
    v_ns: int = 0
    handoffs: int = 0
    offered: int = 0
    offered_ns: int = 0


@attrs.define
class Replica:
    """What a virtual process does: after `idle_ns`, runs `work_ns` in units of `unit_ns`, and so on.

    The lease is kept from one piece of work to the next when there is no idle time between them.
    """

    plan: Iterator[tuple[int, int]]
    unit_ns: int
    left_ns: int = 0
    asleep: bool = False
    dead: bool = False
    alarm: int = 0
    holds: list[tuple[int, int]] = attrs.field(factory=list)
    done_ns: list[int] = attrs.field(factory=list)
    held_since_ns: int = -1


def saturated(work_ns: int = 1000 * MS) -> Iterator[tuple[int, int]]:
    """Always work, never idle."""
    return itertools.repeat((0, work_ns))


class VirtualLane:
    """Runs until told, in virtual time. A wake-up takes `wake_ns`, and is lost with probability `loss`."""

    def __init__(self, timing: Timing, *, wake_ns: int = 0, loss: float = 0.0, seed: int = 0) -> None:
        self.timing = timing
        self.now_ns = 0
        self.lane = Row()
        self.slots: dict[int, Account] = {}
        self.replicas: dict[int, Replica] = {}
        self._wake_ns = wake_ns
        self._loss = loss
        self._random = random.Random(seed)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, quota_ppm: int, plan: Iterator[tuple[int, int]], *, unit_ns: int, lend: bool = False) -> int:
        """A replica that starts now, with an empty account."""
        index = len(self.slots)
        self.slots[index] = Account(quota_ppm=quota_ppm, lend=int(lend), stamp_ns=self.now_ns, v_ns=self.lane.v_ns)
        self.replicas[index] = Replica(plan, unit_ns)
        self.at(self.now_ns, partial(self._next_work, index))
        return index

    def at(self, when_ns: int, event: Callable[[], None]) -> None:
        """Schedules any callable."""
        heapq.heappush(self._events, (when_ns, next(self._order), event))

    def resize(self, index: int, quota_ppm: int) -> None:
        """What the node agent does."""
        slot = self.slots[index]
        quota.refresh(slot, self.now_ns, self.timing)
        before = slot.tokens_ns
        step = quota.resize(self.lane, self.slots, index, quota_ppm, self.now_ns, self.timing)
        assert slot.tokens_ns <= before, "a re-size made tokens"
        self._wake(step)

    def kill(self, index: int) -> None:
        """SIGKILL: nothing of the replica happens any more; its words stay as they are."""
        self.replicas[index].dead = True

    def observe(self, index: int) -> None:
        """What TokenTable.usage does."""
        quota.settle(self.slots[index], self.now_ns, self.timing)

    def run_until(self, end_ns: int) -> None:
        """Processes all events up to `end_ns`, and checks the laws after each."""
        while self._events and self._events[0][0] <= end_ns:
            self.now_ns, _, event = heapq.heappop(self._events)
            event()
            self.check()
        self.now_ns = end_ns
        for index in self.slots:
            self.observe(index)

    def check(self) -> None:
        """At most one holder, words that agree, accounts within their caps, no more used than time has
        passed.
        """
        running = [i for i, s in self.slots.items() if s.state == SlotState.RUN]
        assert len(running) <= 1, f"{running} hold the lane at once"
        assert self.lane.holder == (running[0] + 1 if running else 0)
        for slot in self.slots.values():
            limit = quota.cap(slot.quota_ppm, self.timing) * (1 if slot.state == SlotState.IDLE else 2)
            refreshed = slot.stamp_ns == self.now_ns
            assert slot.tokens_ns <= limit or not refreshed
        assert sum(s.used_ns for s in self.slots.values()) <= self.now_ns
        # Tokens are not made: what is left and what was paid never exceed what was granted.
        for slot in self.slots.values():
            assert slot.tokens_ns + slot.used_ns - slot.lent_ns <= slot.granted_ns

    # -- one replica's process -------------------------------------------------------------------------------

    def _next_work(self, index: int) -> None:
        replica = self.replicas[index]
        if replica.dead:
            return
        idle_ns, replica.left_ns = next(replica.plan)
        if idle_ns:
            self.at(self.now_ns + idle_ns, partial(self._acquire, index))
        else:
            self._acquire(index)

    def _acquire(self, index: int) -> None:
        if not self.replicas[index].dead:
            self._follow(index, self._decide(index, quota.acquire))

    def _decide(self, index: int, decide: Callable[..., Step]) -> Step:
        step = decide(self.lane, self.slots, index, self.now_ns, self.timing)
        while step.suspect is not None and self.replicas[step.suspect].dead:
            quota.bury(self.lane, self.slots, step.suspect, self.now_ns, self.timing)
            self._hold_ends(step.suspect)
            step = decide(self.lane, self.slots, index, self.now_ns, self.timing)
        self._wake(step)
        return step

    def _wake(self, step: Step) -> None:
        if step.wake is not None and self._random.random() >= self._loss:
            self.at(self.now_ns + self._wake_ns, partial(self._woken, step.wake))

    def _woken(self, index: int) -> None:
        if self.replicas[index].asleep:
            self._acquire(index)

    def _follow(self, index: int, step: Step) -> None:
        replica = self.replicas[index]
        replica.alarm += 1
        replica.asleep = not step.granted
        if step.granted:
            if replica.held_since_ns < 0:
                replica.held_since_ns = self.now_ns
            self._run_unit(index)
        else:
            assert step.timeout_ns > 0, "a sleep without end or a busy loop"
            self._hold_ends(index)
            self.at(self.now_ns + step.timeout_ns, partial(self._timed_out, index, replica.alarm))

    def _timed_out(self, index: int, alarm: int) -> None:
        if self.replicas[index].alarm == alarm:
            self._acquire(index)

    def _run_unit(self, index: int) -> None:
        replica = self.replicas[index]
        unit_ns = min(replica.unit_ns, replica.left_ns)
        self.at(self.now_ns + unit_ns, partial(self._unit_done, index, unit_ns))

    def _unit_done(self, index: int, unit_ns: int) -> None:
        replica = self.replicas[index]
        if replica.dead:
            return
        replica.left_ns -= unit_ns
        if replica.left_ns == 0:
            replica.done_ns.append(self.now_ns)
            idle_ns, replica.left_ns = next(replica.plan)
            if idle_ns:
                self._release(index)
                self.at(self.now_ns + idle_ns, partial(self._acquire, index))
                return
        self._gate(index)

    def _gate(self, index: int) -> None:
        if self.now_ns < self.slots[index].lease_end_ns:
            self._run_unit(index)
            return
        step = self._decide(index, partial(quota.renew, drained=False))
        if step.drain:
            step = self._decide(index, partial(quota.renew, drained=True))
        self._follow(index, step)

    def _release(self, index: int) -> None:
        self._hold_ends(index)
        self._wake(quota.release(self.lane, self.slots, index, self.now_ns, self.timing))

    def _hold_ends(self, index: int) -> None:
        replica = self.replicas[index]
        if replica.held_since_ns >= 0:
            replica.holds.append((replica.held_since_ns, self.now_ns))
            replica.held_since_ns = -1
