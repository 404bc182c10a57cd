"""What the data plane asks of the rest of the system, by shape. It imports none of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hasfaas.core.allocation import Usage
from hasfaas.core.spec import FunctionSpec, Kind
from hasfaas.wire.frames import RawPayload


@attrs.frozen
class Sizing:
    """What an operator has set by hand; None leaves it to hasfaas."""

    quota_percent: float | None = None
    sm_percent: float | None = None
    replicas: int | None = None
    lend: bool | None = None

    @property
    def sized(self) -> bool:
        """Whether anybody has set a share or a number; lending alone sizes nothing."""
        return any(value is not None for value in (self.quota_percent, self.sm_percent, self.replicas))


@attrs.frozen
class FunctionRecord:
    """One deployed function, as the store keeps it."""

    name: str
    version: str
    kind: Kind
    spec: FunctionSpec
    python: str
    packages: tuple[str, ...]
    bundle_sha256: str
    signature: bytes
    sizing: Sizing = Sizing()


@attrs.frozen
class ReplicaView:
    """One replica, as `ps` shows it."""

    replica_id: str
    version: str
    state: str
    device_id: str
    lane: int
    sm_asked_percent: float
    sm_granted_percent: float
    quota_percent: float
    memory_bytes: int
    pid: int
    usage: Usage
    error: str = ""
    lends: bool = False


@attrs.frozen
class LaneView:
    """One lane of a device: its units and what of its time is promised."""

    lane: int
    units: tuple[int, ...]
    sm_percent: float
    quota_percent: float


@attrs.frozen
class DeviceView:
    """One device, as `status` shows it."""

    device_id: str
    kind: str
    units: int
    memory_bytes: int
    memory_used_bytes: int
    lanes: tuple[LaneView, ...]
    occupancy: float


class Sink(Protocol):
    """Where the answer to one call goes. Exactly one of `result`, `end`, `error` is called, once, last."""

    def result(self, payload: RawPayload) -> None: ...

    def item(self, payload: RawPayload) -> None: ...

    def end(self) -> None: ...

    def error(self, status: bytes) -> None:
        """`status` is a serialised google.rpc.Status."""
        ...


class Store(Protocol):
    """Remembers what is deployed, across restarts of the gateway."""

    def put(self, record: FunctionRecord, bundle: bytes) -> None: ...

    def get(self, name: str) -> FunctionRecord | None: ...

    def all(self) -> Sequence[FunctionRecord]: ...

    def delete(self, name: str) -> None: ...

    def resize(self, name: str, sizing: Sizing) -> None: ...

    def bundle_path(self, sha256: str) -> Path: ...


class Control(Protocol):
    """Whoever starts, sizes and ends replicas."""

    def verify(self, bundle: bytes, signature: bytes) -> None:
        """Raises AuthError unless a deployer that we trust signed these bytes."""
        ...

    async def deploy(self, record: FunctionRecord, *, warm: bool) -> None:
        """Makes this version the one that serves. Raises IncompatibleError, AuthError, PlacementError, and with `warm`
        whatever kept the first replica from starting."""
        ...

    async def delete(self, name: str) -> None: ...

    async def scale(self, record: FunctionRecord, change: Sizing) -> float:
        """Sets what `change` names; milliseconds until it was in force. Nothing changes when it raises."""
        ...

    def replicas(self, name: str) -> Sequence[ReplicaView]: ...

    def devices(self) -> Sequence[DeviceView]: ...

    def logs(self, name: str) -> Sequence[tuple[str, Path]]:
        """(replica id, log file) of each replica, newest last, ended ones included while their files exist."""
        ...


class Demand(Protocol):
    """Told by the router that calls wait and nobody serves."""

    def __call__(self, name: str) -> None: ...
