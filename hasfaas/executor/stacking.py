"""The contract of `batch=`: array arguments are stacked on a new axis 0, the result is split on axis 0.

Calls whose arrays differ in shape or type, or whose other arguments differ, cannot share an execution and
form groups of their own; so a misshapen argument fails alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError, SerializationError
from hasfaas.wire import payload


@attrs.frozen(eq=False)
class Arguments:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _torch() -> ModuleType | None:
    return sys.modules.get("torch")


def is_array(value: object) -> bool:
    """Whether a value is stacked: a numpy array or a torch tensor."""
    torch = _torch()
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def signature(call: Arguments) -> tuple[object, ...]:
    """Calls with equal signatures may be stacked. Arrays count by type, shape and dtype; other arguments by
    their encoded bytes, so that what is equal here is the same value. (A text would not do: numpy's
    abbreviates.)"""
    named = [(None, value) for value in call.args] + sorted(call.kwargs.items())
    return tuple((key, type(value), *_identity(value)) for key, value in named)


def _identity(value: Any) -> tuple[object, ...]:
    if is_array(value):
        return tuple(value.shape), str(value.dtype)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return (repr(value),)  # not the value itself: 0.0 and -0.0 are equal
    try:
        encoded = payload.encode(value)
    except SerializationError:
        return (object(),)  # what a decode hook made and nobody can compare stands alone
    return encoded.codec, encoded.head, *(bytes(buffer) for buffer in encoded.buffers)


def groups(calls: Sequence[Arguments]) -> list[list[int]]:
    """Indices of calls that may be stacked together, in order of arrival."""
    found: dict[tuple[object, ...], list[int]] = {}
    for index, call in enumerate(calls):
        found.setdefault(signature(call), []).append(index)
    return list(found.values())


def stack(calls: Sequence[Arguments]) -> Arguments:
    """One call for several of the same signature."""
    first = calls[0]
    args = tuple(_stack([call.args[i] for call in calls]) for i in range(len(first.args)))
    kwargs = {key: _stack([call.kwargs[key] for call in calls]) for key in first.kwargs}
    return Arguments(args, kwargs)


def _stack(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return first[None] if len(values) == 1 else np.stack(values)
    if is_array(first):
        torch = _torch()
        assert torch is not None
        return first[None] if len(values) == 1 else torch.stack(list(values))
    return first


def split(result: Any, count: int) -> list[Any]:
    """One result a call: arrays and lists by their axis 0, tuples and dicts member by member.

    Raises InvalidRequestError when something in the result has not `count` parts.
    """
    if isinstance(result, tuple):
        parts = [split(member, count) for member in result]
        return [tuple(part[i] for part in parts) for i in range(count)]
    if isinstance(result, dict):
        split_items = {key: split(member, count) for key, member in result.items()}
        return [{key: part[i] for key, part in split_items.items()} for i in range(count)]
    found = _length(result)
    if found != count:
        raise InvalidRequestError(
            f"a batched function was given {count} calls and returned {_describe(result)}; with batch= each array of "
            f"the result must have {count} rows on axis 0, one a call",
            reason="BAD_RESULT_SHAPE",
        )
    return [result[i] for i in range(count)]


def _length(result: Any) -> int | None:
    if is_array(result):
        return int(result.shape[0]) if result.ndim else None
    return len(result) if isinstance(result, list) else None


def _describe(result: Any) -> str:
    if is_array(result):
        return f"an array of shape {tuple(result.shape)}"
    return f"a list of {len(result)}" if isinstance(result, list) else f"a {type(result).__name__}"
