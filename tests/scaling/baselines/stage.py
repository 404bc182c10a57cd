"""A fleet for timelines: it obeys a scaler's decisions, and refuses what a device could not deliver."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.core.allocation import granted_units
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Devices, Functions, Life, Observation, Replicas
from hasfaas.scaling.placement import Book
from hasfaas.scaling.policy import Policy

GIB = 2**30
SHARES = tuple(float(share) for share in range(5, 101, 5))


def surface(per_call_ms: float, fixed_ms: float = 0.0, sm_power: float = 0.0) -> Surface:
    """Holds of (fixed + per_call x batch) x (100 / sm) ** sm_power ms, for batches of 1, 2, 4 and 8; nothing in doubt."""
    batches = (1, 2, 4, 8)
    hold = np.array([[(fixed_ms + per_call_ms * b) * (100.0 / sm) ** sm_power for sm in SHARES] for b in batches])
    return Surface(batches, SHARES, hold, np.zeros_like(hold))


@attrs.define
class Function:
    """What the stage knows of one function; tests change its counts between ticks."""

    name: str = "f"
    surface: Surface | None = attrs.field(factory=lambda: surface(10.0))
    slo_ms: float = 200.0
    arrivals: float = 0.0
    waiting: float = 0.0
    in_flight: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 64
    memory_bytes: int = GIB
    batch_max: int = 8
    by_hand: bool = False


@attrs.define
class Replica:
    id: str
    function: str
    device: int
    lane: int
    sm_percent: float
    quota_percent: float
    batch: int = 4
    life: Life = Life.READY
    since_s: float = 0.0
    in_flight: int = 0


@attrs.define
class Stage:
    """Devices of 80 units and 16 GiB. Draining replicas are gone at the next observation; new ones serve after `cold_s`."""

    functions: Sequence[Function]
    devices: int = 4
    cold_s: float = 10.0
    replicas: list[Replica] = attrs.field(factory=list)
    now_s: float = 0.0
    last_s: float = 0.0
    made: int = 0

    def observe(self) -> Observation:
        f, r = self.functions, self.replicas
        names = [function.name for function in f]
        functions = Functions(
            names=tuple(names),
            slo_ms=np.array([x.slo_ms for x in f]),
            late_share=np.full(len(f), 0.01),
            arrivals=np.array([x.arrivals for x in f]),
            completed=np.zeros(len(f)),
            late=np.zeros(len(f)),
            waiting=np.array([x.waiting for x in f]),
            in_flight=np.array([x.in_flight for x in f]),
            min_replicas=np.array([x.min_replicas for x in f]),
            max_replicas=np.array([x.max_replicas for x in f]),
            memory_bytes=np.array([x.memory_bytes for x in f]),
            batch_max=np.array([x.batch_max for x in f]),
            cold_start_s=np.full(len(f), self.cold_s),
            overhead_ms=np.zeros(len(f)),
            by_hand=np.array([x.by_hand for x in f]),
            devices=np.ones((len(f), self.devices), bool),
            surfaces=tuple(x.surface for x in f),
        )
        replicas = Replicas(
            ids=tuple(x.id for x in r),
            function=np.array([names.index(x.function) for x in r], int),
            device=np.array([x.device for x in r], int),
            lane=np.array([x.lane for x in r], int),
            sm_percent=np.array([x.sm_percent for x in r], float),
            quota_percent=np.array([x.quota_percent for x in r], float),
            batch=np.array([x.batch for x in r], int),
            life=np.array([x.life for x in r], int),
            since_s=np.array([x.since_s for x in r], float),
            in_flight=np.array([x.in_flight for x in r], int),
            used_s=np.zeros(len(r)),
        )
        ids = tuple(f"gpu{number}" for number in range(self.devices))
        devices = Devices(ids, np.full(self.devices, 80), np.full(self.devices, 16 * GIB))
        return Observation(self.now_s, self.now_s - self.last_s, functions, replicas, devices)

    def step(self, policy: Policy, now_s: float, **counts: float) -> Decision:
        """The decision at `now_s`, obeyed. `counts` (arrivals, waiting, in_flight) are those of every function."""
        self.last_s, self.now_s = self.now_s, now_s
        for function in self.functions:
            for name in ("arrivals", "waiting", "in_flight"):
                setattr(function, name, counts.get(name, 0.0 if counts else getattr(function, name)))
        self.replicas = [replica for replica in self.replicas if replica.life != Life.DRAINING]
        for replica in self.replicas:
            if replica.life == Life.STARTING and now_s >= replica.since_s + self.cold_s:
                replica.life = Life.READY
        decision = policy.decide(self.observe())
        self.obey(decision)
        return decision

    def obey(self, decision: Decision) -> None:
        by_id = {replica.id: replica for replica in self.replicas}
        for action in decision.actions:
            match action:
                case Resize():
                    by_id[action.replica_id].quota_percent = action.quota_percent
                case Rebatch():
                    by_id[action.replica_id].batch = action.batch
                case DrainReplica():
                    by_id[action.replica_id].life = Life.DRAINING
                case AddReplica():
                    self._add(action)
            self.check()

    def _add(self, action: AddReplica) -> None:
        device = int(action.device.removeprefix("gpu"))
        self.made += 1
        self.replicas.append(
            Replica(
                f"r{self.made}",
                action.function,
                device,
                action.lane,
                action.sm_percent,
                action.quota_percent,
                action.batch,
                Life.READY if self.cold_s == 0.0 else Life.STARTING,
                self.now_s,
            )
        )

    def check(self) -> None:
        """No lane, device or memory is over-committed, and a lane has one share."""
        book = Book.of(self.observe())
        assert np.all(book.free_units >= 0), book.free_units
        assert np.all(book.free_bytes >= 0), book.free_bytes
        for replica in self.replicas:
            lane = (replica.device, replica.lane)
            assert book.lane_quota_percent[lane] <= 100.0 + 1e-6, replica
            assert book.lane_units[lane] == granted_units(80, replica.sm_percent), replica
            assert 0.0 < replica.quota_percent <= 100.0

    def slices(self, function: str = "f") -> list[tuple[float, float, int]]:
        """(sm, quota, batch) of those that start or serve."""
        return [
            (r.sm_percent, r.quota_percent, r.batch)
            for r in self.replicas
            if r.function == function and r.life != Life.DRAINING
        ]
