"""The user's function or object, as the replica calls it: decode, device work, encode."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs

from hasfaas.core.spec import Kind
from hasfaas.executor import stacking
from hasfaas.executor.stacking import Arguments

STREAMING_KINDS = tuple(kind for kind in Kind if kind.streams)


@attrs.frozen(eq=False)
class Target:
    """What to call. `decode` and `encode` are the optional host hooks of a class, run without the lease."""

    kind: Kind
    call: Callable[..., Any]
    owner: object
    decode: Callable[..., Any] | None = None
    encode: Callable[[Any], Any] | None = None

    @classmethod
    def build(cls, kind: Kind, loaded: Any) -> Target:
        """From what the bundle held: a class is built here, once, by the user's `__init__`."""
        if kind not in (Kind.CLASS, Kind.GENERATOR_CLASS):
            return cls(kind, loaded, loaded)
        instance = loaded()
        return cls(
            kind,
            instance.__call__,
            instance,
            getattr(instance, "decode", None),
            getattr(instance, "encode", None),
        )

    @property
    def has_host_work(self) -> bool:
        """Whether the lane must be given up between two executions for the hooks."""
        return self.decode is not None or self.encode is not None

    def decoded(self, given: Arguments) -> Arguments:
        """The arguments of the device part: what `decode` makes of them, a tuple being several."""
        if self.decode is None:
            return given
        made = self.decode(*given.args, **given.kwargs)
        return Arguments(made if isinstance(made, tuple) else (made,), {})

    def encoded(self, result: Any) -> Any:
        """The result as the caller gets it."""
        return self.encode(result) if self.encode is not None else result

    def run(self, given: Arguments) -> Any:
        """The device part, once. A coroutine runs to its end."""
        result = self.call(*given.args, **given.kwargs)
        return loop().run_until_complete(result) if inspect.iscoroutine(result) else result

    def run_batch(self, calls: list[Arguments], fetch: Callable[[Any], Any] = lambda value: value) -> list[Any]:
        """The device part for calls of one signature, stacked, fetched from the device at once, and split."""
        return stacking.split(fetch(self.run(stacking.stack(calls))), len(calls))

    def items(self, given: Arguments) -> Iterator[Any]:
        """The items of a generator, synchronous or not."""
        made = self.call(*given.args, **given.kwargs)
        return _drive(made) if hasattr(made, "__anext__") else iter(made)


def _drive(agen: AsyncIterator[Any]) -> Iterator[Any]:
    try:
        while True:
            try:
                yield loop().run_until_complete(agen.__anext__())
            except StopAsyncIteration:
                return
    finally:
        # A generator has aclose(); an iterator that the user wrote need not.
        close = getattr(agen, "aclose", None)
        if close is not None:
            loop().run_until_complete(close())


_loop: list[asyncio.AbstractEventLoop] = []


def loop() -> asyncio.AbstractEventLoop:
    """This replica's event loop, made on first use: most functions need none."""
    if not _loop:
        _loop.append(asyncio.new_event_loop())
        asyncio.set_event_loop(_loop[0])
    return _loop[0]
