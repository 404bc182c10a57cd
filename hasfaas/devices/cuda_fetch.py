"""Copies what a result holds in the GPU's memory to the host, and leaves the rest as it is.

Looked at are the value itself and tuples, lists, dicts, and instances of attrs, dataclasses and named tuples, of whatever
subclass, at any depth. Neither torch nor CuPy is imported: where nobody has, there are no arrays of theirs.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import attrs

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))


def fetch(value: object) -> object:
    """The value with each array of the GPU's memory replaced by one of the host's (a torch tensor, a numpy array). It is the
    very same object where there is none; what is shared inside stays shared."""
    return _copied(value, {}) if _reaches(value, set()) else value


def _reaches(value: object, seen: set[int]) -> bool:
    kind = type(value)
    if kind in _ATOMS or id(value) in seen:
        return False
    if _on_device(value):
        return True
    seen.add(id(value))
    return any(_reaches(item, seen) for _, item in _items(value))


def _copied(value: object, made: dict[int, tuple[object, object]]) -> object:
    # Originals are kept beside their copies: a freed one's id could come again.
    if type(value) in _ATOMS:
        return value
    if id(value) in made:
        return made[id(value)][1]
    if _on_device(value):
        return _keep(made, value, _to_host(value))
    if not _reaches(value, set()):
        return _keep(made, value, value)
    if isinstance(value, tuple):
        items = [_copied(item, made) for item in value]
        return _keep(made, value, value._make(items) if hasattr(value, "_make") else tuple(items))
    fresh = _keep(made, value, copy.copy(value))  # before its items: it may hold itself
    for key, item in _items(value):
        _set(fresh, key, _copied(item, made))
    return fresh


def _keep(made: dict[int, tuple[object, object]], value: object, result: object) -> object:
    made[id(value)] = (value, result)
    return result


def _items(value: Any) -> Iterator[tuple[Any, object]]:
    """What is directly inside, by key, index or attribute."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif not isinstance(value, type):
        for name in _fields(type(value)):
            if hasattr(value, name):
                yield name, getattr(value, name)


def _fields(kind: type) -> list[str]:
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind)]
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return []


def _set(container: Any, key: Any, value: object) -> None:
    if isinstance(container, dict | list):
        container[key] = value
    else:
        object.__setattr__(container, key, value)  # also where the class is frozen


def _on_device(value: object) -> bool:
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    return cupy is not None and isinstance(value, cupy.ndarray)


def _to_host(value: Any) -> object:
    return value.cpu() if hasattr(value, "is_cuda") else value.get()
