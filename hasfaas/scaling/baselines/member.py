"""The replicas of each function that a scaler counts on: those that start or serve."""

from __future__ import annotations

import attrs

from hasfaas.scaling.observation import Life, Observation


@attrs.frozen
class Member:
    """One row of `Replicas`, as plain numbers."""

    id: str
    device: int
    lane: int
    sm_percent: float
    quota_percent: float
    batch: int
    ready: bool
    since_s: float
    in_flight: int

    @property
    def retires_late(self) -> tuple[bool, int, float, str]:
        """Order in which replicas go when there are too many: those that start, then the idlest, then the youngest."""
        return self.ready, self.in_flight, -self.since_s, self.id


def members(observation: Observation) -> list[list[Member]]:
    """Those of each function, in the order of the observation. Replicas that drain are none."""
    replicas = observation.replicas
    found: list[list[Member]] = [[] for _ in observation.functions.names]
    rows = zip(
        replicas.function.tolist(),
        replicas.ids,
        replicas.device.tolist(),
        replicas.lane.tolist(),
        replicas.sm_percent.tolist(),
        replicas.quota_percent.tolist(),
        replicas.batch.tolist(),
        replicas.life.tolist(),
        replicas.since_s.tolist(),
        replicas.in_flight.tolist(),
        strict=True,
    )
    for function, replica_id, device, lane, sm, quota, batch, life, since_s, in_flight in rows:
        if life != Life.DRAINING:
            ready = life == Life.READY
            found[function].append(Member(replica_id, device, lane, sm, quota, batch, ready, since_s, in_flight))
    return found
