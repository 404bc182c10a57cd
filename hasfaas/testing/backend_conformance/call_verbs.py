"""Every verb on every kind of function, the same on every backend."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasfaas import CancelledError, DeadlineError, FunctionError, InvalidRequestError
from hasfaas.testing.apps import verbs
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually


class CallVerbs(Area):
    """`remote`, `aio`, `spawn`, `map`, of functions, coroutines and classes."""

    def test_plain_and_remote_give_the_same(self, backend: RunningBackend) -> None:
        array = np.arange(6.0).reshape(2, 3)
        assert verbs.add(1) == verbs.add.remote(1) == 2
        assert verbs.add(1, y=4, scale=2) == verbs.add.remote(1, y=4, scale=2) == 10
        assert np.array_equal(verbs.add(array, 2), verbs.add.remote(array, 2))

    def test_aio_and_gather(self, backend: RunningBackend) -> None:
        async def gathered() -> list[Any]:
            return await asyncio.gather(*(verbs.add.aio(i) for i in range(50)))

        assert asyncio.run(gathered()) == list(range(1, 51))

    def test_aio_in_two_event_loops_one_after_the_other(self, backend: RunningBackend) -> None:
        assert [asyncio.run(verbs.add.aio(i)) for i in range(2)] == [1, 2]

    def test_coroutine_functions(self, backend: RunningBackend) -> None:
        assert verbs.slowly.remote(4) == asyncio.run(verbs.slowly(4)) == asyncio.run(verbs.slowly.aio(4)) == 5

    def test_spawn_gives_result_and_times_out(self, backend: RunningBackend, tmp_path: Path) -> None:
        call = verbs.touch.spawn(str(tmp_path / "t"), "a", wait_s=0.8)
        with pytest.raises(DeadlineError, match=r"timeout_s=0\.05; the call goes on"):
            call.result(timeout_s=0.05)
        assert not call.done()
        assert call.result(timeout_s=20) == "a"
        assert call.done()
        assert not call.cancel()

    def test_a_cancelled_call_that_waits_never_runs(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"
        first = verbs.touch.spawn(str(trace), "first", wait_s=0.8)
        eventually(trace.exists)
        others = [verbs.touch.spawn(str(trace), f"other{i}") for i in range(5)]
        last = verbs.touch.spawn(str(trace), "last")
        eventually(lambda: backend.function("verbs.touch").calls.accepted == 7)
        assert all(call.cancel() for call in others)
        with pytest.raises(CancelledError):
            others[0].result(timeout_s=5)
        assert (first.result(20), last.result(20)) == ("first", "last")
        assert trace.read_text().split() == ["first", "last"]
        assert backend.function("verbs.touch").calls.cancelled == 5

    def test_map_keeps_order_and_raises_at_its_place(self, backend: RunningBackend) -> None:
        assert list(verbs.add.map(range(200))) == list(range(1, 201))
        assert list(verbs.add.map([1, 2, 3], [10, 20])) == [11, 22]
        results = verbs.odd_only.map([1, 3, 4, 5])
        assert [next(results), next(results)] == [1, 3]
        with pytest.raises(ValueError, match="4 is even"):
            next(results)

    def test_a_first_map_deploys_once(self, backend: RunningBackend) -> None:
        assert list(verbs.add.map(range(32))) == list(range(1, 33))
        assert len(backend.function("verbs.add").replicas) == 1

    def test_classes_are_built_once_and_decode_and_encode(self, backend: RunningBackend) -> None:
        answers = [verbs.Scaler.remote("1,2.5") for _ in range(3)]
        assert {answer["text"] for answer in answers} == {"3,7.5"}
        assert [answer["calls"] for answer in answers] == [1, 2, 3]
        assert len({answer["pid"] for answer in answers}) == 1
        assert verbs.Asking.remote(5) == 15
        assert verbs.Scaler().factor == 3

    def test_nested_values_and_keywords_come_back(self, backend: RunningBackend) -> None:
        value = {"a": [1, (2.5, None)], "b": {"c": b"bytes", "d": {1, 2}}, "e": complex(1, 2), "f": "naïve"}
        args, kwargs = verbs.echo.remote(value, 7, key=[True, value])
        assert args == (value, 7)
        assert kwargs == {"key": [True, value]}

    @pytest.mark.parametrize("mib", [8, 40])
    def test_large_arrays_travel_both_ways(self, backend: RunningBackend, mib: int) -> None:
        array = np.random.default_rng(mib).integers(0, 255, size=mib << 20, dtype=np.uint8)
        assert np.array_equal(verbs.add.remote(array, 0), array)

    def test_many_arrays_in_one_call(self, backend: RunningBackend) -> None:
        rng = np.random.default_rng(1)
        arrays = [rng.normal(size=(3, n)).astype(kind) for n in (0, 1, 1000) for kind in ("f4", "f8", "i2")]
        args, _ = verbs.echo.remote(*arrays, arrays[0][:, ::2], arrays[-1].T, np.array(3.5))
        for sent, back in zip([*arrays, arrays[0][:, ::2], arrays[-1].T, np.array(3.5)], args, strict=True):
            assert sent.dtype == back.dtype
            assert np.array_equal(sent, back)

    def test_a_remote_exception_is_its_own_type(self, backend: RunningBackend) -> None:
        with pytest.raises(KeyError) as caught:
            verbs.boom.remote()
        assert isinstance(caught.value, FunctionError)
        assert caught.value.frames[-1].function == "boom"
        assert 'return {}["absent"]' in str(caught.value)
        with pytest.raises(verbs.Unlucky) as unlucky:
            verbs.boom.remote("other")
        assert (unlucky.value.number, unlucky.value.why) == (13, "so it is")
        assert verbs.boom.remote.__self__.name == "verbs.boom"

    def test_an_exception_may_be_a_value(self, backend: RunningBackend) -> None:
        answer = verbs.returns_error.remote("as a value")
        assert type(answer) is ValueError
        assert answer.args == ("as a value",)

    def test_notes_and_odd_texts_of_exceptions_come_along(self, backend: RunningBackend) -> None:
        with pytest.raises(ValueError, match="byte") as caught:
            verbs.noted.remote()
        assert caught.value.__notes__ == ["look at the file"]

    def test_the_least_of_the_replicas_is_kept(self, backend: RunningBackend) -> None:
        verbs.kept.deploy()
        eventually(lambda: len(backend.replicas("verbs.kept")) == 2)

    def test_an_example_warms_up_a_replica_before_the_first_call(self, backend: RunningBackend) -> None:
        assert verbs.Warmed.remote(7) == [1, 1, 1, 7]

    def test_leaving_a_map_early_takes_the_rest_back(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"
        verbs.touch.remote(str(trace), "warm")
        results = verbs.touch.map([str(trace)] * 1000, map(str, range(1000)), [0.05] * 1000)
        assert next(results) == "0"
        results.close()
        eventually(lambda: not backend.function("verbs.touch").queue_depth)
        assert verbs.touch.remote(str(trace), "last") == "last"
        assert len(trace.read_text().split()) < 10

    def test_a_cancelled_await_takes_the_call_back(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"

        async def cancels_the_second() -> None:
            busy = asyncio.ensure_future(verbs.touch.aio(str(trace), "first", 0.8))
            await asyncio.to_thread(eventually, trace.exists)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(verbs.touch.aio(str(trace), "second"), 0.1)
            assert await busy == "first"
            assert await verbs.touch.aio(str(trace), "third") == "third"

        asyncio.run(cancels_the_second())
        assert trace.read_text().split() == ["first", "third"]

    def test_wrong_arguments_are_refused_before_they_are_sent(self, backend: RunningBackend) -> None:
        with pytest.raises(InvalidRequestError, match=r"verbs\.add\(x, y=1, \*, scale=1\).*missing"):
            verbs.add.remote()
        with pytest.raises(InvalidRequestError, match="unexpected keyword argument 'z'"):
            verbs.add.spawn(1, z=2)
        assert verbs.add.remote(1) == 2
