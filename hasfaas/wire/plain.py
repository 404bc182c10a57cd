"""The PLAIN codec: msgpack for trees of plain values, arrays and tensors. Reading it runs nobody's code.

What msgpack has no word for is a list whose first item is a mark, an empty extension value whose code says
what the rest of the list means:

    TUPLE  item...                          ARRAY   buffer, dtype, shape, order
    SCALAR dtype, bytes                     TENSOR  buffer, dtype, shape, order
    BYTES  buffer (only long ones)

Law: a value comes back with exactly the types it had, or it is not plain. Two places that hold the same list
or array come back as two equal ones.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Any

import msgpack

from hasfaas.core.errors import SerializationError
from hasfaas.wire.tensors import (
    Buffer,
    array_from,
    array_parts,
    is_simple,
    scalar_from,
    scalar_parts,
    tensor_from,
    tensor_parts,
)

# Copying 32 KiB into the head costs about what one more buffer costs a transport.
LONG_BYTES = 32 * 1024
# msgpack itself stops at 511; deeper trees are left to pickle.
MAX_DEPTH = 100


class Mark(enum.IntEnum):
    """What a marked list means. These numbers are the wire format."""

    TUPLE = 1
    ARRAY = 2
    SCALAR = 3
    TENSOR = 4
    BYTES = 5


_EXT = {mark: msgpack.ExtType(int(mark), b"") for mark in Mark}
_ATOMS = frozenset({type(None), bool, int, float, str})


class NotPlainError(Exception):
    """The tree holds something that PLAIN cannot give back exactly; another codec must take it."""


def encode_plain(value: object) -> tuple[bytes, tuple[Buffer, ...]]:
    """The head and the out-of-band buffers. Raises NotPlainError."""
    writer = _Writer()
    tree = writer.lower(value, 0)
    try:
        # Every type was checked by `lower`; here a Python tuple only stands for a marked list.
        head = msgpack.packb(tree, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as exc:  # integers above 64 bits, lone surrogates
        raise NotPlainError(str(exc)) from exc
    assert isinstance(head, bytes)
    return head, tuple(writer.buffers)


def decode_plain(head: bytes, buffers: Sequence[Buffer]) -> object:
    """The value. Whatever is wrong with the head raises some exception; the caller words it."""
    return _Reader(buffers).read(head)


class _Writer:
    """Turns a tree into what msgpack can write, and collects the buffers."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._inside: set[int] = set()
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        # A library that nobody has imported has no values in the tree.
        self._array: Any = getattr(numpy, "ndarray", None)
        self._generic: Any = getattr(numpy, "generic", ())
        self._tensor: Any = getattr(torch, "Tensor", None)

    def lower(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind is bytes:
            return value if len(value) < LONG_BYTES else (_EXT[Mark.BYTES], self._buffer(value))
        if kind is list or kind is tuple or kind is dict:
            return self._container(value, kind, depth)
        return self._leaf(value, kind)

    def _container(self, value: Any, kind: type, depth: int) -> object:
        if depth >= MAX_DEPTH or id(value) in self._inside:
            raise NotPlainError("the tree is too deep, or holds itself")
        self._inside.add(id(value))
        try:
            if kind is dict:
                return dict(zip(self._items(value, depth), self._items(value.values(), depth), strict=True))
            return (_EXT[Mark.TUPLE], *self._items(value, depth)) if kind is tuple else self._items(value, depth)
        finally:
            self._inside.discard(id(value))

    def _items(self, values: Any, depth: int) -> list[Any]:
        if set(map(type, values)) <= _ATOMS:  # the common case, at C speed
            return list(values)
        return [self.lower(item, depth + 1) for item in values]

    def _leaf(self, value: Any, kind: type) -> object:
        if kind is self._array:
            parts = array_parts(value)
            if parts is not None:
                (dtype, shape, order), buffer = parts  # a record's dtype is a list of tuples
                return (_EXT[Mark.ARRAY], self._buffer(buffer), self.lower(dtype, 0), shape, order)
        elif isinstance(value, self._generic):
            scalar = scalar_parts(value)
            if scalar is not None:
                return (_EXT[Mark.SCALAR], *scalar)
        elif kind is self._tensor and is_simple(value) and not value.requires_grad:
            description, buffer = tensor_parts(value)
            return (_EXT[Mark.TENSOR], self._buffer(buffer), *description)
        raise NotPlainError(f"{kind.__module__}.{kind.__qualname__} is not plain")

    def _buffer(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1


class _Reader:
    """Turns marked lists back into what they stand for."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._open_marks = 0

    def read(self, head: bytes) -> object:
        value: object = msgpack.unpackb(
            head, ext_hook=self._mark, list_hook=self._list, strict_map_key=False, raw=False
        )
        if self._open_marks:
            raise SerializationError("a mark stands outside the first place of a list")
        return value

    def _mark(self, code: int, data: bytes) -> Mark:
        if data:
            raise SerializationError(f"extension {code} carries {len(data)} bytes; marks are empty")
        self._open_marks += 1
        return Mark(code)

    def _list(self, items: list[Any]) -> object:
        if not items or type(items[0]) is not Mark:
            return items
        self._open_marks -= 1
        mark, *rest = items
        # A table of functions of this object would be a cycle, and keep the buffers until the garbage collector comes by.
        match mark:
            case Mark.TUPLE:
                return tuple(rest)
            case Mark.ARRAY:
                return array_from(rest[1:], self._buffer(rest[0]))
            case Mark.SCALAR:
                return scalar_from(*rest)
            case Mark.TENSOR:
                return tensor_from(rest[1:], self._buffer(rest[0]))
            case Mark.BYTES:
                (index,) = rest
                return bytes(self._buffer(index))
        raise SerializationError(f"a list starts with {mark!r}, which means nothing")

    def _buffer(self, index: object) -> Buffer:
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise SerializationError(f"buffer {index!r:.60} does not exist; the payload has {len(self._buffers)}")
        return self._buffers[index]
