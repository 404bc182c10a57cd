"""A backend made of values: it does what a scaler decides, at once or after a cold start, and shows it the next observation.

No requests are served: `arrivals` are handed in, and `waiting` and `late` as the test wants them. For tests of decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Devices, FixedLanes, Functions, Life, Observation, Replicas
from hasfaas.scaling.policy import Policy

GIB = 2**30


def surface(base_ms: float = 10.0, *, steep: float = 0.1, sigma: float = 0.03) -> Surface:
    """Batches of 1 to 8 on 5 to 100 % of the SMs: a batch of b takes base x (1 + steep (b - 1)), twice that at SM 5 %."""
    batches, shares = (1, 2, 4, 8), tuple(float(s) for s in range(5, 101, 5))
    b, s = np.array(batches, float)[:, None], np.array(shares)
    hold_ms = base_ms * (1.0 + steep * (b - 1.0)) * (1.0 + np.maximum(0.0, 20.0 / s - 1.0) / 3.0)
    return Surface(batches, shares, hold_ms, np.full(hold_ms.shape, sigma))


@attrs.define
class Member:
    """One replica of the plant."""

    replica_id: str
    function: int
    device: int
    lane: int
    sm_percent: float
    quota_percent: float
    batch: int
    since_s: float
    life: Life = Life.STARTING


@attrs.define
class Plant:
    """So many functions on so many devices of 80 units, where each may have been `cut` into lanes of these units."""

    surfaces: Sequence[Surface | None]
    slo_ms: float = 100.0
    devices: int = 4
    cold_start_s: float = 0.0
    min_replicas: int = 0
    max_replicas: int = 64
    batch_max: int = 8
    memory_bytes: float = 1.0 * GIB
    by_hand: Sequence[bool] | None = None
    now_s: float = 0.0
    members: dict[str, Member] = attrs.field(factory=dict)
    decisions: list[Decision] = attrs.field(factory=list)
    made: int = 0
    cut: Sequence[int] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """f0, f1, ..."""
        return tuple(f"f{row}" for row in range(len(self.surfaces)))

    def observe(self, arrivals: ArrayLike, interval_s: float = 1.0, **columns: Any) -> Observation:
        """What a scaler sees now; `columns` replaces columns of the functions."""
        count, members = len(self.surfaces), list(self.members.values())

        def full(value: float) -> Any:
            return np.full(count, float(value))

        known: dict[str, Any] = {
            "names": self.names,
            "slo_ms": full(self.slo_ms),
            "late_share": full(0.01),
            "arrivals": np.asarray(arrivals, float),
            "completed": np.asarray(arrivals, float),
            "late": full(0),
            "waiting": full(0),
            "in_flight": full(0),
            "min_replicas": full(self.min_replicas),
            "max_replicas": full(self.max_replicas),
            "memory_bytes": full(self.memory_bytes),
            "batch_max": full(self.batch_max),
            "cold_start_s": full(self.cold_start_s),
            "overhead_ms": full(0),
            "by_hand": np.zeros(count, bool) if self.by_hand is None else np.asarray(self.by_hand, bool),
            "devices": np.ones((count, self.devices), bool),
            "surfaces": tuple(self.surfaces),
        }
        functions = Functions(**{**known, **columns})
        replicas = Replicas(
            ids=tuple(m.replica_id for m in members),
            function=np.array([m.function for m in members], int),
            device=np.array([m.device for m in members], int),
            lane=np.array([m.lane for m in members], int),
            sm_percent=np.array([m.sm_percent for m in members], float),
            quota_percent=np.array([m.quota_percent for m in members], float),
            batch=np.array([m.batch for m in members], int),
            life=np.array([m.life for m in members], int),
            since_s=np.array([m.since_s for m in members], float),
            in_flight=np.zeros(len(members)),
            used_s=np.zeros(len(members)),
        )
        devices = Devices(
            tuple(f"gpu{row}" for row in range(self.devices)),
            np.full(self.devices, 80),
            np.full(self.devices, 16.0 * GIB),
        )
        count, lanes = self.devices, len(self.cut)
        fixed = FixedLanes(
            np.repeat(np.arange(count), lanes),
            np.tile(np.arange(lanes), count),
            np.tile(np.array(self.cut, int), count),
        )
        return Observation(self.now_s, interval_s, functions, replicas, devices, fixed_lanes=fixed)

    def step(self, policy: Policy, arrivals: ArrayLike, interval_s: float = 1.0, **columns: Any) -> Decision:
        """One tick: shows, asks, does."""
        self.now_s += interval_s
        for member in self.members.values():
            if member.life is Life.STARTING and self.now_s >= member.since_s + self.cold_start_s:
                member.life = Life.READY
        decision = policy.decide(self.observe(arrivals, interval_s, **columns))
        self.apply(decision)
        self.decisions.append(decision)
        return decision

    def apply(self, decision: Decision) -> None:
        """Does it all, and checks after each action that no lane, no device and no memory is over-committed."""
        for action in decision.actions:
            self.apply_one(action)
            self.check()

    def apply_one(self, action: Action) -> None:
        """Does one action."""
        match action:
            case Resize(replica_id, quota_percent):
                self.members[replica_id].quota_percent = quota_percent
            case Rebatch(replica_id, batch):
                self.members[replica_id].batch = batch
            case DrainReplica(replica_id):
                del self.members[replica_id]
            case AddReplica(function, device, lane, sm_percent, quota_percent, batch):
                self.made += 1
                name, row, where = f"r{self.made}", self.names.index(function), int(device.removeprefix("gpu"))
                self.members[name] = Member(name, row, where, lane, sm_percent, quota_percent, batch, self.now_s)

    def check(self) -> None:
        """The invariants of lanes and memory."""
        for device in range(self.devices):
            mine = [m for m in self.members.values() if m.device == device]
            shares = {m.lane: m.sm_percent for m in mine}
            assert sum(shares.values()) <= 100.0 + 1e-6, f"the lanes of device {device} sum to {shares}"
            assert len(mine) * self.memory_bytes <= 16 * GIB
            if self.cut:
                assert shares == {lane: 100.0 * self.cut[lane] / 80 for lane in shares}, "a lane that was not cut"
            for lane in shares:
                quotas = [m.quota_percent for m in mine if m.lane == lane]
                assert sum(quotas) <= 100.0 + 1e-6, f"the quotas of lane {lane} on device {device} are {quotas}"
        assert 0.0 <= self.area <= self.devices

    @property
    def area(self) -> float:
        """Whole devices that are promised."""
        return sum(m.sm_percent * m.quota_percent for m in self.members.values()) / 1e4

    def of(self, row: int) -> list[Member]:
        """The replicas of a function."""
        return [m for m in self.members.values() if m.function == row]
