"""A served gateway with all around it: real gRPC on a unix socket, a real router and store. Who controls replicas is made
of memory, and so is each replica, behind a real socket pair."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import grpc

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import HasFaasError, NotFoundError
from hasfaas.core.spec import FunctionSpec, Kind
from hasfaas.sdk.session import error_of
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.serving.gateway import GatewayService
from hasfaas.serving.ports import DeviceView, FunctionRecord, LaneView, News, ProfileState, ReplicaView, Sizing
from hasfaas.serving.router import Router
from hasfaas.serving.store import LocalStore
from hasfaas.wire.frames import Measured, RawPayload, Started
from hasfaas.wire.status import from_status
from hasfaas.wire.v1 import functions_pb2 as pb
from hasfaas.wire.v1 import functions_pb2_grpc, payload_pb2
from tests.fakes.replica import ReplicaEnd, WorkingReplica

T = TypeVar("T")
Work = Callable[[WorkingReplica, int, RawPayload], Awaitable[RawPayload | None]]
SPEC = FunctionSpec(slo_ms=50, timeout_s=20)


@attrs.define(eq=False)
class RecordingControl:
    """Remembers what it was asked. `refuses` is raised by the next deploy or scale, `distrusts` for any bundle. Each
    function has a replica, but for those `without`."""

    router: Router
    store: LocalStore
    distrusts: HasFaasError | None = None
    asked: list[tuple[str, object]] = attrs.field(factory=list)
    refuses: HasFaasError | None = None
    without: set[str] = attrs.field(factory=set)
    log_files: list[tuple[str, Path]] = attrs.field(factory=list)

    def verify(self, bundle: bytes, signature: bytes) -> None:
        if self.distrusts is not None:
            raise self.distrusts

    def sign(self, bundle: bytes) -> bytes:
        return b"signed"

    async def deploy(self, record: FunctionRecord, *, warm: bool) -> None:
        self.asked.append(("deploy", (record, warm)))
        self._refuse()
        self.router.set_function(record.name, record.spec, streams=record.kind.streams)

    async def delete(self, name: str) -> None:
        self.asked.append(("delete", name))
        self.router.drop_function(name, NotFoundError("deleted"))

    async def scale(self, record: FunctionRecord, change: Sizing) -> float:
        self.asked.append(("scale", (record.name, change)))
        self._refuse()
        self.store.resize(record.name, change)
        return 12.5

    async def release(self, record: FunctionRecord) -> float:
        self.asked.append(("release", record.name))
        self.store.resize(record.name, Sizing())
        return 3.5

    def _refuse(self) -> None:
        refused, self.refuses = self.refuses, None
        if refused is not None:
            raise refused

    def replicas(self, name: str) -> Sequence[ReplicaView]:
        if name in self.without:
            return []
        usage = Usage(quota_ppm=300_000, used_ns=7)
        return [ReplicaView(f"{name}-1", "v1", "ready", "cpu0", 2, 50.0, 50.0, 30.0, 2**30, 77, usage)]

    def devices(self) -> Sequence[DeviceView]:
        return [DeviceView("cpu0", "cpu", 2, 2**34, 2**30, (LaneView(2, (0,), 50.0, 30.0),), 0.15)]

    async def bring_logs(self, name: str) -> None:
        return

    def logs(self, name: str) -> Sequence[tuple[str, Path]]:
        return self.log_files


@attrs.define(eq=False)
class MemoryProfiling:
    """Profiles of memory: `news` is what a measurement gives, `fails` what it ends with, `texts` what is known by name."""

    texts: dict[str, str] = attrs.field(factory=dict)
    news: list[News] = attrs.field(factory=list)
    fails: HasFaasError | None = None
    asked: list[dict[str, object]] = attrs.field(factory=list)
    ended: int = 0
    goes_on: asyncio.Event | None = None
    shown: ProfileState = attrs.field(factory=ProfileState)

    def state(self, record: FunctionRecord) -> ProfileState:
        return self.shown

    def get(self, record: FunctionRecord, device: str) -> str:
        if record.name not in self.texts:
            raise NotFoundError("unprofiled", reason="UNPROFILED")
        return self.texts[record.name]

    def forget(self, name: str) -> None:
        self.texts.pop(name, None)

    async def profile(self, record: FunctionRecord, **asked: object) -> AsyncGenerator[News, None]:
        self.asked.append({"name": record.name, **asked})
        try:
            for each in self.news:
                yield each
            if self.goes_on is not None:
                await self.goes_on.wait()
            if self.fails is not None:
                raise self.fails
        finally:
            self.ended += 1


class MemoryScaling:
    """Explains by name."""

    def explain(self, record: FunctionRecord) -> str:
        return f'{{"function": "{record.name}"}}'


class ToRouter:
    """A channel's events, as the fleet wires them."""

    def __init__(self, router: Router, replica_id: str) -> None:
        self.result = partial(router.on_result, replica_id)
        self.item = partial(router.on_item, replica_id)
        self.end = partial(router.on_end, replica_id)
        self.error = partial(router.on_error, replica_id)
        self.lost = partial(router.detach, replica_id, "died")

    def measured(self, call_id: int, measured: Measured) -> None:
        raise AssertionError("the replicas of these tests are not measured")

    def observed(self, holds: Sequence[tuple[int, int]]) -> None:
        raise AssertionError("the replicas of these tests observe nothing")

    def ready(self, started: Started) -> None:
        raise AssertionError("the replicas of these tests are ready from the start")

    def failed(self, status: bytes) -> None:
        raise AssertionError("the replicas of these tests do not fail to start")


class Site:
    """One served gateway with its client."""

    def __init__(self, folder: Path) -> None:
        self.router = Router(max_queue=100, demand=lambda name: None, now_s=time.monotonic)
        self.store = LocalStore(folder / "state")
        self.control = RecordingControl(self.router, self.store)
        self.profiling = MemoryProfiling()
        self.service = GatewayService(
            self.router,
            self.store,
            self.control,
            self.profiling,
            MemoryScaling(),
            embedded=lambda: True,
            window_ms=100.0,
            quantum_ms=10.0,
        )
        self.server = grpc.aio.server()
        functions_pb2_grpc.add_FunctionServiceServicer_to_server(self.service, self.server)
        self.server.add_insecure_port(f"unix:{folder}/g")
        self.grpc = grpc.aio.insecure_channel(f"unix:{folder}/g")
        self.stub: Any = functions_pb2_grpc.FunctionServiceStub(self.grpc)
        self.tasks: list[asyncio.Task[None]] = []
        self.channels: list[ReplicaChannel] = []

    def deploy(self, name: str = "app.f", version: str = "v1", kind: Kind = Kind.FUNCTION) -> None:
        """Deploys past the service, for tests of calls."""
        sha = hashlib.sha256(b"bundle").hexdigest()
        self.store.put(FunctionRecord(name, version, kind, SPEC, "python", (), sha, b"signed"), b"bundle")
        self.router.set_function(name, SPEC, streams=kind.streams)

    async def serve(self, work: Work, name: str = "app.f") -> WorkingReplica:
        """A replica that does `work`."""
        ours, theirs = socket.socketpair()
        replica = WorkingReplica(ReplicaEnd(theirs), work)
        replica_id = f"{name}-{len(self.channels)}"
        self.channels.append(await ReplicaChannel.open(ours, ToRouter(self.router, replica_id)))
        self.tasks.append(asyncio.ensure_future(replica.serve()))
        self.router.attach(name, replica_id, self.channels[-1], 100.0)
        return replica

    async def close(self) -> None:
        await self.grpc.close(None)
        await self.server.stop(None)
        for channel in self.channels:
            channel.close()
        await asyncio.gather(*self.tasks)
        self.store.close()


class Session:
    """A client of the multiplexed stream, frame by frame."""

    def __init__(self, site: Site) -> None:
        self.stream: Any = site.stub.Session()
        self.frames: deque[pb.SessionAnswer] = deque()

    async def send(self, call_id: int, **frame: Any) -> None:
        await self.stream.write(pb.SessionRequest(frames=[pb.SessionCall(call_id=call_id, **frame)]))

    async def read(self, count: int = 1) -> list[pb.SessionAnswer]:
        async with asyncio.timeout(20):
            while len(self.frames) < count:
                self.frames.extend((await self.stream.read()).frames)
        return [self.frames.popleft() for _ in range(count)]

    async def error(self) -> tuple[int, HasFaasError]:
        """The next frame, which must be an error: whose, and which."""
        (response,) = await self.read()
        assert response.WhichOneof("frame") == "error", response
        return response.call_id, from_status(response.error)

    async def answer(self) -> tuple[int, bytes]:
        """The next answer, its chunks put together: whose, and its blob."""
        (response,) = await self.read()
        assert response.WhichOneof("frame") == "result", response
        blob = response.result.data
        while len(blob) < sum(response.result.sizes):
            (more,) = await self.read()
            assert (more.call_id, more.WhichOneof("frame")) == (response.call_id, "chunk")
            blob += more.chunk
        return response.call_id, blob


async def until(so: Callable[[], bool]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(20):
        while not so():  # noqa: ASYNC110 - nobody could tell us
            await asyncio.sleep(0.002)


async def rpc(call: Awaitable[T]) -> T:
    """A unary call; its failure as the typed error."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise error_of(exc) from None


async def items_of(call: AsyncIterator[pb.InvokeStreamResponse]) -> list[bytes]:
    """The items of a stream, its failure as the typed error."""
    try:
        return [response.item.data async for response in call]
    except grpc.aio.AioRpcError as exc:
        raise error_of(exc) from None


def raw(blob: bytes = b"blob", head: bytes = b"\xffopaque") -> RawPayload:
    return RawPayload(2, head, (len(blob),), (blob,) if blob else ())


def message(blob: bytes = b"blob", **changes: Any) -> payload_pb2.Payload:
    """A payload that nobody but the two ends could read."""
    fields: dict[str, Any] = {"codec": 2, "head": b"\xffopaque", "sizes": [len(blob)], "data": blob} | changes
    return payload_pb2.Payload(**fields)


def call(blob: bytes = b"blob", function: str = "app.f", **fields: Any) -> pb.InvokeRequest:
    return pb.InvokeRequest(function=function, arguments=message(blob), **fields)


def stream(site: Site, function: str = "app.f", **fields: Any) -> Any:
    return site.stub.InvokeStream(pb.InvokeStreamRequest(call=call(function=function, **fields)))


async def echo(_replica: WorkingReplica, _call_id: int, given: RawPayload) -> RawPayload:
    return given


async def hang(_replica: WorkingReplica, _call_id: int, _given: RawPayload) -> RawPayload:
    await asyncio.Event().wait()
    raise AssertionError


def failing(exc: HasFaasError) -> Work:
    async def work(_replica: WorkingReplica, _call_id: int, _given: RawPayload) -> RawPayload:
        raise exc

    return work


def counting(count: int, then: HasFaasError | None = None) -> Work:
    async def work(replica: WorkingReplica, call_id: int, _given: RawPayload) -> RawPayload | None:
        for number in range(count):
            await replica.item(call_id, raw(str(number).encode()))
        if then is not None:
            raise then
        return None

    return work
