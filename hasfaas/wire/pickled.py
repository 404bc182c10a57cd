"""The PICKLE5 codec: cloudpickle with protocol 5, for what is not plain. Reading it runs the sender's code.

Large buffers travel out of band. Torch's own `__reduce__` writes a tensor in band, so CPU tensors have a
reducer here. Two tensors that share memory come back as two that do not; one tensor in two places (a tied
weight) stays one.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hasfaas.core.errors import SerializationError
from hasfaas.wire.pickle_path import Sink, describe, find_unpicklable
from hasfaas.wire.tensors import Buffer, is_simple, rebuild_tensor, tensor_parts

if TYPE_CHECKING:
    import torch


class _Pickler(Protocol):
    def dump(self, obj: object) -> None: ...


def encode_pickled(value: object, roots: Mapping[str, object]) -> tuple[bytes, tuple[Buffer, ...]]:
    """The pickle and its out-of-band buffers.

    Raises SerializationError that names what cannot be pickled. `roots` holds the parts of `value` by the
    names that such a path may start with.
    """
    head = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    try:
        _pickler(head, buffers.append).dump(value)
    except MemoryError:
        raise
    except Exception as exc:
        raise SerializationError(_blame(roots, exc)) from exc
    return head.getvalue(), tuple(buffer.raw() for buffer in buffers)


def decode_pickled(head: bytes, buffers: Sequence[Buffer]) -> object:
    """The value. Runs code of the sender's choice, which may raise anything."""
    return pickle.loads(head, buffers=buffers)  # noqa: S301  the caller has said that it trusts the sender


def _blame(roots: Mapping[str, object], exc: Exception) -> str:
    for root, part in roots.items():
        found = find_unpicklable(part, root, dump=_try)
        if found is not None:
            return f"{found}. Leave it out of what is sent, or make it where it is used"
    # It failed once and not again: something changed under our hands.
    return f"{next(iter(roots))}: {describe(exc)}"


def _try(value: object) -> None:
    _pickler(Sink(), lambda _buffer: None).dump(value)


def _pickler(file: object, buffer_callback: Callable[[pickle.PickleBuffer], None]) -> _Pickler:
    pickler: _Pickler = _pickler_class()(file, protocol=5, buffer_callback=buffer_callback)
    return pickler


@functools.cache
def _pickler_class() -> Any:
    """Made on first use, so that plain payloads do not import cloudpickle."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            torch = sys.modules.get("torch")
            if torch is not None and isinstance(obj, torch.Tensor):
                return _reduce_tensor(obj, type(obj) is torch.Tensor)
            return super().reducer_override(obj)

    return Pickler


def _reduce_tensor(tensor: torch.Tensor, exact: bool) -> Any:
    """How a tensor is rebuilt, or NotImplemented to leave it to torch.

    That is for subclasses, sparse and quantised ones, and for parameters, whose data comes back here.
    """
    if tensor.device.type != "cpu":
        raise SerializationError(f"a tensor on {tensor.device} cannot be sent: move it first with .cpu()")
    if not tensor.is_leaf:
        raise SerializationError(
            "a tensor of an autograd graph cannot be sent: use .detach(), or compute it in inference_mode"
        )
    if not exact or not is_simple(tensor):
        return NotImplemented
    description, buffer = tensor_parts(tensor)
    # Over an array, not over the memoryview itself: CPython 3.11 crashes when the garbage collector meets a memoryview that
    # a PickleBuffer exports in one cycle.
    import numpy as np

    array: Any = np.asarray(buffer)
    return rebuild_tensor, (pickle.PickleBuffer(array), description, tensor.requires_grad)
