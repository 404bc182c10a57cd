from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.spec import Kind
from hasfaas.executor import target as targets
from hasfaas.executor.stacking import Arguments
from hasfaas.executor.target import Target


def given(*args: Any, **kwargs: Any) -> Arguments:
    return Arguments(args, kwargs)


@pytest.fixture(autouse=True)
def _own_loop() -> Iterator[None]:
    """Each test has the replica's event loop to itself."""
    before = list(targets._loop)
    targets._loop.clear()
    yield
    for loop in targets._loop:
        loop.close()
    targets._loop[:] = before
    asyncio.set_event_loop(None)


def double(value: int, *, plus: int = 0) -> int:
    return 2 * value + plus


async def slowly(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


class Classifier:
    """With both host hooks. `made` counts instances."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.weight = 10

    def decode(self, text: str) -> int:
        return int(text)

    def __call__(self, value: int) -> int:
        return self.weight * value

    def encode(self, result: int) -> str:
        return str(result)


class Plain:
    def __call__(self, value: int) -> int:
        return value


# -- building ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.FUNCTION, Kind.COROUTINE, Kind.GENERATOR, Kind.ASYNC_GENERATOR])
def test_a_function_is_called_as_it_is(kind: Kind) -> None:
    made = Target.build(kind, double)
    assert (made.call, made.owner, made.has_host_work) == (double, double, False)


def test_a_class_is_made_once_and_its_call_is_served() -> None:
    Classifier.made = 0
    made = Target.build(Kind.CLASS, Classifier)
    assert isinstance(made.owner, Classifier)
    assert [made.run(given(value)) for value in (1, 2)] == [10, 20]
    assert Classifier.made == 1


def test_an_error_of_the_users_init_comes_as_it_is() -> None:
    class Broken:
        def __init__(self) -> None:
            raise FileNotFoundError("weights.pt")

    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        Target.build(Kind.CLASS, Broken)


# -- host hooks --------------------------------------------------------------------------------------------------------


def test_decode_and_encode_stand_around_the_call() -> None:
    made = Target.build(Kind.CLASS, Classifier)
    assert made.has_host_work
    assert made.encoded(made.run(made.decoded(given("7")))) == "70"


def test_without_hooks_arguments_and_results_pass() -> None:
    made = Target.build(Kind.CLASS, Plain)
    arguments = given(1, plus=2)
    assert not made.has_host_work
    assert made.decoded(arguments) is arguments
    assert made.encoded([1]) == [1]


@pytest.mark.parametrize(
    ("decoded", "args"),
    [((1, 2), (1, 2)), ([1, 2], ([1, 2],)), (5, (5,)), (None, (None,)), ((), ()), (((1, 2),), ((1, 2),))],
)
def test_a_tuple_from_decode_is_several_arguments_and_anything_else_is_one(decoded: Any, args: tuple[Any, ...]) -> None:
    made = Target(Kind.CLASS, double, None, decode=lambda *_, **__: decoded)
    found = made.decoded(given("x", flag=True))
    assert (found.args, found.kwargs) == (args, {})


def test_one_hook_alone_is_host_work() -> None:
    assert Target(Kind.CLASS, double, None, decode=int).has_host_work
    assert Target(Kind.CLASS, double, None, encode=str).has_host_work


# -- running -----------------------------------------------------------------------------------------------------------


def test_arguments_reach_the_call_by_position_and_name() -> None:
    assert Target.build(Kind.FUNCTION, double).run(given(3, plus=1)) == 7


def test_a_coroutine_runs_to_its_end_on_one_loop() -> None:
    seen = []

    async def work(value: int) -> int:
        seen.append(asyncio.get_running_loop())
        return await slowly(value)

    made = Target.build(Kind.COROUTINE, work)
    assert [made.run(given(value)) for value in (1, 2)] == [2, 4]
    assert seen[0] is seen[1] is targets.loop()


def test_a_class_whose_call_is_a_coroutine() -> None:
    class Async:
        async def __call__(self, value: int) -> int:
            return await slowly(value)

    assert Target.build(Kind.CLASS, Async).run(given(4)) == 8


def test_errors_of_a_coroutine_come_as_they_are() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        Target.build(Kind.COROUTINE, work).run(given())


def test_a_batch_is_one_call_of_the_users_code() -> None:
    calls = []

    def work(images: Any, scale: int) -> dict[str, Any]:
        calls.append(images.shape)
        return {"sums": images.sum(axis=1) * scale, "rows": images}

    batch = [given(np.full(3, number), 10) for number in range(4)]
    results = Target.build(Kind.FUNCTION, work).run_batch(batch)
    assert calls == [(4, 3)]
    assert [int(result["sums"]) for result in results] == [0, 30, 60, 90]


def test_a_batch_of_a_coroutine() -> None:
    async def work(images: Any) -> Any:
        await asyncio.sleep(0)
        return images * 2

    results = Target.build(Kind.COROUTINE, work).run_batch([given(np.full(2, number)) for number in range(3)])
    assert [int(result[0]) for result in results] == [0, 2, 4]


def test_a_batch_whose_result_has_no_rows_is_refused() -> None:
    made = Target.build(Kind.FUNCTION, lambda images: images.sum())
    with pytest.raises(InvalidRequestError, match="given 2 calls"):
        made.run_batch([given(np.zeros(3))] * 2)


# -- streaming ---------------------------------------------------------------------------------------------------------

left: list[str] = []


def count(to: int) -> Iterator[int]:
    try:
        yield from range(to)
    finally:
        left.append("count")


async def acount(to: int) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await asyncio.sleep(0)
            yield number
    finally:
        await asyncio.sleep(0)
        left.append("acount")


class Counter:
    def __call__(self, to: int) -> Iterator[int]:
        return count(to)


class AsyncCounter:
    async def __call__(self, to: int) -> AsyncIterator[int]:
        async for number in acount(to):
            yield number


class Ticks:
    """An asynchronous iterator without `aclose`, which only generators have."""

    def __init__(self, to: int) -> None:
        self.left = to

    def __aiter__(self) -> Ticks:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


STREAMS = [
    (Kind.GENERATOR, count, [0, 1, 2]),
    (Kind.ASYNC_GENERATOR, acount, [0, 1, 2]),
    (Kind.GENERATOR_CLASS, Counter, [0, 1, 2]),
    (Kind.GENERATOR_CLASS, AsyncCounter, [0, 1, 2]),
    (Kind.ASYNC_GENERATOR, Ticks, [2, 1, 0]),
    (Kind.GENERATOR, lambda to: list(range(to)), [0, 1, 2]),
]


@pytest.mark.parametrize(("kind", "loaded", "items"), STREAMS)
def test_items_come_one_by_one_whatever_makes_them(kind: Kind, loaded: Any, items: list[int]) -> None:
    assert list(Target.build(kind, loaded).items(given(3))) == items


@pytest.mark.parametrize(
    ("kind", "loaded", "name"), [(Kind.GENERATOR, count, "count"), (Kind.ASYNC_GENERATOR, acount, "acount")]
)
def test_leaving_early_runs_the_users_finally(kind: Kind, loaded: Any, name: str) -> None:
    left.clear()
    items: Any = Target.build(kind, loaded).items(given(1000))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert left == [name]


def test_an_error_comes_after_the_items_before_it() -> None:
    async def fails() -> AsyncIterator[int]:
        yield 1
        raise KeyError("why")

    items = Target.build(Kind.ASYNC_GENERATOR, fails).items(given())
    assert next(items) == 1
    with pytest.raises(KeyError, match="why"):
        next(items)


def test_two_asynchronous_streams_can_be_read_in_turns() -> None:
    made = Target.build(Kind.ASYNC_GENERATOR, acount)
    one, two = made.items(given(3)), made.items(given(3))
    assert list(zip(one, two, strict=True)) == [(0, 0), (1, 1), (2, 2)]
