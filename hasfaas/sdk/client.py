"""The client: finds the gateway, deploys what is called, carries calls. One per process is enough, and made on first use."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import grpc

from hasfaas.core.errors import AuthError, FunctionError, HasFaasError, NotFoundError, UnavailableError
from hasfaas.core.lease import host
from hasfaas.core.settings import Settings, handed_over
from hasfaas.core.signing import KEY_FILE, load_or_create_key, prove, sign
from hasfaas.core.spec import FunctionSpec
from hasfaas.core.tokens import SCOPE
from hasfaas.sdk.backends import Backend, Endpoint, find_backend
from hasfaas.sdk.call import as_raised
from hasfaas.sdk.frame_session import FrameSession
from hasfaas.sdk.grpc_session import GrpcSession
from hasfaas.sdk.session import GATEWAY_LOST, Request, Session, error_of
from hasfaas.wire import payload as payloads
from hasfaas.wire.convert import payload_to_proto, spec_to_proto
from hasfaas.wire.deploy_proof import signed_parts
from hasfaas.wire.payload import Payload
from hasfaas.wire.v1 import functions_pb2 as pb

T = TypeVar("T")
FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 1.0


@attrs.frozen
class Deployable:
    """A function in the form that a gateway takes."""

    name: str
    version: str
    spec: FunctionSpec
    bundle: bytes


class Source(Protocol):
    """What can make its bundle: a decorated function. `built` is what it made, None before."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> FunctionSpec: ...

    @property
    def built(self) -> Deployable | None: ...

    def deployable(self) -> Deployable: ...


class Client:
    """Connections to one backend. Safe from any thread and any event loop."""

    def __init__(
        self, settings: Settings, *, announce: Callable[[str], None] | None = None, in_replica: bool = False
    ) -> None:
        self.settings = settings
        self._in_replica = in_replica
        self._pid = os.getpid()
        self._announce = announce or (lambda line: print(line, file=sys.stderr))
        self._backend: Backend | None = None
        self._endpoint: Endpoint | None = None
        self._endpoint_lock = threading.Lock()
        self._sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Session] = weakref.WeakKeyDictionary()
        self._under_way: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, asyncio.Task[Any]]]
        self._under_way = weakref.WeakKeyDictionary()
        self._deployed: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()

    # -- for synchronous callers -------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine of this client on its background loop and waits; an interrupt takes the work back."""
        future = self.start(work)
        try:
            with host():
                return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future, work  # an exception's traceback leads here: it must not keep itself alive

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine of this client on its background loop."""
        return asyncio.run_coroutine_threadsafe(work, self._background())

    def _background(self) -> asyncio.AbstractEventLoop:
        self._check_process()
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="hasfaas-client", daemon=True).start()
            return self._loop

    # -- calls -------------------------------------------------------------------------------------------------------

    async def call(self, source: Source, arguments: Payload, timeout_s: float | None = None) -> Any:
        """Calls a function, deploying it first if this process has not. Raises what the function raised.

        None leaves the time to the function's own `timeout_s`.
        """
        if self._in_replica:
            # What is deployed under the name serves: the copy that this replica was given may be older.
            try:
                return await self.call_named(source.name, arguments, timeout_s or source.spec.timeout_s)
            except NotFoundError as exc:
                if isinstance(exc, FunctionError):
                    raise
        answer = await self._call(source, arguments, timeout_s)
        return payloads.decode(answer, allow_pickle=self._trusted)

    async def call_named(self, name: str, arguments: Payload, timeout_s: float) -> Any:
        """Calls whatever version of `name` is deployed."""
        session = await self.session()
        try:
            answer = await session.call(Request(name, "", arguments, timeout_s))
        except HasFaasError as exc:
            raise as_raised(exc, trusted=self._trusted) from None
        return payloads.decode(answer, allow_pickle=self._trusted)

    async def _call(self, source: Source, arguments: Payload, timeout_s: float | None) -> Payload:
        function = await self._built(source)
        give_up_s = time.monotonic() + (timeout_s or function.spec.timeout_s)
        delay_s = FIRST_RETRY_S
        sent = redeployed = False
        while True:
            try:
                await self._ensure_deployed(function)
                session = await self.session()
                left_s = max(0.001, give_up_s - time.monotonic())
                sent = True
                return await session.call(Request(function.name, function.version, arguments, left_s))
            except NotFoundError:
                # Somebody deleted it, or the gateway's store is new: deploy once more, then believe the answer.
                self._deployed.pop(function.name, None)
                if redeployed:
                    raise
                redeployed = True
            except UnavailableError as exc:
                # What was not sent yet did not run, so it may always go to the next gateway.
                again = exc.reason == GATEWAY_LOST and (function.spec.idempotent or not sent)
                if not again or time.monotonic() + delay_s > give_up_s:
                    raise
                await asyncio.sleep(delay_s)
                delay_s = min(LONGEST_RETRY_S, 2 * delay_s)
            except HasFaasError as exc:
                raise as_raised(exc, trusted=self._trusted) from None

    async def stream(
        self, source: Source, arguments: Payload, timeout_s: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """The items of a generator function, deployed first if this process has not. Closing it takes the call back."""
        begun = False
        if self._in_replica:
            try:
                async with contextlib.aclosing(
                    self.stream_named(source.name, arguments, timeout_s or source.spec.timeout_s)
                ) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except NotFoundError as exc:
                if begun or isinstance(exc, FunctionError):
                    raise
        function = await self._built(source)
        request = Request(function.name, function.version, arguments, timeout_s or function.spec.timeout_s)
        for attempt in (1, 2):
            await self._ensure_deployed(function)
            try:
                async with contextlib.aclosing(self._items(request)) as items:
                    async for item in items:
                        begun = True
                        yield item
                return
            except NotFoundError:
                # As for a call: deploy once more, as long as nothing has been made yet.
                self._deployed.pop(function.name, None)
                if begun or attempt == 2:
                    raise

    async def stream_named(self, name: str, arguments: Payload, timeout_s: float) -> AsyncGenerator[Any, None]:
        """The items of whatever version of `name` is deployed."""
        async with contextlib.aclosing(self._items(Request(name, "", arguments, timeout_s))) as items:
            async for item in items:
                yield item

    async def _items(self, request: Request) -> AsyncGenerator[Any, None]:
        # Each generator closes the one below it: left to the garbage collector, a call would go on until it comes by.
        session = await self.session()
        try:
            async with contextlib.aclosing(session.stream(request)) as items:
                async for item in items:
                    yield payloads.decode(item, allow_pickle=self._trusted)
        except HasFaasError as exc:
            raise as_raised(exc, trusted=self._trusted) from None

    # -- functions ---------------------------------------------------------------------------------------------------

    async def deploy(self, function: Deployable, *, warm: bool) -> pb.DeployResponse:
        """Deploys a function; with `warm`, waits until a replica is ready, so that what keeps it from starting is raised."""
        request = pb.DeployRequest(
            name=function.name,
            version=function.version,
            spec=spec_to_proto(function.spec),
            bundle=function.bundle,
            warm=warm,
        )
        session = await self.session()
        await self.sign(request, session)
        answer: pb.DeployResponse = await self.rpc(session.stub.Deploy(request))
        self._deployed[function.name] = function.version
        return answer

    async def sign(self, request: pb.DeployRequest, session: Session | None = None) -> None:
        """Signs with the key of this user, or where another machine's gateway cannot have that, with the token's: that is
        good for one deploy, at the gateway of `session`."""
        session = session or await self.session()
        if session.token is None:
            key = load_or_create_key(self.settings.state_dir / KEY_FILE)
            request.signature = sign(key, request.bundle)
            return
        begun: pb.BeginDeployResponse = await self.rpc(session.stub.BeginDeploy(pb.BeginDeployRequest()))
        request.challenge = begun.challenge
        request.signature = prove(session.token.signing_key, signed_parts(request))

    async def status(self, name: str = "") -> pb.ListFunctionsResponse:
        """What is deployed: one function, or all, with replicas and usage."""
        session = await self.session()
        answer: pb.ListFunctionsResponse = await self.rpc(
            session.stub.ListFunctions(pb.ListFunctionsRequest(name=name))
        )
        return answer

    async def gateway_status(self) -> pb.GetStatusResponse:
        """The gateway with its devices and functions."""
        session = await self.session()
        answer: pb.GetStatusResponse = await self.rpc(session.stub.GetStatus(pb.GetStatusRequest()))
        return answer

    async def scale(
        self,
        name: str,
        *,
        quota: float | None = None,
        sm: float | None = None,
        replicas: int | None = None,
        lend: bool | None = None,
        auto: bool = False,
    ) -> pb.ScaleFunctionResponse:
        """Sets what is given of one function: percents, a number of replicas, and whether they lend. `auto`, alone, gives it
        back to the scaler."""
        session = await self.session()
        request = pb.ScaleFunctionRequest(
            name=name, quota_percent=quota, sm_percent=sm, replicas=replicas, lend=lend, auto=auto
        )
        answer: pb.ScaleFunctionResponse = await self.rpc(session.stub.ScaleFunction(request))
        return answer

    async def explain(self, name: str) -> dict[str, Any]:
        """What the scaler sees of a function and has decided about it, as plain values."""
        session = await self.session()
        request = pb.ExplainFunctionRequest(name=name)
        answer: pb.ExplainFunctionResponse = await self.rpc(session.stub.ExplainFunction(request))
        explanation: dict[str, Any] = json.loads(answer.explanation_json)
        return explanation

    async def profile(
        self,
        name: str,
        *,
        device: str = "",
        points: int = 16,
        arguments: Payload | None = None,
        at: Sequence[tuple[int, float, float]] = (),
    ) -> AsyncGenerator[pb.ProfileResponse, None]:
        """Measures a deployed function in a replica of its own: what is planned, each point's figures, the profile.

        `arguments` are one call's, instead of the function's example. With `at`, (batch, SM %, quota %) each, those points
        are measured and nothing is kept. Closing it ends the measurement.
        """
        session = await self.session()
        request = pb.ProfileRequest(
            name=name,
            device=device,
            points=points,
            arguments=payload_to_proto(arguments) if arguments is not None else None,
            at=[pb.ProfilePoint(batch=b, sm_percent=sm, quota_percent=quota) for b, sm, quota in at],
        )
        call = session.stub.Profile(request)
        news = aiter(call)
        try:
            while (each := await self.rpc(anext(news, None))) is not None:
                yield each
        finally:
            call.cancel()

    async def profile_of(self, name: str, device: str = "") -> dict[str, Any]:
        """The profile of the version that serves, as plain values (`rapp.profile.Profile.to_dict`).

        Raises NotFoundError where the function has none (UNPROFILED), or there is no such function or device.
        """
        session = await self.session()
        request = pb.GetProfileRequest(name=name, device=device)
        answer: pb.GetProfileResponse = await self.rpc(session.stub.GetProfile(request))
        profile: dict[str, Any] = json.loads(answer.profile_json)
        return profile

    async def rpc(self, call: Awaitable[T]) -> T:
        """Awaits a unary RPC of the current session; its failure is raised as its typed error."""
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            raise as_raised(error_of(exc), trusted=self._trusted) from None
        except asyncio.CancelledError:
            # A session that breaks takes its channel along, and gRPC calls that a cancellation; ours has somebody who asked.
            session, task = self._sessions.get(asyncio.get_running_loop()), asyncio.current_task()
            if session is None or session.why_broken is None or task is None or task.cancelling():
                raise
            raise type(session.why_broken)(session.why_broken.message, reason=session.why_broken.reason) from None

    async def _built(self, source: Source) -> Deployable:
        if source.built is not None:
            return source.built
        # Building reads files and hashes, so it leaves the loop alone.
        return await self._together(("build", source), lambda: asyncio.to_thread(source.deployable))

    async def _ensure_deployed(self, function: Deployable) -> None:
        if self._deployed.get(function.name) == function.version:
            return
        try:
            await self._together(("deploy", function.version), lambda: self.deploy(function, warm=False))
        except AuthError as exc:
            if exc.reason != SCOPE:
                raise
            # A token to call with, and not to deploy with: the same version, deployed by somebody else, is as good.
            self._deployed[function.name] = function.version

    async def _together(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Calls that need the same thing first share one task for it."""
        under_way = self._under_way.setdefault(asyncio.get_running_loop(), {})
        task = under_way.get(key)
        if task is None:
            task = under_way[key] = asyncio.ensure_future(make())
            task.add_done_callback(lambda done: _forget(under_way, key, done))
        try:
            return await asyncio.shield(task)
        finally:
            del task  # an exception's traceback leads here: without this, it would keep itself and the arguments alive

    # -- connections -------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The configured backend, found on first use."""
        if self._backend is None:
            self._backend = find_backend(self.settings)
        return self._backend

    @property
    def _trusted(self) -> bool:
        return self._endpoint is not None and self._endpoint.trusted

    async def session(self) -> Session:
        """The stream of the current event loop, made anew when its gateway has gone."""
        self._check_process()
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or session.broken:
            session = await self._together("session", self._open)
        return session

    async def _open(self) -> Session:
        endpoint = await asyncio.to_thread(self._find)
        if endpoint.frames is not None:
            session: Session = await FrameSession.open(endpoint, endpoint.frames)
        else:
            session = GrpcSession(endpoint)
        self._sessions[asyncio.get_running_loop()] = session
        return session

    def _find(self) -> Endpoint:
        with self._endpoint_lock:
            self._endpoint = self.backend.endpoint(self._announce)
            return self._endpoint

    def _check_process(self) -> None:
        """gRPC does not survive a fork: a call would wait for ever."""
        if os.getpid() != self._pid and (self._loop is not None or len(self._sessions)):
            raise UnavailableError(
                "this process was forked from one that had called functions already, and its connection did not come "
                'along; start it with multiprocessing.get_context("spawn"), or make the first call after the fork',
                reason="FORKED",
            )

    async def close(self) -> None:
        """Closes the stream of the current event loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()


def _forget(under_way: dict[Hashable, asyncio.Task[Any]], key: Hashable, done: asyncio.Task[Any]) -> None:
    del under_way[key]
    if not done.cancelled():
        done.exception()  # all who waited for it may have left: then nobody asks


_default: list[Client] = []
_default_lock = threading.Lock()


def default_client() -> Client:
    """The client of this process, by its configuration."""
    with _default_lock:
        if not _default:
            from hasfaas.sdk.config import load

            inside = handed_over()
            _default.append(Client(inside or load().settings, in_replica=inside is not None))
        return _default[0]


def set_default_client(client: Client | None) -> None:
    """Replaces the client of this process; None lets the next use make one from the configuration."""
    with _default_lock:
        _default[:] = [] if client is None else [client]
