"""A gateway with memory and no processes, behind the client that the shell uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import attrs

from hasfaas.backends.base import Endpoint
from hasfaas.core.errors import HasFaasError, NotFoundError
from hasfaas.core.settings import Settings
from hasfaas.sdk.client import Deployable, Source
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.payload import Payload, decode_arguments
from hasfaas.wire.v1 import functions_pb2 as pb

T = TypeVar("T")
MS = 1_000_000


@attrs.define(eq=False)
class FakeGateway:
    """What is deployed, with one replica each; `code` answers calls by name. It is the stub of its own
    service.

    Each look at it is 100 ms later than the last, and every replica has then used 30 ms more.
    """

    settings: Settings
    code: dict[str, Callable[..., Any]] = attrs.field(factory=dict)
    functions: dict[str, pb.FunctionStatus] = attrs.field(factory=dict)
    lines: list[tuple[str, str]] = attrs.field(factory=list)
    up_now: bool = True
    looks: int = 0
    timeouts_s: list[float] = attrs.field(factory=list)
    failure: HasFaasError | None = None
    condition: tuple[str, str, str] = ("ready", "", "")

    def add(self, name: str, *, replicas: int = 1, kind: str = "function", **spec: Any) -> pb.FunctionStatus:
        """Deploys a function, as far as anybody can see."""
        made = pb.FunctionStatus(name=name, version=f"v-{name}", kind=kind, unprofiled=True)
        made.spec.slo_ms, made.spec.slo_percentile, made.spec.timeout_s = 50, 99, 7.0
        made.spec.memory_bytes, made.spec.max_replicas = 2**30, 8
        for key, value in spec.items():
            setattr(made.spec, key, value)
        self.functions[name] = made
        self._grow(made, replicas)
        return made

    def _grow(self, function: pb.FunctionStatus, count: int) -> None:
        while len(function.replicas) < count:
            number = len(function.replicas) + 1
            function.replicas.add(
                replica_id=f"{function.name}-{number}",
                state="ready",
                device="cpu0",
                lane=0,
                sm_asked_percent=25.0,
                sm_granted_percent=50.0,
                quota_percent=100.0,
                memory_bytes=2**30,
                pid=1000 + number,
                version=function.version,
                usage=pb.Usage(throttled_ns=2 * MS),
                sm_counted_percent=50.0,
                cold_start=pb.ReplicaStatus.ColdStart(enter_ms=250.0, load_ms=1500.0, first_run_ms=3.0),
            )
        del function.replicas[count:]

    def _look(self) -> None:
        self.looks += 1
        for function in self.functions.values():
            for replica in function.replicas:
                replica.usage.used_ns += 30 * MS

    # The service.

    async def ListFunctions(self, request: pb.ListFunctionsRequest, **_: float) -> pb.ListFunctionsResponse:
        self._look()
        found = [self._get(request.name)] if request.name else list(self.functions.values())
        return pb.ListFunctionsResponse(functions=found, at_ns=self.looks * 100 * MS)

    async def GetStatus(self, request: pb.GetStatusRequest, **_: float) -> pb.GetStatusResponse:
        device = pb.DeviceStatus(device_id="cpu0", kind="cpu", units=2, memory_bytes=2**33, occupancy=0.5)
        device.health, device.why, device.cure = self.condition
        device.facts["name"] = "Accelerator 1"
        device.lanes.add(lane=0, units=[0], sm_percent=50.0, quota_percent=80.0)
        return pb.GetStatusResponse(
            hasfaas_version="9.9",
            pid=77,
            uptime_s=90.0,
            devices=[device],
            functions=list(self.functions.values()),
            window_ms=100.0,
            quantum_ms=10.0,
        )

    async def ScaleFunction(self, request: pb.ScaleFunctionRequest) -> pb.ScaleFunctionResponse:
        function = self._get(request.name)
        if request.HasField("replicas"):
            self._grow(function, request.replicas)
        for replica in function.replicas:
            if request.HasField("quota_percent"):
                replica.quota_percent = request.quota_percent
            if request.HasField("sm_percent"):
                replica.sm_granted_percent = request.sm_percent
        function.unprofiled, function.sized = False, True
        return pb.ScaleFunctionResponse(function=function, applied_ms=1.25)

    async def DeleteFunction(self, request: pb.DeleteFunctionRequest) -> pb.DeleteFunctionResponse:
        del self.functions[self._get(request.name).name]
        return pb.DeleteFunctionResponse()

    async def StreamLogs(self, request: pb.StreamLogsRequest) -> AsyncIterator[pb.StreamLogsResponse]:
        self._get(request.name)
        for replica_id, line in self.lines[-request.tail :]:
            yield pb.StreamLogsResponse(replica_id=replica_id, line=line)

    def _get(self, name: str) -> pb.FunctionStatus:
        found = [one for full, one in self.functions.items() if full == name or full.endswith(f".{name}")]
        if not found:
            raise NotFoundError(f"function {name!r} is not deployed")
        return found[0]

    # The backend.

    def running(self) -> Endpoint | None:
        return Endpoint("unix:/fake", trusted=True) if self.up_now else None

    def up(self) -> bool:
        was, self.up_now = self.up_now, True
        return not was

    def down(self) -> bool:
        was, self.up_now = self.up_now, False
        return was


class FakeClient:
    """What the shell asks of a client, done here and now."""

    def __init__(self, gateway: FakeGateway) -> None:
        self.backend = gateway
        self.settings = gateway.settings
        self.stub = gateway
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    async def session(self) -> FakeClient:
        self.stub.up_now = True
        return self

    async def rpc(self, call: Awaitable[T]) -> T:
        answer = await call
        if self.stub.failure is not None:
            raise self.stub.failure
        return answer

    async def close(self) -> None:
        return None

    async def deploy(self, function: Deployable, *, warm: bool) -> pb.DeployResponse:
        known = self.stub.functions.get(function.name)
        self.stub.add(function.name, replicas=int(warm))
        self.stub.functions[function.name].version = function.version
        self.stub.functions[function.name].spec.CopyFrom(spec_to_proto(function.spec))
        changed = known is None or known.version != function.version
        return pb.DeployResponse(name=function.name, version=function.version, changed=changed)

    async def call_named(self, name: str, arguments: Payload, timeout_s: float) -> Any:
        return self._call(name, arguments, timeout_s)

    async def call(self, source: Source, arguments: Payload, timeout_s: float) -> Any:
        function = source.deployable()
        await self.deploy(function, warm=True)
        return self._call(function.name, arguments, timeout_s)

    async def stream_named(self, name: str, arguments: Payload, timeout_s: float) -> AsyncIterator[Any]:
        items: Iterator[Any] = self._call(name, arguments, timeout_s)
        for item in items:
            yield item

    def _call(self, name: str, arguments: Payload, timeout_s: float) -> Any:
        self.stub.timeouts_s.append(timeout_s)
        args, kwargs = decode_arguments(arguments, allow_pickle=False)
        return self.stub.code[name](*args, **kwargs)
