from __future__ import annotations

import threading
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.stacking import Arguments, groups, is_array, signature, split, stack


def call(*args: Any, **kwargs: Any) -> Arguments:
    return Arguments(args, kwargs)


def x(*shape: int, dtype: str = "float32", fill: float = 0) -> Any:
    return np.full(shape, fill, dtype)


# -- who may be stacked ------------------------------------------------------------------------------------------------


class Settings:
    """An argument of the user's own, equal by what it holds, and silent about it."""

    def __init__(self, level: int) -> None:
        self.level = level

    def __repr__(self) -> str:
        return "Settings()"


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("no text for you")


LONG = list(range(2000))
SAME = [
    (call(x(3)), call(x(3, fill=1))),
    (call(x(3), 2, flag=True), call(x(3), 2, flag=True)),
    (call(a=x(3), b=1), call(b=1, a=x(3))),
    (call(torch.zeros(3)), call(torch.ones(3))),
    (call(x()), call(x())),
    (call(), call()),
    (call(None, "a", b"b", 1.5), call(None, "a", b"b", 1.5)),
    (call({"top_k": 5, "names": ["a", "b"]}), call({"top_k": 5, "names": ["a", "b"]})),
    (call(Settings(1)), call(Settings(1))),
    (call(float("nan")), call(float("nan"))),
]
DIFFERENT = [
    (call(x(3)), call(x(4))),
    (call(x(3)), call(x(3, 1))),
    (call(x(3)), call(x(3, dtype="float64"))),
    (call(x(3)), call(torch.zeros(3))),
    (call(x(3), 1), call(x(3), 2)),
    (call(x(3), 1), call(x(3), True)),
    (call(x(3), 1), call(x(3), 1.0)),
    (call(x(3), "1"), call(x(3), 1)),
    (call(0.0), call(-0.0)),
    (call(x(3)), call(a=x(3))),
    (call(a=x(3)), call(b=x(3))),
    (call(x(3)), call(x(3), x(3))),
    (call([1, 2]), call((1, 2))),
    (call({"top_k": 5}), call({"top_k": 6})),
    (call(Settings(1)), call(Settings(2))),
    # numpy abbreviates long arrays in its texts, and lists of them with it.
    (call([np.arange(2000)]), call([np.where(np.arange(2000) == 1000, 0, np.arange(2000))])),
    (call(LONG), call([*LONG[:-1], 0])),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_calls_alike_but_for_what_is_in_their_arrays_share_an_execution(one: Arguments, other: Arguments) -> None:
    assert groups([one, other]) == [[0, 1]]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_calls_that_differ_in_anything_else_do_not(one: Arguments, other: Arguments) -> None:
    assert groups([one, other]) == [[0], [1]]


def test_what_cannot_be_compared_stands_alone() -> None:
    """What a decode hook made may be anything; a lock is not equal to a lock."""
    lock = threading.Lock()
    assert groups([call(x(3), lock), call(x(3), lock)]) == [[0], [1]]


def test_an_argument_whose_text_raises_is_compared_all_the_same() -> None:
    assert groups([call(x(3), Loud()), call(x(3), Loud())]) == [[0, 1]]


def test_groups_keep_the_order_of_arrival() -> None:
    shapes = [3, 4, 3, 5, 4, 3]
    assert groups([call(x(n)) for n in shapes]) == [[0, 2, 5], [1, 4], [3]]
    assert groups([]) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_every_call_is_in_one_group_and_groups_are_of_one_kind(kinds: list[tuple[int, int]]) -> None:
    calls = [call(x(shape), option) for shape, option in kinds]
    found = groups(calls)
    assert sorted(index for group in found for index in group) == list(range(len(calls)))
    assert all(group == sorted(group) for group in found)
    assert len(found) == len(set(kinds))
    assert all(len({kinds[index] for index in group}) == 1 for group in found)


def test_a_signature_is_hashable() -> None:
    assert hash(signature(call({"a": [1]}, x(3), flag=None))) == hash(signature(call({"a": [1]}, x(3), flag=None)))


@pytest.mark.parametrize(
    ("value", "array"), [(x(3), True), (torch.zeros(1), True), ([1.0], False), (np.float32(1), False)]
)
def test_what_is_an_array(value: object, array: bool) -> None:
    assert is_array(value) is array


# -- stacking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_get_a_new_axis_in_front(shape: tuple[int, ...], count: int, library: str) -> None:
    made = [x(*shape, fill=number) for number in range(count)]
    given = [torch.from_numpy(a.copy()) if library == "torch" else a for a in made]
    stacked = stack([call(a, "option", image=a) for a in given])
    assert stacked.args[1] == "option"
    for found in (stacked.args[0], stacked.kwargs["image"]):
        assert type(found) is type(given[0])
        assert tuple(found.shape) == (count, *shape)
        assert np.array_equal(np.asarray(found), np.stack(made))


def test_what_is_no_array_is_passed_once() -> None:
    stacked = stack([call(x(3), [1, 2], flag=True)] * 4)
    assert stacked.args[1] == [1, 2]
    assert stacked.kwargs == {"flag": True}


# -- splitting ---------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "logits labels")


def plain(value: Any) -> Any:
    """Arrays as lists, so that results can be compared."""
    if is_array(value):
        return np.asarray(value).tolist()
    if isinstance(value, tuple):
        return tuple(plain(member) for member in value)
    return {key: plain(member) for key, member in value.items()} if isinstance(value, dict) else value


ROWS = np.arange(6).reshape(3, 2)


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        (ROWS, [[0, 1], [2, 3], [4, 5]]),
        (torch.from_numpy(ROWS), [[0, 1], [2, 3], [4, 5]]),
        (np.arange(3), [0, 1, 2]),
        (["a", "b", "c"], ["a", "b", "c"]),
        ([None, [1], {}], [None, [1], {}]),
        ((ROWS, ["a", "b", "c"]), [([0, 1], "a"), ([2, 3], "b"), ([4, 5], "c")]),
        (
            {"x": ROWS, "y": (["a", "b", "c"],)},
            [{"x": [0, 1], "y": ("a",)}, {"x": [2, 3], "y": ("b",)}, {"x": [4, 5], "y": ("c",)}],
        ),
        (Pair(ROWS, ["a", "b", "c"]), [([0, 1], "a"), ([2, 3], "b"), ([4, 5], "c")]),
        ((), [(), (), ()]),
        ({}, [{}, {}, {}]),
    ],
)
def test_each_call_gets_its_row(result: Any, parts: list[Any]) -> None:
    assert [plain(part) for part in split(result, 3)] == parts


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (x(2, 5), r"an array of shape \(2, 5\)"),
        (torch.zeros(4), r"an array of shape \(4,\)"),
        (x(), r"an array of shape \(\)"),
        (["a"], "a list of 1"),
        (None, "a NoneType"),
        (1.5, "a float"),
        ("abc", "a str"),
        (np.float32(1), "a float32"),
        ((ROWS, x(2)), r"an array of shape \(2,\)"),
        ({"x": ROWS, "loss": 0.5}, "a float"),
        ({1, 2, 3}, "a set"),
    ],
)
def test_a_result_that_has_not_a_row_a_call_is_named_with_the_cure(result: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"given 3 calls and returned {words}") as caught:
        split(result, 3)
    assert caught.value.reason == "BAD_RESULT_SHAPE"
    assert "3 rows on axis 0" in str(caught.value)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.booleans())
def test_stacked_and_split_every_call_gets_its_own_back(marks: list[int], torch_too: bool) -> None:
    arrays = [torch.full((2, 3), mark) if torch_too else x(2, 3, fill=mark) for mark in marks]
    stacked = stack([call(array) for array in arrays])
    back = split({"same": stacked.args[0], "pair": (stacked.args[0] + 1, list(marks))}, len(marks))
    assert [int(part["same"][0, 0]) for part in back] == marks
    assert [(int(part["pair"][0][1, 2]), part["pair"][1]) for part in back] == [(mark + 1, mark) for mark in marks]
