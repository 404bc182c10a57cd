"""What the data plane asks of the rest of the system, by shape. It imports none of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs

from hasfaas.core.allocation import Usage
from hasfaas.core.spec import FunctionSpec, Kind
from hasfaas.wire.frames import RawPayload, Started


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
    started: Started | None = None


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
    health: str = "ready"
    why: str = ""
    cure: str = ""
    fixed_lanes: bool = False
    facts: Mapping[str, object] = attrs.field(factory=dict, hash=False)


class Sink(Protocol):
    """Where the answer to one call goes. Exactly one of `result`, `end`, `error` is called, once, last."""

    def result(self, payload: RawPayload) -> None: ...

    def item(self, payload: RawPayload) -> None: ...

    def end(self) -> None: ...

    def error(self, status: bytes) -> None:
        """`status` is a serialised google.rpc.Status."""
        ...


class Store(Protocol):
    """Remembers what is deployed, across restarts of the gateway. Reading is quick; what changes it goes by `commit`."""

    async def commit(self, change: Callable[[], None]) -> None:
        """Calls `change`, which calls `put`, `delete` or `resize` of this store, where waiting for it holds nobody up."""
        ...

    def put(self, record: FunctionRecord, bundle: bytes) -> None: ...

    def get(self, name: str) -> FunctionRecord | None: ...

    def all(self) -> Sequence[FunctionRecord]: ...

    def delete(self, name: str) -> None: ...

    def resize(self, name: str, sizing: Sizing) -> None: ...

    def bundle_path(self, sha256: str) -> Path: ...

    def put_profile(self, name: str, version: str, device_id: str, profile: str) -> None:
        """Remembers a profile, as JSON, in place of what there was for this version and device."""
        ...

    def profiles(self, name: str, version: str) -> dict[str, str]:
        """The profiles of a version, by device."""
        ...


class Control(Protocol):
    """Whoever starts, sizes and ends replicas."""

    def verify(self, bundle: bytes, signature: bytes) -> None:
        """Raises AuthError unless a deployer that we trust signed these bytes."""
        ...

    def sign(self, bundle: bytes) -> bytes:
        """The signature that `verify` and replicas accept, for a bundle whose deployer has been checked another way."""
        ...

    async def deploy(self, record: FunctionRecord, *, warm: bool) -> None:
        """Makes this version the one that serves. Raises IncompatibleError, AuthError, PlacementError, and with `warm`
        whatever kept the first replica from starting."""
        ...

    async def delete(self, name: str) -> None: ...

    async def scale(self, record: FunctionRecord, change: Sizing) -> float:
        """Sets what `change` names; milliseconds until it was in force. Nothing changes when it raises."""
        ...

    async def release(self, record: FunctionRecord) -> float:
        """Takes back what was set by hand, but for lending; milliseconds until that was in force."""
        ...

    def replicas(self, name: str) -> Sequence[ReplicaView]: ...

    def devices(self) -> Sequence[DeviceView]: ...

    async def bring_logs(self, name: str) -> None:
        """What the replicas have printed so far is in their log files when this returns."""
        ...

    def logs(self, name: str) -> Sequence[tuple[str, Path]]:
        """(replica id, log file) of each replica, newest last, ended ones included while their files exist."""
        ...


@attrs.frozen(order=True)
class Point:
    """Where a function is measured: calls in one execution, SM share and quota in percent."""

    batch: int
    sm_percent: float
    quota_percent: float


@attrs.frozen
class Plan:
    """What will be measured."""

    points: tuple[Point, ...]


@attrs.frozen
class Figures:
    """What was measured at one point: median and mean hold (far apart where runs were interrupted), mean response, and the
    spread of log(hold) from run to run."""

    point: Point
    hold_ms: float
    mean_hold_ms: float
    response_ms: float
    runs: int
    log_spread: float


@attrs.frozen
class Note:
    """Something that whoever waits should know."""

    text: str


@attrs.frozen
class Fitted:
    """The profile, as JSON."""

    profile: str


News = Plan | Figures | Note | Fitted


@attrs.frozen
class ProfileState:
    """What is known of a function's latency: "unprofiled", "few-shot" or "live". `reason` says why it has drifted."""

    state: str = "unprofiled"
    drifted: bool = False
    reason: str = ""


class Profiling(Protocol):
    """Whoever measures functions and keeps their profiles."""

    def state(self, record: FunctionRecord) -> ProfileState: ...

    def get(self, record: FunctionRecord, device: str) -> str:
        """The profile of this version as JSON. NotFoundError (UNPROFILED) where there is none."""
        ...

    def forget(self, name: str) -> None:
        """The function was deleted, with its profiles."""
        ...

    def profile(
        self, record: FunctionRecord, *, device: str, points: int, arguments: RawPayload | None, at: Sequence[Point]
    ) -> AsyncGenerator[News, None]:
        """Measures and fits; with `at` it measures those points and keeps nothing. Closing it ends what it has started.

        Raises ConflictError while the function is being profiled already, or when it is deployed anew meanwhile;
        PlacementError, UnavailableError, InvalidRequestError, and what the user's code raises.
        """
        ...


class Scaling(Protocol):
    """Whoever sizes the functions that nobody sizes by hand."""

    def explain(self, record: FunctionRecord) -> str:
        """What it sees of a function and has decided about it, as JSON."""
        ...


class Demand(Protocol):
    """Told by the router that calls wait and nobody serves."""

    def __call__(self, name: str) -> None: ...
