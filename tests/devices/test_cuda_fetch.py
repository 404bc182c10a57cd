"""Results with arrays of the device in them, on the stand-in for CuPy and a fake tensor."""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest

from hasfaas.devices.cuda_fetch import fetch
from tests.fakes import standin_cupy
from tests.fakes.torch_cuda import FakeTensor, FakeTorch


class Pair(NamedTuple):
    left: Any
    right: Any


@attrs.frozen
class Frozen:
    array: Any
    label: str = "cat"
    late: Any = attrs.field(init=False, default=None)


@dataclasses.dataclass(frozen=True)
class Data:
    array: Any
    label: str = "cat"


@dataclasses.dataclass
class Output(collections.OrderedDict[str, Any]):
    """As transformers' ModelOutput: a dict and a dataclass."""

    logits: Any = None

    def __post_init__(self) -> None:
        self["logits"] = self.logits

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        return type(self), (self.logits,)


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    with standin_cupy.imported() as made:
        modules: dict[str, Any] = sys.modules
        modules["torch"] = FakeTorch(made)
        yield made


def _is_host(value: object, expected: list[float]) -> bool:
    return isinstance(value, np.ndarray) and bool(np.array_equal(value, expected))


def test_an_array_alone_becomes_a_numpy_array(cupy: Any) -> None:
    assert _is_host(fetch(cupy.asarray([1.0, 2.0]) * 2), [2.0, 4.0])


def test_a_tensor_of_the_gpu_becomes_one_of_the_host() -> None:
    found = fetch(FakeTensor("x", is_cuda=True))
    assert isinstance(found, FakeTensor) and not found.is_cuda and found.values == "x"
    host = FakeTensor("y", is_cuda=False)
    assert fetch(host) is host


def test_containers_keep_their_types_and_all_else(cupy: Any) -> None:
    array, other = cupy.asarray([1]), [np.ones(1)]
    pair, ordered = Pair("a", array), collections.OrderedDict(k=array)
    value: dict[str, Any] = {"t": (array, 1), "l": [array, other], "p": pair, "d": ordered}
    found: Any = fetch(value)
    assert list(found) == ["t", "l", "p", "d"]
    assert type(found["t"]) is tuple and _is_host(found["t"][0], [1])
    assert found["l"][1] is other
    assert type(found["p"]) is Pair and found["p"].left == "a" and _is_host(found["p"].right, [1])
    assert type(found["d"]) is collections.OrderedDict and _is_host(found["d"]["k"], [1])
    assert value["t"][0] is array  # the user's own value is not touched


@pytest.mark.parametrize("make", [Frozen, Data])
def test_fields_of_a_class_are_fetched(cupy: Any, make: Any) -> None:
    value = make(cupy.asarray([3]), label="dog")
    found: Any = fetch(value)
    assert type(found) is make and found.label == "dog" and _is_host(found.array, [3])
    assert isinstance(value.array, cupy.ndarray)


def test_a_field_that_init_does_not_know_is_fetched_too(cupy: Any) -> None:
    value = Frozen(1)
    object.__setattr__(value, "late", cupy.asarray([4]))
    found: Any = fetch(value)
    assert _is_host(found.late, [4])


def test_a_dict_that_is_a_dataclass_is_fetched_by_its_items(cupy: Any) -> None:
    found: Any = fetch(Output(cupy.asarray([5])))
    assert type(found) is Output
    assert _is_host(found["logits"], [5]) and _is_host(found.logits, [5])


def test_what_is_shared_stays_shared_and_is_copied_once(cupy: Any) -> None:
    array = cupy.asarray([1])
    both = [array]
    found: Any = fetch({"a": both, "b": both, "c": array})
    assert found["a"] is found["b"] and found["c"] is found["a"][0]


def test_a_value_that_holds_itself_comes_out_so(cupy: Any) -> None:
    value: list[Any] = [cupy.asarray([1])]
    value.append({"me": value})
    found: Any = fetch(value)
    assert found[1]["me"] is found and _is_host(found[0], [1])


def test_a_value_without_arrays_is_the_same_one(cupy: Any) -> None:
    for value in ([1, (2, {"a": None})], Frozen([1]), Data("x"), Pair(1, 2), Frozen, np.ones(2)):
        assert fetch(value) is value
