"""Pickles a user's function by value, and says what the pickle needs beside it.

By value means: the code of the function's own module travels, even where that module could be imported. Other
modules go by name. Law: cloudpickle's list of by-value modules belongs to the whole process, so it is changed
under one lock and put back whatever happens.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import cloudpickle

from hasfaas.core.errors import InvalidRequestError, SerializationError
from hasfaas.sdk.captures import captures, imports_in, reference
from hasfaas.sdk.digest import CACHED
from hasfaas.sdk.home import Home, Target
from hasfaas.wire import rebuild
from hasfaas.wire.pickle_path import find_unpicklable

PROTOCOL = 5
MIB = 1 << 20
_registry = threading.RLock()


@attrs.frozen
class Pickled:
    """`data`, and the dotted names of modules that it refers to, or that code inside it would import."""

    data: bytes
    modules: frozenset[str]


def pickle_by_value(target: Target, home: Home, *, limit_bytes: int) -> Pickled:
    """The pickle of `target`.

    Raises SerializationError naming the path of what cannot be pickled, InvalidRequestError naming the
    largest captured value when the pickle grows beyond `limit_bytes`.
    """
    sink = _Bounded(limit_bytes)
    with _by_value(home.module):
        pickler = _Pickler(sink, home.module)
        try:
            pickler.dump(target)
        except _TooLargeError as error:
            raise too_large(target, home, limit_bytes) from error
        except Exception as error:  # a user's __reduce__ may raise anything
            raise _unpicklable(target, home, error) from error
    return Pickled(sink.getvalue(), frozenset(pickler.modules))


def too_large(target: Target, home: Home, limit_bytes: int) -> InvalidRequestError:
    """The error for a bundle beyond its limit; it names the largest value that the function takes along."""
    path, size = _largest(target, home)
    return InvalidRequestError(
        f"{target.__qualname__}: its bundle is larger than {limit_bytes / MIB:g} MiB; the largest value it "
        f"captures is {path} with {size / MIB:.1f} MiB: load it in __init__ of a class, from a file that the "
        "replica can read",
        reason="BUNDLE_TOO_LARGE",
    )


def _unpicklable(target: Target, home: Home, error: Exception) -> SerializationError:
    root = target.__qualname__
    tried: dict[int, object] = {}

    def dump(value: object) -> None:
        tried[id(value)] = value
        _Trial(value, tried, home.module).dump(value)

    found = find_unpicklable(target, root, dump=dump) or f"{root}: {error}"
    return SerializationError(f"{found}; create it inside the function, or in __init__ of a class")


def _drop(_buffer: object) -> None:
    """Takes a large buffer out of a trial pickle."""


@contextlib.contextmanager
def _by_value(module_name: str) -> Iterator[None]:
    with _registry:
        module = sys.modules.get(module_name)
        # A module that is not in sys.modules is pickled by value anyway, and one that the user listed stays
        # listed.
        ours = module is not None and module_name not in cloudpickle.list_registry_pickle_by_value()
        if ours:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            if ours:
                cloudpickle.unregister_pickle_by_value(module)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's pickler, which also keeps a list of the modules that it met."""

    def __init__(self, file: object, own: str, buffer_callback: Callable[[object], object] | None = None) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
        self._own = own
        self.modules: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for everything but plain data."""
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, CACHED):
            return self._cached(value)
        if isinstance(value, functools.cached_property):  # until Python 3.12 it holds a lock
            return rebuild.cached_property, (value.func, value.attrname)
        if isinstance(value, (type, types.FunctionType)):
            module = value.__module__
            if isinstance(module, str) and module != self._own:
                self.modules.add(module)
                if self._inside_own(module) and reference(value, self._own) is not None:
                    return NotImplemented
            if isinstance(value, types.FunctionType):
                self._imports(value)
        return super().reducer_override(value)

    def _inside_own(self, module: str) -> bool:
        # When the function stands in a package's __init__, cloudpickle would take all its submodules by value
        # as well.
        return module.startswith(f"{self._own}.")

    def _module(self, value: types.ModuleType) -> Any:
        if value.__name__ != self._own:
            self.modules.add(value.__name__)
            if self._inside_own(value.__name__):
                return importlib.import_module, (value.__name__,)
        return super().reducer_override(value)

    def _cached(self, value: Any) -> Any:
        # By itself such a cache is pickled by name only, and the name means nothing in a replica.
        named = reference(value, self._own)
        if named is not None:
            self.modules.add(named[0])
            return NotImplemented
        parameters = value.cache_parameters()
        return rebuild.cached_function, (value.__wrapped__, parameters["maxsize"], parameters["typed"])

    def _imports(self, function: types.FunctionType) -> None:
        if reference(function, self._own) is None:
            for module, names in imports_in(function.__code__):
                self.modules.add(module)
                self.modules.update(f"{module}.{name}" for name in names)


class _Trial(_Pickler):
    """Tries one value for the search of the culprit; what was tried before counts as fine.

    A method that uses `super()` refers back to its class. Without this it would fail for whatever is wrong elsewhere
    in that class, and take the blame.
    """

    def __init__(self, value: object, tried: Mapping[int, object], own: str) -> None:
        super().__init__(_Count(), own, buffer_callback=_drop)
        self._value = value
        self._tried = tried

    def reducer_override(self, value: Any) -> Any:
        """Called by pickle for everything but plain data."""
        if value is not self._value and id(value) in self._tried and isinstance(value, (type, types.FunctionType)):
            return str, ()
        return super().reducer_override(value)


class _TooLargeError(Exception):
    """The pickle has grown beyond its limit; there is no point in finishing it."""


class _Bounded(io.BytesIO):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > self._limit_bytes:
            raise _TooLargeError
        return super().write(data)


class _Count:
    """A file that only counts."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size_bytes += size
        return size


def _largest(target: Target, home: Home) -> tuple[str, int]:
    """(path, bytes) of the captured value with the largest pickle."""
    best = (target.__qualname__, 0)
    with _by_value(home.module):
        for path, value in _leaves(target, target.__qualname__, home.module, set()):
            count = _Count()
            try:
                _Pickler(count, home.module).dump(value)
            except Exception:  # noqa: S112 - what cannot be pickled has no size here, and another error names it
                continue
            best = max(best, (path, count.size_bytes), key=lambda found: found[1])
    return best


def _leaves(value: object, path: str, own: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """The captured values below functions and classes that are shipped by value."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, types.FunctionType) and reference(value, own) is None:
        for label, captured in captures(value):
            yield from _leaves(captured, f"{path}{label}", own, seen)
    elif isinstance(value, type) and reference(value, own) is None and value.__module__ != "builtins":
        for name, item in vars(value).items():
            yield from _leaves(item, f"{path}.{name}", own, seen)
    else:
        yield path, value
