"""The answer to a call: its value, or the error as its own type."""

from __future__ import annotations

import sys
from typing import Any

from hasfaas.core.errors import FunctionError, HasFaasError, SerializationError
from hasfaas.wire import payload as payloads
from hasfaas.wire.status import RemoteFunctionError, UserFailure


def as_raised(error: HasFaasError, *, trusted: bool) -> BaseException:
    """What to raise for an error off the wire. A user's exception comes back as an instance of both its own class and
    FunctionError where that class is known here and takes part; else as a FunctionError that names it."""
    if not isinstance(error, RemoteFunctionError):
        return error
    failure = error.failure
    plain = FunctionError(failure.message, qualname=failure.qualname, frames=failure.frames, notes=failure.notes)
    cls = _known_class(failure)
    if cls is None:
        return plain
    try:
        args, attributes = _state(failure, trusted=trusted)
        return _mixed(cls, plain, args, attributes)
    except Exception:
        # The class refuses to be rebuilt (its layout, its __new__): the text of it is what can be had.
        return plain


# Raised here, these would end the caller's loop, generator or program in place of failing one call.
_CONTROL_FLOW = (StopIteration, StopAsyncIteration)


def _known_class(failure: UserFailure) -> type[Exception] | None:
    """Only what this process has imported already: an answer must not make a client import modules. SystemExit, a
    cancellation and their like mean something to the process that raises them, so they stay text."""
    found: Any = sys.modules.get(failure.module)
    for part in failure.qualname.split("."):
        found = getattr(found, part, None)
    usable = isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, _CONTROL_FLOW)
    return found if usable else None


def _state(failure: UserFailure, *, trusted: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if failure.state is None:
        return (failure.message,), {}
    try:
        state: Any = payloads.decode(failure.state, allow_pickle=trusted)
        args, attributes = state
    except SerializationError:
        return (failure.message,), {}
    return tuple(args), dict(attributes)


def _mixed(
    cls: type[Exception], plain: FunctionError, args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    """An instance without running the class's __init__, whose arguments need not be its `args`."""
    mixed = type(cls.__name__, (FunctionError, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
    raised: Any = mixed.__new__(mixed, *args)
    raised.args = args
    raised.__dict__.update(attributes)
    raised.message, raised.reason, raised.retry_after_s = plain.message, plain.reason, None
    raised.qualname, raised.frames = plain.qualname, plain.frames
    for note in getattr(plain, "__notes__", ()):
        raised.add_note(note)
    str(raised)
    assert isinstance(raised, BaseException)
    return raised
