"""A hash of Python values that is the same in every process: what a version is made of.

A pickle cannot serve: its bytes change with the hash seed and with the line a function stands on. Here a
value is hashed by what it is: a function by its source, its code without line numbers, and what it captures;
a class by its body; an array by its bytes; any other object by what it hands to pickle.

Laws: equal values give equal digests whatever the hash seed, the insertion order of a plain dict, the line in
the file, and whether the file runs as a script or is imported. Shared or copied makes no difference. What has
no such hash raises and is named by its path.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import logging
import struct
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cloudpickle

from hasfaas.core.errors import SerializationError
from hasfaas.sdk.captures import captures, reference

Part = tuple[str, object]
"""(how the path goes on, the value there)."""
Shape = tuple[str, Iterable[Part]]
"""(what kind of thing this is, what it consists of)."""

CACHED = type(functools.lru_cache(lambda: None))
_NOT_BODY = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__module__",
        "__annotations__",  # they stand in the source
        "__annotate_func__",
        "__annotations_cache__",
        "__firstlineno__",  # of Python 3.13
        "__static_attributes__",
        "_abc_impl",
    }
)
_SLOT_TYPES = (types.MemberDescriptorType, types.GetSetDescriptorType)


def stable_digest(value: object, *, own: str = "", root: str = "value") -> bytes:
    """32 bytes that depend on `value` alone.

    `own` is the name of the module whose functions and classes are hashed by what they contain; those of
    other modules go by their names. `root` starts the path in the SerializationError that an undigestible
    part raises.
    """
    try:
        return hashlib.sha256(_Digester(own).token(value)).digest()
    except _UndigestibleError as error:
        raise SerializationError(
            f"{root}{''.join(reversed(error.path))}: {error} and so has no version; create it "
            "inside the function, or in __init__ of a class"
        ) from error
    except RecursionError as error:
        raise SerializationError(
            f"{root}: nested too deeply to be given a version; build it inside the function, or in __init__"
        ) from error


class _UndigestibleError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


class _Digester:
    """A Merkle tree over a value. An object inside itself counts as the distance to its own root, all else by
    content.
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self._open: dict[int, int] = {}
        # The value is kept beside its token: without it a later temporary could get the same id.
        self._done: dict[int, tuple[bytes, object]] = {}

    def token(self, value: object) -> bytes:
        """A short prefix-free encoding of a scalar, or the digest of anything that has parts."""
        scalar = _scalar(value)
        if scalar is not None:
            return scalar
        key = id(value)
        if key in self._done:
            return self._done[key][0]
        if key in self._open:
            return _mark(b"cycle", str(self._open[key]).encode())
        self._open[key] = len(self._open)
        try:
            token = self._hash(*self._shape(value))
        finally:
            del self._open[key]
        self._done[key] = (token, value)
        return token

    def _hash(self, kind: str, parts: Iterable[Part]) -> bytes:
        state = hashlib.sha256(_mark(b"kind", kind.encode()))
        for label, part in parts:
            try:
                state.update(self.token(part))
            except _UndigestibleError as error:
                error.path.append(label)
                raise
        return _mark(b"#", state.digest())

    def alone(self, value: object) -> bytes:
        """The token of a member of an unordered collection: nothing that its siblings left behind may show in
        it.
        """
        scalar = _scalar(value)
        if scalar is not None:
            return scalar
        done = self._done
        self._done = dict(done)
        try:
            return self.token(value)
        finally:
            self._done = done

    def _shape(self, value: object) -> Shape:
        for kind, shape in _SHAPES:
            if isinstance(value, kind):
                return shape(self, value)
        exact = _EXACT.get(type(value))
        if exact is not None:
            return exact(self, value)
        return _array(value) or _tensor(value) or _reduced(self, value)


def _mark(tag: bytes, data: bytes) -> bytes:
    return tag + b":%d:" % len(data) + data


def _scalar(value: Any) -> bytes | None:
    kind = type(value)
    if kind is str:
        return _mark(b"str", _short(value.encode("utf-8", "surrogatepass")))
    if kind is int:
        return _mark(b"int", hex(value).encode())
    if kind is float:
        return _mark(b"float", struct.pack("<d", value))
    if kind is bytes:
        return _mark(b"bytes", _short(value))
    if value is None or value is Ellipsis or value is NotImplemented or kind is bool:
        return _mark(b"constant", repr(value).encode())
    if kind is complex:
        return _mark(b"complex", struct.pack("<dd", value.real, value.imag))
    return None


def _short(data: bytes) -> bytes:
    return data if len(data) <= 64 else b"%d/" % len(data) + hashlib.sha256(data).digest()


# Containers


def _items(_digester: _Digester, value: Iterable[object]) -> Shape:
    return type(value).__name__, ((f"[{index}]", item) for index, item in enumerate(value))


def _unordered(digester: _Digester, value: Iterable[object]) -> Shape:
    return type(value).__name__, (("", token) for token in sorted(_alone(digester, value)))


def _alone(digester: _Digester, value: Iterable[object]) -> Iterator[bytes]:
    for item in value:
        try:
            yield digester.alone(item)
        except _UndigestibleError as error:
            error.path.append(f".<item {_brief(item)}>")
            raise


def _mapping(digester: _Digester, value: dict[object, object]) -> Shape:
    # As dicts compare: in whatever order. An OrderedDict goes by its reduction, where the order counts.
    keyed = sorted(zip(_alone(digester, value), value.items(), strict=True), key=lambda pair: pair[0])
    return "dict", _pairs((token, item) for token, item in keyed)


def _pairs(keyed: Iterable[tuple[bytes, tuple[object, object]]]) -> Iterator[Part]:
    for token, (key, item) in keyed:
        yield "", token
        yield f"[{_brief(key)}]", item


def _brief(value: object) -> str:
    if _scalar(value) is None:
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# Code


def _function(digester: _Digester, value: types.FunctionType) -> Shape:
    named = reference(value, digester.own)
    if named is not None:
        return "function by name", _names(*named)
    return "function", _function_parts(value)


def _function_parts(value: types.FunctionType) -> Iterator[Part]:
    yield "", value.__qualname__
    # A method written by attrs follows from the class's fields; its __hash__ holds a number of this process.
    if not value.__code__.co_filename.startswith("<attrs generated"):
        yield from _text_parts(value)
    for label, captured in captures(value):
        yield "", label
        yield label, captured
    yield ".__dict__", value.__dict__


def _text_parts(value: types.FunctionType) -> Iterator[Part]:
    source = _source(value.__code__)
    yield "", source
    # The code as well: lambdas of one line share their source, and a file may have changed since its import.
    yield ".__code__", value.__code__
    if not source:
        yield ".__annotations__", value.__annotations__


def _code(_digester: _Digester, value: types.CodeType) -> Shape:
    return "code", _code_parts(value)


def _code_parts(value: types.CodeType) -> Iterator[Part]:
    counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
    constants = value.co_consts
    if "__firstlineno__" in value.co_names:  # the body of a class, which from Python 3.13 on stores its own line
        constants = tuple("a line" if item == value.co_firstlineno else item for item in constants)
    yield "", counts
    yield "", value.co_code
    yield ".<constants>", constants
    yield "", (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
    yield "", getattr(value, "co_exceptiontable", b"")


def _source(thing: types.CodeType | type) -> str:
    """The dedented source, "" when there is none: a REPL, `exec`, or a file changed beyond recognition."""
    try:
        return textwrap.dedent(inspect.getsource(thing)).strip()
    except (OSError, TypeError, SyntaxError, IndexError):
        return ""


def _class(digester: _Digester, value: type) -> Shape:
    named = reference(value, digester.own)
    if named is not None or value.__module__ == "builtins":
        return "class by name", _names(*(named or ("builtins", value.__qualname__)))
    return "class", _class_parts(value)


def _class_parts(value: type) -> Iterator[Part]:
    source = _source(value)
    yield "", value.__qualname__
    yield "", source
    yield ".__class__", type(value)
    yield ".__bases__", value.__bases__
    if not source:
        yield ".__annotations__", inspect.get_annotations(value)
    yield from _enum_body(value) if issubclass(value, enum.Enum) else _body(value)


def _body(value: type) -> Iterator[Part]:
    for name, item in sorted(vars(value).items()):
        if name not in _NOT_BODY and not isinstance(item, _SLOT_TYPES):
            yield "", name
            yield f".{name}", item


def _enum_body(value: type[enum.Enum]) -> Iterator[Part]:
    # The rest of an enumeration's body is bookkeeping of its metaclass.
    for name, member in value.__members__.items():
        yield "", name
        yield f".{name}", member.value
    for name, item in sorted(vars(value).items()):
        is_code = isinstance(item, (types.FunctionType, property, staticmethod, classmethod))
        if is_code and getattr(item, "__module__", None) != "enum":
            yield "", name
            yield f".{name}", item


def _member(_digester: _Digester, value: enum.Enum) -> Shape:
    return "enum member", (("", str(value.name)), (".__class__", type(value)), (".value", value.value))


def _module(digester: _Digester, value: types.ModuleType) -> Shape:
    # Its content is in the archive (first-party) or in the fingerprint (installed).
    return "module", _names("<own>" if value.__name__ == digester.own else value.__name__)


def _names(*names: str) -> Iterable[Part]:
    return [("", name) for name in names]


# Wrappers around code


def _method(_digester: _Digester, value: types.MethodType) -> Shape:
    return "method", ((".__func__", value.__func__), (".__self__", value.__self__))


def _builtin(_digester: _Digester, value: types.BuiltinFunctionType) -> Shape:
    owner = value.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        return "builtin", _names(str(value.__module__), value.__qualname__)
    return "builtin method", (("", value.__name__), (".__self__", owner))


def _property(_digester: _Digester, value: property) -> Shape:
    return "property", (
        (".fget", value.fget),
        (".fset", value.fset),
        (".fdel", value.fdel),
        ("", value.__doc__),
    )


def _static(_digester: _Digester, value: Any) -> Shape:
    return type(value).__name__, ((".__func__", value.__func__),)


def _cached(digester: _Digester, value: Any) -> Shape:
    named = reference(value, digester.own)
    if named is not None:
        return "function by name", _names(*named)
    return "lru_cache", ((".cache_parameters", value.cache_parameters()), (".__wrapped__", value.__wrapped__))


def _cached_property(_digester: _Digester, value: Any) -> Shape:
    return "cached_property", (("", value.attrname), (".func", value.func))


def _variable(_digester: _Digester, value: typing.TypeVar) -> Shape:
    facts = (value.__covariant__, value.__contravariant__)
    return "TypeVar", (("", value.__name__), ("", facts), ("", value.__bound__), ("", value.__constraints__))


def _logger(digester: _Digester, value: logging.Logger) -> Shape:
    # logging.getLogger(__name__) is called "__main__" in a script and by the module's name when it is
    # imported.
    name = value.name
    for home in (digester.own, "__main__"):
        if home and (name == home or name.startswith(f"{home}.")):
            name = f"<own>{name[len(home) :]}"
            break
    return "logger", _names(name)


def _proxy(digester: _Digester, value: types.MappingProxyType[object, object]) -> Shape:
    return _mapping(digester, dict(value))


# Data


def _array(value: Any) -> Shape | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        return None
    if value.dtype.hasobject:
        return "object array", (("", value.shape), ("", value.tolist()))
    return "array", (("", value.shape), (".dtype", value.dtype), ("", value.tobytes()))


def _tensor(tensor: Any) -> Shape | None:
    torch: Any = sys.modules.get("torch")
    if torch is None or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    facts = (type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
    return "tensor", (("", facts), ("", data))


def _reduced(digester: _Digester, value: object) -> Shape:
    """Any other object: what it would hand to pickle."""
    reducer = cloudpickle.Pickler.dispatch_table.get(type(value))
    try:
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    except Exception as error:  # the user's own __reduce__ or __getstate__ may raise anything
        raise _UndigestibleError(str(error) or type(error).__name__) from error
    if isinstance(reduced, str):
        module = getattr(value, "__module__", None)
        owner = "<own>" if module == digester.own else module
        return "by name", (("", owner), (".__class__", type(value)), ("", reduced))
    return "object", _reduced_parts(*reduced)


def _reduced_parts(
    make: object,
    args: object,
    state: object = None,
    items: Any = None,
    pairs: Any = None,
    setter: object = None,
) -> Iterator[Part]:
    yield ".<made by>", make
    yield "", args
    yield "", state
    yield from ((f"[{index}]", item) for index, item in enumerate(items or ()))
    yield "", "and"
    for key, item in pairs or ():
        yield f".<key {_brief(key)}>", key
        yield f"[{_brief(key)}]", item
    yield "", setter


# Subclasses are meant too here, so the order matters: an enumeration's member may be an int.
_SHAPES: tuple[tuple[Any, Callable[[_Digester, Any], Shape]], ...] = (
    (type, _class),
    (types.FunctionType, _function),
    (types.ModuleType, _module),
    (enum.Enum, _member),
    (logging.Logger, _logger),
)
_EXACT: dict[type, Callable[[_Digester, Any], Shape]] = {
    tuple: _items,
    list: _items,
    set: _unordered,
    frozenset: _unordered,
    dict: _mapping,
    types.CodeType: _code,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin,
    types.MappingProxyType: _proxy,
    property: _property,
    staticmethod: _static,
    classmethod: _static,
    CACHED: _cached,
    functools.cached_property: _cached_property,
    typing.TypeVar: _variable,
}
