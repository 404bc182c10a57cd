"""Finds the torch modules that a user's function or object can reach, without running any of its code."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# A module in a list in an attribute of an attribute: deeper ones are rare, and searching costs time.
MAX_DEPTH = 3
MAX_VISITS = 10_000
MAX_ITEMS = 1_000
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod)


def find_modules(obj: object, fn: object) -> dict[str, nn.Module]:
    """The modules that `obj` (a user's instance, or the function again) and `fn` (a function or class) reach.

    The names are for people. Looked at are an instance's attributes, and a function's closure, defaults and
    the globals that its code names, through helper functions of the same module; in all of these also lists,
    dicts and attributes. Torch is not imported: where nobody has imported it, there are no modules.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    search = _Search(torch.nn.Module)
    search.value("self", obj, 0)
    search.value(getattr(fn, "__name__", "function"), fn, 0)
    if isinstance(fn, type):
        search.methods(fn)
    elif not isinstance(obj, (type, *_FUNCTIONS)):
        search.methods(type(obj))
    return search.found


class _Search:
    def __init__(self, module_type: type) -> None:
        self.found: dict[str, nn.Module] = {}
        self._module_type = module_type
        self._seen: set[int] = set()
        self._visits = 0

    def value(self, name: str, value: Any, depth: int) -> None:
        """Adds the modules in one value. What was seen under another name keeps that one."""
        self._visits += 1
        if id(value) in self._seen or self._visits > MAX_VISITS:
            return
        kind = type(value)  # not isinstance(): a proxy's __class__ may run code
        if issubclass(kind, self._module_type):
            self._seen.add(id(value))
            module: Any = value
            self.found[name if name not in self.found else f"{name}#{len(self.found)}"] = module
        elif issubclass(kind, _FUNCTIONS):
            self._seen.add(id(value))
            self._function(name, value, depth)
        elif depth < MAX_DEPTH:
            pieces = list(itertools.islice(_pieces(name, value), MAX_ITEMS))
            if pieces:  # atoms are not worth remembering, and small ones are shared
                self._seen.add(id(value))
            for path, piece in pieces:
                self.value(path, piece, depth + 1)

    def methods(self, cls: type) -> None:
        """What the methods of a user's class close over and name."""
        for base in cls.__mro__:
            if base is not object and not issubclass(self._module_type, base):
                for name, member in vars(base).items():
                    if isinstance(member, _FUNCTIONS):
                        self.value(name, member, 0)

    def _function(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.value(name, part, depth)
            return
        if isinstance(value, types.MethodType):
            self.value("self", value.__self__, depth)
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            for path, piece in _captured(function):
                ours = not issubclass(type(piece), _FUNCTIONS) or _module_of(piece) == function.__module__
                if ours:
                    self.value(path, piece, depth)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function holds on to: its closure, its defaults, and each global that its code names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # no value yet
            continue
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    yield "default", function.__defaults__
    yield "default", function.__kwdefaults__
    if hasattr(function, "__wrapped__"):
        yield function.__name__, function.__wrapped__


def _names(code: types.CodeType) -> dict[str, None]:
    """Every name that the code, or code inside it, mentions, in order."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _pieces(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if issubclass(kind, dict):
        yield from ((f"{name}[{key!r:.20}]", item) for key, item in list(value.items()))
    elif issubclass(kind, (list, tuple)):
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
    elif not issubclass(kind, (type, types.ModuleType)):
        try:
            # Not vars(): a proxy's own idea of its attributes may run code.
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        yield from ((f"{name}.{key}", item) for key, item in list(attributes.items()))


def _module_of(function: Any) -> str | None:
    inner = function.func if isinstance(function, functools.partial) else function
    return getattr(inner, "__module__", None)
