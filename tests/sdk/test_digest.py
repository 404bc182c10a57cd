"""The stable digest: equal for equal values in every process, different for whatever would run differently."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import SerializationError
from hasfaas.sdk.digest import stable_digest

ROOT = Path(__file__).parents[2]


def digest(value: object) -> bytes:
    return stable_digest(value, own=__name__)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


@attrs.frozen
class Point:
    x: int = 0
    y: int = 0


@dataclasses.dataclass
class Pair:
    left: object
    right: object


def a_function(x: int) -> int:
    return x + 1


DISTINCT: list[object] = [
    None,
    True,
    1,
    1.0,
    0.0,
    -0.0,
    1 + 0j,
    "1",
    b"1",
    bytearray(b"1"),
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    [1],
    {1},
    frozenset({1}),
    {1: 1},
    ((1,), 2),
    (1, 2),
    (1, (2,)),
    [[], []],
    [[[]]],
    ["ab", "c"],
    ["a", "bc"],
    {"a": 1, "b": 2},
    {"a": 2, "b": 1},
    1 << 100,
    "x" * 100,
    "x" * 101,
    ...,
    range(3),
    range(4),
    slice(1, 2),
    Color.RED,
    Color.BLUE,
    Color,
    Level.ONE,
    Point(),
    Point(1),
    Point,
    Pair(1, 2),
    Pair(2, 1),
    Pair,
    len,
    [].append,
    "x".join,
    a_function,
    functools.partial(a_function, 1),
    functools.partial(a_function, 2),
    re.compile("a"),
    re.compile("b"),
    np.zeros(3),
    np.zeros(3, np.float32),
    np.zeros((3, 1)),
    np.ones(3),
    np.float32(1),
    np.array(["a", None], dtype=object),
    np.array(["a", 1], dtype=object),
    np.dtype("f4"),
    np.add,
    np.array([1, 2], dtype=[("x", "i4")]),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
    json,
    json.dumps,
    logging.getLogger("one"),
    logging.getLogger("two"),
    list[int],
    int | None,
    typing.Literal["a"],
    collections.OrderedDict(a=1, b=2),
    collections.OrderedDict(b=2, a=1),
    collections.defaultdict(int, a=1),
    types.MappingProxyType({"m": 1}),
    Path("/a"),
    Path("/b"),
    {(1, "a"): 2}.keys(),
]


def test_different_values_have_different_digests() -> None:
    seen: dict[bytes, object] = {}
    for value in DISTINCT:
        found = seen.setdefault(digest(value), value)
        assert found is value, f"{value!r} and {found!r} have one digest"


def test_a_copy_has_the_digest_of_the_original() -> None:
    first = {"a": [1, 2], "b": {3, 4}, "p": Point(1), "n": np.arange(6).reshape(2, 3)}
    again = {"b": {4, 3}, "n": np.asfortranarray(first["n"]), "a": [1, 2], "p": Point(1)}
    assert digest(first) == digest(again)


def test_shared_or_copied_makes_no_difference() -> None:
    shared = [1]
    assert digest([shared, shared]) == digest([[1], [1]])
    assert digest({"a": shared, "b": (shared,)}) == digest({"a": [1], "b": ([1],)})


def test_cycles_end_and_are_told_apart() -> None:
    one: list[Any] = [1]
    one.append(one)
    same: list[Any] = [1]
    same.append(same)
    two: list[Any] = [1, [1]]
    two[1].append(two)
    other: list[Any] = [2]
    other.append(other)
    assert digest(one) == digest(same)
    assert len({digest(one), digest(two), digest(other)}) == 3


def test_functions_that_call_each_other_have_a_digest() -> None:
    made: dict[str, Any] = {}
    names = [f"f{index}" for index in range(12)]
    calls = " + ".join(f"{name}()" for name in names)
    exec("\n".join(f"def {name}(): return {calls}" for name in names), made)
    assert digest(made["f0"]) != digest(made["f1"])


def test_a_set_that_its_members_know_has_a_digest() -> None:
    registry: set[Callable[[], int]] = set()

    def one() -> int:
        return len(registry)

    def two() -> int:
        return len(registry) + 1

    registry.update((one, two))
    assert digest(registry) == digest(registry)
    assert digest(registry) != digest({one})


# Functions


def make(source: str, **values: object) -> types.FunctionType:
    """The function `f` of a source text that no file holds."""
    made = types.ModuleType(__name__)
    made.__dict__.update(values)
    exec(textwrap.dedent(source), made.__dict__)
    found = made.__dict__["f"]
    assert isinstance(found, types.FunctionType)
    return found


BASE = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(y):\n    return y + 1\n",
        "def f(x=1):\n    return x + 1\n",
        "def f(*, x=1):\n    return x + 1\n",
        "def f(x: int):\n    return x + 1\n",
        "def f(x):\n    return [y + 1 for y in [x]][0]\n",
        "async def f(x):\n    return x + 1\n",
        "def f(x):\n    yield x + 1\n",
    ],
)
def test_another_body_or_signature_is_another_function(other: str) -> None:
    assert digest(make(BASE)) == digest(make(BASE))
    assert digest(make(BASE)) != digest(make(other))


def test_a_line_does_not_count_without_source_either() -> None:
    assert digest(make(BASE)) == digest(make("\n\n\n" + BASE))


def test_globals_count_when_they_are_used() -> None:
    source = "def f():\n    def inner(): return A\n    return inner\n"
    assert digest(make(source, A=1, B=1)) == digest(make(source, A=1, B=2))
    assert digest(make(source, A=1)) != digest(make(source, A=2))
    assert digest(make(source, A=1)) != digest(make(source))


def test_closures_defaults_and_attributes_count() -> None:
    def close(value: object, default: object = 0) -> Callable[[], object]:
        def f(given: object = default) -> object:
            return value, given

        return f

    assert digest(close(1)) == digest(close(1))
    assert digest(close(1)) != digest(close(2))
    assert digest(close(1, 1)) != digest(close(1, 2))
    tagged = close(1)
    tagged.tag = 1  # type: ignore[attr-defined]
    assert digest(tagged) != digest(close(1))


def test_two_lambdas_of_one_line_differ() -> None:
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert digest(one) != digest(two)


def test_running_a_function_does_not_change_its_digest() -> None:
    """The interpreter rewrites hot code in place."""
    function = make("def f(n):\n    t = 0\n    for i in range(n):\n        t += i * len((i, n))\n    return t\n")
    before = digest(function)
    for _ in range(50):
        function(1000)
    assert digest(function) == before


def test_an_importable_function_goes_by_its_name() -> None:
    assert stable_digest(a_function) == stable_digest(a_function)
    assert stable_digest(a_function) != digest(a_function)  # by name, and by what it contains


def test_a_cached_function_counts_by_what_it_caches() -> None:
    assert digest(functools.lru_cache(8)(make(BASE))) == digest(functools.lru_cache(8)(make(BASE)))
    assert digest(functools.lru_cache(8)(make(BASE))) != digest(functools.lru_cache(9)(make(BASE)))
    assert digest(functools.lru_cache(8)(make(BASE))) != digest(functools.lru_cache(8)(make("def f(x): return x")))


def test_a_bound_method_counts_its_owner() -> None:
    assert digest(Point(1).__eq__) != digest(Point(2).__eq__)


# Classes


def make_class(body: str, bases: str = "") -> type:
    made: dict[str, Any] = {"__name__": __name__, "attrs": attrs, "enum": enum, "functools": functools}
    exec(f"class C({bases}):\n{textwrap.indent(textwrap.dedent(body), '    ')}", made)
    found = made["C"]
    assert isinstance(found, type)
    return found


@pytest.mark.parametrize(
    "other",
    [
        "limit = 4\ndef m(self): return self.limit",
        "limit = 3\ndef m(self): return self.limit + 1",
        "limit = 3\n@property\ndef m(self): return self.limit",
        "limit = 3\n@staticmethod\ndef m(self): return self.limit",
        "limit = 3\n@functools.cached_property\ndef m(self): return self.limit",
        "limit: int = 3\ndef m(self): return self.limit",
        "limit = 3\n__slots__ = ('a',)\ndef m(self): return self.limit",
    ],
)
def test_another_class_body_is_another_class(other: str) -> None:
    body = "limit = 3\ndef m(self): return self.limit"
    assert digest(make_class(body)) == digest(make_class(body))
    assert digest(make_class(body)) != digest(make_class(other))


def test_bases_count() -> None:
    assert digest(make_class("pass")) != digest(make_class("pass", "dict"))


def test_enumerations_count_by_their_members() -> None:
    assert digest(make_class("A = 1\nB = 2", "enum.Enum")) == digest(make_class("A = 1\nB = 2", "enum.Enum"))
    assert digest(make_class("A = 1\nB = 2", "enum.Enum")) != digest(make_class("A = 1\nB = 3", "enum.Enum"))


@pytest.mark.parametrize("method", ["def __str__(self): return 'x'", "@property\ndef p(self): return 1"])
def test_the_methods_of_an_enumeration_count(method: str) -> None:
    assert digest(make_class(f"A = 1\n{method}", "enum.Enum")) == digest(make_class(f"A = 1\n{method}", "enum.Enum"))
    assert digest(make_class(f"A = 1\n{method}", "enum.Enum")) != digest(make_class("A = 1", "enum.Enum"))


def test_an_object_counts_by_its_class_and_state() -> None:
    body = "def __init__(self, x): self.x = x"
    assert digest(make_class(body)(1)) == digest(make_class(body)(1))
    assert digest(make_class(body)(1)) != digest(make_class(body)(2))
    assert digest(make_class(body)(1)) != digest(make_class(body + "\ny = 1")(1))


# Tensors


def test_tensors_count_by_value_type_and_shape() -> None:
    torch = pytest.importorskip("torch")
    values = [
        torch.zeros(4),
        torch.ones(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(4, requires_grad=True),
        torch.nn.Parameter(torch.zeros(4)),
        torch.zeros(4, dtype=torch.bool),
        torch.eye(2).to_sparse(),
    ]
    assert len({digest(value) for value in values}) == len(values)
    tall = torch.arange(6).reshape(2, 3)
    assert digest(tall.T.contiguous()) == digest(tall.T)


def test_a_network_counts_by_its_weights() -> None:
    torch = pytest.importorskip("torch")

    def network(bias: float) -> object:
        made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.fill_(bias)
        return made

    assert digest(network(1.0)) == digest(network(1.0))
    assert digest(network(1.0)) != digest(network(2.0))


# What has no digest


def test_what_cannot_be_hashed_is_named_by_its_path() -> None:
    lock = threading.Lock()

    def embed() -> object:
        return holder

    holder = {"deep": [1, Pair(1, lock)]}
    with pytest.raises(SerializationError) as caught:
        stable_digest(embed, own=__name__, root="embed")
    assert str(caught.value).startswith("embed.<closure>.holder['deep'][1]")
    assert "'right'" in str(caught.value)
    assert "cannot pickle '_thread.lock' object" in str(caught.value)
    assert "create it inside the function" in str(caught.value)


def test_what_is_nested_too_deeply_is_worded() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        digest(deep)
    while deep:  # the interpreter's own way of freeing it recurses as well
        deep = deep[0]


# Other processes

MODULE = """
import dataclasses, enum, logging, typing, attrs, numpy as np
log = logging.getLogger(__name__)
WORDS = {"alpha", "beta", "gamma", ("delta", 1)}
TABLE = {word: len(word) for word in ("one", "two")}
ARRAY = np.arange(5)
class Kind(enum.Enum):
    A = 1
@attrs.frozen
class Item:
    x: int = 1
@dataclasses.dataclass(frozen=True)
class Data:
    y: int = 2
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def get(self) -> T: ...
def one(): return REGISTRY
def two(): return REGISTRY
REGISTRY = {one, two}
def f(x, k=Kind.A):
    log.info("%s", __name__)
    return x in {"a", "b", "c"}, WORDS, TABLE, ARRAY, Item, Data(), Box, REGISTRY, Kind
"""
ASK = """
if __name__ == "__main__":
    from hasfaas.sdk.digest import stable_digest
    print(stable_digest(f, own="__main__").hex())
"""


def ask(path: Path, *arguments: str, seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{path.parent}"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_seed_line_and_way_of_running_do_not_count(tmp_path: Path) -> None:
    plain, moved = tmp_path / "digested.py", tmp_path / "moved" / "digested.py"
    moved.parent.mkdir()
    plain.write_text(MODULE + ASK)
    moved.write_text("# a comment\n\nUNUSED = 1\n" + MODULE + ASK)
    by_import = (
        "import digested; from hasfaas.sdk.digest import stable_digest; "
        "print(stable_digest(digested.f, own='digested').hex())"
    )
    found = [
        ask(plain, str(plain), seed="1"),
        ask(plain, str(plain), seed="2"),
        ask(moved, str(moved), seed="3"),
        ask(plain, "-c", by_import, seed="4"),
        ask(plain, "-c", by_import, seed="5"),  # the second time from the compiled file
    ]
    assert len(set(found)) == 1
    plain.write_text(MODULE.replace('"gamma"', '"delta"') + ASK)
    assert ask(plain, str(plain), seed="1") != found[0]
