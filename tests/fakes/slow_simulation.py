"""The simulator's kernel once more, slowly, out of the product's own functions over plain objects.

Nothing is ported here: `policies.pick`, `batching.decide`, `capped` and the steps of executor/quota.py decide; this file
keeps the queues, and looks for the next event by going through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import attrs

from hasfaas.core.spec import Batch
from hasfaas.executor import quota
from hasfaas.executor.quota import SlotState, Step, Timing
from hasfaas.serving import batching, policies
from tests.fakes.virtual_lane import Account, Row

FOREVER_NS = 1 << 62


@attrs.define
class SlowReplica:
    """One replica: its account, and the executions (first call, count) that it holds, the running one first."""

    number: int
    function: int
    lane: int
    batch: int
    hold_ns: Sequence[int]
    account: Account
    executions: list[tuple[int, int]] = attrs.field(factory=list)
    began_ns: int = 0
    left_ns: int = 0
    ran_ns: int = 0
    wakes_ns: int = FOREVER_NS
    draining: bool = False
    gone_ns: int = -1

    @property
    def next_ns(self) -> int:
        """When it does something next."""
        if not self.executions:
            return FOREVER_NS
        if self.account.state == SlotState.WAIT:
            return self.wakes_ns
        return min(self.ran_ns + self.left_ns, self.account.lease_end_ns)


@attrs.define
class SlowQueue:
    """The calls of one function by number, and its replicas in the order in which they became ready."""

    arrival_ns: Sequence[int]
    batch: Batch | None
    drop_ns: int
    arrived: int = 0
    waiting: list[int] = attrs.field(factory=list)
    replicas: list[SlowReplica] = attrs.field(factory=list)


class SlowSimulation:
    """Runs until told. `done_ns` holds when each call was answered, by (function, call)."""

    def __init__(
        self, timing: Timing, queues: Sequence[SlowQueue], lanes: int, factor: Callable[[int, int], float]
    ) -> None:
        self.timing, self.queues, self.factor = timing, queues, factor
        self.now_ns = 0
        self.rows = [Row() for _ in range(lanes)]
        self.members: list[dict[int, Account]] = [{} for _ in range(lanes)]
        self.replicas: list[SlowReplica] = []
        self.done_ns: dict[tuple[int, int], int] = {}
        self.dropped: set[tuple[int, int]] = set()

    def add(
        self, function: int, lane: int, quota_ppm: int, batch: int, hold_ns: Sequence[int], *, lend: bool
    ) -> SlowReplica:
        """A replica that is ready at once, with an empty account."""
        account = Account(quota_ppm=quota_ppm, lend=int(lend), stamp_ns=self.now_ns, v_ns=self.rows[lane].v_ns)
        replica = SlowReplica(len(self.replicas), function, lane, batch, hold_ns, account)
        self.replicas.append(replica)
        self.members[lane][replica.number] = account
        self.queues[function].replicas.append(replica)
        self._pump(function)
        return replica

    def resize(self, replica: SlowReplica, quota_ppm: int) -> None:
        """What the node agent does, and the router after it."""
        lane = replica.lane
        step = quota.resize(self.rows[lane], self.members[lane], replica.number, quota_ppm, self.now_ns, self.timing)
        self._wake(step)
        self._pump(replica.function)

    def rebatch(self, replica: SlowReplica, batch: int) -> None:
        """Another greatest batch."""
        replica.batch = batch
        self._pump(replica.function)

    def drain(self, replica: SlowReplica) -> None:
        """No further calls; gone once it has answered."""
        replica.draining = True
        self.queues[replica.function].replicas.remove(replica)
        if not replica.executions:
            self._leave(replica)

    def run_until(self, end_ns: int) -> None:
        """Processes all events up to `end_ns`."""
        while True:
            replica = min(self.replicas, key=lambda r: r.next_ns, default=None)
            alarm_ns = FOREVER_NS if replica is None else replica.next_ns
            calls = [q.arrival_ns[q.arrived] if q.arrived < len(q.arrival_ns) else FOREVER_NS for q in self.queues]
            call_ns = min(calls)
            if min(alarm_ns, call_ns) > end_ns:
                break
            self.now_ns = min(alarm_ns, call_ns)
            if replica is not None and alarm_ns <= call_ns:
                self._alarm(replica)
            else:
                function = calls.index(call_ns)
                self.queues[function].waiting.append(self.queues[function].arrived)
                self.queues[function].arrived += 1
                self._pump(function)
        self.now_ns = end_ns

    def look(self) -> None:
        """Brings accounts and queues to the present."""
        for function in range(len(self.queues)):
            self._drop(function)
        for members in self.members:
            for account in members.values():
                quota.settle(account, self.now_ns, self.timing)

    # -- the router ---------------------------------------------------------------------------------------------------

    def _pump(self, function: int) -> None:
        queue = self.queues[function]
        self._drop(function)
        while queue.waiting:
            loads = [
                policies.ReplicaLoad(len(r.executions), r.account.quota_ppm / 1e4, r.began_ns / 1e9)
                for r in queue.replicas
            ]
            chosen = policies.pick(loads, most=batching.PIPELINE_DEPTH)
            if chosen is None:
                return
            replica = queue.replicas[chosen]
            batch = batching.capped(queue.batch, replica.batch)
            match batching.decide(len(queue.waiting), 0.0, batch, len(replica.executions)):
                case batching.Send(count):
                    first = queue.waiting[0]
                    del queue.waiting[:count]
                    replica.executions.append((first, count))
                    if len(replica.executions) == 1:
                        replica.began_ns = self.now_ns
                        self._begin(replica)
                case batching.Wait():
                    return

    def _drop(self, function: int) -> None:
        queue = self.queues[function]
        while queue.waiting and self.now_ns - queue.arrival_ns[queue.waiting[0]] >= queue.drop_ns:
            self.dropped.add((function, queue.waiting.pop(0)))

    # -- replicas -----------------------------------------------------------------------------------------------------

    def _begin(self, replica: SlowReplica) -> None:
        first, count = replica.executions[0]
        replica.left_ns = max(round(replica.hold_ns[count] * self.factor(replica.function, first)), 1)
        replica.ran_ns = self.now_ns
        if replica.account.state != SlotState.RUN:
            self._ask(replica, quota.acquire)
        elif self.now_ns >= replica.account.lease_end_ns:
            self._renew(replica)

    def _alarm(self, replica: SlowReplica) -> None:
        if replica.account.state == SlotState.WAIT:
            self._ask(replica, quota.acquire)
            return
        replica.left_ns -= self.now_ns - replica.ran_ns
        replica.ran_ns = self.now_ns
        if replica.left_ns:
            self._renew(replica)
            return
        first, count = replica.executions.pop(0)
        for call in range(first, first + count):
            self.done_ns[replica.function, call] = self.now_ns
        if replica.executions:
            replica.began_ns = self.now_ns
            self._begin(replica)
        else:
            self._wake(self._decide(replica, quota.release))
            if replica.draining:
                self._leave(replica)
        self._pump(replica.function)

    def _renew(self, replica: SlowReplica) -> None:
        step = self._decide(replica, partial(quota.renew, drained=False))
        if step.drain:
            step = self._decide(replica, partial(quota.renew, drained=True))
        self._follow(replica, step)

    def _ask(self, replica: SlowReplica, decide: Callable[..., Step]) -> None:
        self._follow(replica, self._decide(replica, decide))

    def _follow(self, replica: SlowReplica, step: Step) -> None:
        replica.ran_ns = self.now_ns
        replica.wakes_ns = self.now_ns + step.timeout_ns
        self._wake(step)

    def _decide(self, replica: SlowReplica, decide: Callable[..., Step]) -> Step:
        return decide(self.rows[replica.lane], self.members[replica.lane], replica.number, self.now_ns, self.timing)

    def _wake(self, step: Step) -> None:
        if step.wake is not None and self.replicas[step.wake].account.state == SlotState.WAIT:
            self._ask(self.replicas[step.wake], quota.acquire)

    def _leave(self, replica: SlowReplica) -> None:
        replica.gone_ns = self.now_ns
        del self.members[replica.lane][replica.number]
