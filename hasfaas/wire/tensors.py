"""Numpy arrays and torch CPU tensors as a small description and one flat buffer that shares their memory.

A description is (dtype, shape, order). `order` is None for the C layout; else it is the permutation of the
axes under which the memory is C-contiguous (Fortran arrays, `channels_last` tensors), so a dense array of any
layout travels without a copy and keeps its layout. What is not dense is copied once. Nothing here unpickles.
Law: what cannot be given back exactly as it was is refused (None), never approximated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from hasfaas.core.errors import SerializationError

if TYPE_CHECKING:
    import numpy as np
    import torch

Buffer: TypeAlias = memoryview | bytes | bytearray
Description: TypeAlias = tuple[object, list[int], list[int] | None]

# Strings and void scalars are left out: numpy drops their trailing zero bytes.
_SCALAR_KINDS = "biufcmM"
_TORCH_DTYPES = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {
        "bool": [""],
        "uint": ["8", "16", "32", "64"],
        "int": ["8", "16", "32", "64"],
        "float": ["16", "32", "64", "8_e4m3fn", "8_e4m3fnuz", "8_e5m2", "8_e5m2fnuz"],
        "bfloat": ["16"],
        "complex": ["64", "128"],
    }.items()
    for bits in sizes
)


def array_parts(array: np.ndarray[Any, Any]) -> tuple[Description, Buffer] | None:
    """An array's description and its bytes, or None if its dtype holds objects or cannot be described."""
    dtype = _describe(array.dtype)
    if dtype is None:
        return None
    import numpy as np

    order = None
    flat = array
    if not array.flags.c_contiguous:
        order = _by_stride(array.strides)
        flat = array.transpose(order)
        if not flat.flags.c_contiguous:
            order, flat = None, np.ascontiguousarray(array)
    buffer: Buffer = flat.reshape(-1).view(np.uint8).data if array.nbytes else b""
    return (dtype, list(array.shape), order), buffer


def array_from(description: Sequence[object], buffer: Buffer) -> np.ndarray[Any, Any]:
    """The array as a view on the buffer, writable if the buffer is. A wrong description raises."""
    dtype_text, shape, order = description
    dtype = _dtype(dtype_text)
    dims, axes = _checked(shape, order, dtype.itemsize, buffer)
    import numpy as np

    flat = np.frombuffer(buffer, dtype) if _nbytes(buffer) else np.empty(0, dtype)
    array = flat.reshape(dims)
    return array if axes is None else array.transpose(axes)


def scalar_parts(value: np.generic) -> tuple[str, bytes] | None:
    """A numpy scalar's dtype and its bytes, or None for a string, a record or a subclass."""
    dtype = value.dtype
    if dtype.kind not in _SCALAR_KINDS or type(value) is not dtype.type:
        return None
    return dtype.str, value.tobytes()


def scalar_from(dtype_text: object, data: object) -> np.generic:
    """The numpy scalar. A wrong description raises."""
    dtype = _dtype(dtype_text)
    if dtype.kind not in _SCALAR_KINDS or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise SerializationError(f"a scalar of dtype {dtype} cannot be made of {data!r:.60}")
    import numpy as np

    scalar: np.generic = np.frombuffer(data, dtype)[0]
    return scalar


def is_simple(tensor: torch.Tensor) -> bool:
    """Whether the tensor is no more than its elements: on the CPU, without hooks or attributes."""
    return (
        tensor.device.type == "cpu"
        and str(tensor.layout) == "torch.strided"
        and _dtype_name(tensor) in _TORCH_DTYPES
        and not (tensor.is_quantized or tensor.is_nested)
        and not (tensor.__dict__ or tensor._backward_hooks)
    )


def tensor_parts(tensor: torch.Tensor) -> tuple[Description, Buffer]:
    """A simple tensor's description and its bytes; whether it requires a gradient is not among them."""
    import torch

    order = None
    dense = flat = tensor.detach().resolve_conj().resolve_neg()
    if not dense.is_contiguous():
        order = _by_stride(dense.stride())
        flat = dense.permute(order)
        if not flat.is_contiguous():
            order, flat = None, dense.contiguous()
    # numpy has no bfloat16 and no float8: the bytes are what travels.
    buffer: Buffer = flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b""
    return (_dtype_name(tensor), list(tensor.shape), order), buffer


def tensor_from(description: Sequence[object], buffer: Buffer) -> torch.Tensor:
    """The tensor as a view on the buffer, or a copy if the buffer is read-only or not aligned for the dtype.

    Torch has no read-only tensors: through a view, one slip would corrupt memory that others think immutable.
    """
    module = _torch()
    name, shape, order = description
    dtype = getattr(module, name) if isinstance(name, str) and name in _TORCH_DTYPES else None
    if dtype is None:
        raise SerializationError(f"{name!r:.60} is not a dtype of torch {module.__version__}")
    dims, axes = _checked(shape, order, dtype.itemsize, buffer)
    if not _nbytes(buffer):
        flat = module.empty(0, dtype=dtype)
    elif memoryview(buffer).readonly or _address(buffer) % dtype.itemsize:
        flat = module.frombuffer(bytearray(buffer), dtype=dtype)
    else:
        flat = module.frombuffer(buffer, dtype=dtype)
    tensor: torch.Tensor = flat.reshape(dims)
    return tensor if axes is None else tensor.permute(axes)


def rebuild_tensor(buffer: Buffer, description: Sequence[object], requires_grad: bool) -> torch.Tensor:
    """What a pickled tensor calls when it is loaded. Its name is part of the wire format."""
    return tensor_from(description, buffer).requires_grad_(requires_grad)


@functools.lru_cache(maxsize=256)
def _describe(dtype: np.dtype[Any]) -> object | None:
    """The dtype as text, or as a list of fields; None if it would not come back the same."""
    from numpy.lib import format as npy

    if dtype.hasobject or dtype.metadata or dtype.itemsize == 0:
        return None
    text: Any = dtype.str if dtype.names is None else npy.dtype_to_descr(dtype)
    try:
        return text if npy.descr_to_dtype(text) == dtype else None
    except (TypeError, ValueError):
        return None


def _dtype(text: object) -> np.dtype[Any]:
    from numpy.lib import format as npy

    if not isinstance(text, (str, list)):
        raise SerializationError(f"a dtype is text or a list of fields, not {text!r:.60}")
    fields: Any = text
    dtype: np.dtype[Any] = npy.descr_to_dtype(fields)
    if dtype.hasobject or dtype.itemsize == 0:
        raise SerializationError(f"a payload cannot hold an array of dtype {dtype}")
    return dtype


def _checked(shape: object, order: object, item_bytes: int, buffer: Buffer) -> tuple[list[int], list[int] | None]:
    """The shape as it lies in memory, and the axes that put it right. Refuses what does not fit."""
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise SerializationError(f"an array's shape is a list of sizes, not {shape!r:.60}")
    if math.prod(shape) * item_bytes != _nbytes(buffer):
        raise SerializationError(
            f"shape {shape!r:.60} with {item_bytes} bytes an item does not fill {_nbytes(buffer)} bytes"
        )
    if order is None:
        return shape, None
    if not isinstance(order, list) or sorted(order) != list(range(len(shape))):
        raise SerializationError(f"an array's order is a permutation of its axes, not {order!r:.60}")
    return [shape[axis] for axis in order], [order.index(axis) for axis in range(len(shape))]


def _by_stride(strides: Sequence[int]) -> list[int]:
    """The axes from the slowest to the fastest in memory."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


def _nbytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _address(buffer: Buffer) -> int:
    import numpy as np

    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as exc:
        raise SerializationError(
            "the payload holds a torch tensor and torch cannot be imported here; pip install 'hasfaas[torch]'"
        ) from exc
    return torch
