"""What `@function` makes: the user's code, still callable, with the verbs that run it on a backend."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import difflib
import inspect
import itertools
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Never, ParamSpec, Protocol, TypeVar, overload

import attrs

from hasfaas.core.errors import CancelledError, DeadlineError, InvalidRequestError
from hasfaas.core.lease import host
from hasfaas.core.memory import parse_memory
from hasfaas.core.spec import DEFAULT_MEMORY_BYTES, DEFAULT_TIMEOUT_S, Batch, FunctionSpec, Kind, check_name
from hasfaas.sdk.client import Client, Deployable, default_client
from hasfaas.wire.payload import Payload, encode_arguments
from hasfaas.wire.v1 import functions_pb2 as pb

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
C = TypeVar("C")
MAP_IN_FLIGHT = 64
# Items of a stream that wait for a synchronous reader; the generator is held back beyond them.
READ_AHEAD = 16


_OVER: Any = object()


class Call(Generic[R]):
    """A call under way, from `.spawn`."""

    def __init__(self, future: concurrent.futures.Future[R]) -> None:
        self._future = future

    def result(self, timeout_s: float | None = None) -> R:
        """Waits for the value, or raises what the function raised. DeadlineError when `timeout_s` passes first; the call
        goes on. CancelledError after `cancel`."""
        try:
            with host():
                return self._future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise CancelledError("the call was cancelled") from None
        except TimeoutError as exc:
            if self._future.done():
                raise
            raise DeadlineError(f"no answer within timeout_s={timeout_s}; the call goes on") from exc

    def cancel(self) -> bool:
        """Takes the call back: what has not started never will. False when it has ended."""
        return self._future.cancel()

    def done(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._future.done()


class Remote(Generic[P]):
    """What functions and streams share: their name, options, bundle, and sizing."""

    def __init__(
        self, target: Any, spec: FunctionSpec, *, name: str | None, example: Callable[[int], Any] | None
    ) -> None:
        from hasfaas.sdk.home import function_name, target_of

        self.target = target_of(target)
        self.spec = spec
        self.name = check_name(function_name(target) if name is None else name)
        self.example = example
        self._parameters = _signature(target)
        self._plain_counts = _plain_counts(self._parameters)
        self.built: Deployable | None = None
        self._build_lock = threading.Lock()
        for attribute in ("__doc__", "__module__", "__qualname__", "__name__"):
            setattr(self, attribute, getattr(target, attribute, None))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.target, self.spec, self.name, self.example)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} slo_ms={self.spec.slo_ms:g}>"

    @property
    def kind(self) -> Kind:
        """How the user's code is called."""
        from hasfaas.sdk.bundle import kind_of

        return Kind(kind_of(self.target))

    def deployable(self) -> Deployable:
        """The bundle with its version and effective options, built once. Raises SerializationError naming what cannot be
        pickled."""
        from hasfaas.sdk.bundle import build

        with self._build_lock:
            if self.built is None:
                spec = _overridden(self.spec, self.name, self.client.settings.functions.get(self.name, {}))
                if self.example is not None:
                    setattr(self.target, "__hasfaas_example__", self.example)  # noqa: B010 - travels with the pickle
                bundle = build(self.target, name=self.name, options=attrs.asdict(spec))
                self.built = Deployable(self.name, bundle.version, spec, bundle.to_bytes())
            return self.built

    @property
    def version(self) -> str:
        """The version that this code and these options have: equal for equal ones, in every process."""
        return self.deployable().version

    @property
    def client(self) -> Client:
        """The client of this process."""
        return default_client()

    def deploy(self, *, warm: bool = True) -> pb.DeployResponse:
        """Deploys now. With `warm`, waits for a ready replica and raises what keeps one from starting."""
        return self.client.run(self.client.deploy(self.deployable(), warm=warm))

    def scale(
        self,
        *,
        quota: float | None = None,
        sm: float | None = None,
        replicas: int | None = None,
        lend: bool | None = None,
        auto: bool = False,
    ) -> pb.ScaleFunctionResponse:
        """Sets quota (percent, of each replica, in place), SM share (percent, by new replicas) or the number of replicas.

        With `lend` replicas run on lane time that nobody is entitled to, and give their own idle time to others that lend.

        `auto`, alone, takes all that back, and the scaler sizes the function again.

        Raises PlacementError when the device has not that much; nothing changes then.
        """
        sizes = self.client.scale(self.name, quota=quota, sm=sm, replicas=replicas, lend=lend, auto=auto)
        return self.client.run(sizes)

    def status(self) -> pb.FunctionStatus:
        """Its replicas with their usage, its queue and its counts. NotFoundError when it is not deployed."""
        return self.client.run(self.client.status(self.name)).functions[0]

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
        """Arguments as a payload, after checking that the function takes them."""
        if self._parameters is not None and (kwargs or len(args) not in self._plain_counts):
            try:
                self._parameters.bind(*args, **kwargs)
            except TypeError as exc:
                raise InvalidRequestError(
                    f"{self.name}{self._parameters} was called with other arguments: {exc}"
                ) from None
        return encode_arguments(args, kwargs)


class _Calls(Remote[P], Generic[P, R_co]):
    """The verbs of whatever answers once."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Runs on the configured backend and waits. Raises what the function raised, or a HasFaasError."""
        value: R_co = self.client.run(self._call(self.encode(args, kwargs)))
        return value

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """As `remote`, on the caller's event loop. Cancelling it takes the call back."""
        call = self._call(self.encode(args, kwargs))
        with host():
            value: R_co = await call
        return value

    def spawn(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Starts a call and returns its handle."""
        return Call(self.client.start(self._call(self.encode(args, kwargs))))

    def map(self, *iterables: Iterable[Any], max_in_flight: int = MAP_IN_FLIGHT) -> Iterator[R_co]:
        """One call for each set of items, as the builtin `map` pairs them; results in order, an error raises at its place.

        At most `max_in_flight` calls are under way. Leaving the loop early takes the others back.
        """
        if max_in_flight < 1:
            raise InvalidRequestError(f"max_in_flight={max_in_flight} must be at least 1")
        under_way: deque[concurrent.futures.Future[Any]] = deque()
        try:
            for items in zip(*iterables, strict=False):
                under_way.append(self.client.start(self._call(self.encode(items, {}))))
                if len(under_way) >= max_in_flight:
                    yield _waited(under_way.popleft())
            while under_way:
                yield _waited(under_way.popleft())
        finally:
            for future in under_way:
                future.cancel()

    async def _call(self, arguments: Payload) -> Any:
        return await self.client.call(self, arguments)


class Function(_Calls[P, R_co], Generic[P, R_co]):
    """A decorated function. Calling it runs the plain code here; `.remote` and its like run it on the backend."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        value: R_co = self.target(*args, **kwargs)
        return value


class CoroutineFunction(_Calls[P, R_co], Generic[P, R_co]):
    """A decorated `async def`. Calling it gives the plain coroutine."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]:
        made: Awaitable[R_co] = self.target(*args, **kwargs)
        return made


class ClassFunction(_Calls[P, R_co], Generic[C, P, R_co]):
    """A decorated class. Calling it makes a plain instance; `.remote(...)` is the `__call__` of a replica's instance."""

    def __call__(self, *args: Any, **kwargs: Any) -> C:
        made: C = self.target(*args, **kwargs)
        return made


class StreamFunction(Remote[P], Generic[P, T_co]):
    """A decorated generator, synchronous or not, or a class whose `__call__` is one."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The plain generator (of a class: a plain instance)."""
        return self.target(*args, **kwargs)

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[T_co]:
        """The items, as they come. Leaving the loop early takes the call back."""
        arguments = self.encode(args, kwargs)
        items: queue.Queue[tuple[bool, Any]] = queue.Queue()
        room = asyncio.Semaphore(READ_AHEAD)

        async def pump() -> None:
            try:
                async with contextlib.aclosing(self.client.stream(self, arguments)) as made:
                    async for item in made:
                        await room.acquire()
                        items.put((True, item))
                items.put((False, None))
            except BaseException as exc:
                items.put((False, exc))
                raise

        async def make_room() -> None:
            for _ in range(READ_AHEAD // 2):
                room.release()

        future = self.client.start(pump())
        try:
            for taken in itertools.count(1):
                with host():
                    more, value = items.get()
                if more:
                    yield value
                    if taken % (READ_AHEAD // 2) == 0:
                        self.client.start(make_room())
                elif value is None:
                    return
                else:
                    raise value
        finally:
            future.cancel()

    async def astream(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T_co]:
        """As `stream`, on the caller's event loop."""
        arguments = self.encode(args, kwargs)
        async with contextlib.aclosing(self.client.stream(self, arguments)) as made:
            while True:
                with host():
                    item = await anext(made, _OVER)
                if item is _OVER:
                    return
                yield item


class Served(Protocol[P, R_co]):
    """A class with a `__call__`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


@attrs.frozen
class _Decorator:
    spec: FunctionSpec
    name: str | None
    example: Callable[[int], Any] | None

    @overload
    def __call__(self, target: type[Served[P, R]]) -> ClassFunction[Any, P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, AsyncIterator[T]]) -> StreamFunction[P, T]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, Iterator[T]]) -> StreamFunction[P, T]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, Awaitable[R]]) -> CoroutineFunction[P, R]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, target: Callable[P, R]) -> Function[P, R]: ...

    def __call__(self, target: Any) -> Any:
        from hasfaas.sdk.bundle import kind_of
        from hasfaas.sdk.home import target_of

        kind = Kind(kind_of(target_of(target)))
        if kind is Kind.CLASS and not any("__call__" in vars(base) for base in target.__mro__):
            raise InvalidRequestError(f"class {target.__qualname__} has no __call__: define what a call runs")
        made: type[Remote[Any]]
        if kind.streams:
            if self.spec.batch is not None:
                raise InvalidRequestError(
                    f"batch= does not go with the stream {target.__qualname__}", reason="BAD_OPTION"
                )
            made = StreamFunction
        elif kind is Kind.CLASS:
            made = ClassFunction
        elif kind is Kind.COROUTINE:
            made = CoroutineFunction
        else:
            made = Function
        return made(target, self.spec, name=self.name, example=self.example)


def function(
    *,
    slo_ms: float,
    slo_percentile: float = 99.0,
    batch: Batch | None = None,
    memory: str | int = DEFAULT_MEMORY_BYTES,
    device: str = "auto",
    replicas: tuple[int, int] = (0, 8),
    idempotent: bool = False,
    share_init: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    example: Callable[[int], Any] | None = None,
    name: str | None = None,
    **unknown: Never,
) -> _Decorator:
    """Declares a function, class or generator that a backend serves.

    `slo_ms` at `slo_percentile`: the promised latency. `batch`: dynamic batching (arrays stacked on axis 0). `memory`: the
    wall of each replica ("2GiB" or bytes). `device`: "auto", a kind ("cpu", "sim") or a device's name. `replicas`: (least,
    most). `idempotent`: calls may run again after a replica died. `share_init`: replicas fork from a process that has run
    `__init__`. `timeout_s`: how long a call may take in all. `env`: variables of each replica's environment. `secrets`: names
    of more, each read from the file of that name in `secrets_dir` on the machine where a replica runs.
    `example`: callable(batch) -> arguments, to warm up and to place the gates. `name`: "<file>.<function>" by default.

    Raises InvalidRequestError that names a bad option, its value and the cure.
    """
    if unknown:
        raise _unknown_options(unknown)
    if not (isinstance(replicas, tuple) and len(replicas) == 2):
        raise InvalidRequestError(f"replicas={replicas!r}: give (least, most)", reason="BAD_OPTION")
    if example is not None and not callable(example):
        raise InvalidRequestError(f"example={example!r}: give a callable(batch) -> arguments", reason="BAD_OPTION")
    spec = FunctionSpec(
        slo_ms=slo_ms,
        slo_percentile=slo_percentile,
        batch=batch,
        memory_bytes=parse_memory(memory),
        device=device,
        min_replicas=replicas[0],
        max_replicas=replicas[1],
        idempotent=idempotent,
        share_init=share_init,
        timeout_s=timeout_s,
        env={} if env is None else env,
        secrets=secrets,
    )
    return _Decorator(spec, name, example)


def _waited(future: concurrent.futures.Future[Any]) -> Any:
    # A replica that waits for another one must not hold the lane that the other may need.
    with host():
        return future.result()


def _unknown_options(unknown: Iterable[str]) -> InvalidRequestError:
    known = [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    words = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        words.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return InvalidRequestError(
        f"@function has no option {', '.join(words)}; its options are {', '.join(known)}", reason="UNKNOWN_OPTION"
    )


def _rebuild(
    cls: type[Remote[Any]], target: Any, spec: FunctionSpec, name: str, example: Callable[[int], Any] | None
) -> Remote[Any]:
    return cls(target, spec, name=name, example=example)


def _signature(target: Any) -> inspect.Signature | None:
    """What a call takes: of a class, its `decode`, else its `__call__`, without self."""
    if not isinstance(target, type):
        called, bound = target, False
    else:
        called, bound = getattr(target, "decode", None) or target.__call__, True
    try:
        found = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    return found.replace(parameters=list(found.parameters.values())[1:]) if bound else found


def _plain_counts(signature: inspect.Signature | None) -> range:
    """How many arguments may be given by position alone: such calls need no closer look, which costs as much as the rest of
    their encoding."""
    if signature is None:
        return range(0)
    kinds = inspect.Parameter
    named = [p for p in signature.parameters.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    others = [p for p in signature.parameters.values() if p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty]
    if others:
        return range(0)
    return range(sum(1 for p in named if p.default is kinds.empty), len(named) + 1)


def _overridden(spec: FunctionSpec, name: str, options: Any) -> FunctionSpec:
    """The spec with what the configuration says of this function; what it does not name stays."""
    fields: dict[str, Any] = dict(options)
    changes: dict[str, Any] = {}
    if "memory" in fields:
        changes["memory_bytes"] = parse_memory(fields.pop("memory"))
    if "replicas" in fields:
        changes["min_replicas"], changes["max_replicas"] = fields.pop("replicas")
    if "batch" in fields:
        changes["batch"] = attrs.evolve(spec.batch or Batch(), **fields.pop("batch"))
    if "env" in fields:
        changes["env"] = {**spec.env, **fields.pop("env")}
    return attrs.evolve(spec, **changes, **fields)
