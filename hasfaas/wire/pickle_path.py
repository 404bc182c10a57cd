"""Finds the one thing inside a value that cannot be pickled, and names it by the path a person would type.

It pickles the value piece by piece into nothing, and follows the pieces that fail. The pieces are those that
pickle itself would write: what `__reduce_ex__` hands out, a function's closure and the globals it uses, a
class's body. So an object that leaves its lock out of `__getstate__` is not blamed for the lock.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# A path longer than this helps nobody, and a value with more pieces than this is not searched to the end.
MAX_DEPTH = 40
MAX_VISITS = 5_000
_REPR_CHARS = 40
_NOT_STATE = frozenset({"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__"})

Dump = Callable[[object], object]
Piece = tuple[str, object]


def find_unpicklable(obj: object, root: str, *, dump: Dump | None = None) -> str | None:
    """The path and the reason of what cannot be pickled in `obj`, or None when all of it can.

    For example `args[0].model.lock: cannot pickle '_thread.lock' object`. `root` is how the path starts.
    `dump` pickles one object and raises if it cannot; by default it is cloudpickle's, with protocol 5.
    """
    search = _Search(dump or _cloudpickle)
    reason = search.failure(obj)
    if reason is None:
        return None
    path, reason = search.descend(obj, root, reason)
    return f"{path}: {reason}"


def describe(exc: BaseException) -> str:
    """The exception's text, or its class name if it has none. Never raises, whatever its `__str__` does."""
    try:
        return str(exc) or type(exc).__name__
    except Exception:
        return type(exc).__name__


class Sink:
    """A file that forgets what is written to it: trial pickles cost time, not memory."""

    def write(self, data: object) -> int:
        return len(data) if isinstance(data, bytes) else 0


def _forget(buffer: object) -> None:
    """Takes a buffer out of band, and drops it."""


def _cloudpickle(obj: object) -> None:
    import cloudpickle

    cloudpickle.Pickler(Sink(), protocol=5, buffer_callback=_forget).dump(obj)


class _Search:
    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._visits = 0
        self._on_path: set[int] = set()

    def failure(self, obj: object) -> str | None:
        """Why `obj` cannot be pickled, or None if it can."""
        self._visits += 1
        try:
            self._dump(obj)
        except MemoryError:
            raise
        except Exception as exc:
            return describe(exc)
        return None

    def descend(self, obj: object, path: str, reason: str) -> tuple[str, str]:
        """The deepest failing piece below `obj`, which fails for `reason` itself."""
        for _ in range(MAX_DEPTH):
            self._on_path.add(id(obj))
            found = self._failing_piece(obj)
            if found is None:
                break
            (suffix, obj), reason = found
            path += suffix
        return path, reason

    def _failing_piece(self, obj: object) -> tuple[Piece, str] | None:
        for suffix, piece in _pieces(obj):
            if self._visits >= MAX_VISITS:
                return None
            if id(piece) in self._on_path:  # a cycle: what fails is elsewhere
                continue
            reason = self.failure(piece)
            if reason is not None:
                return (suffix, piece), reason
        return None


def _pieces(obj: object) -> Iterator[Piece]:
    """What pickle would write for `obj`, piece by piece, each with the end of its path."""
    kind = type(obj)  # a subclass pickles by its own __reduce_ex__
    if isinstance(obj, dict) and kind is dict:
        return _of_dict(obj)
    if isinstance(obj, (list, tuple)) and kind in (list, tuple):
        return ((f"[{index}]", item) for index, item in enumerate(obj))
    if isinstance(obj, (set, frozenset)) and kind in (set, frozenset):
        return ((f".<item {_short(item)}>", item) for item in obj)
    if isinstance(obj, types.FunctionType):
        return _of_function(obj)
    if isinstance(obj, types.MethodType):
        return iter([(".__self__", obj.__self__), (".__func__", obj.__func__)])
    if isinstance(obj, functools.partial):
        return iter([(".func", obj.func), (".args", obj.args), (".keywords", obj.keywords)])
    if isinstance(obj, (staticmethod, classmethod)):
        return iter([(".__func__", obj.__func__)])
    if isinstance(obj, property):
        return iter([(".fget", obj.fget), (".fset", obj.fset), (".fdel", obj.fdel)])
    if isinstance(obj, type):
        return ((f".{name}", value) for name, value in vars(obj).items() if name not in _NOT_STATE)
    return _of_instance(obj)


def _of_dict(obj: Mapping[Any, Any]) -> Iterator[Piece]:
    for key, value in obj.items():
        yield f".<key {_short(key)}>", key
        yield f"[{_short(key)}]", value


def _of_function(function: types.FunctionType) -> Iterator[Piece]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<closure>.{name}", cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f".<global>.{name}", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f".<default {index}>", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f".<default {name}>", value
    for name, value in vars(function).items():
        yield f".{name}", value


def _names(code: types.CodeType) -> set[str]:
    """Every global or attribute name that the code, or a function inside it, mentions."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _of_instance(obj: object) -> Iterator[Piece]:
    """What the object's own `__reduce_ex__` hands to pickle: arguments, state, list items, dict items."""
    try:
        reduced = obj.__reduce_ex__(5)
    except Exception:
        return  # it is the culprit itself, and why is known already
    if not isinstance(reduced, tuple):
        return  # a name: pickled by reference
    _function, args, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from _of_state(state)
    for index, item in enumerate(items or ()):
        yield f"[{index}]", item
    if pairs is not None:
        yield from _of_dict(dict(pairs))
    for index, argument in enumerate(args or ()):
        yield (".__class__" if argument is type(obj) else f".<reduce {index}>"), argument


def _of_state(state: object) -> Iterator[Piece]:
    """A state is a dict, a pair of dicts (the second of slots), or whatever `__getstate__` returned."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        yield ".<state>", state
        return
    for part in parts:
        if isinstance(part, dict):
            yield from ((f".{name}", value) for name, value in part.items())


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _REPR_CHARS else text[: _REPR_CHARS - 3] + "..."
