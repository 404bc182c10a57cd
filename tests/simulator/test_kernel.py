"""The compiled kernel against the product's own functions: every finish time, every account, to the nanosecond."""

from __future__ import annotations

import random

import attrs
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.spec import Batch
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import AddReplica, DrainReplica, Rebatch, Resize
from hasfaas.simulator import kernel
from hasfaas.simulator.fleet import Fleet
from hasfaas.simulator.records import DROPPED
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction
from tests.fakes.slow_simulation import SlowQueue, SlowReplica, SlowSimulation

MS = 1_000_000
TIMINGS = (Timing(), Timing(quantum_ns=2 * MS), Timing(window_ns=20 * MS, quantum_ns=5 * MS, lag_ns=40 * MS))
LANES_OF_DEVICE = 8
ACCOUNT = (
    *(
        "state",
        "quota_ppm",
        "tokens_ns",
        "carry",
        "stamp_ns",
        "lease_start_ns",
        "lease_end_ns",
        "used_ns",
        "granted_ns",
    ),
    *("wait_ns", "throttled_ns", "overrun_ns", "lent_ns", "grants", "v_ns", "borrowed", "taken_ns"),
)


@attrs.define
class Both:
    """One world twice: the kernel's and the slow one."""

    fleet: Fleet
    slow: SlowSimulation
    pairs: list[tuple[int, str, SlowReplica]] = attrs.field(factory=list)

    def until(self, at_ns: int) -> None:
        """Runs both."""
        self.fleet.kernel.serve(self.fleet.world, at_ns)
        self.slow.run_until(at_ns)
        self.fleet.collect()

    def add(self, function: int, lane: int, quota_percent: float, batch: int, lend: bool) -> None:
        """A replica in both, ready at once."""
        name = self.fleet.scenario.functions[function].name
        device, number = f"d{lane // LANES_OF_DEVICE}", lane % LANES_OF_DEVICE
        row = self.fleet.apply(AddReplica(name, device, number, 10.0, quota_percent, batch, "a test"))
        assert isinstance(row, int), row
        replica_id = self.fleet.life(row).replica_id
        self.fleet.ready(row, replica_id)
        hold_ns = self.fleet.world.hold_ns[row]
        most = min(batch, self.fleet.scenario.functions[function].batch_max)
        slow = self.slow.add(function, lane, round(quota_percent * 10_000), most, hold_ns, lend=lend)
        self.pairs.append((row, replica_id, slow))

    def check(self) -> None:
        """Every answer, and every account that is left, are the same."""
        self.fleet.kernel.look(self.fleet.world, self.fleet.rows)
        self.slow.look()
        world = self.fleet.world
        for which, function in enumerate(world.functions):
            done_ns = world.done_ns[function.first : function.arrived]
            for call, at_ns in enumerate(done_ns.tolist()):
                assert (
                    self.slow.done_ns.get((which, call), DROPPED if (which, call) in self.slow.dropped else -1) == at_ns
                )
        for row, replica_id, slow in self.pairs:
            if slow.gone_ns >= 0:
                continue
            assert self.fleet.life(row).replica_id == replica_id
            slot = world.slots[row]
            assert slot.in_flight == sum(count for _, count in slow.executions)
            assert {name: int(slot[name]) for name in ACCOUNT} == {
                name: getattr(slow.account, name) for name in ACCOUNT
            }


def drive(seed: int, which: kernel.Kernel, *, events: int = 40) -> Both:
    """Random functions, lanes, arrivals, re-sizes, caps and drains, the same in both worlds."""
    draw = random.Random(seed)
    timing = draw.choice(TIMINGS)
    lend = draw.random() < 0.4
    lanes = draw.randint(1, 3)
    load = draw.choice((0.3, 0.8, 1.5))
    drop_s = draw.choice((0.3, 1e3))
    functions: list[SimFunction] = []
    arrivals = []
    length_s = 3.0
    for i in range(draw.randint(1, 3)):
        batches = draw.choice((1, 1, 2, 4, 8))
        hold_ms = draw.choice((0.05, 0.9, 4.3, 17.0, 60.0))
        truth = Surface((1, 8), (10.0,), [[hold_ms], [hold_ms * draw.choice((1.0, 2.0, 6.0))]], [[0.0], [0.0]])
        functions.append(SimFunction(f"f{i}", 50.0, truth, batch_max=batches, memory_bytes=1))
        calls = min(600, int(load * length_s * lanes / hold_ms * 1e3 * batches**0.5))
        arrivals.append(sorted(draw.uniform(0.0, length_s) for _ in range(calls)))
    scenario = Scenario(
        functions,
        (SimDevice("d0"), SimDevice("d1")),
        tuple(map(np.array, arrivals)),
        duration_s=length_s,
        timing=timing,
        noise=0.3,
        seed=seed,
        lend=lend,
        drop_after_s=drop_s,
    )
    fleet = Fleet(scenario, which)
    world = fleet.world
    queues = [
        SlowQueue(
            world.arrival_ns[row.first : row.end].tolist(),
            Batch(f.batch_max) if f.batch_max > 1 else None,
            int(row.drop_ns),
        )
        for f, row in zip(functions, world.functions, strict=True)
    ]
    firsts = world.functions["first"].tolist()

    def factor(function: int, call: int) -> float:
        return float(world.factors[(firsts[function] + call) % len(world.factors)])

    both = Both(fleet, SlowSimulation(timing, queues, 2 * LANES_OF_DEVICE, factor))
    at_ns = 0
    for _ in range(events):
        both.check()
        _change(both, draw, lanes, lend)
        at_ns += draw.randint(1, round(2 * length_s / events * 1e9))
        both.until(at_ns)
    both.until(at_ns + 10**9)
    return both


def _change(both: Both, draw: random.Random, lanes: int, lend: bool) -> None:
    live = [pair for pair in both.pairs if pair[2].gone_ns < 0 and not pair[2].draining]
    lane = draw.choice((0, 1, LANES_OF_DEVICE)[:lanes])
    taken = sum(p[2].account.quota_ppm for p in both.pairs if p[2].gone_ns < 0 and p[2].lane == lane)
    seats = sum(1 for p in both.pairs if p[2].gone_ns < 0 and p[2].lane == lane)
    kind = draw.choice(("add", "add", "resize", "resize", "resize", "rebatch", "drain"))
    if not live or (kind == "add" and seats < 4):
        room = (1_000_000 - taken) // 10_000
        both.add(draw.randrange(len(both.slow.queues)), lane, draw.randint(0, room), draw.choice((1, 2, 4, 8)), lend)
        return
    if not live:
        return
    _, replica_id, slow = draw.choice(live)
    if kind == "resize":
        others = sum(p[2].account.quota_ppm for p in both.pairs if p[2].gone_ns < 0 and p[2].lane == slow.lane)
        most = (1_000_000 - others + slow.account.quota_ppm) // 10_000
        percent = draw.choice((0, 1, most, draw.randint(0, most))) if most else 0
        assert both.fleet.apply(Resize(replica_id, percent, "a test")) is None
        both.slow.resize(slow, percent * 10_000)
    elif kind == "rebatch":
        batch = draw.choice((1, 2, 3, 8))
        assert both.fleet.apply(Rebatch(replica_id, batch, "a test")) is None
        both.slow.rebatch(slow, min(batch, both.fleet.scenario.functions[slow.function].batch_max))
    elif kind == "drain" and draw.random() < 0.5:
        assert both.fleet.apply(DrainReplica(replica_id, "a test")) is None
        both.slow.drain(slow)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_the_kernel_is_the_product(seed: int) -> None:
    both = drive(seed, kernel.load())
    both.check()
