"""A fleet with its nodes and router made of memory: it keeps what it is told, and starts no process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import NotFoundError, PlacementError
from hasfaas.core.spec import Batch, FunctionSpec, Kind
from hasfaas.core.state import ReplicaState
from hasfaas.devices.base import Condition, DeviceInfo
from hasfaas.node.lanes import Seat, Want
from hasfaas.rapp.surface import Surface
from hasfaas.serving.ports import FunctionRecord, ProfileState, Sizing
from hasfaas.serving.router import Answered, Counts

DEVICES = (
    DeviceInfo("sim0", "sim", tuple(range(80)), 2**34, cold_start_s=2.0),
    DeviceInfo("cpu0", "cpu", (0, 1), 2**33),
)

UNSIZED = Sizing()


def surface(hold_ms: float = 10.0) -> Surface:
    """The hold at batches 1 and 4 and two SM shares."""
    return Surface((1, 4), (50.0, 100.0), [[2 * hold_ms, hold_ms], [4 * hold_ms, 2 * hold_ms]], [[0.0] * 2] * 2)


def record(name: str = "app.f", *, sizing: Sizing = UNSIZED, kind: Kind = Kind.FUNCTION, **spec: Any) -> FunctionRecord:
    """A deployed function."""
    options: dict[str, Any] = {"slo_ms": 100.0, "batch": Batch(4), "memory_bytes": 2**30} | spec
    return FunctionRecord(name, "v1", kind, FunctionSpec(**options), "python", (), "sha", b"signed", sizing)


@attrs.define(eq=False)
class MemoryProcess:
    """What nodes keep of a replica."""

    replica_id: str
    request: Any
    device_id: str = "sim0"
    lane: int = 0
    sm_percent: float = 50.0
    asked_s: float = 90.0


@attrs.define(eq=False)
class MemoryMember:
    """What a fleet keeps of a replica."""

    process: MemoryProcess
    state: ReplicaState = ReplicaState.READY
    batch: int | None = None
    bench: object | None = None


@attrs.define(eq=False)
class MemoryDeployed:
    """What a fleet keeps of a function."""

    record: FunctionRecord
    members: dict[str, MemoryMember] = attrs.field(factory=dict)
    cold_start_s: float = 0.0


@attrs.frozen
class MemoryRequest:
    """The part of a replica's request that matters here."""

    function: str
    batch_max: int | None = 4
    batch_cap: int | None = None


class MemoryNodes:
    """Replicas with their seats and usage, by id."""

    def __init__(self) -> None:
        self.devices = {device.device_id: device for device in DEVICES}
        self.conditions = {device.device_id: Condition() for device in DEVICES}
        self.replicas: dict[str, MemoryProcess] = {}
        self.seats: dict[str, Seat] = {}
        self.used_ns: dict[str, int] = {}

    def seat(self, replica_id: str) -> Seat:
        return self.seats[replica_id]

    def quota_percent(self, replica_id: str) -> float:
        return self.seats[replica_id].quota_percent

    def in_force(self, replica_id: str) -> bool:
        return True

    def usage(self, replica_id: str) -> Usage:
        return Usage(used_ns=self.used_ns.get(replica_id, 0))


class MemoryRouter:
    """Counters that a test sets."""

    def __init__(self) -> None:
        self.all: dict[str, Counts] = {}
        self.waiting: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.latencies: dict[str, list[Answered]] = {}

    def counts(self, name: str) -> Counts:
        return self.all.setdefault(name, Counts())

    def depth(self, name: str) -> int:
        return self.waiting.get(name, 0)

    def in_flight(self, replica_id: str) -> int:
        return self.held.get(replica_id, 0)

    def answered(self, name: str) -> list[Answered]:
        return self.latencies.pop(name, [])


class MemoryFleet:
    """What it was told stands in `told`; `full` makes the next start find no room, some time after it was asked for."""

    def __init__(self, *records: FunctionRecord) -> None:
        self.nodes = MemoryNodes()
        self.router = MemoryRouter()
        self.known = {each.name: MemoryDeployed(each) for each in records}
        self.told: list[tuple[Any, ...]] = []
        self.full = False
        self.late: list[Callable[[], None]] = []
        self.governs: Callable[[FunctionRecord], bool] = lambda _record: False
        self.ask: Callable[[str], None] = lambda _name: None

    def seat(
        self,
        replica_id: str,
        function: str = "app.f",
        *,
        quota: float = 30.0,
        pinned: bool = True,
        member: bool = True,
        **options: Any,
    ) -> MemoryMember | None:
        """A replica in its place; without `member` its process is only just being forked."""
        request = MemoryRequest(function, batch_cap=options.pop("batch_cap", None))
        state = options.pop("state", ReplicaState.READY)
        bench = options.pop("bench", None)
        process = MemoryProcess(replica_id, request, **options)
        self.nodes.replicas[replica_id] = process
        self.nodes.seats[replica_id] = Seat(replica_id, quota, pinned, 2**30)
        if not member:
            return None
        made = MemoryMember(process, state, request.batch_cap, bench)
        if function in self.known:
            self.known[function].members[replica_id] = made
        return made

    def govern(self, governs: Callable[[FunctionRecord], bool], ask: Callable[[str], None]) -> None:
        self.governs, self.ask = governs, ask

    def functions(self) -> Iterable[MemoryDeployed]:
        return tuple(self.known.values())

    def replicas(self, name: str) -> tuple[Any, ...]:
        return ()

    def member(self, replica_id: str) -> MemoryMember | None:
        return next((d.members[replica_id] for d in self.known.values() if replica_id in d.members), None)

    def add(self, name: str, want: Want, batch: int, refused: Callable[[str], None]) -> None:
        self.told.append(("add", name, want, batch))
        if self.full:
            self.late.append(lambda: refused("no room"))

    def resize(self, replica_id: str, quota_percent: float, *, lend: bool) -> None:
        self._known(replica_id)
        if quota_percent > 100.0:
            raise PlacementError("the lane has not that much", reason="QUOTA_EXCEEDED")
        self.told.append(("resize", replica_id, quota_percent, lend))

    def rebatch(self, replica_id: str, batch: int) -> None:
        self._known(replica_id)
        self.told.append(("rebatch", replica_id, batch))

    def retire(self, replica_id: str) -> None:
        self._known(replica_id)
        self.told.append(("retire", replica_id))

    def settle(self, name: str) -> None:
        self.told.append(("settle", name))

    def lacks(self, name: str) -> bool:
        return self.router.depth(name) > 0 and ("rescue", name) not in self.told

    def rescue(self, name: str) -> None:
        self.told.append(("rescue", name))

    def _known(self, replica_id: str) -> None:
        if replica_id not in self.nodes.replicas:
            raise NotFoundError(f"replica {replica_id!r} has gone", reason="REPLICA_NOT_FOUND")


@attrs.define(eq=False)
class MemoryProfiles:
    """Surfaces by function: one of `sim` devices, or by type of device."""

    known: dict[str, Surface | dict[str, Surface]] = attrs.field(factory=dict)

    def surfaces(self, record: FunctionRecord) -> dict[str, Surface]:
        found = self.known.get(record.name, {})
        return found if isinstance(found, dict) else {"sim": found}

    def state(self, record: FunctionRecord) -> ProfileState:
        return ProfileState("few-shot" if record.name in self.known else "unprofiled")


def log_lines(folder: Path) -> list[str]:
    """All lines of all logs of a folder, oldest first."""
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
