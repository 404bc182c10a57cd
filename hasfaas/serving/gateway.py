"""The gateway's gRPC service: checks a request's envelope, hands it to the router, and sends back what comes.

It passes payload bytes on and never looks inside them. Every error that leaves is a canonical code with details.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import attrs
from google.rpc import status_pb2

from hasfaas.core.errors import AuthError, HasFaasError, InvalidRequestError, NotFoundError
from hasfaas.core.spec import Kind, check_name
from hasfaas.core.tokens import SCOPE
from hasfaas.core.version import VERSION
from hasfaas.serving.client_calls import ClientCalls, Intake
from hasfaas.serving.failure import Context, StatusError, abort, guard
from hasfaas.serving.ports import Control, FunctionRecord, Point, Profiling, Scaling, Sizing, Store
from hasfaas.serving.router import Call, Router
from hasfaas.serving.views import device_to_proto, function_to_proto, news_to_proto
from hasfaas.wire import bundle as bundles
from hasfaas.wire.convert import spec_from_proto
from hasfaas.wire.frames import RawPayload
from hasfaas.wire.lots import lot
from hasfaas.wire.payload import Codec, blob_bytes
from hasfaas.wire.status import from_status, to_status
from hasfaas.wire.v1 import functions_pb2 as pb
from hasfaas.wire.v1 import functions_pb2_grpc, payload_pb2

CHUNK_BYTES = 1 << 20
# A session may hold so many bytes of half-received arguments.
MAX_PARTIAL_BYTES = 1 << 30
DEFAULT_POINTS = 16


@attrs.frozen
class Terms:
    """What a caller may send: names of shared segments of this host, and pickles, which run code where they are read."""

    segments: bool = True
    pickles: bool = True


@attrs.frozen
class Admitted:
    """A deploy whose deployer is known: the signature that replicas check, and the interpreter they run on."""

    signature: bytes
    python: str


class UnarySink:
    """Gathers the one answer of a call as a future."""

    def __init__(self) -> None:
        self.future: asyncio.Future[RawPayload] = asyncio.get_running_loop().create_future()

    def result(self, payload: RawPayload) -> None:
        if not self.future.done():
            self.future.set_result(payload)

    def item(self, payload: RawPayload) -> None:
        self._fail(InvalidRequestError("this function streams: call it with InvokeStream, or `.stream(...)`"))

    def end(self) -> None:
        self._fail(InvalidRequestError("this function streams: call it with InvokeStream, or `.stream(...)`"))

    def error(self, status: bytes) -> None:
        self._fail(from_status(status_pb2.Status.FromString(status)), status)

    def _fail(self, exc: HasFaasError, status: bytes | None = None) -> None:
        if not self.future.done():
            self.future.set_exception(StatusError(status or to_status(exc).SerializeToString()))


class StreamSink:
    """Hands items to one reader; `None` ends the stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[RawPayload | StatusError | None] = asyncio.Queue()

    def result(self, payload: RawPayload) -> None:
        self.queue.put_nowait(payload)
        self.queue.put_nowait(None)

    def item(self, payload: RawPayload) -> None:
        self.queue.put_nowait(payload)

    def end(self) -> None:
        self.queue.put_nowait(None)

    def error(self, status: bytes) -> None:
        self.queue.put_nowait(StatusError(status))


class GatewayService(functions_pb2_grpc.FunctionServiceServicer):
    """FunctionService over a router, a store and whoever controls the replicas."""

    def __init__(
        self,
        router: Router,
        store: Store,
        control: Control,
        profiling: Profiling,
        scaling: Scaling,
        *,
        embedded: Callable[[], bool],
        window_ms: float,
        quantum_ms: float,
    ) -> None:
        self._router = router
        self._store = store
        self._control = control
        self._profiling = profiling
        self._scaling = scaling
        self._embedded = embedded
        self._window_ms = window_ms
        self._quantum_ms = quantum_ms
        self._started_s = time.monotonic()
        # One lock a name, kept: a few bytes each.
        self._changes: dict[str, asyncio.Lock] = {}
        self._deploying: set[asyncio.Task[pb.DeployResponse]] = set()
        self.intake = Intake(router, self.record)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def Invoke(self, request: pb.InvokeRequest, context: Context) -> pb.InvokeResponse:  # noqa: N802
        return await guard(context, self._invoke(request, context))

    async def _invoke(self, request: pb.InvokeRequest, context: Context) -> pb.InvokeResponse:
        sink = UnarySink()
        call = self._submit(request, sink, context)
        try:
            payload = await sink.future
        finally:
            # The caller has left, or has an answer that ends the call for it, such as a stream's first item.
            self._router.cancel(call)
        return pb.InvokeResponse(result=_to_proto(payload))

    async def InvokeStream(  # noqa: N802
        self, request: pb.InvokeStreamRequest, context: Context
    ) -> AsyncIterator[pb.InvokeStreamResponse]:
        sink = StreamSink()
        call: Call | None = None
        try:
            call = self._submit(request.call, sink, context)
            while (item := await sink.queue.get()) is not None:
                if isinstance(item, StatusError):
                    raise item
                yield pb.InvokeStreamResponse(item=_to_proto(item))
                self._router.credit(call, 1)
        except (HasFaasError, StatusError) as exc:
            await abort(context, exc)
        finally:
            if call is not None:
                self._router.cancel(call)

    async def Session(  # type: ignore[override]  # noqa: N802 - the reader and writer style of grpc.aio
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        try:
            session = _Session(self.intake, self._terms(context))
        except HasFaasError as exc:
            await abort(context, exc)
        writer = asyncio.ensure_future(session.write_to(context))
        try:
            async for request in request_iterator:
                for frame in request.frames:
                    session.take(frame)
            # The client has said all that it will, and may still read.
            session.finish()
            await writer
        finally:
            session.close()
            writer.cancel()

    def _terms(self, context: Context) -> Terms:
        """What the caller of an RPC may send. Here it runs as this user on this host."""
        return Terms()

    def _submit(self, request: pb.InvokeRequest, sink: object, context: Context) -> Call:
        raw = _raw(request.arguments, self._terms(context))
        left_s = context.time_remaining()
        wanted_s = request.timeout_s or None
        timeout_s = min((s for s in (left_s, wanted_s) if s is not None), default=None)
        if not request.timeout_s >= 0.0:
            timeout_s = request.timeout_s  # refused by name, whatever time the RPC has left
        return self.intake.submit(request.function, request.version, raw, sink, timeout_s)

    # -- functions ---------------------------------------------------------------------------------------------------

    async def BeginDeploy(  # noqa: N802
        self, request: pb.BeginDeployRequest, context: Context
    ) -> pb.BeginDeployResponse:
        why = InvalidRequestError("deploys of this host are signed with its user's key, and without a challenge")
        await abort(context, why)

    async def Deploy(self, request: pb.DeployRequest, context: Context) -> pb.DeployResponse:  # noqa: N802
        return await guard(context, self._deploy(request, context))

    async def _deploy(self, request: pb.DeployRequest, context: Context) -> pb.DeployResponse:
        self.intake.used()
        check_name(request.name)
        admitted = self._admit(request, context)
        # A deployer who leaves must not leave a half of it behind, so it goes on to its end.
        task = asyncio.ensure_future(self._deploy_in_turn(request, admitted))
        self._deploying.add(task)
        task.add_done_callback(self._deploying.discard)
        return await asyncio.shield(task)

    def _admit(self, request: pb.DeployRequest, context: Context) -> Admitted:
        """Checks who signed the bundle, before anything of it is read. Raises AuthError."""
        self._control.verify(request.bundle, request.signature)
        return Admitted(request.signature, bundles.read_manifest(request.bundle).python)

    async def _deploy_in_turn(self, request: pb.DeployRequest, admitted: Admitted) -> pb.DeployResponse:
        async with self._changing(request.name):
            return await self._deploy_alone(request, admitted)

    def _changing(self, name: str) -> asyncio.Lock:
        """Held while a function is deployed, scaled or deleted: one change after the other."""
        return self._changes.setdefault(name, asyncio.Lock())

    async def _deploy_alone(self, request: pb.DeployRequest, admitted: Admitted) -> pb.DeployResponse:
        manifest = bundles.read_manifest(request.bundle)
        if (manifest.name, manifest.version) != (request.name, request.version):
            raise InvalidRequestError(
                f"the bundle is of {manifest.name} {manifest.version}, the request of {request.name} {request.version}"
            )
        known = self._store.get(request.name)
        record = FunctionRecord(
            name=request.name,
            version=request.version,
            kind=_kind(manifest.kind),
            spec=spec_from_proto(request.spec),
            python=admitted.python,
            packages=tuple(name for name, _ in manifest.fingerprint.packages),
            bundle_sha256=hashlib.sha256(request.bundle).hexdigest(),
            signature=admitted.signature,
            sizing=known.sizing if known else Sizing(),
        )
        changed = known is None or known.version != record.version or known.spec != record.spec
        if changed or (known is not None and not self._is_sound(known)):
            await self._store.commit(lambda: self._store.put(record, request.bundle))
        try:
            await self._control.deploy(self._store.get(request.name) or record, warm=request.warm)
        except HasFaasError:
            # What cannot start is not left behind as deployed, and what served before goes on.
            if changed and known is None:
                await self._store.commit(lambda: self._store.delete(request.name))
            elif changed and known is not None:
                before = self._store.bundle_path(known.bundle_sha256).read_bytes()
                await self._store.commit(lambda: self._store.put(known, before))
            raise
        return pb.DeployResponse(name=record.name, version=record.version, changed=changed)

    def _is_sound(self, record: FunctionRecord) -> bool:
        """Whether its bundle is still what was deployed: in a shared store somebody may have changed it, or named another."""
        try:
            bundle = self._store.bundle_path(record.bundle_sha256).read_bytes()
            self._control.verify(bundle, record.signature)
            manifest = bundles.read_manifest(bundle)
            return (manifest.name, manifest.version) == (record.name, record.version)
        except (AuthError, NotFoundError):
            return False

    async def ListFunctions(  # noqa: N802
        self, request: pb.ListFunctionsRequest, context: Context
    ) -> pb.ListFunctionsResponse:
        async def answer() -> pb.ListFunctionsResponse:
            records = [self.record(request.name)] if request.name else self._store.all()
            return pb.ListFunctionsResponse(functions=[self._status(r) for r in records], at_ns=time.monotonic_ns())

        return await guard(context, answer())

    async def DeleteFunction(  # noqa: N802
        self, request: pb.DeleteFunctionRequest, context: Context
    ) -> pb.DeleteFunctionResponse:
        async def answer() -> pb.DeleteFunctionResponse:
            async with self._changing(self.record(request.name).name):
                name = self.record(request.name).name
                await self._store.commit(lambda: self._store.delete(name))
                self._profiling.forget(name)
                await self._control.delete(name)
            return pb.DeleteFunctionResponse()

        return await guard(context, answer())

    async def ScaleFunction(  # noqa: N802
        self, request: pb.ScaleFunctionRequest, context: Context
    ) -> pb.ScaleFunctionResponse:
        async def answer() -> pb.ScaleFunctionResponse:
            async with self._changing(self.record(request.name).name):
                return await scale(self.record(request.name))

        async def scale(record: FunctionRecord) -> pb.ScaleFunctionResponse:
            change = Sizing(
                quota_percent=request.quota_percent if request.HasField("quota_percent") else None,
                sm_percent=request.sm_percent if request.HasField("sm_percent") else None,
                replicas=request.replicas if request.HasField("replicas") else None,
                lend=request.lend if request.HasField("lend") else None,
            )
            if request.auto and change != Sizing():
                raise InvalidRequestError(f"{record.name}: auto takes back what was set; give it alone, without sizes")
            if request.auto:
                applied_ms = await self._control.release(record)
            else:
                applied_ms = await self._control.scale(record, change)
            fresh = self.record(record.name)
            return pb.ScaleFunctionResponse(function=self._status(fresh), applied_ms=applied_ms)

        return await guard(context, answer())

    async def StreamLogs(  # noqa: N802
        self, request: pb.StreamLogsRequest, context: Context
    ) -> AsyncIterator[pb.StreamLogsResponse]:
        try:
            name = self.record(request.name).name
        except HasFaasError as exc:
            await abort(context, exc)
        positions: dict[Path, int] = {}
        while True:
            await self._control.bring_logs(name)
            for replica_id, path in self._control.logs(name):
                lines, positions[path] = _read_lines(path, positions.get(path), request.tail)
                for line in lines:
                    yield pb.StreamLogsResponse(replica_id=replica_id, line=line)
            if not request.follow:
                return
            await asyncio.sleep(0.2)

    async def Profile(  # noqa: N802
        self, request: pb.ProfileRequest, context: Context
    ) -> AsyncIterator[pb.ProfileResponse]:
        try:
            self.intake.used()
            record = self.record(request.name)
            news = self._profiling.profile(
                record,
                device=request.device,
                points=request.points or DEFAULT_POINTS,
                arguments=_raw(request.arguments, self._terms(context)) if request.HasField("arguments") else None,
                at=[Point(point.batch, point.sm_percent, point.quota_percent) for point in request.at],
            )
            # Whoever leaves takes the replica along that measures for them.
            async with contextlib.aclosing(news):
                async for each in news:
                    self.intake.used()
                    yield news_to_proto(each)
        except HasFaasError as exc:
            await abort(context, exc)

    async def GetProfile(  # noqa: N802
        self, request: pb.GetProfileRequest, context: Context
    ) -> pb.GetProfileResponse:
        async def answer() -> pb.GetProfileResponse:
            record = self.record(request.name)
            profile = self._profiling.get(record, request.device)
            return pb.GetProfileResponse(name=record.name, version=record.version, profile_json=profile)

        return await guard(context, answer())

    async def ExplainFunction(  # noqa: N802
        self, request: pb.ExplainFunctionRequest, context: Context
    ) -> pb.ExplainFunctionResponse:
        async def answer() -> pb.ExplainFunctionResponse:
            return pb.ExplainFunctionResponse(explanation_json=self._scaling.explain(self.record(request.name)))

        return await guard(context, answer())

    async def GetStatus(  # noqa: N802
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            hasfaas_version=VERSION,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started_s,
            embedded=self._embedded(),
            devices=[device_to_proto(view) for view in self._control.devices()],
            functions=[self._status(record) for record in self._store.all()],
            window_ms=self._window_ms,
            quantum_ms=self._quantum_ms,
            at_ns=time.monotonic_ns(),
        )

    def record(self, name: str) -> FunctionRecord:
        """The function of that name, or the only one whose name ends in `.name`. NotFoundError, InvalidRequestError."""
        exact = self._store.get(name)
        if exact is not None:
            return exact
        ending = [r for r in self._store.all() if r.name.endswith(f".{name}")]
        if len(ending) == 1:
            return ending[0]
        if ending:
            names = ", ".join(r.name for r in ending)
            raise InvalidRequestError(f"function {name!r} is ambiguous: {names}; give the whole name")
        known = ", ".join(r.name for r in self._store.all()) or "nothing"
        raise NotFoundError(f"function {name!r} is not deployed; deployed: {known}")

    def _status(self, record: FunctionRecord) -> pb.FunctionStatus:
        profile = self._profiling.state(record)
        return function_to_proto(record, self._control.replicas(record.name), self._router, profile)


@attrs.define(eq=False)
class _Partial:
    request: pb.InvokeRequest
    missing: int
    chunks: list[bytes]


class _Session:
    """Many calls of one client on one gRPC stream."""

    def __init__(self, intake: Intake, terms: Terms) -> None:
        self._calls = ClientCalls(intake, self)
        self._terms = terms
        self._partial: dict[int, _Partial] = {}
        self._partial_bytes = 0
        self._out: deque[pb.SessionAnswer] = deque()
        self._some = asyncio.Event()
        self._finishing = False

    async def write_to(self, context: Context) -> None:
        """Sends what the calls answer, in order, as fast as the client reads; ends when no call is left to answer and the
        client sends no more."""
        out = self._out
        while True:
            while out:
                await context.write(pb.SessionResponse(frames=lot(out)))
            if self._finishing and not len(self._calls):
                return
            self._some.clear()
            await self._some.wait()

    def finish(self) -> None:
        """No more comes from the client: arguments that are not whole never will be."""
        self._finishing = True
        self._partial.clear()
        self._some.set()

    def take(self, request: pb.SessionCall) -> None:
        """One frame from the client. What is wrong with it is an answer to that call, never the end of the session."""
        call_id = request.call_id
        match request.WhichOneof("frame"):
            case "start":
                self._begin(call_id, request.start)
            case "chunk":
                self._chunk(call_id, request.chunk)
            case "cancel":
                self._forget(call_id)
                self._calls.cancel(call_id)
            case "credit":
                self._calls.credit(call_id, request.credit.items)
            case "release":
                self._calls.release(request.release)

    def close(self) -> None:
        """The client has left."""
        self._calls.close()
        self._partial.clear()

    def send_result(self, call_id: int, payload: RawPayload) -> None:
        self._send_payload(call_id, "result", payload)

    def send_item(self, call_id: int, payload: RawPayload) -> None:
        self._send_payload(call_id, "item", payload)

    def send_end(self, call_id: int) -> None:
        self._send(pb.SessionAnswer(call_id=call_id, end=pb.SessionAnswer.End()))

    def send_error(self, call_id: int, status: bytes) -> None:
        self._send(pb.SessionAnswer(call_id=call_id, error=status_pb2.Status.FromString(status)))

    def _send(self, response: pb.SessionAnswer) -> None:
        self._out.append(response)
        self._some.set()

    def _send_payload(self, call_id: int, field: str, payload: RawPayload) -> None:
        """A payload, its blob cut into chunks when it is large and not in a segment."""
        blob = payload.chunks[0] if len(payload.chunks) == 1 else b"".join(payload.chunks)
        first = payload_pb2.Payload(
            codec=payload.codec,  # type: ignore[arg-type]
            head=payload.head,
            sizes=payload.sizes,
            data=bytes(blob[:CHUNK_BYTES]),
            segment=payload.segment,
        )
        self._send(pb.SessionAnswer(call_id=call_id, **{field: first}))  # type: ignore[arg-type]
        for start in range(CHUNK_BYTES, len(blob), CHUNK_BYTES):
            chunk = bytes(blob[start : start + CHUNK_BYTES])
            self._send(pb.SessionAnswer(call_id=call_id, chunk=chunk))

    def _begin(self, call_id: int, request: pb.InvokeRequest) -> None:
        if call_id in self._partial:
            self._calls.fail(
                call_id, InvalidRequestError(f"call_id={call_id} is in use; give each call of a session its own")
            )
            return
        whole = 0 if request.arguments.segment else blob_bytes(tuple(request.arguments.sizes))
        missing = whole - len(request.arguments.data)
        if missing <= 0:
            self._submit(call_id, request, [request.arguments.data])
        elif self._partial_bytes + missing > MAX_PARTIAL_BYTES:
            why = InvalidRequestError(f"arguments of {missing >> 20} MiB exceed the session's limit")
            self._calls.fail(call_id, why)
        else:
            self._partial_bytes += missing
            self._partial[call_id] = _Partial(request, missing, [request.arguments.data])

    def _chunk(self, call_id: int, chunk: bytes) -> None:
        partial = self._partial.get(call_id)
        if partial is None:
            return  # of a call that was refused or cancelled while its chunks were under way
        partial.chunks.append(chunk)
        if len(chunk) >= partial.missing:
            self._forget(call_id)
            self._submit(call_id, partial.request, partial.chunks)
        else:
            partial.missing -= len(chunk)
            self._partial_bytes -= len(chunk)

    def _forget(self, call_id: int) -> None:
        partial = self._partial.pop(call_id, None)
        if partial is not None:
            self._partial_bytes -= partial.missing

    def _submit(self, call_id: int, request: pb.InvokeRequest, chunks: Sequence[bytes]) -> None:
        try:
            raw = _raw(request.arguments, self._terms, chunks, replies_in_segments=request.segments)
        except HasFaasError as exc:
            self._calls.fail(call_id, exc)
            return
        self._calls.begin(call_id, request.function, request.version, raw, request.timeout_s)


def _kind(word: str) -> Kind:
    try:
        return Kind(word)
    except ValueError as exc:
        known = ", ".join(kind.value for kind in Kind)
        raise InvalidRequestError(
            f"the bundle's kind {word!r} is unknown; known: {known}", reason="BAD_BUNDLE"
        ) from exc


def _raw(
    message: payload_pb2.Payload,
    terms: Terms,
    chunks: Sequence[bytes] | None = None,
    *,
    replies_in_segments: bool = False,
) -> RawPayload:
    """A message's payload, its blob being `chunks` where it came in several. Raises InvalidRequestError for a blob that is
    longer or shorter than the sizes say, or for a segment of a host that the caller is not on, and AuthError for a pickle
    from a caller that may send none."""
    if not terms.segments and (message.segment or replies_in_segments):
        raise InvalidRequestError(
            "a segment is shared memory of one host; over a network payloads travel in the message"
        )
    if not terms.pickles and int(message.codec) != Codec.PLAIN:
        raise AuthError(
            "the arguments are a pickle, which runs code where it is read, and that is the right to deploy; send plain "
            "values, lists, dicts, numpy arrays or torch tensors, or use a token with the scope deploy",
            reason=SCOPE,
        )
    sizes = tuple(message.sizes)
    given = tuple(chunk for chunk in (chunks if chunks is not None else (message.data,)) if chunk)
    raw = RawPayload(message.codec, message.head, sizes, given, message.segment, replies_in_segments)
    if message.segment and not given:
        return raw
    if raw.blob_bytes != blob_bytes(sizes):
        raise InvalidRequestError(f"a payload announces {blob_bytes(sizes)} bytes and holds {raw.blob_bytes}")
    return raw


def _to_proto(payload: RawPayload) -> payload_pb2.Payload:
    return payload_pb2.Payload(
        codec=payload.codec,  # type: ignore[arg-type]
        head=payload.head,
        sizes=payload.sizes,
        data=b"".join(payload.chunks),
    )


def _read_lines(path: Path, position: int | None, tail: int) -> tuple[list[str], int]:
    """New whole lines of a log since `position`; on the first read the last `tail` ones, or all."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < (position or 0):
                position = 0  # it was emptied, having grown past its bound
            file.seek(position or 0)
            data = file.read()
    except FileNotFoundError:
        return [], position or 0
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").splitlines()
    if position is None and tail:
        lines = lines[-tail:]
    return lines, (position or 0) + len(whole)
